"""Fifty experiments at once, in threads and in asyncio tasks, against one after another."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import nn

import modularml as mm
from tests.worlds import (
    QUIET,
    arrays,
    assert_equal_weights,
    eval_phase,
    featureset,
    graph_of,
    mse,
    train_phase,
    weights,
)

N = 50


def linear(seed):
    """Return a network whose weights come from a generator of its own."""
    source = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1))
    with torch.no_grad():
        for p in net.parameters():
            p.uniform_(-0.5, 0.5, generator=source)
    return net


def make(seed):
    exp = mm.Experiment(f"exp{seed}", registration_policy="error")
    fs = featureset(*arrays(n=24, seed=seed))
    fs.split_random({"train": 0.5, "val": 0.5}, seed=seed)
    fs.fit_transform("StandardScaler", domain="features", fit_to_split="train")
    net = linear(seed)
    graph = graph_of(fs, net, "adam", lr=0.01)
    loss = mm.EvalLossMetric(loss=mse())
    evaluation = mm.Evaluation.from_split("val", split="val", metrics=["r2", loss])
    phase = train_phase(
        graph,
        split="train",
        n_epochs=2,
        batch_size=4,
        shuffle=True,
        seed=seed,
        callbacks=[evaluation, mm.EarlyStopping(patience=3, restore_best=True)],
    )
    exp.execution_plan.add_phase(phase).add_phase(eval_phase(graph, split="val"))
    return exp, net


def outcome(exp, net):
    results = exp.run(**QUIET)
    return weights(net), results["train"].to_pandas(), results["eval"].to_pandas()


@pytest.fixture(scope="module")
def alone():
    return [outcome(*make(seed)) for seed in range(N)]


def check(found, alone):
    assert len(found) == N
    for mine, theirs in zip(found, alone, strict=True):
        assert_equal_weights(mine[0], theirs[0])
        assert mine[1].equals(theirs[1])
        assert mine[2].equals(theirs[2])


def test_threads(alone):
    together = Barrier(N)

    def work(seed):
        together.wait()
        made = make(seed)
        assert mm.ExperimentContext.get_active() is made[0].ctx
        return outcome(*made)

    with ThreadPoolExecutor(N) as pool:
        check(list(pool.map(work, range(N))), alone)


def test_tasks(alone):
    async def work(seed):
        exp, net = make(seed)
        await asyncio.sleep(0)
        assert mm.ExperimentContext.get_active() is exp.ctx
        phase = exp.execution_plan.get_train_phase("train")
        for _ in exp.stream(phase):
            await asyncio.sleep(0)  # the others go on
        assert mm.ExperimentContext.get_active() is exp.ctx
        last = exp.run_phase(exp.execution_plan.get_eval_phase("eval"))
        return weights(net), exp.history[0].results["train"].to_pandas(), last.to_pandas()

    async def every():
        return await asyncio.gather(*(work(seed) for seed in range(N)))

    outside = mm.ExperimentContext.get_active()
    check(asyncio.run(every()), alone)
    assert mm.ExperimentContext.get_active() is outside
