"""Clipping, accumulation, schedules and skipping with Keras: equal to loops written by hand."""

import numpy as np
import pytest

import modularml as mm
from modularml.errors import BackendNotSupportedError, ConfigError, UnknownNameError
from tests.worlds import QUIET, arrays, experiment, featureset, slices, train, train_phase

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
adapter = pytest.importorskip("modularml.backends.tensorflow").adapter
keras_twin = pytest.importorskip("tests.keras_worlds").twin


def network():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Flatten(), keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)]
    return keras.Sequential([keras.Input((6,)), *layers])


def graph(x, y, opt="sgd", **kwargs):
    optimizer = mm.Optimizer(opt, opt_kwargs={"learning_rate": 0.05}, **kwargs)
    return mm.ModelGraph([mm.ModelNode("net", network(), featureset(x, y))], optimizer)


def by_hand(x, y, opt, *, epochs=2, clip=None, accumulate=1, rate=None, keep=None):
    """Return the weights of a loop as people write it."""
    model = network()
    optimizer = {"sgd": keras.optimizers.SGD, "adam": keras.optimizers.Adam}[opt](0.05)
    parts = list(slices(len(x), 16)) if keep is None else keep
    for epoch in range(epochs):
        if rate is not None:
            optimizer.learning_rate = float(rate(epoch))
        for at in range(0, len(parts), accumulate):
            rows = np.concatenate([np.arange(len(x))[p] for p in parts[at : at + accumulate]])
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((model(x[rows], training=True) - y[rows]) ** 2)
            grads = tape.gradient(loss, model.trainable_variables)
            optimizer.apply(clip(grads) if clip else grads, model.trainable_variables)
    return model.get_weights()


def assert_same(made, want):
    for mine, theirs in zip(made.get_node("net").model.inner.get_weights(), want, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("opt", ["sgd", "adam"])
@pytest.mark.parametrize(
    ("limits", "clip"),
    [
        ({"clip_norm": 0.5}, lambda g: tf.clip_by_global_norm(g, 0.5)[0]),
        ({"clip_value": 0.1}, lambda g: [tf.clip_by_value(v, -0.1, 0.1) for v in g]),
    ],
    ids=["norm", "value"],
)
def test_clipping(opt, limits, clip):
    x, y = arrays(n=50)
    made = graph(x, 5 * y, opt, **limits)
    train(made, n_epochs=2)
    assert_same(made, by_hand(x, 5 * y, opt, clip=clip))


@pytest.mark.parametrize("accumulate", [2, 7])
def test_accumulation_is_the_gradient_of_the_mean(accumulate):
    x, y = arrays(n=55)
    made = graph(x, y, "adam")
    train(made, n_epochs=2, accumulate=accumulate)
    assert_same(made, by_hand(x, y, "adam", accumulate=accumulate))


def test_a_schedule_by_epoch_and_its_state():
    x, y = arrays(n=40)
    how = mm.LRSchedule("cosine", schedule_kwargs={"decay_steps": 6})
    made = graph(x, y, schedule=how)
    exp = experiment()
    exp.run_phase(train_phase(made, label="one", n_epochs=2), **QUIET)
    state = made.get_state()
    exp.run_phase(train_phase(made, label="two", n_epochs=2), **QUIET)
    rate = keras.optimizers.schedules.CosineDecay(0.05, 6)
    assert_same(made, by_hand(x, y, "sgd", epochs=4, rate=rate))
    assert made.optimizer.learning_rates["default"] == pytest.approx(float(rate(4)), rel=1e-5)
    made.set_state(state)
    assert made.optimizer.learning_rates["default"] == pytest.approx(float(rate(2)), rel=1e-5)
    exp.run_phase(train_phase(made, label="again", n_epochs=2), **QUIET)
    assert_same(made, by_hand(x, y, "sgd", epochs=4, rate=rate))


def test_skip_and_stop():
    x, y = arrays(n=48)
    y = y.copy()
    y[20] = 1e30  # its square is infinite
    made = graph(x, y)
    with pytest.warns(UserWarning, match="1 of 3 batches"):
        train(made, on_nonfinite="skip")
    assert_same(made, by_hand(x, y, "sgd", epochs=1, keep=[slice(0, 16), slice(32, 48)]))
    with mm.ExperimentContext().activate():
        made = graph(x, y)
        with pytest.warns(UserWarning, match="training stopped"):
            train(made, n_epochs=2, on_nonfinite="stop")
    assert_same(made, by_hand(x, y, "sgd", epochs=1, keep=[slice(0, 16)]))


@pytest.mark.slow
def test_compiled():
    x, y = arrays(n=48)
    made = graph(x, y)
    train(made, n_epochs=2, compile=True)
    assert_same(made, by_hand(x, y, "sgd"))


def two_parts():
    """Return the two halves of a network, and the whole of it."""
    keras.utils.set_random_seed(1)
    enc = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, "tanh")])
    head = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4), keras.layers.Dense(1)])
    return enc, head, keras.Sequential([keras_twin(enc, 6), keras_twin(head, 8)])


