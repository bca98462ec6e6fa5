"""The TensorFlow adapter: the contract, losses that mean what torch's mean, dtypes."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch

import modularml as mm
from modularml.backends import Backend, backend_of
from modularml.backends.tensorflow import adapter
from modularml.models.tensorflow import TensorflowModelWrapper
from tests.contracts.backend import BackendContract
from tests.keras_worlds import layers, net


def wrapped(model, shape=(4,)):
    made = TensorflowModelWrapper(model=model)
    made.build(shape)
    return made.module


class TestContract(BackendContract):
    adapter = adapter

    def model(self):
        return wrapped(keras.Sequential([layers.Dropout(0.5), layers.Dense(2)]))

    def array(self, parameter):
        return parameter.numpy().copy()

    def assign(self, parameter, values):
        parameter.assign(values)


class TestBackend:
    def test_of_objects(self):
        for obj in (net(), keras.Model, layers.Dense, tf.ones(1), tf.Variable(1.0)):
            assert backend_of(obj) is Backend.TENSORFLOW
        for obj in (keras.losses.Huber, keras.losses.huber, keras.optimizers.Adam, tf.norm):
            assert backend_of(obj) is Backend.TENSORFLOW

    def test_dtypes(self):
        assert adapter.input_dtype(None) is tf.float32
        assert adapter.input_dtype(wrapped(net(4))) is tf.float32
        assert adapter.input_dtype(wrapped(layers.Dense(2, dtype="float64"))) is tf.float64
        embeds = keras.Sequential([layers.Embedding(3, 2), layers.Flatten(), layers.Dense(1)])
        assert adapter.input_dtype(wrapped(embeds), (3,)) is tf.int64
        assert adapter.loss_dtype("index", None) is tf.int64

    def test_variables_switched_off_by_the_user_stay_off(self):
        model = net(4)
        model.layers[1].trainable = False
        module = wrapped(model)
        assert len(adapter.parameters(module)) == 2
        adapter.set_frozen(module, True)
        adapter.set_frozen(module, False)
        assert [v.trainable for v in model.weights] == [False, False, True, True]

    def test_arguments_by_torch_s_names(self):
        params = wrapped(net(4)).inner.trainable_variables
        made = adapter.make_optimizer(
            keras.optimizers.Adam, params, {"lr": 0.25, "betas": (0.5, 0.75), "eps": 1e-3}
        )
        assert (float(made.learning_rate), made.beta_1, made.beta_2) == (0.25, 0.5, 0.75)
        assert made.epsilon == 1e-3
        step = mm.Optimizer("sgd", opt_kwargs={"learning_rate": 1.0}, backend="tf")
        step.build(parameters=params)
        before = params[0].numpy()
        step.step([tf.ones_like(p) for p in params], params)
        np.testing.assert_allclose(params[0].numpy(), before - 1, rtol=1e-6)
        with pytest.raises(ValueError, match="grads"):
            step.step()

    def test_slots_of_parameters_of_one_path(self):
        """Two layers that were given one name still get the moments of their own."""
        twins = [layers.Dense(1, name="same") for _ in range(2)]
        for layer in twins:
            layer.build((None, 2))
        params = {f"{i}": layer.kernel for i, layer in enumerate(twins)}
        made = adapter.make_optimizer(keras.optimizers.Adam, list(params.values()), {})
        made.apply([tf.fill((2, 1), 1.0), tf.fill((2, 1), 3.0)], list(params.values()))
        moments = adapter.optimizer_state(made, params)["moments"]
        np.testing.assert_allclose(moments["0"]["momentum"] * 3, moments["1"]["momentum"])


def test_keras_on_another_framework():
    """A Keras model on torch is a torch module; this adapter says what to do."""
    code = """
