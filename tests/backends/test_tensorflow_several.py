"""Several batches of a Keras model in one call, held against one call a batch."""

import signal

import numpy as np
import pytest

import modularml as mm
from modularml.callbacks import Callback
from modularml.errors import NonFiniteLossError
from tests.worlds import QUIET, arrays, featureset, train_phase

keras = pytest.importorskip("keras")
tensorflow_step = pytest.importorskip("modularml.backends.tensorflow_step")

N, BATCH, EPOCHS = 330, 16, 60  # 21 batches, the last of 10 rows


class Calls(list):
    """Numbers of batches; one of the calls raises a signal."""

    signal_at = None

    def append(self, n):
        super().append(n)
        if len(self) == self.signal_at:
            signal.raise_signal(signal.SIGINT)


class Looks(Callback):
    """Reads each batch, so that there is a call for each."""

    def on_batch_end(self, **facts):
        pass


@pytest.fixture(autouse=True)
def _as_in_a_terminal():
    """What a shell starts in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def calls(monkeypatch):
    """Record how many batches each call for several trains on."""
    found, original = Calls(), tensorflow_step.several_steps

    def several_steps(*args, **kwargs):
        several = original(*args, **kwargs)

        def call(inputs, like):
            found.append(len(inputs))
            return several(inputs, like)

        return call

    monkeypatch.setattr("modularml.backends.tensorflow_step.several_steps", several_steps)
    return found


def network(layer=None):
    keras.utils.set_random_seed(0)
    layers = [
        keras.Input((6,)),
        keras.layers.Dense(8, "tanh"),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.2),
        *([] if layer is None else [layer]),
        keras.layers.Dense(1),
    ]
    return keras.Sequential(layers)


def world(*, bad_row=None, folder=None, layer=None, **kwargs):
    """An experiment and its phase, in a context of their own; one with a folder can resume."""
    x, y = arrays(n=N)
    if bad_row is not None:
        y[bad_row] = np.nan
    ctx = mm.ExperimentContext()
    with ctx.activate():
        node = mm.ModelNode("net", network(layer), featureset(x, y))
        made = mm.ModelGraph([node], mm.Optimizer("adam", opt_kwargs={"learning_rate": 0.01}))
        made.build()
        shuffle = bad_row is None
        phase = train_phase(made, n_epochs=EPOCHS, shuffle=shuffle, batch_size=BATCH, **kwargs)
        exp = mm.Experiment.from_active_context("exp", audit="off")
        exp.execution_plan.add_phase(phase)
        if folder is not None:
            exp.set_checkpointing(
                mm.Checkpointing(mode="disk", save_on="phase_end", directory=folder)
            )
    keras.utils.set_random_seed(3)
    return exp


def weights(exp):
    return exp.model_graph.get_node("net").model.get_weights()


def assert_same_weights(one, other, atol=0.0):
    for name, value in weights(one).items():
        np.testing.assert_allclose(weights(other)[name], value, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("compiles", [False, True])
def test_losses_outputs_and_weights_are_those_of_one_call_a_batch(calls, compiles):
    alone, together = world(callbacks=[Looks()], compile=compiles), world(compile=compiles)
    tables = []
    for exp in (alone, together):
        keras.utils.set_random_seed(3)
        results = exp.run(**QUIET)["train"]
        outputs = [t.numpy() for t in results.tensors("net", "outputs").values()]
        tables.append((np.concatenate(outputs), list(results.metrics().values())))
    assert calls == [19] + [20] * (EPOCHS - 1)
    assert tables[0][0].shape == (EPOCHS * N, 1)
    atol = 1e-2 if compiles else 1e-5
    np.testing.assert_allclose(tables[1][0], tables[0][0], atol=atol)
    np.testing.assert_allclose(tables[1][1], tables[0][1], atol=atol)
    assert_same_weights(alone, together, atol)


def test_a_loss_that_is_not_finite_is_raised_with_its_batch_and_changes_no_weight(calls):
    runs = [world(bad_row=7 * BATCH, callbacks=[Looks()]), world(bad_row=7 * BATCH)]
    for exp in runs:
        with pytest.raises(NonFiniteLossError, match="batch 7"):
            exp.run(**QUIET)
    assert calls == [19]
    assert_same_weights(*runs, 1e-6)
    assert np.isfinite(np.concatenate([np.ravel(v) for v in weights(runs[1]).values()])).all()


def test_a_resume_without_random_states_is_logged(calls, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("modularml._private.keras.PUBLIC_ONLY", True)
    calls.signal_at = 4
    with pytest.raises(KeyboardInterrupt):
        world(folder=tmp_path).run(**QUIET)
    assert "no random states of TensorFlow" not in caplog.text
    world(folder=tmp_path).run(resume="auto", **QUIET)
    assert "no random states of TensorFlow" in caplog.text


def test_a_signal_ends_it_after_a_call_and_it_resumes_to_the_same_bits(calls, tmp_path):
    whole, cut, again = world(), world(folder=tmp_path), world(folder=tmp_path)
    keras.utils.set_random_seed(3)
    whole.run(**QUIET)
    calls.signal_at = EPOCHS + 4
    keras.utils.set_random_seed(3)
    with pytest.raises(KeyboardInterrupt):
        cut.run(**QUIET)
    assert len(calls) == EPOCHS + 4
    again.run(resume="auto", **QUIET)
    assert len(calls) == 2 * EPOCHS
    assert_same_weights(whole, again)


@keras.saving.register_keras_serializable("tests")
class Rows(keras.layers.Layer):
    """Cannot be traced where the number of rows is known, as in a loop over batches."""

    def call(self, x):
        if keras.backend.backend() == "tensorflow" and x.shape[0] == BATCH:
            raise TypeError("no loops")
        return x


def test_a_model_that_cannot_be_traced_so_is_trained_one_batch_a_call(calls, caplog):
    caplog.set_level("INFO")
    runs = [world(layer=Rows()), world(layer=Rows(), callbacks=[Looks()])]
    for exp in runs:
        keras.utils.set_random_seed(3)
        exp.run(**QUIET)
    assert calls == [19] + [20] * (EPOCHS - 1)
    assert caplog.text.count("batches are trained one a call: ") == 1
    assert_same_weights(*runs)


def paired(kind, looks):
    """Losses and weights of a run in which several batches a call meet another feature."""
    keras.utils.set_random_seed(0)
    x, y = arrays(n=N)
    ids = np.arange(N) % 9
    regularizer = keras.regularizers.L2(0.1) if kind == "regularizers" else None
    rate = keras.optimizers.schedules.ExponentialDecay(0.05, 100, 0.5)
    options = {"learning_rate": rate if kind == "schedule" else 0.01}
    options |= {"use_ema": True, "ema_overwrite_frequency": 7} if kind == "averages" else {}
    options |= {"clipnorm": 0.1} if kind == "clipping" else {}
    with mm.ExperimentContext().activate():
        fs = mm.FeatureSet.from_dict("s", {"x": x, "id": ids, "y": y}, ["x", "id"], "y")
        dense = keras.layers.Dense(8, "tanh", kernel_regularizer=regularizer)
        layers = [keras.Input((6,)), dense, keras.layers.Dense(1)]
        if kind == "embedding":
            embed = keras.layers.Embedding(9, 4)
            layers = [keras.Input((1,), dtype="int64"), embed, keras.layers.Flatten(), layers[2]]
        key = "id" if kind == "embedding" else "x"
        node = mm.ModelNode("net", keras.Sequential(layers), fs.reference(features=key))
        graph = mm.ModelGraph([node], mm.Optimizer("adam", opt_kwargs=options))
        graph.build()
        limit = {"limit_batches": 0.5} if kind == "limit" else {}
        callbacks = [Looks()] if looks else []
        phase = train_phase(graph, n_epochs=EPOCHS, shuffle=True, callbacks=callbacks, **limit)
        exp = mm.Experiment.from_active_context("exp", audit="off")
        losses = exp.run_phase(phase, **QUIET).metrics().values()
    return list(losses), np.concatenate([np.ravel(v) for v in weights(exp).values()])


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["embedding", "regularizers", "schedule", "averages", "clipping", "limit"]
)
def test_with_other_features(kind, calls, monkeypatch):
    monkeypatch.setattr("modularml.engine.loop._FEWEST_STEPS", 100)
    losses, own = paired(kind, looks=True)
    assert not calls
    found, together = paired(kind, looks=False)
    assert len(calls) == EPOCHS
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    np.testing.assert_allclose(together, own, rtol=0, atol=1e-6)
