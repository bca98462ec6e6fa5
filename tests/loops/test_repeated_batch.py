"""A batch that is repeated after a stop counts once in everything that adds up."""

from __future__ import annotations

import copy

import pytest

from modularml.runner import Event, Runner
from modularml.runner.attachments import LambdaReducer, MeanReducer, ProgressBar, SumReducer
from modularml.runner.callbacks import maybe_stop_early

N_BATCHES = 5


class Bar:
    """Counts as tqdm does."""

    made: list[Bar] = []  # noqa: RUF012 - emptied by each test

    def __init__(self, **options):
        self.n = options["initial"]
        self.made.append(self)

    def update(self, n):
        self.n += n

    def close(self):
        pass


def stopped_runner(at: int, how: str) -> Runner:
    runner = Runner()
    SumReducer("total").attach_on(runner)
    MeanReducer("mean").attach_on(runner)
    LambdaReducer("list", lambda a, b: [*a, *b], value="row").attach_on(runner)
    Bar.made.clear()
    ProgressBar(tqdm_cls=Bar).attach_on(runner)

    @runner.on(Event.BATCH)
    def step(state):
        state["output"], state["row"] = state["batch"], [state["batch"]]
        if state["n_iters"] == at and not state.get("stopped"):
            state["stopped"] = True
            if how == "error":
                raise KeyboardInterrupt
            state["running"] = False

    if how == "error":
        with pytest.raises(KeyboardInterrupt):
            runner.run(range(N_BATCHES))
    else:
        runner.run(range(N_BATCHES))
    return runner


@pytest.mark.parametrize("how", ["flag", "error"])
@pytest.mark.parametrize("at", range(1, N_BATCHES + 1))
def test_reducers_count_it_once(at, how):
    runner = stopped_runner(at, how)
    if runner.state.get("_epoch_iters"):
        runner.resume(repeat_last_batch=True)
    assert runner.state["total"] == 10
    assert runner.state["mean"] == 2.0
    assert runner.state["list"] == [0, 1, 2, 3, 4]
    assert Bar.made[-1].n == N_BATCHES


def test_a_batch_repeated_twice_counts_once():
    runner = stopped_runner(3, "flag")
    runner.on(Event.BATCH, lambda state: state.update(running=state["n_iters"] != 3))
    runner.resume(repeat_last_batch=True)
    runner.resume(repeat_last_batch=True)
    runner.resume()
    assert runner.state["total"] == 10


def test_a_copy_of_the_state_goes_on_in_another_process():
    state = copy.deepcopy(stopped_runner(2, "flag").state)
    other = Runner()
    SumReducer("total").attach_on(other)
    other.on(Event.BATCH, lambda state: state.update(output=state["batch"]))
    other.state = state
    other.resume(repeat_last_batch=True)
    assert other.state["total"] == 10


def test_early_stopping_by_batch_counts_it_once():
    runner = Runner()
    runner.on(Event.BATCH, lambda state: state.update(better=False))
    runner.on(Event.BATCH, maybe_stop_early(patience=2))
    runner.run(range(10))
    assert runner.state["n_iters"] == 3
    runner.resume(repeat_last_batch=True)
    assert runner.state["_counter"] == 3


def test_the_same_run_twice_counts_twice():
    runner = Runner()
    runner.on(Event.EPOCH_FINISHED, lambda state: state.update(better=False))
    runner.on(Event.EPOCH_FINISHED, maybe_stop_early(patience=9))
    runner.run([1, 2])
    runner.run([1, 2])
    assert runner.state["_counter"] == 2
