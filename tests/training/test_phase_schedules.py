"""Schedules that know their phase and warm up, held against torch's and Keras' own."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler as lrs

import modularml as mm
from modularml.callbacks import Callback, LearningRateMonitor
from modularml.errors import ConfigError
from tests.fuzz.stopping import differences, outcome
from tests.worlds import (
    QUIET,
    arrays,
    assert_same_folds,
    experiment,
    featureset,
    mlp,
    mse,
    train_phase,
)

pytestmark = pytest.mark.filterwarnings("ignore::modularml.strategies.SelectionWarning")
LR = 0.05


def world(schedule, *, opt="sgd", net=None, n=40, **opt_kwargs):
    """Three batches of 16 rows an epoch."""
    node = mm.ModelNode("net", net or mlp(), featureset(*arrays(n=n)))
    optimizer = mm.Optimizer(opt, opt_kwargs={"lr": LR, **opt_kwargs}, schedule=schedule)
    return mm.ModelGraph([node], optimizer)


def rates(graph, *phases, every="epoch"):
    """Return the logged rates of each phase."""
    found = []
    for i, phase in enumerate(phases):
        phase.add_callback(LearningRateMonitor(every=every))
        results = experiment(f"e{i}").run_phase(phase, **QUIET)
        found.append([v for _, v in sorted(
            (key[1:], v) for key, v in results.metrics().where(name="lr").items()
        )])  # fmt: skip
    return found


def torchs(make, n, **opt_kwargs):
    """Return the first n rates of a scheduler of torch."""
    param = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([param], lr=LR, **opt_kwargs)
    scheduler, found = make(optimizer), []
    for _ in range(n):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


class TestLength:
    def test_cosine_of_epochs(self):
        graph = world("cosine")
        found = rates(graph, *(train_phase(graph, label=f"p{e}", n_epochs=e) for e in (4, 7)))
        for n, own in zip((4, 7), found, strict=True):
            assert own == pytest.approx(torchs(lambda o, n=n: lrs.CosineAnnealingLR(o, n), n))

    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_one_cycle_of_batches(self, accumulate):
        how = mm.LRSchedule("OneCycleLR", schedule_kwargs={"max_lr": 0.1}, every="batch")
        graph = world(how, momentum=0.9)
        phases = [
            train_phase(graph, label=f"p{i}", n_epochs=4, accumulate=accumulate) for i in range(2)
        ]
        for own in rates(graph, *phases, every="batch"):
            n = 4 * (3 if accumulate == 1 else 2)
            want = torchs(lambda o, n=n: lrs.OneCycleLR(o, 0.1, total_steps=n), n, momentum=0.9)
            if accumulate == 2:  # batches 0, 1 | 2 of each epoch share a rate
                want = np.repeat(want, [2, 1] * 4)
            assert own == pytest.approx(list(want))

    def test_an_argument_that_is_the_phase(self):
        graph = world(mm.LRSchedule("polynomial", schedule_kwargs={"total_iters": "phase"}))
        (found,) = rates(graph, train_phase(graph, n_epochs=5))
        assert found == pytest.approx(torchs(lambda o: lrs.PolynomialLR(o, 5), 5))

    def test_a_schedule_of_its_own_length_continues(self):
        graph = world(mm.LRSchedule("cosine", schedule_kwargs={"T_max": 6}))
        found = rates(graph, *(train_phase(graph, label=f"p{i}", n_epochs=3) for i in range(2)))
        want = torchs(lambda o: lrs.CosineAnnealingLR(o, 6), 6)
        assert [*found[0], *found[1]] == pytest.approx(want)

    def test_groups_start_from_their_own_rates(self):
        optimizer = mm.Optimizer(
            "sgd", opt_kwargs={"lr": LR}, schedule="cosine", groups={"net.0": {"lr": 0.01}}
        )
        graph = mm.ModelGraph([mm.ModelNode("net", mlp(), featureset(*arrays(n=40)))], optimizer)
        want = torchs(lambda o: lrs.CosineAnnealingLR(o, 4), 4)
        for i in range(2):
            callbacks = [LearningRateMonitor()]
            phase = train_phase(graph, label=f"p{i}", n_epochs=4, callbacks=callbacks)
            results = experiment(f"e{i}").run_phase(phase, **QUIET)
            for name, lr in (("lr_default", LR), ("lr_net.0", 0.01)):
                own = list(results.metrics().where(name=name).values())
                assert own == pytest.approx([w * lr / LR for w in want])


class TestWarmup:
    @pytest.mark.parametrize("warmup", [3, 0.3])
    def test_equals_torchs_own_in_sequence(self, warmup):
        graph = world(mm.LRSchedule("cosine", warmup=warmup))
        found = rates(graph, *(train_phase(graph, label=f"p{i}", n_epochs=10) for i in range(2)))

        def make(o):
            first = lrs.LinearLR(o, start_factor=1 / 4, total_iters=3)
            return lrs.SequentialLR(o, [first, lrs.CosineAnnealingLR(o, 7)], milestones=[3])

        for own in found:
            assert own == pytest.approx(torchs(make, 10), rel=1e-12)

    def test_a_constant_rate_after_it(self):
        graph = world(mm.LRSchedule(warmup=4, every="batch"))
        found = rates(
            graph, *(train_phase(graph, label=f"p{i}", n_epochs=2) for i in range(2)), every="batch"
        )
        want = [LR * k / 5 for k in (1, 2, 3, 4, 5, 5)]
        assert found == [pytest.approx(want), pytest.approx([LR] * 6)]

    def test_before_a_plateau(self):
        how = mm.LRSchedule("plateau", schedule_kwargs={"patience": 0}, monitor="score", warmup=2)
        graph = world(how)
        scores = iter([1.0, 2.0, 1.5, 3.0, 3.0, 3.0, 2.0])
        log = mm.callbacks.MetricCallback("score", lambda **facts: next(scores))
        phase = train_phase(graph, n_epochs=7, callbacks=[log])
        (found,) = rates(graph, phase)
        # the scores after the warm-up: 1.5, then two that are no better and cut it tenfold
        want = [LR / 3, LR * 2 / 3, LR, LR, LR / 10, LR / 100, LR / 1000]
        assert found == pytest.approx(want)

    def test_refusals(self):
        for bad in (-1, 1.5, True, "2", float("nan")):
            with pytest.raises(ConfigError, match="warmup"):
                mm.LRSchedule("cosine", warmup=bad)
        with pytest.raises(ConfigError, match="T_max must be a number of steps or 'phase'"):
            mm.LRSchedule("cosine", schedule_kwargs={"T_max": "phas"})
        with pytest.raises(ConfigError, match="schedule must be given"):
            mm.LRSchedule()
        with pytest.raises(ConfigError, match="there is none"):
            mm.LRSchedule(warmup=2, monitor="val_loss")
        graph = world(mm.LRSchedule("cosine", warmup=5))
        with pytest.raises(ConfigError, match="warms up for 5 steps, and the phase has only 5"):
            experiment().run_phase(train_phase(graph, n_epochs=5), **QUIET)
        kwargs = {"max_lr": 0.1}
        graph.optimizer.schedule = mm.LRSchedule("OneCycleLR", schedule_kwargs=kwargs, warmup=2)
        phase = train_phase(graph, label="again", n_epochs=5)
        with pytest.raises(ConfigError, match="pct_start"):
            experiment("e").run_phase(phase, **QUIET)


def test_by_hand_it_is_refused_without_a_phase():
    graph = world(mm.LRSchedule("cosine", every="batch"))
    graph.build()
    phase = train_phase(graph, n_epochs=2)
    seen = []
    for ctx in phase.iter_execution(show_training_progress=False):
        graph.train_step(ctx, phase.losses)
        seen.append(graph.optimizer.learning_rates["default"])
    assert seen == pytest.approx(torchs(lambda o: lrs.CosineAnnealingLR(o, 6), 7)[1:], abs=1e-12)
    graph.optimizer.reset()
    graph.build()
    with pytest.raises(ConfigError, match="takes its length from a phase"):
        graph.optimizer.advance()


@pytest.mark.parametrize("every", ["epoch", "batch"])
def test_keras(every):
    from tests.keras_worlds import keras, net

    how = mm.LRSchedule("cosine", every=every, warmup=2)
    graph = world(how, opt="SGD", net=net())
    phases = [train_phase(graph, label=f"p{i}", n_epochs=3) for i in range(2)]
    n = 3 if every == "epoch" else 9
    own = keras.optimizers.schedules.CosineDecay(LR, n - 2)
    want = [LR / 3, LR * 2 / 3, *(float(own(i)) for i in range(n - 2))]
    for found in rates(graph, *phases, every=every):
        assert found == pytest.approx(want, rel=1e-5)


class EndsOfSchedules(Callback):
    def __init__(self, stops=-1):
        super().__init__("ends")
        self.n_, self.at = 0, stops
        self.stops = stops

    def on_batch_end(self, **facts):
        self.n_ += 1
        if self.n_ == self.at:
            raise ValueError("mine")


@pytest.mark.parametrize("every", ["epoch", "batch"])
@pytest.mark.parametrize("kind", ["cosine", "OneCycleLR"])
def test_resume_in_the_middle_of_the_second_phase(tmp_path, every, kind):
    def run(folder, at, resume=None):
        with mm.ExperimentContext().activate():
            kwargs = {"max_lr": 0.1} if kind == "OneCycleLR" else None
            warmup = 0 if kind == "OneCycleLR" else 2
            how = mm.LRSchedule(kind, schedule_kwargs=kwargs, every=every, warmup=warmup)
            graph = world(how, opt="adam")
            saving = mm.Checkpointing(mode="disk", save_on="batch_end") if folder else None
            exp, ends = experiment(), EndsOfSchedules()
            ends.at = at
            exp.execution_plan.add_phase(train_phase(graph, label="first", n_epochs=3))
            exp.execution_plan.add_phase(
                train_phase(graph, n_epochs=4, callbacks=[ends], checkpointing=saving)
            )
            if folder:
                exp.set_checkpoint_dir(folder)
            if at > 0:
                with pytest.raises(ValueError, match="mine"):
                    exp.run(**QUIET)
            else:
                exp.run(resume=resume, **QUIET)
            found = outcome(exp)
            del found["positions"]  # of finished phases, which are skipped
            return found

    run(tmp_path, 8)
    assert not differences(run(None, -1), run(tmp_path, -1, "auto"))


def test_files_copies_and_config(tmp_path):
    how = mm.LRSchedule("cosine", warmup=0.25)
    assert mm.LRSchedule.from_config(how.get_config()) == how
    graph = world(how)
    (first,) = rates(graph, train_phase(graph, label="a", n_epochs=4))
    path = graph.save(tmp_path / "g")
    for again in (copy.deepcopy(graph), None):
        with mm.ExperimentContext().activate():
            if again is None:
                other = mm.ModelGraph.load(path)
                assert other.optimizer.lr_schedule == how
                other.build()
                state = other.optimizer.get_state()
                assert state["schedule"]["last_epoch"] == 4
            else:
                assert again.optimizer.get_state()["n_steps"] == 4
    (second,) = rates(graph, train_phase(graph, label="b", n_epochs=4))
    assert first == second


@pytest.mark.parametrize(
    "how", [{"stacked": True}, pytest.param({"n_jobs": 2}, marks=pytest.mark.slow)]
)
def test_folds(how):
    def plan():
        fs = featureset(*arrays(n=160), cell=np.arange(160) // 4)
        fs.split_random({"train": 0.75, "val": 0.25}, seed=0, group_by="cell")
        schedule = mm.LRSchedule("cosine", warmup=3, every="batch")
        optimizer = mm.Optimizer("adam", opt_kwargs={"lr": 0.01}, schedule=schedule)
        model = mm.models.torch.SequentialMLP(hidden_dim=4)
        mm.ModelGraph([mm.ModelNode("net", model, fs)], optimizer).build()
        exp = experiment(audit="off")
        phase = mm.TrainPhase.from_split(
            "train", split="train", sampler=mm.SimpleSampler(batch_size=16, seed=0),
            losses=[mse()], n_epochs=3, callbacks=[LearningRateMonitor()],
        )  # fmt: skip
        exp.execution_plan.add_phase(phase)
        return exp

    assert_same_folds(plan, how)
