"""Keras models in files: rebuilt from a closed list of layers, with no room for code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import modularml as mm
from modularml.errors import ConfigError, MMLError
from modularml.models import TensorflowModelWrapper
from modularml.models.tensorflow import SequentialMLP
from modularml.models.tensorflow.wrapper import check_recipe, from_recipe, to_recipe
from tests.io import things


def branches() -> keras.Model:
    """Return a functional model with two ways, regularizers and an operator."""
    ends = keras.Input((6,))
    a = layers.Dense(3, activation="relu", kernel_regularizer="l2", trainable=False)(ends)
    b = layers.Dropout(0.2)(layers.Dense(3, kernel_constraint="max_norm")(ends))
    return keras.Model(ends, layers.Dense(2)(layers.LayerNormalization()(a + b)))


MODELS = {
    "functional": branches,
    "sequential": lambda: keras.Sequential([layers.Dense(4, "gelu"), layers.BatchNormalization()]),
    "recurrent": lambda: keras.Sequential(
        [layers.Reshape((3, 2)), layers.Bidirectional(layers.GRU(2)), layers.Dense(1)]
    ),
    "nested": lambda: keras.Sequential([branches(), layers.Dense(1)]),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_given_as_objects(name: str, tmp_path: Path) -> None:
    wrapped = TensorflowModelWrapper(model=MODELS[name]())
    wrapped.build((6,))
    rows = np.random.default_rng(0).normal(size=(4, 6)).astype("f4")
    path = wrapped.save(tmp_path / "a")
    again = mm.BaseModel.load(path)
    np.testing.assert_array_equal(again(rows).numpy(), wrapped(rows).numpy())
    assert again.save(tmp_path / "b").read_bytes() == path.read_bytes()
    trained = [v.path.split("/")[-1] for v in again.inner.trainable_variables]
    assert trained == [v.path.split("/")[-1] for v in wrapped.inner.trainable_variables]
    fresh = wrapped.clone()
    fresh.build((6,))
    assert fresh.get_weights().keys() == wrapped.get_weights().keys()


@keras.saving.register_keras_serializable("tests")
class Own(layers.Layer):
    """A layer of a user's."""

    def call(self, x: Any) -> Any:
        return x


class Subclassed(keras.Model):
    """A model of a user's."""

    def call(self, x: Any) -> Any:
        return x


@pytest.mark.parametrize(
    "model",
    [
        lambda: keras.Sequential([keras.Input((6,)), layers.Lambda(lambda x: x)]),
        lambda: keras.Sequential([keras.Input((6,)), Own()]),
        lambda: keras.Sequential([keras.Input((6,)), layers.Dense(2, activation=lambda x: x)]),
        Subclassed,
    ],
    ids=["lambda", "own layer", "own function", "own model"],
)
def test_others_are_refused_when_they_are_saved(model: Any, tmp_path: Path) -> None:
    wrapped = TensorflowModelWrapper(model=model())
    wrapped.build((6,))
    with pytest.raises(MMLError, match=r"MML-112 .*model_class="):
        wrapped.save(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_weights_are_never_lost_without_a_word(tmp_path: Path) -> None:
    with pytest.raises(MMLError, match="build it"):
        TensorflowModelWrapper(model=branches()).save(tmp_path / "a")


LAMBDA = {"class_name": "__lambda__", "config": {"code": "4wEA"}}
HARMFUL: list[dict[str, Any]] = [
    {"module": "keras.layers", "class_name": "Lambda", "config": {"function": LAMBDA}},
    {"module": "keras.layers", "class_name": "TFSMLayer", "config": {"filepath": "saved"}},
    {"module": "keras.layers", "class_name": "StringLookup", "config": {"vocabulary": "/etc/x"}},
    {"module": "builtins", "class_name": "function", "config": "eval", "registered_name": "eval"},
    {"module": "os", "class_name": "system", "config": {}},
    {"module": "keras.layers", "class_name": "Dense", "registered_name": "tests>Own"},
    {"module": "keras.src.saving.saving_lib", "class_name": "load_model", "config": "a.keras"},
    {"module": "keras.layers", "class_name": ["Dense"]},
    {"module": "keras.layers", "class_name": "Dense", "compile_config": {"loss": "mse"}},
    {"module": "keras.layers", "class_name": "Dense", "config": {"activation": "os.system"}},
    {"module": "keras.layers", "class_name": "Dense", "config": {"activation": LAMBDA}},
    {"module": "keras.layers", "class_name": "Wrapper", "config": {"layer": None}},
]


@pytest.mark.parametrize("harmful", HARMFUL, ids=range(len(HARMFUL)))
def test_no_file_names_more_than_the_list(harmful: Any, tmp_path: Path) -> None:
    tree = to_recipe(branches())
    tree["config"]["layers"].append(harmful)
    with pytest.raises(ConfigError):
        from_recipe(tree)
    wrapped = TensorflowModelWrapper(model=branches())
    wrapped.build((6,))

    def edit(found: dict[str, bytes]) -> None:
        config = json.loads(found["config.json"])
        config["params"]["model"]["config"]["layers"][1] = harmful
        found["config.json"] = json.dumps(config).encode()

    bent = things.resealed(wrapped.save(tmp_path / "a"), tmp_path / "b.md.mml", edit)
    with pytest.raises(MMLError):
        mm.BaseModel.load(bent)


def test_only_models_are_described() -> None:
    for tree in (None, [], {"module": "keras.layers", "class_name": "Dense", "config": {}}):
        with pytest.raises(ConfigError, match="not describe a sequential or functional"):
            check_recipe(tree)


@pytest.mark.parametrize("made", ["class", "object"])
def test_large_claims_allocate_nothing(made: str, tmp_path: Path) -> None:
    """A config asks for layers of gigabytes beside weights of a few bytes."""
    given = SequentialMLP(hidden_dim=7)
    if made == "object":
        given = TensorflowModelWrapper(model=keras.Sequential([keras.Input((4,)), layers.Dense(7)]))
    given.build((4,), (7,))

    def edit(found: dict[str, bytes]) -> None:
        text = found["config.json"].decode()
        assert '"units":7' in text or '"hidden_dim":7' in text
        text = text.replace('"units":7', '"units":100000000')
        found["config.json"] = text.replace('"hidden_dim":7', '"hidden_dim":100000000').encode()

    bent = things.resealed(given.save(tmp_path / "a"), tmp_path / "b.md.mml", edit)
    with pytest.raises(MMLError, match=r"must have shape .*100000000"):
        mm.BaseModel.load(bent)
