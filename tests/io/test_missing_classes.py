"""An experiment predicts without the classes of its training; running without them is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import modularml as mml
from modularml.errors import ConfigError, MMLError, MMLKindError

pytest.importorskip("torch")

SCRIPT = """
import numpy as np, modularml as mml
from modularml.callbacks import Callback, ExperimentCallback
from modularml.models.torch import SequentialMLP

class ScriptStamp(Callback):
    def __init__(self, label=None):
        super().__init__(label); self.seen_ = 0
    def on_epoch_end(self, **facts):
        self.seen_ += 1
class Watch(ExperimentCallback):
    pass
class Own(mml.SimpleSampler):
    pass
def square(outputs, targets):
    return ((outputs - targets) ** 2).mean(1)

x = np.random.default_rng(0).normal(size=(90, 3)).astype("float32")
fs = mml.FeatureSet.from_dict("w", {"x": x, "y": x[:, 0]}, "x", "y")
fs.split_random({"train": 0.5, "test": 0.5}, seed=0)
mml.ModelGraph([mml.ModelNode("net", SequentialMLP(), fs)], mml.Optimizer("adam"))
parts = dict(callbacks=[], sampler=mml.SimpleSampler(batch_size=16), loss=mml.Loss("mse"))
exp_callbacks = []
if WHAT == "callback": parts["callbacks"] = [ScriptStamp("s")]
if WHAT == "sampler": parts["sampler"] = Own(batch_size=16)
if WHAT == "loss": parts["loss"] = mml.Loss(square)
if WHAT == "experiment callback": exp_callbacks = [Watch("w")]
exp = mml.Experiment.from_active_context("e", callbacks=exp_callbacks, audit="off")
losses = [mml.AppliedLoss(parts["loss"], "net", ["outputs", "targets"])]
exp.execution_plan.add_phase(mml.TrainPhase.from_split(
    "t", split="train", sampler=parts["sampler"], losses=losses, callbacks=parts["callbacks"]))