class TestGroups:
    SCHEDULE = mm.LRSchedule("exponential", schedule_kwargs={"decay_steps": 1, "decay_rate": 0.5})

    def graph(self, x, y, opt="adam", **kwargs):
        enc, head, whole = two_parts()
        groups = {"enc": {"lr": 0.001}, "net.dense_1": {"lr": 0.02, "weight_decay": 0.1}}
        first = mm.ModelNode("enc", enc, featureset(x, y))
        optimizer = mm.Optimizer(opt, opt_kwargs={"lr": 0.1}, groups=groups, **kwargs)
        return mm.ModelGraph([first, mm.ModelNode("net", head, first)], optimizer), whole

    def by_hand(self, whole, opt, x, y, *, clip=None, rate=lambda epoch: 1.0, epochs=3):
        """Step three optimizers, one for each group, as people write it."""
        cls = {"adam": keras.optimizers.Adam, "sgd": keras.optimizers.SGD}[opt]
        rest, own = whole.layers[1].layers[0].weights, whole.layers[1].layers[1].weights
        made = [(cls(0.1), rest, 0.1), (cls(0.001), whole.layers[0].weights, 0.001)]
        made.append((cls(0.02, weight_decay=0.1), own, 0.02))
        moved = [v for _, variables, _ in made for v in variables]
        for epoch in range(epochs):
            for optimizer, _, first in made:
                optimizer.learning_rate = first * rate(epoch)
            for part in slices(len(x), 16):
                with tf.GradientTape() as tape:
                    loss = tf.reduce_mean((whole(x[part], training=True) - y[part]) ** 2)
                grads = tape.gradient(loss, moved)
                left = iter(grads if clip is None else tf.clip_by_global_norm(grads, clip)[0])
                for optimizer, variables, _ in made:
                    optimizer.apply([next(left) for _ in variables], variables)

    def same(self, graph, whole):
        mine = [w for n in ("enc", "net") for w in graph.get_node(n).model.inner.get_weights()]
        for left, right in zip(mine, whole.get_weights(), strict=True):
            np.testing.assert_allclose(left, right, atol=1e-5)

    @pytest.mark.parametrize("opt", ["sgd", "adam"])
    @pytest.mark.parametrize("clip", [None, 0.5])
    def test_rates_of_their_own(self, opt, clip):
        x, y = arrays(n=50)
        made, whole = self.graph(x, y, opt, clip_norm=clip)
        train(made, n_epochs=3)
        self.by_hand(whole, opt, x, y, clip=clip)
        self.same(made, whole)
        want = {"default": 0.1, "enc": 0.001, "net.dense_1": 0.02}
        assert made.optimizer.learning_rates == pytest.approx(want)

    def test_a_schedule_starts_from_the_rate_of_each_and_goes_on_from_a_state(self):
        x, y = arrays(n=50)
        made, whole = self.graph(x, y, schedule=self.SCHEDULE)
        exp = experiment()
        exp.run_phase(train_phase(made, label="one", n_epochs=1), **QUIET)
        state = made.get_state()
        exp.run_phase(train_phase(made, label="astray", n_epochs=2), **QUIET)
        made.set_state(state)
        exp.run_phase(train_phase(made, label="two", n_epochs=2), **QUIET)
        self.by_hand(whole, "adam", x, y, rate=lambda epoch: 0.5**epoch)
        self.same(made, whole)
        want = {"default": 0.1 / 8, "enc": 0.001 / 8, "net.dense_1": 0.02 / 8}
        assert made.optimizer.learning_rates == pytest.approx(want)

    def test_a_file_holds_what_each_group_has_learned(self, tmp_path):
        x, y = arrays(n=50)
        made, whole = self.graph(x, y, schedule=self.SCHEDULE)
        train(made, label="one")
        path = made.save_checkpoint(tmp_path / "at1")
        with mm.ExperimentContext().activate():
            again, _ = self.graph(x, y, schedule=self.SCHEDULE)
            again.restore_checkpoint(path)
            train(again, label="two", n_epochs=2)
        self.by_hand(whole, "adam", x, y, rate=lambda epoch: 0.5**epoch)
        self.same(again, whole)

    def test_an_unknown_group(self):
        x, y = arrays(n=20)
        with pytest.raises(UnknownNameError, match="did you mean 'net'"):
            graph(x, y, groups={"nett": {"lr": 1.0}}).build()


