"""Recorded epochs are packed as their steps are, one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import modularml as mml
from modularml.models.torch import SequentialMLP
from modularml.results.packed_results import packed_steps, unpacked_steps
from modularml.results.step_log import EpochSteps, StepLog

N = 50


def assert_same_tree(a: Any, b: Any) -> None:
    """Compare plain data of any depth, with dtypes."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same_tree(a[key], b[key])
    elif isinstance(a, list):
        for one, other in zip(a, b, strict=True):
            assert_same_tree(one, other)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    else:
        assert a == b


def recorded(sampler: Any, *, weighted: bool) -> Any:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 3)).astype("float32")
    with mml.ExperimentContext().activate():
        columns = {"x": x, "y": x[:, 0], "w": rng.uniform(1, 2, N), "kind": np.arange(N) % 3}
        fs = mml.FeatureSet.from_dict("rows", columns, "x", "y", ["w", "kind"])
        fs.add_split(fs.take(range(3, N), label="train"))
        mml.ModelGraph([mml.ModelNode("net", SequentialMLP(), fs)], mml.Optimizer("adam"))
        own = mml.Experiment.from_active_context("e", audit="off", seed=1)
        weight = {"sample_weight": "w"} if weighted else {}
        loss = mml.AppliedLoss(mml.Loss("mse"), "net", ["outputs", "targets"], **weight)
        phase = mml.TrainPhase.from_split(
            "t", split="train", sampler=sampler, losses=[loss], n_epochs=2
        )
        return own.run_phase(phase, show_training_progress=False), own


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_an_epoch_is_packed_as_its_steps_are(weighted, shuffle):
    results, own = recorded(mml.SimpleSampler(batch_size=8, shuffle=shuffle), weighted=weighted)
    steps = results._execution
    parts = [part for part in steps.parts if isinstance(part, EpochSteps)]
    assert len(parts) == 2
    for part in parts:
        assert hasattr(part.rows, "joined")
        log = StepLog()
        log.parts.append(part)
        found = packed_steps(log)
        assert_same_tree(found, packed_steps(list(part)))
        assert [len(out["bounds"]) for out in found["outputs"]] == [len(part) + 1]
    with own.ctx.activate():
        for step, again in zip(steps, unpacked_steps(packed_steps(steps)), strict=True):
            assert len(step.outs) == len(again.outs)
            for one, other in zip(step.outs, again.outs, strict=True):
                np.testing.assert_array_equal(one.numpy(), other.numpy())
            assert step.loss_totals() == again.loss_totals()
            assert [r.value for r in step.losses] == [r.value for r in again.losses]
