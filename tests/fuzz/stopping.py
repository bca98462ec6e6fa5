"""Runs that are stopped at a random moment and gone on with, against the same never stopped.

Run as a script it prints what went wrong, as JSON: ``python -m tests.fuzz.stopping KIND N SEED``.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np

import modularml as mm
from modularml.callbacks import Callback
from modularml.io.randomness import random_states
from tests.worlds import arrays, experiment, featureset, mse

QUIET = {"show_training_progress": False, "show_sampler_progress": False}
HOOKS = ["phase_start", "epoch_start", "batch_start", "batch_end", "epoch_end", "phase_end"]


class Boom(Exception):
    """What a doomed run ends with."""


class Doom(Callback):
    """Notes and draws something at each hook, and ends everything at one of them."""

    def __init__(self, label: str) -> None:
        super().__init__(label, execution_order=50)
        self.seen_: list[Any] = []
        self.clock, self.at, self.end = itertools.count(1), 0, None

    def _note(self, hook: str, ctx: Any = None) -> None:
        where = None if ctx is None else [ctx.epoch_idx, ctx.batch_idx]
        drawn = [random.random(), float(np.random.rand())]  # noqa: NPY002
        self.seen_ = [*self.seen_, [hook, where, drawn]]
        if next(self.clock) == self.at:
            self.end()

    def on_phase_start(self, **facts: Any) -> None:
        self._note("phase_start")

    def on_epoch_start(self, *, exec_ctx: Any, **facts: Any) -> None:
        self._note("epoch_start", exec_ctx)

    def on_batch_start(self, *, exec_ctx: Any, **facts: Any) -> None:
        self._note("batch_start", exec_ctx)

    def on_batch_end(self, *, exec_ctx: Any, **facts: Any) -> None:
        self._note("batch_end", exec_ctx)

    def on_epoch_end(self, *, exec_ctx: Any, **facts: Any) -> float:
        self._note("epoch_end", exec_ctx)
        return mm.callbacks.MetricResult("drawn", self.seen_[-1][2][0])

    def on_phase_end(self, **facts: Any) -> None:
        self._note("phase_end")


class Hears(mm.callbacks.ExperimentCallback):
    """Notes the hooks of an experiment."""

    def __init__(self) -> None:
        super().__init__()
        self.heard_: list[str] = []

    def on_phase_start(self, *, phase: Any, **facts: Any) -> None:
        self.heard_ = [*self.heard_, f"start {phase.label}"]

    def on_group_end(self, *, phase_group: Any, **facts: Any) -> None:
        self.heard_ = [*self.heard_, f"end {phase_group.label}"]


def chosen(kind: str, rng: random.Random) -> dict[str, Any]:
    """Return what a world is made of."""
    hooks = rng.sample(HOOKS, rng.randint(1, 3))
    found = {
        "kind": kind,
        "dropout": rng.choice([0.0, 0.3]),
        "schedule": rng.choice([None, "step", "batch", "plateau"]),
        "optimizer": rng.choice(["sgd", "adam", "rmsprop"]),
        "grouped": rng.random() < 0.3,
        "seed": rng.choice([None, 5]),
        "own": rng.choice([None, 11]),
        "accumulate": rng.choice([1, 1, 3]),
        "patience": rng.choice([0, 1, 9]),
        "recording": rng.choice(["all", "last", "none"]),
        "epochs": [rng.randint(1, 3), rng.randint(1, 3)],
        "save_on": hooks,
        "every_n": rng.choice([1, 1, 2, 3]),
        "max_to_keep": rng.choice([None, 1, 3]),
        "of_phases": rng.random() < 0.5,
    }
    if kind == "torch":
        found |= {"precision": rng.choice(["float32", "float32", "fp16"])}
    if kind == "tensorflow":
        found |= {"schedule": rng.choice([None, "batch"]), "accumulate": rng.choice([1, 3])}
    if kind == "sklearn":
        found |= {"model": rng.choice(["sgd", "elastic", "net", "unseeded"]), "accumulate": 1}
    return found


def graph_of(fs: Any, made: dict[str, Any]) -> mm.ModelGraph:
    """Return a graph, with weights from a seed."""
    schedules = {
        "step": mm.LRSchedule("step", schedule_kwargs={"step_size": 1, "gamma": 0.7}),
        "batch": mm.LRSchedule("cosine", schedule_kwargs={"T_max": 9}, every="batch"),
        "plateau": mm.LRSchedule(
            "ReduceLROnPlateau", schedule_kwargs={"patience": 0}, monitor="val_loss"
        ),
    }
    if made["kind"] == "sklearn":
        from sklearn.linear_model import Ridge, SGDRegressor
        from sklearn.neural_network import MLPRegressor
        from sklearn.preprocessing import StandardScaler

        small = {"hidden_layer_sizes": (4,), "tol": 10.0, "n_iter_no_change": 1}
        models = {
            "sgd": lambda: SGDRegressor(learning_rate="adaptive", average=True),
            "elastic": lambda: SGDRegressor(random_state=4, penalty="elasticnet"),
            "net": lambda: MLPRegressor(random_state=4, **small),
            "unseeded": lambda: MLPRegressor(solver="sgd", **small),
        }
        scaler = mm.ModelNode("scaler", StandardScaler(), fs)
        net = mm.ModelNode("net", models[made["model"]](), scaler)
        return mm.ModelGraph([scaler, net, mm.ModelNode("ridge", Ridge(), net)])
    if made["kind"] == "torch":
        import torch
        from torch import nn

        torch.set_num_threads(1)
        torch.manual_seed(3)
        norm = nn.LayerNorm(8) if made["grouped"] else nn.BatchNorm1d(8)  # a group may be one row
        layers = [nn.Linear(6, 8), norm, nn.Dropout(made["dropout"])]
        model: Any = nn.Sequential(*layers, nn.Tanh(), nn.Linear(8, 1))
    else:
        from tests.keras_worlds import keras

        keras.utils.set_random_seed(3)
        wide = [keras.layers.Dense(8), keras.layers.BatchNormalization()]
        drop = [keras.layers.Dropout(made["dropout"]), keras.layers.Dense(1)]
        model = keras.Sequential([*wide, *drop])
        model(np.zeros((2, 6), "f4"))
    if made["kind"] == "tensorflow":
        schedules["batch"] = mm.LRSchedule(
            "CosineDecay",
            schedule_kwargs={"initial_learning_rate": 0.02, "decay_steps": 9},
            every="batch",
        )
    optimizer = mm.Optimizer(
        made["optimizer"], opt_kwargs={"lr": 0.02}, schedule=schedules.get(made["schedule"])
    )
    return mm.ModelGraph([mm.ModelNode("net", model, fs)], optimizer=optimizer)


def world(made: dict[str, Any], folder: Path) -> tuple[mm.Experiment, list[Doom]]:
    """Return an experiment and what can end it; the same script each time."""
    fs = featureset(*arrays(n=44), cell=[f"c{i % 4}" for i in range(44)])
    fs.split_random({"train": 0.7, "val": 0.3}, seed=1)
    graph_of(fs, made)
    options = {"save_on": made["save_on"], "every_n": made["every_n"]}
    options |= {"mode": "disk", "max_to_keep": made["max_to_keep"]}
    exp = experiment(seed=made["own"], callbacks=[Hears()], audit="off")
    if made["of_phases"]:
        exp.set_checkpointing(
            mm.Checkpointing(mode="disk", save_on=["phase_start", "group_end", "phase_end"])
        )
    exp.set_checkpoint_dir(folder)
    dooms = []

    def train(label: str, n_epochs: int) -> mm.TrainPhase:
        loss = mse("net")
        doom = Doom("doom")
        dooms.append(doom)
        seen = mm.EvalPhase.from_split("val", split="val", losses=[loss], active_nodes=["net"])
        val = mm.Evaluation(eval_phase=seen, metrics=[mm.EvalLossMetric(loss=loss)])
        stop = mm.EarlyStopping(patience=made["patience"], restore_best=True)
        sampler = mm.SimpleSampler(
            batch_size=7,
            shuffle=True,
            seed=made["seed"],
            group_by="cell" if made["grouped"] else None,
        )
        return mm.TrainPhase.from_split(
            label,
            split="train",
            sampler=sampler,
            losses=[loss],
            n_epochs=n_epochs,
            active_nodes=["net"],
            callbacks=[val, stop, doom],
            accumulate=made["accumulate"],
            precision=made.get("precision", "float32"),
            result_recording=made["recording"],
            checkpointing=mm.Checkpointing(**options),
        )

    def test(label: str) -> mm.EvalPhase:
        return mm.EvalPhase.from_split(
            label, split="val", losses=[mse("net")], active_nodes=["net"], batch_size=5
        )

    plan = exp.execution_plan
    if made["kind"] == "sklearn":
        plan.add_phase(mm.FitPhase.from_split("scale", split="train", active_nodes=["scaler"]))
    plan.add_phase(train("first", made["epochs"][0]))
    plan.add_group(mm.PhaseGroup("fine", [train("second", made["epochs"][1]), test("test")]))
    if made["kind"] == "sklearn":
        plan.add_phase(mm.FitPhase.from_split("fit", split="train", active_nodes=["ridge"]))
    return exp, dooms


def start(exp: mm.Experiment, seeds: list[int]) -> None:
    """Give what draws numbers the states of a fresh process, and samplers without seeds theirs."""
    random.seed(1)
    np.random.seed(2)  # noqa: NPY002
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(4)
    for sampler, seed in zip(samplers(exp), seeds, strict=False):
        sampler.seed_ = seed


def samplers(exp: mm.Experiment) -> list[Any]:
    phases = exp.execution_plan.flatten()
    return [b.sampler for p in phases for b in p.input_sources if b.sampler is not None]


def outcome(exp: mm.Experiment) -> dict[str, Any]:
    """Return all that a run has led to."""
    if exp.seed is not None:  # then an estimator without one holds a generator of the process
        np.random.seed(0)  # noqa: NPY002
    found: dict[str, Any] = {"graph": exp.model_graph.get_state()}
    if exp.seed is None:
        found["random"] = random_states()
    phases = exp.execution_plan.flatten()
    found["callbacks"] = [c.get_state() for p in phases for c in p.callbacks]
    found["samplers"] = [s.get_state() for s in samplers(exp)]
    found["heard"] = [c.get_state() for c in exp.exp_callbacks]
    ran = {p.label: p.position.state_dict() for p in phases if hasattr(p, "position")}
    found["positions"] = ran
    (run,) = exp.history
    found["status"] = run.status
    for path, results in run.results.flatten().items():
        found[f"{path} metrics"] = results.metrics().to_pandas().to_numpy().tolist()
        found[f"{path} said"] = [
            (type(c).__name__, c.label, c.epoch, c.edge) for c in results._callbacks
        ]
        stops = [vars(c) for c in results._callbacks if type(c).__name__ == "EarlyStoppingResult"]
        found[f"{path} stops"] = stops
        steps = [(s.epoch_idx, s.batch_idx, *map(float, s.values)) for s in results._execution]
        found[f"{path} steps"] = steps
        found[f"{path} outs"] = [np.asarray(o) for s in results._execution for o in s.outs]
        found[f"{path} rows"] = [
            s.sample_uuids("net", "default")
            for s in results._execution
            if "net" in s._layout().labels.values()
        ]
    return found


def differences(a: Any, b: Any, at: str = "") -> list[str]:
    """Return where two outcomes differ by a bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return [f"{at}: keys {set(a) ^ set(b)}"]
        return [d for key in a for d in differences(a[key], b[key], f"{at}.{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            return [f"{at}: {len(a)} and {len(b)} long"]
        return [
            d
            for i, (x, y) in enumerate(zip(a, b, strict=True))
            for d in differences(x, y, f"{at}[{i}]")
        ]
    if hasattr(a, "__dict__") and hasattr(a, "get_params"):
        return differences(vars(a), vars(b), at)
    if type(a).__name__ in ("FittedEstimator", "RandomState", "AdamOptimizer", "SGDOptimizer"):
        own = (lambda v: v.get_state()) if type(a).__name__ == "RandomState" else vars
        return differences(own(a), own(b), at)
    if isinstance(a, np.ndarray) or hasattr(a, "__array__"):
        x, y = np.asarray(a), np.asarray(b)
        same = x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
        return [] if same or (x.dtype == object and (x == y).all()) else [f"{at}: {x.dtype} arrays"]
    same = a is b or a == b or (a != a and b != b)
    return [] if same else [f"{at}: {a!r:.60} and {b!r:.60}"]


def begun(made: dict[str, Any], folder: Path, seeds: list[int]) -> Any:
    exp, dooms = world(made, folder)
    if not exp.available_checkpoints:
        start(exp, seeds)
    clock = itertools.count(1)
    for doom in dooms:
        doom.clock = clock
    return exp, dooms


def cut_short(made: dict[str, Any], folder: Path, seeds: list[int], at: int, how: str) -> None:
    """Go on with a run and end it at one of the hooks that its callbacks hear."""

    def boom() -> None:
        raise Boom

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with mm.ExperimentContext().activate():
        exp, dooms = begun(made, folder, seeds)
        for doom in dooms:
            doom.at, doom.end = at, boom if how == "raise" else kill
        try:
            exp.run(resume="auto", **QUIET)
        except Boom:
            assert exp.last_run.status == "failed"


def stopped(made: dict[str, Any], folder: Path, seeds: list[int], at: int, how: str) -> None:
    """Do so in this process, in a fork, or in a new one."""
    if how == "raise":
        return cut_short(made, folder, seeds, at, how)
    if made["kind"] == "tensorflow":
        given = json.dumps([made, str(folder), seeds, at])
        subprocess.run([sys.executable, "-m", __spec__.name, "--die", given], check=False)
        return None
    if (child := os.fork()) == 0:
        try:
            cut_short(made, folder, seeds, at, how)
        finally:
            os._exit(1)
    os.waitpid(child, 0)
    return None


def case(kind: str, rng: random.Random, folder: Path) -> list[str]:
    """Stop and go on, once or twice, and return how that differs from never having stopped."""
    made = chosen(kind, rng)
    with mm.ExperimentContext().activate():
        exp, dooms = begun(made, folder / "never", [])
        seeds = [int(s.seed_) for s in samplers(exp)]
        exp.run(**QUIET)
        wanted = outcome(exp)
    total = sum(len(doom.seen_) for doom in dooms)
    (folder / "often").mkdir()
    for _ in range(rng.choice([1, 1, 2])):
        how = (
            rng.choice(["raise", "kill"]) if kind != "tensorflow" or rng.random() < 0.2 else "raise"
        )
        stopped(made, folder / "often", seeds, rng.randint(1, total), how)
    random.seed(), np.random.seed(77)  # noqa: NPY002
    with mm.ExperimentContext().activate():
        exp, dooms = begun(made, folder / "often", seeds)
        before = random_states()
        exp.run(resume="auto", **QUIET)
        after = before if exp.seed is None else random_states()  # a seed leaves others alone
        got = outcome(exp)
    for label in wanted["positions"].keys() - got["positions"].keys():
        del wanted["positions"][label]  # done before, so not run in this process
    found = [*differences(wanted, got), *differences(before, after, "outside")]
    return [f"{made}", *found[:8]] if found else []


def main(kind: str, n: int, seed: str) -> None:
    """Print what went wrong in n cases."""
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", "Detected call of `lr_sch")  # fp16 skipped the first move
    bad: list[Any] = []
    for i in range(n):
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = case(kind, random.Random(f"{seed} {i}"), Path(folder))
            except Exception:
                found = [traceback.format_exc()[-1500:]]
            if found:
                bad.append([i, *found])
    print(json.dumps({"n": n, "bad": bad}))


if __name__ == "__main__":
    if sys.argv[1] == "--die":
        made, folder, seeds, at = json.loads(sys.argv[2])
        cut_short(made, Path(folder), seeds, at, "kill")
    else:
        main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