exp.execution_plan.add_phase(mml.EvalPhase.from_split("plain", split="test"))
exp.run(show_training_progress=False)
exp.save(PATH)
np.save(OUT, exp.predict({"x": np.ones((2, 3), "float32")}))
"""
NAMES = {
    "callback": "ScriptStamp",
    "sampler": "Own",
    "loss": "square",
    "experiment callback": "Watch",
}


@pytest.fixture(params=NAMES)
def written(request, tmp_path):
    """Return what is missing, and the file of a script that is gone."""
    path, out = tmp_path / "e.exp.mml", tmp_path / "out.npy"
    head = f"WHAT, PATH, OUT = {request.param!r}, {str(path)!r}, {str(out)!r}\n"
    subprocess.run([sys.executable, "-c", head + SCRIPT], check=True)
    return NAMES[request.param], path, np.load(out)


def test_it_predicts_and_refuses_to_run_by_name(written, tmp_path):
    name, path, expected = written
    with mml.ExperimentContext().activate():
        there = mml.Experiment.load(path)
        np.testing.assert_array_equal(there.predict({"x": np.ones((2, 3), "float32")}), expected)
        assert there.history[0].results["t"].n_epochs == 1
        before = str(there.model_graph.get_state())
        with pytest.raises(ConfigError, match=f"cannot run: .*{name}.*not here.*custom_objects="):
            there.run(show_training_progress=False)
        if name != "Watch":
            phase = there.execution_plan.get_phase("t")
            for run in (there.run_phase, there.preview_phase, lambda p: list(there.stream(p))):
                with pytest.raises(ConfigError, match=f"phase 't' cannot run: .*{name}"):
                    run(phase)
            there.run_phase(there.execution_plan.get_phase("plain"))  # needs nothing of it
        assert str(there.model_graph.get_state()) == before
        again = there.save(tmp_path / "again")
    classes = mml.io.inspect(path)["classes"]
    assert [entry["name"] for entry in classes] == [f"__main__:{name}"]
    assert mml.io.inspect(again)["classes"] == classes
    with mml.ExperimentContext().activate():
        twice = mml.Experiment.load(again)
        with pytest.raises(ConfigError, match=name):
            twice.run(show_training_progress=False)


def test_the_graph_alone_is_read_from_it_too(written, tmp_path):
    _, path, out = written
    rows = {"x": np.ones((2, 3), "float32")}
    with mml.ExperimentContext().activate() as ctx:
        graph = mml.ModelGraph.load(path)
        np.testing.assert_array_equal(graph.predict(rows), out)
        assert next(iter(ctx.available_featuresets.values())).available_splits == ["train", "test"]
        shared = mml.Experiment.load(path).save(tmp_path / "shared", rows=False)
    with mml.ExperimentContext().activate():
        np.testing.assert_array_equal(mml.ModelGraph.load(shared).predict(rows), out)


def test_an_experiment_without_a_graph_has_none_to_read(tmp_path):
    path = mml.Experiment("empty").save(tmp_path / "empty")
    with pytest.raises(MMLKindError, match="without a graph"):
        mml.ModelGraph.load(path)
    scaler = mml.SimpleSampler(batch_size=3).save(tmp_path / "s")
    with pytest.raises(MMLKindError, match=r"of kind .*, not "):
        mml.ModelGraph.load(scaler)


class Stamp(mml.callbacks.Callback):
    def __init__(self, label=None):
        super().__init__(label)
        self.seen_ = 0


def test_with_the_class_it_runs_and_its_state_has_come_along(written, tmp_path):
    name, path, _ = written
    if name != "ScriptStamp":
        pytest.skip("has no state")
    with mml.ExperimentContext().activate():
        first = mml.Experiment.load(path).save(tmp_path / "first")
    with mml.ExperimentContext().activate():
        there = mml.Experiment.load(first, custom_objects={"ScriptStamp": Stamp})
        assert there.execution_plan.get_phase("t").callbacks[0].seen_ == 1
        there.run(show_training_progress=False)


def test_a_class_of_the_same_name_from_elsewhere_does_not_stand_in(written):
    name, path, _ = written
    if name != "Own":
        pytest.skip("one is enough")
    other = type("Own", (mml.SimpleSampler,), {"__module__": "somewhere"})
    with mml.ExperimentContext().activate():
        there = mml.Experiment.load(path)
        with pytest.raises(ConfigError, match=r"Own.*not here.*somewhere:Own has its name"):
            there.run(show_training_progress=False)
        there = mml.Experiment.load(path, custom_objects={"Own": other})
        there.run(show_training_progress=False)


def test_a_model_is_needed_to_predict(tmp_path):
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Linear):
        pass

    Net.__module__, Net.__qualname__ = "__main__", "Net"
    sys.modules["__main__"].Net = Net
    try:
        x = np.ones((8, 3), "float32")
        fs = mml.FeatureSet.from_dict("w", {"x": x, "y": x[:, 0]}, "x", "y")
        node = mml.ModelNode("net", mml.models.TorchModelWrapper(model=Net(3, 1)), fs)
        mml.ModelGraph([node], mml.Optimizer("adam"))
        path = mml.Experiment.from_active_context("e").save(tmp_path / "e")
    except MMLError:
        pytest.skip("a module given as an object is not stored")
    finally:
        del sys.modules["__main__"].Net
    with pytest.raises(MMLError, match="MML-108"):
        mml.Experiment.load(path)


def test_an_unknown_class_is_refused_before_anything_heavy_is_imported(tmp_path):
    from modularml.io.archive import open_archive, write_archive

    path = mml.SimpleSampler(batch_size=3).save(tmp_path / "s")
    archive = open_archive(path)
    members = {name: bytes(data) for name, data in archive.payloads.items()}
    members["config.json"] = members["config.json"].replace(b'"SimpleSampler"', b'"NobodysSampler"')
    facts = {key: archive.manifest[key] for key in ("backends", "classes", "requires")}
    write_archive(Path(tmp_path / "bad.sm.mml"), "sm", members, facts=facts)
    code = (
        "import sys\nfrom modularml.samplers import BaseSampler\n"
        "before = {'torch', 'tensorflow', 'sklearn', 'keras'} & set(sys.modules)\n"
        f"try: BaseSampler.load({str(tmp_path / 'bad')!r})\n"
        "except Exception as e: print(type(e).__name__, str(e)[:7])\n"
        "print(sorted({'torch', 'tensorflow', 'sklearn', 'keras'} & set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["MMLError MML-108", "[]"]


def test_every_class_of_ours_is_found_by_name_alone():
    from modularml.config import config_registry
    from modularml.io.classes import home_of

    assert home_of("NobodysClass") is None
    ours = {n: c for n, c in config_registry.items() if c.__module__.startswith("modularml.")}
    ours = {  # an example of a docstring may have defined another
        n: c for n, c in ours.items() if getattr(sys.modules[c.__module__], c.__name__, None) is c
    }
    assert len(ours) > 40
    for name, cls in ours.items():
        if "strategies" not in cls.__module__:
            assert home_of(name) == cls.__module__
