"""What Keras does outside a call, held against its own `fit` and `evaluate`."""

import numpy as np
import pytest

import modularml as mm
from modularml.callbacks import EvalLossMetric, Evaluation
from modularml.errors import BackendNotSupportedError
from tests import worlds
from tests.worlds import QUIET, AtEpoch, mse, train_phase

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
pytest.importorskip("tests.keras_worlds")
L, R = keras.layers, keras.regularizers


@keras.saving.register_keras_serializable("tests")
class Shrink(L.Layer):
    """Adds to the loss what it lets through, in training more than in evaluation."""

    def call(self, x, training=False):
        self.add_loss((0.3 if training else 0.1) * keras.ops.mean(x**2))
        return x


def experiment(label="exp"):
    return worlds.experiment(label, audit="off")


def numbers(n=40, d=4, out=1, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)).astype("f4")
    return x, (x[:, :out] + 0.1 * rng.normal(size=(n, out))).astype("f4")


def graph(model, x, y, opt="sgd", **kwargs):
    columns = {"x": x, "y": y if y.shape[1:] != (1,) else y[:, 0]}
    fs = mm.FeatureSet.from_dict("fs", columns, "x", "y")
    fs.add_split(fs.take(range(len(x)), label="all"))
    optimizer = opt if isinstance(opt, mm.Optimizer) else mm.Optimizer(opt, **kwargs)
    made = mm.ModelGraph([mm.ModelNode("net", model, fs)], optimizer)
    made.build()
    return made


def phase(made, label="t", **kwargs):
    return train_phase(made, label=label, batch_size=8, **kwargs)


def fit(model, weights, optimizer, x, y, *, epochs=3, loss="mse", **kwargs):
    """Return the history of Keras' own training from some weights."""
    model(x[:1, None])
    model.set_weights(weights)
    model.compile(optimizer, loss, **kwargs)
    data = {"batch_size": 8, "shuffle": False, "verbose": 0}
    return model.fit(x[:, None], y, epochs=epochs, validation_data=(x[:, None], y), **data).history


def assert_same(model, other, atol=2e-6):
    for mine, theirs in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=atol)


def network(seed=0, **kwargs):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([L.Flatten(), L.Dense(6, "tanh", **kwargs), L.Dense(1)])


OWN_LOSSES = {
    "kernel": lambda: network(kernel_regularizer=R.L2(0.5)),
    "bias": lambda: network(bias_regularizer=R.L1(0.2), kernel_regularizer=R.L1L2(0.1, 0.2)),
    "activity": lambda: network(activity_regularizer=R.L2(0.05)),
    "layer": lambda: keras.Sequential(
        [L.Flatten(), L.ActivityRegularization(l1=0.02), L.Dense(3), Shrink(), L.Dense(1)]
    ),
    "nested": lambda: keras.Sequential([L.Flatten(), keras.Sequential([Shrink(), L.Dense(1)])]),
}


def validation(label="val"):
    return Evaluation.from_split(label, split="all", metrics=[EvalLossMetric(loss=mse())])


@pytest.mark.parametrize(
    ("kind", "compiles"), [*((kind, False) for kind in OWN_LOSSES), ("layer", True)]
)
def test_losses_of_a_model_join_training_and_evaluation_as_in_fit(kind, compiles):
    x, y = numbers()
    model = OWN_LOSSES[kind]()
    made = graph(model, x, y, opt_kwargs={"lr": 0.05})
    weights = model.get_weights()
    watch = validation()
    asked = phase(made, n_epochs=3, compile=compiles, callbacks=[watch])
    result = experiment().run_phase(asked, **QUIET)
    other = OWN_LOSSES[kind]()
    history = fit(other, weights, keras.optimizers.SGD(0.05), x, y)
    assert_same(model, other)
    for name, theirs in (("train_loss", "loss"), ("val_loss", "val_loss")):
        np.testing.assert_allclose(result.to_pandas()[name], history[theirs], rtol=1e-5)
    assert {r.label for r in result.losses("net").values()} == {"mse_net", "model_losses_net"}


def own(name):
    def method(self, *args, **kwargs):
        raise AssertionError(name)

    return type("Own", (keras.Sequential,), {name: method})([L.Flatten(), L.Dense(1)])


