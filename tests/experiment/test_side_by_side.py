"""Fifty experiments at once, in threads and in asyncio tasks, against one after another."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import nn

import modularml as mm
from modularml.callbacks import Callback
from modularml.models.torch import SequentialMLP
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
    exp = mm.Experiment(f"exp{seed}", registration_policy="error", audit="off")
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


def seeded(seed=5):
    """Train a network with dropout, all of whose numbers come from the experiment's seed."""
    with mm.ExperimentContext().activate():
        fs = featureset(*arrays(n=40))
        fs.split_random({"train": 0.5, "val": 0.5})
        net = mm.ModelNode("net", SequentialMLP(hidden_dim=8, dropout=0.3), fs)
        mm.ModelGraph([net], mm.Optimizer("adam"))
        exp = mm.Experiment.from_active_context("exp", seed=seed, audit="off")
        sampler = mm.SimpleSampler(batch_size=8, shuffle=True)
        phase = mm.TrainPhase.from_split(
            "t", split="train", sampler=sampler, losses=[mse()], n_epochs=3
        )
    return exp, phase, fs


def predicted(exp, fs):
    return exp.predict(fs["val"]).tobytes()


def trained(_=0):
    exp, phase, fs = seeded()
    exp.run_phase(phase, **QUIET)
    return predicted(exp, fs)


def test_one_seed_gives_the_same_bits_in_threads():
    alone = trained()
    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(trained, range(6))) == {alone}


def test_one_seed_gives_the_same_bits_in_folds_of_threads():
    def folds(_=0):
        exp, phase, fs = seeded()
        with exp.ctx.activate():
            cv = mm.CrossValidation(
                bindings=mm.CVBinding(fs, ["train", "val"]), phase=phase, n_folds=2
            )
            results = cv.run(show_fold_progress=False, **QUIET)
        return results.out_of_fold("net").prediction.to_numpy().tobytes()

    alone = folds()
    with ThreadPoolExecutor(3) as pool:
        assert set(pool.map(folds, range(3))) == {alone}


def test_streams_of_one_seed_in_turn_give_the_same_bits_and_leave_the_process_alone():
    alone = trained()
    runs = [seeded() for _ in range(3)]
    torch.manual_seed(9)
    expected = torch.rand(9)
    torch.manual_seed(9)
    streams = zip(*(exp.stream(phase, **QUIET) for exp, phase, _ in runs), strict=True)
    drawn = [torch.rand(3) for _ in streams]
    torch.testing.assert_close(torch.cat(drawn), expected, rtol=0, atol=0)
    assert {predicted(exp, fs) for exp, _, fs in runs} == {alone}


def test_a_run_without_a_seed_beside_one_with_a_seed_is_warned_of():
    exp, phase, _ = seeded()
    loose, other, _ = seeded(None)

    class Meanwhile(Callback):
        def on_epoch_end(self, **facts):
            with ThreadPoolExecutor(1) as pool:
                pool.submit(loose.run_phase, other, **QUIET).result()

    with exp.ctx.activate():
        phase.n_epochs = 1
        phase.add_callback(Meanwhile())
    with pytest.warns(UserWarning, match="uses the process's random generators"):
        exp.run_phase(phase, **QUIET)


def test_a_graph_built_by_a_thread_that_a_seeded_run_waits_for_is_warned_of(monkeypatch):
    monkeypatch.setattr("modularml.io.randomness._MOST_SECONDS", 0.05)
    exp, phase, _ = seeded()

    class Meanwhile(Callback):
        def on_epoch_end(self, **facts):
            with ThreadPoolExecutor(1) as pool:
                pool.submit(seeded, None).result()

    with exp.ctx.activate():
        phase.n_epochs = 1
        phase.add_callback(Meanwhile())
    with pytest.warns(UserWarning, match="uses the process's random generators"):
        exp.run_phase(phase, **QUIET)
