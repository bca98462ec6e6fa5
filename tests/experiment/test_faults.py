"""Errors at every hook: they arrive whole, and everything is as before."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from tqdm import tqdm

import modularml as mm
from modularml import progress
from modularml.callbacks import Callback, ExperimentCallback
from tests.experiment.test_fit_phase import ClosedFormRidge
from tests.training.test_optimizer import assert_same_state
from tests.worlds import QUIET, arrays, bindings, eval_phase, featureset, graph_of, mse, train_phase

ERRORS = (ValueError, KeyboardInterrupt, SystemExit, MemoryError)
OF_PHASE = ("phase_start", "epoch_start", "batch_start", "batch_end", "epoch_end", "phase_end")
OF_EXPERIMENT = tuple(
    f"{what}_{edge}" for what in ("experiment", "group", "phase") for edge in ("start", "end")
)
HOOKS = [(Callback, h) for h in OF_PHASE] + [(ExperimentCallback, h) for h in OF_EXPERIMENT]


def counts_and_raises(base, hook):
    """Return a callback that counts calls of a hook and raises at one of them."""

    def listen(self, **facts):
        self.calls += 1
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
        if self.calls == self.fails_at:
            raise self.error

    def told(self, *, exception, **facts):
        self.seen.append(exception)
        raise RuntimeError("the handler fails too")

    cls = type("Raises", (base,), {f"on_{hook}": listen, "on_exception": told})
    made = cls()
    made.calls, made.fails_at, made.error, made.seen = 0, None, None, []
    return made


def phase_of(kind, graph, callbacks):
    if kind == "train":
        return train_phase(graph, n_epochs=3, batch_size=4, shuffle=True, callbacks=callbacks)
    if kind == "eval":
        return eval_phase(graph, batch_size=4, callbacks=callbacks)
    return mm.FitPhase("fit", input_sources=bindings(graph), losses=[mse()], callbacks=callbacks)


def world(kind, base, hook):
    x, y = arrays(n=12)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    graph = graph_of(featureset(x, y), ClosedFormRidge() if kind == "fit" else net)
    graph.build()
    listener = counts_and_raises(base, hook)
    of_phase = base is Callback
    exp = mm.Experiment.from_active_context(
        "faulty", callbacks=[] if of_phase else [listener], seed=5
    )
    phases = [phase_of(kind, graph, [listener] if of_phase else [])]
    exp.execution_plan.add_group(mm.PhaseGroup("g", phases))
    return exp, graph, listener


def surroundings(graph):
    return {
        "random": mm.io.randomness.random_states(),
        "frozen": [node.is_frozen for node in graph.nodes.values()],
        "training": [m.training for n in graph.nodes.values() for m in n.model.modules()],
        "grad": torch.is_grad_enabled(),
        "context": id(mm.ExperimentContext.get_active()),
    }


@pytest.mark.parametrize("kind", ["train", "eval", "fit"])
@pytest.mark.parametrize(("base", "hook"), HOOKS)
def test_every_hook_may_fail(kind, base, hook, monkeypatch):
    monkeypatch.setattr(progress, "tqdm_class", lambda: Silent)
    monkeypatch.setattr(progress, "IN_NOTEBOOK", True)  # bars are drawn
    exp, graph, listener = world(kind, base, hook)
    start = graph.get_state()
    clean = exp.run(show_eval_progress=True)
    calls, want = listener.calls, graph.get_state()
    assert calls
    assert exp.last_run.status == "completed"
    for error in ERRORS:
        for fails_at in sorted({1, (calls + 1) // 2, calls}):
            graph.set_state(start)
            listener.calls, listener.fails_at, listener.error = 0, fails_at, error("mine")
            listener.seen.clear()
            before = surroundings(graph)
            exp._history[1:] = []
            with pytest.raises(error) as caught:
                exp.run(show_eval_progress=True)
            assert caught.value is listener.error
            assert listener.seen == [listener.error]
            assert "handler fails too" in caught.value.__notes__[0]
            assert_same_state(surroundings(graph), before)
            assert not Silent.open_bars
            run = exp.last_run
            interrupted = error is KeyboardInterrupt
            assert run.status == ("interrupted" if interrupted else "failed")
            assert run.execution_meta["error"] is caught.value
            assert run.ended_at is not None
            graph.set_state(start)
            exp._history.clear()
            listener.calls, listener.fails_at = 0, None
            again = exp.run(show_eval_progress=True)
            assert_same_state(graph.get_state(), want)
            assert again.to_pandas().equals(clean.to_pandas())


class Silent(tqdm):
    """A bar that draws nothing and knows whether it is open."""

    open_bars: list = []  # noqa: RUF012

    def __init__(self, *args, **kwargs):
        self.open_bars.append(self)
        super().__init__(*args, **{**kwargs, "file": Nowhere()})

    def close(self):
        if self in self.open_bars:
            self.open_bars.remove(self)
        super().close()

    __eq__ = object.__eq__
    __hash__ = object.__hash__


class Nowhere:
    def write(self, text):
        return len(text)

    def flush(self):
        pass


def test_everybody_is_told_although_one_handler_fails():
    x, y = arrays(n=12)
    graph = graph_of(featureset(x, y), nn.Linear(6, 1))
    made = [counts_and_raises(Callback, "batch_end") for _ in range(3)]
    for i, each in enumerate(made):
        each._label = str(i)
    made[1].fails_at, made[1].error = 1, ValueError("mine")
    exp = mm.Experiment.from_active_context("told")
    with pytest.raises(ValueError, match="mine"):
        exp.run_phase(train_phase(graph, callbacks=made), **QUIET)
    assert [each.seen for each in made] == [[made[1].error]] * 3
    assert len(made[1].error.__notes__) == 3
