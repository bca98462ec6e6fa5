"""Reducers, the bar and the timer."""

import logging
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modularml.errors import ConfigError
from modularml.runner import Event, Runner
from modularml.runner.attachments import (
    Attachment,
    EpochTimer,
    LambdaReducer,
    MeanReducer,
    ProgressBar,
    SumReducer,
)


def runner_with(*attachments, output=lambda batch: batch):
    runner = Runner()
    for attachment in attachments:
        attachment.attach_on(runner)
    runner.on(Event.BATCH, lambda state: state.update(output=output(state["batch"])))
    return runner


# ----------------------------------------------------------------------------------- reducers


@given(st.lists(st.integers(-99, 99), min_size=1, max_size=9), st.integers(1, 3))
def test_reducers_reduce_each_epoch_anew(values, n_epochs):
    runner = runner_with(
        SumReducer("sum"), MeanReducer("mean"), LambdaReducer("text", lambda a, b: f"{a},{b}")
    )
    found = []
    runner.on(
        Event.EPOCH_FINISHED,
        lambda state: found.append((state["sum"], state["mean"], str(state["text"]))),
    )
    runner.run(values, max_epoch=n_epochs)
    expected = (sum(values), sum(values) / len(values), ",".join(map(str, values)))
    assert found == [expected] * n_epochs


def test_the_divisor_of_a_mean_is_the_sum_of_sizes():
    runner = runner_with(MeanReducer("mean", value="loss", size="n"))
    runner.on(Event.BATCH, lambda state: state.update(loss=state["batch"][0], n=state["batch"][1]))
    runner.run([(6.0, 3), (4.0, 1)])
    assert runner.state["mean"] == 10.0 / 4


def test_an_epoch_without_batches():
    runner = runner_with(SumReducer("sum"), MeanReducer("mean"), LambdaReducer("max", max))
    runner.run([3])
    runner.run([])
    assert runner.state["sum"] == 0
    assert math.isnan(runner.state["mean"])
    assert runner.state["max"] is None


def test_values_are_not_changed():
    arrays = [np.ones(2), np.ones(2), np.ones(2)]
    runner = runner_with(SumReducer("sum"), MeanReducer("mean"))
    runner.run(arrays)
    assert runner.state["sum"].tolist() == [3, 3]
    assert runner.state["mean"].tolist() == [1, 1]
    assert all(array.tolist() == [1, 1] for array in arrays)


def test_a_value_that_nobody_puts_there():
    runner = Runner()
    MeanReducer("mean", value="los").attach_on(runner)
    runner.on(Event.BATCH, lambda state: state.update(loss=1.0))
    with pytest.raises(KeyError, match="did you mean 'loss'"):
        runner.run([1])


def test_a_reduction_must_be_a_function():
    with pytest.raises(ConfigError, match="reduce_fn must be callable"):
        LambdaReducer("product", "mul")


def test_an_attachment_must_say_how_it_attaches():
    with pytest.raises(TypeError):
        Attachment()


# ------------------------------------------------------------------------------------ the bar


class Bar:
    """What a progress bar was told."""

    made = ()

    def __init__(self, **options):
        self.options, self.total = options, options.get("total")
        self.steps, self.shown, self.closed = [], [], 0
        Bar.made = (*Bar.made, self)

    def update(self, n):
        self.steps.append(n)

    def set_postfix(self, values, refresh):
        self.shown.append(dict(values))

    def close(self):
        self.closed += 1


@pytest.fixture(autouse=True)
def _no_bars():
    Bar.made = ()


def test_a_bar_for_each_epoch():
    runner = runner_with(ProgressBar(tqdm_cls=Bar, unit="batch"))
    runner.run("abc", max_epoch=2)
    assert [bar.steps for bar in Bar.made] == [[1, 1, 1]] * 2
    assert [bar.closed for bar in Bar.made] == [1, 1]
    assert [bar.options["desc"] for bar in Bar.made] == ["epoch 1/2", "epoch 2/2"]
    assert all(bar.total == 3 and bar.options["unit"] == "batch" for bar in Bar.made)


def test_a_bar_counts_items_and_shows_statistics():
    runner = runner_with(ProgressBar(tqdm_cls=Bar, stats="stats"))
    runner.on(
        Event.BATCH,
        lambda state: state.update(n_items=len(state["batch"]), stats={"loss": state["n_iters"]}),
    )
    runner.run(["ab", "c"])
    (bar,) = Bar.made
    assert bar.steps == [2, 1]
    assert bar.shown == [{"loss": 1}, {"loss": 2}]
    assert bar.total is None


def test_a_total_of_your_own_stays():
    runner = runner_with(ProgressBar(tqdm_cls=Bar, n_items="size", total=30))
    runner.on(Event.BATCH, lambda state: state.update(size=10))
    runner.run("abc")
    assert Bar.made[0].total == 30


def test_a_bar_of_a_stopped_epoch_is_closed_and_another_goes_on():
    runner = runner_with(ProgressBar(tqdm_cls=Bar))
    runner.on(Event.BATCH, lambda state: state.update(running=state["n_iters"] != 2))
    runner.run("abc")
    runner.resume()
    first, second = Bar.made
    assert (first.steps, first.closed) == ([1, 1], 1)
    assert (second.steps, second.closed, second.options["initial"]) == ([1], 1, 2)


def test_the_bar_of_tqdm(capsys):
    runner = runner_with(ProgressBar())
    runner.run(range(10), max_epoch=2)
    shown = capsys.readouterr().err
    assert "epoch 2/2: 100%" in shown
    assert "10/10" in shown


def test_batches_without_a_length():
    runner = runner_with(ProgressBar(tqdm_cls=Bar))
    runner.run(iter("abc"))
    assert Bar.made[0].total is None


def test_a_class_of_bars_must_be_one():
    with pytest.raises(ConfigError, match="tqdm_cls"):
        ProgressBar(tqdm_cls="tqdm")


# ---------------------------------------------------------------------------------- the timer


def test_epochs_are_timed_where_there_are_several(caplog):
    runner = runner_with(EpochTimer())
    with caplog.at_level(logging.INFO, logger="modularml"):
        runner.run("ab", max_epoch=1)
        assert caplog.messages == []
        runner.run("ab", max_epoch=2)
    assert caplog.messages[0] == "Starting epoch 1/2"
    assert caplog.messages[1].startswith("Epoch 1/2 done in 0:00:00")
    assert len(caplog.messages) == 4
    assert {record.levelname for record in caplog.records} == {"INFO"}


def test_a_timer_of_a_resumed_epoch_makes_nothing_up(caplog):
    first = Runner()
    first.on(Event.BATCH, lambda state: state.update(running=False))
    first.run("ab", max_epoch=2)
    second = runner_with(EpochTimer())
    second.state = first.state
    with caplog.at_level(logging.INFO, logger="modularml"):
        second.resume()
    assert caplog.messages[0] == "Epoch 1/2 done"