@pytest.mark.parametrize("name", ["train_step", "compute_loss", "test_step"])
def test_ways_of_a_model_to_train_are_refused_by_name_before_any_training(name):
    x, y = numbers()
    model = own(name)
    made = graph(model, x, y)
    before = model.get_weights()
    with pytest.raises(BackendNotSupportedError, match=f"node 'net': Own overrides {name}"):
        experiment().run_phase(phase(made, n_epochs=2), **QUIET)
    np.testing.assert_array_equal(model.get_weights()[0], before[0])
    assert len(made.predict({"x": x})) == len(x)


def test_a_way_to_predict_is_refused_by_name():
    x, y = numbers()
    made = graph(own("predict_step"), x, y)
    with pytest.raises(BackendNotSupportedError, match="predict_step"):
        made.predict({"x": x})


def test_settings_of_compile_are_said_to_be_unused_once():
    x, y = numbers()
    model = network()
    model.compile("adam", "mae", metrics=["mse"])
    made = graph(model, x, y)
    exp = experiment()
    with pytest.warns(UserWarning, match=r"compile\(\)"):
        exp.run_phase(phase(made, label="a"), **QUIET)
    exp.run_phase(phase(made, label="b"), **QUIET)


@pytest.mark.parametrize("more", [{}, {"ema_overwrite_frequency": 4}, {"weight_decay": 0.1}])
def test_averages_of_an_optimizer_are_taken_over_at_the_end_as_in_fit(more):
    x, y = numbers()
    model = network()
    kwargs = {"use_ema": True, "ema_momentum": 0.8, **more}
    made = graph(model, x, y, "adam", opt_kwargs={"learning_rate": 0.05, **kwargs})
    weights = model.get_weights()
    exp = experiment()
    exp.run_phase(phase(made, n_epochs=2), **QUIET)
    other, optimizer = network(), keras.optimizers.Adam(0.05, **kwargs)
    fit(other, weights, optimizer, x, y, epochs=2)
    assert_same(model, other)
    exp.run_phase(phase(made, label="again", n_epochs=1), **QUIET)
    other.fit(x[:, None], y, batch_size=8, epochs=1, shuffle=False, verbose=0)
    assert_same(model, other)


def test_averages_are_saved_and_resumed():
    x, y = numbers()
    model = network()
    kwargs = {"learning_rate": 0.05, "use_ema": True, "ema_momentum": 0.8}
    made = graph(model, x, y, "adam", opt_kwargs=kwargs)
    experiment().run_phase(phase(made, n_epochs=3), **QUIET)
    slots = made.optimizer.get_state()
    assert any("average" in slot for own in slots["moments"].values() for slot in own)
    state = made.get_state()
    experiment("next").run_phase(phase(made, label="next"), **QUIET)
    want = model.get_weights()
    made.set_state(state)
    experiment("other").run_phase(phase(made, label="other"), **QUIET)
    for mine, theirs in zip(model.get_weights(), want, strict=True):
        np.testing.assert_array_equal(mine, theirs)


IDS = np.arange(40) % 7
OPTIONS = {
    "plain": ({}, {}),
    "skip": ({}, {"on_nonfinite": "skip"}),
    "xla": ({}, {"compile": True}),
    "norm": ({"global_clipnorm": 0.3}, {}),
    "value": ({"clipvalue": 0.05}, {}),
}
_CLIPS = {"global_clipnorm": "clip_norm", "clipvalue": "clip_value"}


def embedding():
    keras.utils.set_random_seed(1)
    return keras.Sequential([L.Reshape((1,)), L.Embedding(7, 3), L.Flatten(), L.Dense(1)])


@pytest.mark.parametrize("option", OPTIONS)
def test_an_embedding_trains_with_every_option_as_in_fit(option):
    settings, how = OPTIONS[option]
    y = (IDS * 0.5).astype("f4")
    model = embedding()
    limits = {_CLIPS[name]: value for name, value in settings.items()}
    made = graph(model, IDS, y, "adam", opt_kwargs={"learning_rate": 0.1}, **limits)
    weights = model.get_weights()
    experiment().run_phase(phase(made, n_epochs=3, **how), **QUIET)
    other = embedding()
    fit(other, weights, keras.optimizers.Adam(0.1, **settings), IDS, y)
    assert_same(model, other, atol=1e-5)


