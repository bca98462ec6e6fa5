"""Random damage to every kind of file, with wrong hashes and with right ones."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import torch
from sklearn.cluster import Birch, MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    GradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestRegressor,
)
from sklearn.neighbors import KNeighborsRegressor
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import SplineTransformer
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

import modularml as mm
from modularml.errors import MMLError
from modularml.io import inspect
from modularml.models import TensorflowModelWrapper
from modularml.models.torch import SequentialMLP, TorchModelWrapper
from modularml.samplers import BaseSampler
from modularml.splitters import BaseSplitter, RandomSplitter
from tests.fuzz.harm import harm, watched
from tests.fuzz.share import dice, times
from tests.io import things

pytestmark = pytest.mark.slow

LOADS: dict[str, Any] = {
    "fs": mm.FeatureSet,
    "exp": mm.Experiment,
    "mg": mm.ModelGraph,
    "md": mm.BaseModel,
    "sc": mm.Scaler,
    "op": mm.Optimizer,
    "ls": mm.Loss,
    "sm": BaseSampler,
    "sp": BaseSplitter,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One good file of each kind."""
    folder = tmp_path_factory.mktemp("good")
    with mm.ExperimentContext().activate():
        made = things.experiment()
        fs: Any = made.ctx.get_node("cells")
        model = SequentialMLP(output_shape=(2,), hidden_dim=3)
        model.build((4,))
        scaler = mm.Scaler("StandardScaler")
        scaler.fit(np.arange(6.0).reshape(3, 2))
        objects = {
            "fs": fs,
            "exp": made,
            "mg": made.model_graph,
            "md": model,
            "sc": scaler,
            "op": mm.Optimizer("adam", opt_kwargs={"lr": 0.1}, backend="torch"),
            "ls": mm.Loss("mse"),
            "sm": mm.SimpleSampler(batch_size=4, shuffle=True),
            "sp": RandomSplitter({"a": 0.5, "b": 0.5}, group_by="cell"),
            **{f"{name}.md": model for name, model in estimators().items()},
            "keras.md": dense(),
            "layers.md": layers(),
        }
        return {kind: obj.save(folder / kind) for kind, obj in objects.items()}


def estimators() -> dict[str, Any]:
    """Return fitted estimators of each kind that is held against its structure."""
    rows = np.random.default_rng(0).normal(size=(30, 4))
    kinds = {
        "tree": DecisionTreeClassifier(max_depth=3),
        "forest": RandomForestRegressor(2, max_depth=2),
        "boosting": GradientBoostingClassifier(n_estimators=2, max_depth=2),
        "histogram": HistGradientBoostingRegressor(max_iter=2, min_samples_leaf=3),
        "vectors": SVC(),
        "neighbours": KNeighborsRegressor(3, algorithm="kd_tree"),
        "centres": MiniBatchKMeans(3, n_init=1),
        "birch": Birch(n_clusters=3, threshold=0.3, branching_factor=4),
        "pipeline": make_pipeline(SplineTransformer(), PCA(2), MLPRegressor(max_iter=2)),
    }
    found = {}
    for name, made in kinds.items():
        with warnings.catch_warnings(action="ignore"):
            made.fit(rows, np.arange(30) % 3)
        found[name] = mm.ScikitModelWrapper(made)
        found[name].build((4,))
    return found


def dense() -> Any:
    """Return a Keras model that was given as an object."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, "relu")])
    wrapped = TensorflowModelWrapper(model=model)
    wrapped.build((4,))
    return wrapped


def layers() -> Any:
    """Return layers of torch that were given as objects."""
    inner = torch.nn.Sequential(torch.nn.Conv1d(1, 2, 3, padding=1), torch.nn.Flatten())
    module = torch.nn.Sequential(torch.nn.Unflatten(1, (1, 4)), inner, torch.nn.Linear(8, 1))
    wrapped = TorchModelWrapper(model=module)
    wrapped.build((4,))
    return wrapped


def flip(rng: random.Random, data: bytearray) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def truncate(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data)) :]


def overwrite(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    data[at : at + 64] = rng.randbytes(min(rng.randint(1, 64), len(data) - at))


def splice(rng: random.Random, data: bytearray) -> None:
    at, source = rng.randrange(len(data)), rng.randrange(len(data))
    data[at:at] = data[source : source + rng.randint(1, 64)]


def delete(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.randint(1, 64)]


@pytest.mark.parametrize("how", [flip, truncate, overwrite, splice, delete])
def test_no_damage_goes_unseen(
    how: Callable[..., None], files: dict[str, Path], tmp_path: Path
) -> None:
    rng = dice(how.__name__)
    for i in range(times(10_000)):
        kind = list(files)[i % len(files)]
        good = files[kind].read_bytes()
        bent = bytearray(good)
        how(rng, bent)
        if bent == good:
            continue
        path = tmp_path / f"bent.{kind}.mml"
        path.write_bytes(bent)
        with mm.ExperimentContext().activate() as ctx, watched() as events:
            with pytest.raises(MMLError):
                LOADS[kind.split(".")[-1]].load(path)
            assert ctx.available_nodes == {}
        assert harm(events) == []


NASTY: list[Any] = [
    *(None, True, -1, 0, 1, 2, 10**6, 10**18, -(10**18), 0.5, 1e308, "", "x", "os:system"),
    *([], {}, [[]], [None], ["a", 1], {"a": 1}, "../../x", "\0", "$type", {"$tuple": [1, 2]}),
    *({"$code": "os:system"}, {"$type": "Loss", "params": {}}, {"$tensor": "a", "in": "b"}),
]


def bend_json(rng: random.Random, data: bytes) -> bytes:
    """Replace, drop, double or swap a random part of a tree."""
    tree = json.loads(data)
    holders: list[tuple[Any, Any]] = []
    stack = [tree] if isinstance(tree, dict | list) else []
    while stack:
        item = stack.pop()
        keys = list(item) if isinstance(item, dict) else range(len(item))
        holders += [(item, key) for key in keys]
        stack += [item[key] for key in keys if isinstance(item[key], dict | list)]
    if holders:
        holder, key = rng.choice(holders)
        other, place = rng.choice(holders)
        how = rng.randrange(4)
        if how == 0 and isinstance(holder, dict):
            del holder[key]
        elif how == 1:
            holder[key] = json.loads(json.dumps(other[place]))
        elif how == 2 and isinstance(holder, dict):
            holder[rng.choice(["x", "label", "$type", "$tuple", "state"])] = rng.choice(NASTY)
        else:
            holder[key] = rng.choice(NASTY)
    return json.dumps(tree if holders else rng.choice(NASTY)).encode()


def bend(rng: random.Random, found: dict[str, bytes]) -> None:
    name = rng.choice(list(found))
    if name.endswith(".json") and rng.random() < 0.8:
        found[name] = bend_json(rng, found[name])
        return
    data = bytearray(found[name])
    for _ in range(rng.randint(1, 3)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    found[name] = bytes(data)


@pytest.fixture
def eight_gigabytes() -> Iterator[None]:
    """Bound the address space, of which torch and TensorFlow take two gigabytes."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.usefixtures("eight_gigabytes")