import os
os.environ["KERAS_BACKEND"] = "torch"
import keras, numpy as np, torch
import modularml as mm
from modularml.backends import adapter_for, backend_of
model = keras.Sequential([keras.layers.Dense(3), keras.layers.Dropout(0.5), keras.layers.Dense(1)])
assert backend_of(model).value == "torch", backend_of(model)
torch.manual_seed(0)
x = np.random.default_rng(0).normal(size=(64, 4)).astype("f4")
rows = {**{f"x{i}": x[:, i] for i in range(4)}, "y": x[:, 0]}
fs = mm.FeatureSet.from_dict("rows", rows, [f"x{i}" for i in range(4)], ["y"])
node = mm.ModelNode("net", model, fs)
graph = mm.ModelGraph([node], mm.Optimizer("sgd", opt_kwargs={"lr": 0.01}))
graph.build()
kept = {n: v.copy() for n, v in node.model.get_weights().items()}
loss = mm.AppliedLoss(mm.Loss("mse"), on="net", inputs=["outputs", "targets"])
binding = mm.InputBinding(node.node_id, node.feature_refs[0], None, mm.SimpleSampler(batch_size=16))
phase = mm.TrainPhase("t", input_sources=[binding], losses=[loss], n_epochs=1)
mm.Experiment.from_active_context("e").run_phase(phase, show_training_progress=False)
assert all((kept[n] != v).any() for n, v in node.model.get_weights().items() if "seed" not in n)
t = torch.from_numpy(x)
with adapter_for("torch").modes([(node.model, True)]):
    assert not torch.equal(node.model.module(t), node.model.module(t)), "dropout is off in training"
with adapter_for("torch").modes([(node.model, False)]):
    assert torch.equal(node.model.module(t), node.model.module(t)), "dropout is on in evaluation"
try:
    adapter_for("tensorflow")
except mm.errors.BackendNotSupportedError as error:
    assert "KERAS_BACKEND=tensorflow" in str(error)
else:
    raise AssertionError("no error")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


RNG = np.random.default_rng(0)
LOGITS, CLASSES = RNG.normal(size=(7, 4)), RNG.integers(0, 4, 7)
SHARES = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
PROBS, HOT = RNG.uniform(0, 1, (7, 4)), np.eye(4)[CLASSES]
IGNORING = np.where(CLASSES == 2, 2, CLASSES)

SAME = [
    ("mse", (LOGITS, PROBS), {}),
    ("mae", (LOGITS, PROBS), {}),
    ("huber", (3 * LOGITS, PROBS), {"delta": 0.7}),
    ("smooth_l1", (3 * LOGITS, PROBS), {"beta": 0.5}),
    ("bce", (np.round(PROBS * 4) / 4, HOT), {}),
    ("bce_with_logits", (LOGITS, HOT), {}),
    ("cross_entropy", (LOGITS, CLASSES), {}),
    ("cross_entropy", (LOGITS, SHARES), {"label_smoothing": 0.1}),
    ("cross_entropy", (LOGITS, IGNORING), {"ignore_index": 2, "weight": [1.0, 2.0, 3.0, 4.0]}),
    ("cross_entropy", (LOGITS[..., None], CLASSES[:, None]), {}),
    ("nll", (np.log(SHARES), CLASSES), {}),
    ("kl", (np.log(SHARES), HOT), {}),
    ("kldiv", (np.log(SHARES), np.log(SHARES[::-1])), {"log_target": True}),
    ("poisson_nll", (LOGITS, PROBS), {}),
    ("soft_margin", (LOGITS, 2 * HOT - 1), {}),
    ("triplet", (LOGITS, PROBS, HOT), {"margin": 0.3}),
    ("cosine", (LOGITS, PROBS, 2 * (CLASSES % 2) - 1), {"margin": 0.1}),
]


@pytest.mark.parametrize(("name", "args", "kwargs"), SAME)
def test_losses_mean_what_torch_s_mean(name, args, kwargs):
    ours = mm.Loss(name, loss_kwargs=kwargs, backend="tensorflow")
    ours.build()
    theirs = mm.Loss(
        name,
        loss_kwargs={
            k: torch.tensor(v).double() if k == "weight" else v for k, v in kwargs.items()
        },
        backend="torch",
    )
    theirs.build()
    given, wanted = tf.Variable(args[0]), torch.tensor(args[0], requires_grad=True)
    with tf.GradientTape() as tape:
        value = ours(given, *map(adapter.from_numpy, args[1:]))
        total = adapter.sample_mean(value)
    expected = theirs(wanted, *map(torch.tensor, args[1:]))
    expected.mean().backward()
    np.testing.assert_allclose(value.numpy(), expected.detach().numpy(), rtol=1e-6, atol=1e-9)
    inside = (args[0] > 0) & (args[0] < 1) if name == "bce" else np.ones_like(args[0], dtype=bool)
    np.testing.assert_allclose(
        tape.gradient(total, given).numpy()[inside],
        wanted.grad.numpy()[inside],
        rtol=1e-5,
        atol=1e-8,
    )
