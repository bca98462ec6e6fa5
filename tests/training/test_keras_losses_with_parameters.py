"""Losses of Keras that bring parameters of their own learn as those of torch do."""

from typing import ClassVar

import numpy as np
import pytest

import modularml as mm
from modularml.backends import adapter_for
from modularml.callbacks import Callback
from modularml.errors import LossError
from tests.worlds import QUIET, arrays, bindings, eval_phase, experiment, featureset, slices

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
keras_worlds = pytest.importorskip("tests.keras_worlds")


class Uncertainty(keras.losses.Loss):
    def __init__(self, start=0.0, **kwargs):
        super().__init__(**kwargs)
        self.logvar = keras.Variable(start, name="logvar")

    def call(self, y_true, y_pred):
        return (y_pred - y_true) ** 2 * tf.exp(-self.logvar) + self.logvar


class AsLayer(keras.layers.Layer):
    """The same as a layer, called with outputs and targets."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.logvar = self.add_weight(shape=(), initializer="zeros", name="logvar")

    def call(self, out, target):
        return (out - target) ** 2 * tf.exp(-self.logvar) + self.logvar


class Late(keras.losses.Loss):
    """One whose layer has no weights before it is called."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.head = keras.layers.Dense(1)

    def call(self, y_true, y_pred):
        return (self.head(y_pred) - y_true) ** 2


class Raw(keras.losses.Loss):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.logvar = tf.Variable(0.0)

    def call(self, y_true, y_pred):
        return (y_pred - y_true) ** 2 + self.logvar


WAYS = {
    "object": lambda: mm.Loss(Uncertainty()),
    "class": lambda: mm.Loss(Uncertainty, loss_kwargs={"start": 0.0}),
    "factory": lambda: mm.Loss(factory=Uncertainty, backend="tensorflow"),
    "layer": lambda: mm.Loss(AsLayer()),
}


def world(loss, own="graph"):
    x, y = arrays()
    fs = featureset(x, y)
    fs.split_random({"train": 0.8, "val": 0.2}, seed=0)
    model = keras_worlds.net()
    optimizer = mm.Optimizer("adam", opt_kwargs={"learning_rate": 0.05}, backend="tensorflow")
    node = mm.ModelNode("net", model, fs, optimizer if own == "node" else None)
    graph = mm.ModelGraph([node], optimizer if own == "graph" else None)
    return fs, model, graph


def phase_of(graph, loss, n_epochs=1, **kwargs):
    applied = mm.AppliedLoss(loss, on="net", inputs=["outputs", "targets"], label="own")
    sources = bindings(graph, mm.SimpleSampler(batch_size=16), kwargs.pop("split", None))
    return mm.TrainPhase("t", input_sources=sources, losses=[applied], n_epochs=n_epochs, **kwargs)


def by_hand(model, x, y, epochs):
    loss = Uncertainty(reduction="none")
    optimizer = keras.optimizers.Adam(0.05)
    moved = [*model.trainable_variables, loss.logvar]
    for _ in range(epochs):
        for part in slices(len(x), 16):
            with tf.GradientTape() as tape:
                value = tf.reduce_mean(loss(y[part], model(x[part])))
            optimizer.apply_gradients(zip(tape.gradient(value, moved), moved, strict=True))
    return loss.logvar.numpy()


class Starts(Callback):
    """Notes the parameter of the loss before the first batch."""

    seen: ClassVar[list] = []

    def on_epoch_start(self, *, phase, **facts):
        loss = phase.losses[0].loss
        loss.resolve(adapter_for("tensorflow").backend)
        (value,) = loss.parameters().values()
        self.seen.append((float(value.numpy()), value))


def own(loss):
    (value,) = loss.parameters().values()
    return value.numpy()


