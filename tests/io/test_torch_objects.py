"""torch modules that were given as objects, in files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import modularml as mm
from modularml.errors import ConfigError, MMLError
from modularml.models.torch import TorchModelWrapper, wrapper
from tests.io import things
from tests.worlds import QUIET, arrays, experiment, featureset, graph_of, train_phase

ARGUMENTS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(["ConstantPad1d", "ConstantPad2d", "ConstantPad3d"], (1, 0.5)),
    **dict.fromkeys(["LPPool1d", "LPPool2d"], (2, 2)),
    **dict.fromkeys(
        ["PixelShuffle", "PixelUnshuffle", "ChannelShuffle", "LocalResponseNorm"], (2,)
    ),
    "Unflatten": (1, (2, 2)),
    "Linear": (8, 3, False),
    "Embedding": (5, 3),
    "GroupNorm": (2, 4),
    "LayerNorm": ((4, 8),),
    "RMSNorm": (8,),
    "Threshold": (0.1, 20.0),
    "Softmax": (1,),
    "Softmin": (1,),
    "LogSoftmax": (1,),
    "Upsample": (None, 2.0),
}


def layer(name: str) -> nn.Module:
    given = ARGUMENTS.get(name)
    if given is None and name.startswith("Conv"):
        given = (4, 6, 3, 2, 1)
    elif given is None:
        given = (
            (1,) if "Pad" in name else (2,) if "Pool" in name else (4,) if "Norm" in name else ()
        )
    return getattr(nn, name)(*given)


def shape_for(name: str) -> tuple[int, ...]:
    axes = int(name[-2]) if name[-2:] in ("1d", "2d", "3d") else 1
    axes = 2 if name.startswith("Pixel") or name == "Softmax2d" else axes
    return (4, *[8] * axes)


@pytest.mark.parametrize("name", sorted(wrapper._LISTED - {"Bilinear", "Embedding"}))
def test_every_listed_layer_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    wrapped = TorchModelWrapper(model=layer(name))
    torch.set_rng_state(before)
    wrapped.build(shape_for(name))
    path = wrapped.save(tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), before)
    loaded = mm.BaseModel.load(path)
    x = torch.randn(3, *shape_for(name))
    assert repr(loaded.inner) == repr(wrapped.inner)
    assert torch.equal(loaded.eval()(x), wrapped.eval()(x))
    assert loaded.save(tmp_path / "b").read_bytes() == path.read_bytes()


def net() -> nn.Sequential:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 1))
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), inner)


def test_an_experiment_with_one_trains_on_in_another_process_as_in_this(tmp_path: Path) -> None:
    module = net()
    module[0].bias.requires_grad_(False)
    graph = graph_of(featureset(*arrays(n=40)), module)
    exp = experiment(seed=3)
    exp.run_phase(train_phase(graph, label="one"), **QUIET)
    path = exp.save(tmp_path / "exp")
    with mm.ExperimentContext().activate():
        again = mm.Experiment.load(path)
        phase = train_phase(again.model_graph, label="two")
        again.run_phase(phase, **QUIET)
        found = again.model_graph.get_node("net").model.inner
    exp.run_phase(train_phase(graph, label="two"), **QUIET)
    assert not found[0].bias.requires_grad
    assert all(map(torch.equal, found.state_dict().values(), module.state_dict().values()))


def hooked() -> nn.Module:
    module = net()
    module[0].register_forward_hook(lambda *args: None)
    return module


def shared() -> nn.Module:
    one = nn.Linear(6, 6)
    return nn.Sequential(one, nn.ReLU(), one)


def changed() -> nn.Module:
    module = net()
    module[0].forward = lambda x: x
    return module


class Own(nn.Linear):
    pass


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (hooked, "'0' was modified after construction"),
        (shared, "occurs in it twice"),
        (changed, "'0' was modified after construction"),
        (lambda: net().double(), "not float32"),
        (lambda: nn.Sequential(Own(6, 1)), "class Own is not supported"),
        (lambda: nn.Sequential(nn.LSTM(6, 1)), "class LSTM is not supported"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 1)), "ParametrizedLinear"),
    ],
)
def test_what_no_file_can_tell_is_refused_before_anything_is_written(
    make: Any, why: str, tmp_path: Path
) -> None:
    wrapped = TorchModelWrapper(model=make())
    with pytest.raises(MMLError, match=rf"(?s){why}.*model_class="):
        wrapped.save(tmp_path / "a")
    assert not list(tmp_path.iterdir())


LINEAR = {"in_features": 6, "out_features": 1, "bias": True}
BENT: list[Any] = [
    None,
    [],
    {"class_name": "LSTM", "params": {}},
    {"class_name": "Module", "params": {}},
    {"class_name": "os.system", "params": {}},
    {"class_name": "Linear", "params": {**LINEAR, "device": "cuda"}},
    {"class_name": "Linear", "params": {**LINEAR, "in_features": 2**40}},
    {"class_name": "Linear", "params": {**LINEAR, "in_features": "6 or 7"}},
    {"class_name": "Linear", "params": {**LINEAR, "in_features": {"type": "x"}}},
    {"class_name": "Linear", "params": {**LINEAR, "in_features": -1}},
    {"class_name": "Linear", "params": LINEAR, "without_gradient": ["a"]},
    {"class_name": "Linear", "params": LINEAR, "without_gradient": 3},
    {"class_name": "Linear", "params": LINEAR, "code": "print()"},
    {"class_name": "Sequential", "layers": [["forward", {"class_name": "ReLU"}]]},
    {"class_name": "Sequential", "layers": [["a.b", {"class_name": "Tanh", "params": {}}]]},
    {"class_name": "Sequential", "layers": [["a", {"class_name": "Tanh", "params": {}}]] * 2},
    {"class_name": "Sequential", "layers": [["0", None]]},
    {"class_name": "Sequential", "layers": 3},
]


@pytest.mark.parametrize("bent", BENT, ids=range(len(BENT)))
def test_no_file_names_more_than_the_list(bent: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        wrapper.from_recipe(bent)
    wrapped = TorchModelWrapper(model=nn.Linear(6, 1))
    wrapped.build((6,))

    def edit(found: dict[str, bytes]) -> None:
        config = json.loads(found["config.json"])
        config["params"]["model"] = bent
        found["config.json"] = json.dumps(config).encode()

    path = things.resealed(wrapped.save(tmp_path / "a"), tmp_path / "b.md.mml", edit)
    with pytest.raises(MMLError):
        mm.BaseModel.load(path)


@pytest.mark.parametrize(
    "claim",
    [
        {"class_name": "Linear", "params": {**LINEAR, "out_features": 2**23}},
        {"class_name": "ConstantPad1d", "params": {"padding": [0, 2**23], "value": 0.0}},
    ],
)
def test_large_claims_allocate_nothing(claim: dict[str, Any], tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(6, 64), nn.Unflatten(1, (64, 1)), nn.Flatten())
    wrapped = TorchModelWrapper(model=module)
    wrapped.build((6,))

    def edit(found: dict[str, bytes]) -> None:
        config = json.loads(found["config.json"])
        layers = config["params"]["model"]["layers"]
        layers[0 if claim["class_name"] == "Linear" else 2][1] = claim
        found["config.json"] = json.dumps(config).encode()

    path = things.resealed(wrapped.save(tmp_path / "a"), tmp_path / "b.md.mml", edit)
    with pytest.raises(MMLError):
        mm.BaseModel.load(path)


def test_folds_on_workers_equal_those_here() -> None:
    x, y = arrays(n=60)
    fs = featureset(x, y)
    graph = graph_of(fs, net())
    fs.add_split(fs.take(np.arange(60), label="all"))
    exp = experiment(seed=1)
    exp.execution_plan.add_phase(train_phase(graph, split="all"))
    binding = mm.CVBinding(fs, ["all"], train_split_name="all")
    here, there = (
        mm.CrossValidation(experiment=exp, bindings=[binding], n_folds=2, n_jobs=n).run(**QUIET)
        for n in (1, 2)
    )
    for i in range(2):
        a, b = (r.get_fold(i)["train"].tensors("net", "outputs") for r in (here, there))
        assert all(map(torch.equal, a, b))
