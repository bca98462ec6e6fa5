"""Keras models: shapes, layers, weights; the same as torch's where they are given torch's."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from keras import layers

import modularml as mm
from modularml.errors import ConfigError, NotFittedError, ShapeError, UnknownNameError
from modularml.models import TensorflowModelWrapper, wrap_model
from modularml.models import torch as torch_models
from modularml.models.tensorflow import SequentialCNN, SequentialMLP
from tests.keras_worlds import net


def given_torch_weights(model, twin):
    """Give a Keras model the weights of torch layers: kernels have their output axis last there."""
    found = []
    for name, values in twin.get_weights().items():
        if name.endswith("weight"):
            found.append(np.moveaxis(values, (0, 1), (-1, -2)))
        else:
            found.append(values)
    model.set_weights(dict(zip(model.get_weights(), found, strict=True)))


def assert_same_outputs(mine, theirs, shape, output_shape=None):
    mine.build(shape, output_shape)
    theirs.build(shape, output_shape)
    assert mine.output_shape == theirs.output_shape
    given_torch_weights(mine, theirs)
    x = np.random.default_rng(0).normal(size=(5, *shape)).astype("f4")
    wanted = theirs.eval()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(mine(tf.constant(x)).numpy(), wanted, rtol=1e-4, atol=1e-5)


ACTIVATIONS = [
    *("relu", "relu6", "elu", "selu", "celu", "gelu", "silu", "mish", "leakyrelu", "hardswish"),
    *("sigmoid", "hardsigmoid", "logsigmoid", "tanh", "hardtanh", "tanhshrink", "linear"),
    *("softplus", "softsign", "softshrink", "hardshrink"),
]


class TestSequential:
    @pytest.mark.parametrize(
        ("shape", "out", "kwargs"),
        [
            ((4,), (1,), {}),
            ((2, 5), (3,), {"n_layers": 3, "hidden_dim": 7, "activation": "GELU", "dropout": 0.2}),
            ((4,), (2, 3), {"n_layers": 1}),
            ((4,), (), {"activation": "LeakyReLU"}),
            ((4,), (2,), {"activation": "Hardswish"}),
        ],
    )
    def test_mlp_is_torch_s(self, shape, out, kwargs):
        assert_same_outputs(
            SequentialMLP(**kwargs), torch_models.SequentialMLP(**kwargs), shape, out
        )

    @pytest.mark.parametrize(
        ("shape", "out", "kwargs"),
        [
            ((2, 16), (3,), {}),
            ((2, 16), None, {"pooling": 2, "kernel_size": 5, "padding": 1}),
            ((2, 16), None, {"flatten_output": False, "stride": 2, "padding": 2, "dropout": 0.3}),
            ((1, 8, 6), (2, 2), {"pooling": 2, "activation": "tanh"}),
            ((2, 5, 4, 6), (1,), {"n_layers": 1, "padding": 0}),
        ],
    )
    def test_cnn_is_torch_s(self, shape, out, kwargs):
        assert_same_outputs(
            SequentialCNN(**kwargs), torch_models.SequentialCNN(**kwargs), shape, out
        )

    @pytest.mark.parametrize("name", ACTIVATIONS)
    def test_activations_mean_what_torch_s_mean(self, name):
        from modularml.models.tensorflow.base import activation_layer
        from modularml.models.torch.base import activation_layer as wanted

        x = np.linspace(-4, 4, 41, dtype="f4")
        found = activation_layer(name)(x).numpy()
        np.testing.assert_allclose(
            found, wanted(name)(torch.from_numpy(x)).numpy(), rtol=1e-4, atol=1e-5
        )

    def test_used_too_early(self):
        with pytest.raises(NotFittedError, match="SequentialMLP has no layers yet"):
            SequentialMLP()(tf.zeros((2, 4)))

    def test_bad_arguments(self):
        with pytest.raises(ConfigError, match="n_layers"):
            SequentialMLP(n_layers=0)
        with pytest.raises(UnknownNameError, match="relu"):
            SequentialMLP(activation="rleu")
        with pytest.raises(ShapeError, match="output_shape"):
            SequentialMLP().build((4,))
        with pytest.raises(ShapeError, match="shrink to size 0"):
            SequentialCNN(pooling=8).build((1, 9), (1,))


class Sub(keras.Model):
    """A user's own class, which knows its argument of the graph."""

    def __init__(self, output_shape=(1,), width=3):
        super().__init__()
        self.hidden = [layers.Dense(width), layers.BatchNormalization()]
        self.drop, self.out = layers.Dropout(0.5), layers.Dense(output_shape[0])

    def call(self, x, training=None):
        for layer in self.hidden:
            x = layer(x, training=training)
        return self.out(self.drop(x, training=training))


class Own(mm.TensorflowBaseModel):
    """A user's model that makes its layers when shapes are known."""

    def __init__(self, *, output_shape=None, width=4):
        super().__init__(output_shape=output_shape, width=width)
        self.width = width

    def make_model(self, input_shape, output_shape):
        return keras.Sequential([layers.Dense(self.width), layers.Dense(output_shape[0])])