@pytest.mark.parametrize("options", [{}, {"accumulate": 1, "on_nonfinite": "skip"}])
@pytest.mark.parametrize("where", ["graph", "node"])
@pytest.mark.parametrize("way", WAYS)
def test_they_learn(way, where, options):
    x, y = arrays()
    loss = WAYS[way]()
    _, model, graph = world(loss, where)
    graph.build()
    theirs = keras_worlds.twin(model)
    run, phase = experiment(), phase_of(graph, loss, 2, **options)
    run.run_phase(phase, **QUIET)
    run.run_phase(phase, **QUIET)
    wanted = by_hand(theirs, x, y, 4)
    assert wanted != 0.0
    assert own(loss) == pytest.approx(wanted, abs=1e-5)
    keras_worlds.assert_equal_weights(theirs, model)


def test_a_state_and_a_checkpoint_have_them(tmp_path):
    loss = WAYS["object"]()
    _, _, graph = world(loss)
    run, phase = experiment(), phase_of(graph, loss)
    run.run_phase(phase, **QUIET)
    state, value = graph.get_state(), own(loss)
    path = graph.save_checkpoint(tmp_path / "one")
    run.run_phase(phase, **QUIET)
    moved = own(loss)
    assert moved != value
    graph.set_state(state)
    assert own(loss) == value
    run.run_phase(phase, **QUIET)
    assert own(loss) == moved
    graph.restore_checkpoint(path)
    assert own(loss) == value


@pytest.mark.parametrize("way", ["object", "class", "layer"])
def test_folds_begin_anew(way):
    loss = WAYS[way]()
    fs, _, graph = world(loss)
    Starts.seen = []
    phase = phase_of(graph, loss, split="train", callbacks=[Starts()])
    experiment().run_phase(phase, **QUIET)
    moved = own(loss)
    cv = mm.CrossValidation(bindings=mm.CVBinding(fs, ["train", "val"]), phase=phase, n_folds=2)
    results = cv.run(show_fold_progress=False, **QUIET)
    assert not results.failed_folds
    assert own(loss) == moved
    assert [start for start, _ in Starts.seen] == [0.0, 0.0, 0.0]
    assert len({id(v) for _, v in Starts.seen}) == 3


def test_folds_keep_what_keras_does_not_note_of_a_loss():
    class Scaled(Uncertainty):
        def __init__(self, factor=1.0, **kwargs):
            super().__init__(**kwargs)
            self.factor = factor

        def call(self, y_true, y_pred):
            return self.factor * super().call(y_true, y_pred)

    again = adapter_for("tensorflow").copied(Scaled(3.0), {})
    assert again.factor == 3.0


@pytest.mark.parametrize(("cls", "match"), [(Late, "build it first"), (Raw, "keras.Variable")])
def test_those_that_no_optimizer_could_move_are_refused_before_training(cls, match):
    loss = mm.Loss(cls())
    _, _, graph = world(loss)
    with pytest.raises(LossError, match=match):
        experiment().run_phase(phase_of(graph, loss), **QUIET)


def test_a_layer_that_was_built_beforehand_learns():
    late = Late()
    late.head.build((None, 1))
    before = late.head.kernel.numpy().copy()
    loss = mm.Loss(late)
    _, _, graph = world(loss)
    experiment().run_phase(phase_of(graph, loss), **QUIET)
    assert late.head.kernel.numpy() != before


def test_an_evaluation_reads_what_was_learned():
    loss = WAYS["object"]()
    _, model, graph = world(loss)
    run = experiment()
    run.run_phase(phase_of(graph, loss), **QUIET)
    applied = mm.AppliedLoss(loss, on="net", inputs=["outputs", "targets"], label="own")
    x, y = arrays()
    out, log = model(x).numpy(), own(loss)
    wanted = np.mean((out - y) ** 2 * np.exp(-log) + log)
    found = run.run_phase(eval_phase(graph, [applied]), **QUIET).aggregated_losses("net")["own"]
    assert found == pytest.approx(wanted, rel=1e-5)