def test_an_embedding_accumulates_and_computes_in_half_the_bits():
    y = (IDS * 0.5).astype("f4")
    model = embedding()
    made = graph(model, IDS, y, opt_kwargs={"learning_rate": 0.1})
    weights = model.get_weights()
    experiment().run_phase(phase(made, n_epochs=2, accumulate=2), **QUIET)
    other = embedding()
    other(IDS[:1, None])
    other.set_weights(weights)
    other.compile(keras.optimizers.SGD(0.1), "mse")
    for _ in range(2):
        for at in (slice(0, 16), slice(16, 32), slice(32, 40)):
            other.train_on_batch(IDS[at, None], y[at])
    assert_same(model, other, atol=1e-5)
    experiment("half").run_phase(phase(made, label="half", precision="fp16"), **QUIET)
    other.fit(IDS[:, None], y, batch_size=8, epochs=1, shuffle=False, verbose=0)
    assert_same(model, other, atol=3e-3)


class Counting(L.Layer):
    """Counts how often it is traced."""

    traced = 0

    def call(self, x):
        Counting.traced += 1
        return x


def test_one_trace_serves_any_number_of_rows():
    x, y = numbers()
    made = graph(keras.Sequential([L.Flatten(), Counting(), L.Dense(1)]), x, y)
    whole = made.predict({"x": x})
    before = Counting.traced
    for n in range(1, 12):
        np.testing.assert_allclose(made.predict({"x": x[:n]}), whole[:n], atol=1e-6)
    assert Counting.traced == before
    exp = experiment()
    exp.run_phase(train_phase(made, label="a", batch_size=7, n_epochs=1), **QUIET)  # 7 and 5 rows
    after = Counting.traced
    exp.run_phase(train_phase(made, label="b", batch_size=11, n_epochs=2), **QUIET)
    assert Counting.traced - after <= after - before  # another phase, another plan: no more


def sequences(n=24, length=6, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, length + 1, n)
    mask = np.arange(length) < lengths[:, None]
    x = np.where(mask, rng.normal(size=(n, length)), 0).astype("f4")
    return x, np.cumsum(x, axis=1).astype("f4"), mask


def masking():
    keras.utils.set_random_seed(2)
    layers = [L.Reshape((6, 1)), L.Masking(0.0), L.GRU(4, return_sequences=True), L.Dense(1)]
    return keras.Sequential(layers)


def pointwise():
    keras.utils.set_random_seed(2)
    return keras.Sequential([L.Reshape((6, 1)), L.Masking(0.0), L.Dense(4, "tanh"), L.Dense(1)])