class TestWrapping:
    def test_what_fits(self):
        model = net()
        assert wrap_model(model).inner is model
        for given, shape, out in (
            (Sub, (4,), (2,)),
            (Sub(), (4,), (1,)),
            (keras.Sequential([layers.Dense(2)]), (3,), (2,)),
            (layers.LSTM(5), (7, 2), (5,)),
            (layers.Embedding(9, 2), (3,), (3, 2)),
            (Own(), (4,), (2,)),
        ):
            made = wrap_model(given)
            made.build(shape, (2,))
            assert (made.backend, made.input_shape, made.output_shape) == (
                mm.Backend.TENSORFLOW,
                shape,
                out,
            )

    def test_what_does_not(self):
        for wrong in ({}, {"model": net(), "model_class": Sub}):
            with pytest.raises(ConfigError, match="exactly one"):
                TensorflowModelWrapper(**wrong)
        with pytest.raises(ConfigError, match=r"keras\.Model"):
            TensorflowModelWrapper(model=Sub)
        with pytest.raises(ShapeError, match=r"Functional does not accept samples of shape \(4,\)"):
            wrap_model(net(d=6)).build((4,))
        pair = keras.Input((3,))
        with pytest.raises(ShapeError, match="returns several outputs"):
            wrap_model(keras.Model(pair, [pair, pair])).build((3,))
        with pytest.raises(ConfigError, match="model_class=Sub"):
            wrap_model(Sub()).get_config()

    def test_mode(self):
        model = wrap_model(Sub)
        model.build((4,), (1,))
        x = tf.ones((64, 4))
        assert np.array_equal(model(x), model(x))
        assert not np.array_equal(model(x, training=True), model(x, training=True))
        model.training = True
        assert not np.array_equal(model(x), model(x))


class TestWeights:
    def test_names_do_not_depend_on_the_process(self):
        first, second = wrap_model(Sub), wrap_model(Sub)
        for model in (first, second):
            model.build((4,), (1,))
        assert list(first.get_weights()) == list(second.get_weights())
        assert len(first.get_weights()) == 8
        assert not first.same_weights(second)
        second.set_weights(first.get_weights())
        assert first.same_weights(second)
        kept = first.get_weights()
        first.inner.weights[0].assign_add(tf.ones_like(first.inner.weights[0]))
        assert not np.array_equal(kept["dense.kernel"], first.get_weights()["dense.kernel"])

    def test_refused_whole(self):
        model = SequentialMLP()
        model.build((4,), (1,))
        before = model.get_weights()
        first, *_, last = before
        for wrong, error, match in (
            ({k: v + 1 for k, v in before.items() if k != first}, ConfigError, "lack"),
            ({**{k: v + 1 for k, v in before.items()}, "more": before[last]}, ConfigError, "more"),
            (
                {**{k: v + 1 for k, v in before.items()}, last: np.zeros(7, "f4")},
                ShapeError,
                r"\(7,\)",
            ),
        ):
            with pytest.raises(error, match=match):
                model.set_weights(wrong)
            assert all(np.array_equal(v, before[k]) for k, v in model.get_weights().items())

    @pytest.mark.parametrize(
        "make",
        [net, Sub, lambda: Sub, lambda: Own(width=3)],
        ids=["functional", "object", "class", "own"],
    )
    def test_new_weights_from_a_seed(self, make):
        import random

        model = wrap_model(make())
        model.build((6,), (1,))
        inner, state = model.inner, random.getstate()
        model.reset_weights(seed=5)
        assert random.getstate() == state
        assert model.inner is inner
        first, x = model.get_weights(), tf.ones((32, 6))
        noise = model(x, training=True).numpy()
        model.reset_weights()
        assert not np.array_equal(model.inner.weights[0], next(iter(first.values())))
        model.reset_weights(seed=5)
        assert all(np.array_equal(v, first[k]) for k, v in model.get_weights().items())
        np.testing.assert_array_equal(model(x, training=True).numpy(), noise)

    def test_objects_that_cannot_be_made_again(self):
        class Opaque(keras.layers.Layer):
            def __init__(self, scale):
                super().__init__()
                self.scale = self.add_weight(shape=(1,))

            def call(self, x):
                return x * self.scale

        model = wrap_model(Opaque(object()))
        model.build((3,))
        with pytest.raises(ConfigError, match="model_class=Opaque"):
            model.reset_weights()

    @pytest.mark.parametrize(
        "model",
        [
            SequentialMLP(n_layers=4, output_shape=(2,)),
            SequentialCNN(pooling=2),
            TensorflowModelWrapper(model_class=Sub, model_kwargs={"width": 5}),
        ],
    )
    def test_config_and_state_round_trip(self, model):
        shape = (1, 8) if isinstance(model, SequentialCNN) else (4,)
        again = type(model).from_config(model.get_config())
        assert again == model
        assert not again.is_built
        model.build(shape, None if isinstance(model, SequentialCNN) else (2,))
        again.set_state(model.get_state())
        assert again.output_shape == model.output_shape
        assert again.same_weights(model)