class TestPrecision:
    def hand(self, x, y, policy, accumulate=1):
        """Train the same network, made with a mixed policy of Keras, as people write it."""
        weights = network().get_weights()
        keras.config.set_dtype_policy(policy)
        try:
            model = network()
        finally:
            keras.config.set_dtype_policy("float32")
        model.set_weights(weights)
        optimizer = keras.optimizers.Adam(0.05)
        if policy == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0**16)
        optimizer.build(model.trainable_variables)

        @tf.function  # run op by op, bfloat16 rounds otherwise
        def step(inputs, targets):
            with tf.GradientTape() as tape:
                out = tf.cast(model(inputs, training=True), tf.float32)
                loss = optimizer.scale_loss(tf.reduce_mean((out - targets) ** 2))
            grads = tape.gradient(loss, model.trainable_variables)
            optimizer.apply(grads, model.trainable_variables)

        for _ in range(3):
            for part in slices(len(x), 16 * accumulate):
                step(x[part], y[part])
        return model.get_weights()

    @pytest.mark.parametrize("loss", ["mse", lambda out, target: (out - target) ** 2])
    @pytest.mark.parametrize(("precision", "name"), [("bf16", "bfloat16"), ("fp16", "float16")])
    def test_equal_to_keras_mixed_policy(self, precision, name, loss):
        x, y = arrays(n=50)
        y = 50 * y if precision == "fp16" else y  # the first gradients overflow
        made = graph(x, y, "adam")
        loss = mm.AppliedLoss(mm.Loss(loss), "net", ["outputs", "targets"])
        results = train(made, [loss], n_epochs=3, precision=precision)
        want = self.hand(x, y, f"mixed_{name}")
        assert_same(made, want)
        plain = by_hand(x, y, "adam", epochs=3)
        assert max(np.abs(a - b).max() for a, b in zip(want, plain, strict=True)) > 1e-4
        inner = made.get_node("net").model.inner
        assert {layer.compute_dtype for layer in inner._flatten_layers()} == {"float32"}
        assert {v.dtype for v in inner.weights} == {"float32"}
        out = results.tensors("net", "outputs", fmt="np").at(epoch=0, batch=0)
        assert out.dtype == np.float32
        np.testing.assert_allclose(made.predict(x), inner(x), atol=1e-6)  # in float32 again

    def test_put_together(self):
        x, y = arrays(n=64)
        made = graph(x, y, "adam")
        train(made, n_epochs=3, precision="bf16", accumulate=2)
        want = self.hand(x, y, "mixed_bfloat16", 2)
        for mine, theirs in zip(made.get_node("net").model.inner.get_weights(), want, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=5e-3)  # sums of bfloat16 differ

    @pytest.mark.parametrize("named", [False, True])
    def test_the_scale_of_fp16_goes_on(self, named):
        x, y = arrays(n=48)
        groups = {"net.dense_1": {"lr": 0.02}} if named else None
        made, exp = graph(x, 50 * y, groups=groups), experiment()
        exp.run_phase(train_phase(made, n_epochs=1, label="a", precision="fp16"), **QUIET)
        state = made.optimizer.get_state()
        assert state["scale"]["scale"] < 2.0**16  # gradients were too large
        weights = made.get_node("net").model.get_weights()
        exp.run_phase(train_phase(made, n_epochs=2, label="b", precision="fp16"), **QUIET)
        with mm.ExperimentContext().activate():
            other = graph(x, 50 * y, groups=groups)
            other.build()
            other.optimizer.set_state(state)
            other.get_node("net").model.set_weights(weights)
            train(other, n_epochs=2, precision="fp16")
            assert other.optimizer.get_state()["scale"] == made.optimizer.get_state()["scale"]
            assert_same(other, made.get_node("net").model.inner.get_weights())


def test_what_cannot_be_had_is_refused():
    x, y = arrays(n=20)
    for name, call in [("data_parallel", adapter.processes), ("pin_memory", adapter.upload)]:
        with pytest.raises(BackendNotSupportedError, match=f"{name} is not supported"):
            call(*[None] * (1 + (name == "pin_memory")))
    with mm.ExperimentContext().activate():
        made = graph(x, y, schedule="cosine")
        made.build()
        with pytest.raises(ConfigError, match="T_max"):
            made.optimizer.advance()