@pytest.mark.parametrize(
    ("made_by", "loss", "compiles"),
    [(masking, "mse", False), (masking, "MeanAbsoluteError", False), (pointwise, "mse", True)],
)
def test_masks_of_layers_reach_the_loss_as_in_fit(made_by, loss, compiles):
    x, y, _ = sequences()
    model = made_by()
    made = graph(model, x, y[..., None], "adam", opt_kwargs={"learning_rate": 0.02})
    weights = model.get_weights()
    applied = mm.AppliedLoss(mm.Loss(loss), on="net", inputs=["outputs", "targets"])
    asked = phase(made, n_epochs=2, losses=[applied], compile=compiles)
    result = experiment().run_phase(asked, **QUIET)
    other = made_by()
    history = fit(other, weights, keras.optimizers.Adam(0.02), x, y[..., None], epochs=2, loss=loss)
    assert_same(model, other)
    np.testing.assert_allclose(result.to_pandas()["train_loss"], history["loss"], rtol=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_keras_says_where_a_model_destroys_the_mask_of_the_one_before(frozen):
    x, y, _ = sequences()
    front = keras.Sequential([L.Reshape((6, 1)), L.Masking(0.0)])
    fs = mm.FeatureSet.from_dict("fs", {"x": x, "y": y[..., None]}, "x", "y")
    first = mm.ModelNode("front", front, fs)
    second = mm.ModelNode("net", keras.Sequential([L.Dense(1)]), first)
    made = mm.ModelGraph([first, second], mm.Optimizer("sgd", opt_kwargs={"lr": 0.05}))
    made.build()
    if frozen:
        first.freeze()
    with pytest.warns(UserWarning, match="destroy the mask"):
        experiment().run_phase(phase(made, n_epochs=2), **QUIET)


def test_a_scaled_loss_gives_the_same_weights_as_in_fit():
    x, y = numbers()
    model = network()
    scaled = {"learning_rate": 0.05, "loss_scale_factor": 128.0}
    made = graph(model, x, y, opt_kwargs=scaled)
    weights = model.get_weights()
    experiment().run_phase(phase(made, n_epochs=3), **QUIET)
    other = network()
    fit(other, weights, keras.optimizers.SGD(0.05), x, y)
    assert_same(model, other)
    with pytest.raises(BackendNotSupportedError, match="precision='fp16'"):
        experiment("c").run_phase(phase(made, label="c", accumulate=2), **QUIET)


def test_a_model_of_mixed_float16_scales_its_loss_as_fit_does():
    x, y = numbers()
    policy = keras.DTypePolicy("mixed_float16")

    def half():
        keras.utils.set_random_seed(0)
        hidden = L.Dense(6, "tanh", dtype=policy)
        return keras.Sequential([L.Flatten(), hidden, L.Dense(1, dtype="float32")])

    model = half()
    made = graph(model, x * 1e-3, y * 1e-6, "adam", opt_kwargs={"learning_rate": 0.01})
    weights = model.get_weights()
    experiment().run_phase(phase(made, n_epochs=2), **QUIET)
    other = half()
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01), initial_scale=2.0**16)
    fit(other, weights, scaled, x * 1e-3, y * 1e-6, epochs=2)
    assert_same(model, other, atol=2e-4)


def test_a_stateful_layer_is_refused_by_name():
    x, y, _ = sequences()
    model = keras.Sequential(
        [L.Reshape((6, 1)), L.GRU(4, stateful=True, name="memory"), L.Dense(1)]
    )
    with pytest.raises(BackendNotSupportedError, match=r"memory.*stateful"):
        graph(model, x, y[:, -1])


def test_norms_constraints_and_switched_off_layers_are_as_in_fit():
    def deep():
        keras.utils.set_random_seed(3)
        off = L.BatchNormalization(name="off")
        off.trainable = False
        limited = L.Dense(6, "tanh", kernel_constraint=keras.constraints.MaxNorm(0.5))
        return keras.Sequential([L.Flatten(), L.BatchNormalization(), limited, off, L.Dense(1)])

    x, y = numbers()
    model = deep()
    made = graph(model, x, y, "adamw", opt_kwargs={"learning_rate": 0.05, "weight_decay": 0.1})
    weights = model.get_weights()
    experiment().run_phase(phase(made, n_epochs=3), **QUIET)
    other = deep()
    fit(other, weights, keras.optimizers.AdamW(0.05, weight_decay=0.1), x, y)
    assert_same(model, other, atol=1e-5)


def test_a_layer_switched_off_between_phases_stays():
    x, y = numbers()
    model = network()
    made = graph(model, x, y, "adam", opt_kwargs={"learning_rate": 0.05})
    exp, asked = experiment(), phase(made, n_epochs=1)
    exp.run_phase(asked, **QUIET)
    model.layers[1].trainable = False
    before, head = model.layers[1].get_weights(), model.layers[2].get_weights()
    exp.run_phase(asked, **QUIET)
    np.testing.assert_array_equal(model.layers[1].get_weights()[0], before[0])
    assert not np.array_equal(model.layers[2].get_weights()[0], head[0])


# -- what changes after a plan was made ----------------------------------------------------------


def by_hand(model, optimizer, x, y, epochs=1):
    """Train what is trainable now, as people write it."""
    optimizer.build(model.trainable_variables)
    for _ in range(epochs):
        for at in range(0, len(x), 8):
            with tf.GradientTape() as tape:
                out = model(x[at : at + 8, None], training=True)
                loss = tf.reduce_mean((out - y[at : at + 8]) ** 2)
            moved = model.trainable_variables
            optimizer.apply_gradients(zip(tape.gradient(loss, moved), moved, strict=True))


