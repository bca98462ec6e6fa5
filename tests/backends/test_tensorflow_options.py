"""Clipping, accumulation, schedules and skipping with Keras: equal to loops written by hand."""

import numpy as np
import pytest

import modularml as mm
from modularml.errors import BackendNotSupportedError, ConfigError
from tests.worlds import QUIET, arrays, experiment, featureset, mse, slices, train, train_phase

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")


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


def test_what_cannot_be_had_is_refused():
    x, y = arrays(n=20)
    with pytest.raises(BackendNotSupportedError, match="groups"):
        graph(x, y, groups={"net": {"learning_rate": 1.0}}).build()
    for name, kwargs in [("precision", {"precision": "bf16"})]:
        with mm.ExperimentContext().activate(), pytest.raises(BackendNotSupportedError, match=name):
            train(graph(x, y), [mse()], **kwargs)
    with mm.ExperimentContext().activate(), pytest.raises(ConfigError, match="decay_steps"):
        graph(x, y, schedule="cosine").build()