def test_resealed_damage_never_harms(files: dict[str, Path], tmp_path: Path) -> None:
    rng, loaded = dice("resealed"), 0
    kinds = ["exp", "fs", "mg", *files]
    for i in range(times(10_000)):
        kind = kinds[i % len(kinds)]
        path = tmp_path / f"bent.{kind}.mml"
        try:
            things.resealed(files[kind], path, lambda found: bend(rng, found))
        except MMLError:  # not even the writer takes it
            continue
        with mm.ExperimentContext().activate() as ctx, watched() as events:
            before = things.snapshot(ctx)
            try:
                inspect(path)
                made = LOADS[kind.split(".")[-1]].load(path)
            except MMLError:
                assert things.snapshot(ctx) == before
            else:
                loaded += 1
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    touch(made)
        assert harm(events) == []
    assert loaded > 0


def touch(made: Any) -> None:
    """Use everything that was loaded; ordinary errors are fine, crashes are not."""
    steps: list[Callable[[], Any]] = [lambda: repr(made), made.get_config]
    if isinstance(made, mm.FeatureSet):
        steps += sights(made)
    if isinstance(made, mm.Experiment):
        for fs in made.ctx.available_featuresets.values():
            steps += [*sights(fs), lambda fs=fs: made.predict(fs)]
        steps += [lambda: made.history[0].results, lambda: one_step(made)]
    if isinstance(made, mm.BaseModel):
        steps.append(lambda: made(np.ones((3, 4), dtype=np.float32)))
    if isinstance(made, mm.ScikitModelWrapper):
        steps += [lambda: every_output(made.inner), lambda: made.fit(np.eye(4), np.arange(4.0))]
        steps.insert(-1, lambda: made.partial_fit(np.eye(4), np.arange(4)))
    if isinstance(made, mm.ModelGraph):
        steps.append(lambda: made.predict({"x": np.ones((2, 1), dtype=np.float32)}))
    for step in steps:
        try:
            step()
        except (SystemError, MemoryError, RecursionError):
            raise
        except Exception:
            continue


def every_output(made: Any) -> None:
    for method in ("predict_proba", "decision_function", "predict", "transform", "decision_path"):
        if hasattr(made, method):
            getattr(made, method)(np.ones((3, 4)))


def sights(fs: mm.FeatureSet) -> list[Callable[[], Any]]:
    splits = [lambda v=v: v.get_features("numpy") for v in fs.splits.values()]
    return [fs.summary, fs.to_pandas, fs._repr_html_, *splits]


def one_step(made: mm.Experiment) -> None:
    for phase in made.execution_plan.flatten():
        phase.n_epochs = 1
        made.preview_phase(phase, show_training_progress=False)


def test_a_failed_load_is_as_if_it_never_was(files: dict[str, Path], tmp_path: Path) -> None:
    rng = dice("failed")
    failed = 0
    with mm.ExperimentContext().activate() as ctx:
        fs = things.featureset("mine")
        things.graph(fs)
        while failed < times(500):
            kind = rng.choice(["exp", "fs", "mg"])
            path = tmp_path / f"bent.{kind}.mml"
            before = things.snapshot(ctx)
            try:
                things.resealed(files[kind], path, lambda found: bend(rng, found))
                with mm.ExperimentContext().activate():
                    LOADS[kind.split(".")[-1]].load(path)
                continue
            except MMLError:
                pass
            try:
                LOADS[kind.split(".")[-1]].load(path)
            except MMLError:
                failed += 1
            assert things.snapshot(ctx) == before
            assert mm.FeatureSet.load(files["fs"]).n_samples == 30
            ctx.set_state(before[0])