def switch(place, trainable):
    def change(model):
        model.layers[place].trainable = trainable

    return change


@pytest.mark.parametrize("where", ["between phases", "within a phase"])
@pytest.mark.parametrize("first", [True, False], ids=["off", "on"])
def test_layers_switched_after_the_first_epoch_are_as_by_hand(where, first):
    x, y = numbers()
    model, other = network(), network()
    made = graph(model, x, y, "sgd", opt_kwargs={"learning_rate": 0.05})
    other(x[:1, None])
    other.set_weights(model.get_weights())
    before, after = switch(1, first), switch(1, not first)
    exp = experiment()
    before(model)
    if where == "within a phase":
        exp.run_phase(
            phase(made, n_epochs=3, callbacks=[AtEpoch(1, lambda: after(model))]), **QUIET
        )
    else:
        asked = phase(made, n_epochs=1)
        exp.run_phase(asked, **QUIET)
        after(model)
        exp.run_phase(asked, **QUIET)
        exp.run_phase(asked, **QUIET)
    before(other)
    by_hand(other, keras.optimizers.SGD(0.05), x, y)
    after(other)
    by_hand(other, keras.optimizers.SGD(0.05), x, y, epochs=2)
    assert_same(model, other, atol=1e-5)


def test_a_head_exchanged_between_phases_learns():
    x, y = numbers()
    models = [network(), network()]
    made = graph(models[0], x, y, "sgd", opt_kwargs={"learning_rate": 0.05})
    models[1](x[:1, None])
    models[1].set_weights(models[0].get_weights())
    exp, asked = experiment(), phase(made, n_epochs=1)
    exp.run_phase(asked, **QUIET)
    by_hand(models[1], keras.optimizers.SGD(0.05), x, y)
    for model in models:
        model.pop()
        keras.utils.set_random_seed(7)
        model.add(L.Dense(4, "relu"))
        model.add(L.Dense(1))
        model(x[:1, None])
    exp.run_phase(asked, **QUIET)
    by_hand(models[1], keras.optimizers.SGD(0.05), x, y)
    assert len(models[0].trainable_variables) == 6
    assert_same(*models, atol=1e-5)


def test_weights_of_a_frozen_node_that_a_callback_moves_are_read_anew():
    x, y = numbers()
    keras.utils.set_random_seed(0)
    body = keras.Sequential([L.Flatten(), L.Dense(5, "tanh")])
    head = keras.Sequential([L.Flatten(), L.Dense(1)])
    fs = mm.FeatureSet.from_dict("fs", {"x": x, "y": y[:, 0]}, "x", "y")
    below = mm.ModelNode("body", body, fs)
    made = mm.ModelGraph(
        [below, mm.ModelNode("head", head, below)],
        mm.Optimizer("sgd", opt_kwargs={"learning_rate": 0.05}),
    )
    made.build()
    below.freeze()
    others = [keras.models.clone_model(body), keras.models.clone_model(head)]
    for other, mine, shape in zip(others, (body, head), ((1, 1, 4), (1, 5)), strict=True):
        other(np.zeros(shape, "f4"))
        other.set_weights(mine.get_weights())

    def shrink(model):
        model.set_weights([0.5 * w for w in model.get_weights()])

    phase_ = train_phase(
        made, [mse("head")], batch_size=8, n_epochs=3, callbacks=[AtEpoch(1, lambda: shrink(body))]
    )
    experiment().run_phase(phase_, **QUIET)
    optimizer = keras.optimizers.SGD(0.05)
    optimizer.build(others[1].trainable_variables)
    for epoch in range(3):
        if epoch == 1:
            shrink(others[0])
        for at in range(0, len(x), 8):
            code = others[0](x[at : at + 8, None])
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((others[1](code) - y[at : at + 8]) ** 2)
            moved = others[1].trainable_variables
            optimizer.apply_gradients(zip(tape.gradient(loss, moved), moved, strict=True))
    assert_same(head, others[1], atol=1e-5)
    assert_same(body, others[0])
