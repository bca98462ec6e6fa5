"""Stages: held against list comprehensions; lazy, in order, and closing what they draw from."""

import inspect
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modularml.errors import ConfigError, ModularMLError
from modularml.streams import (
    Event,
    NotAnEventError,
    augment,
    collect,
    early_stop,
    ema,
    pipe,
    print_keys,
    take,
    tap,
    tick,
)

LOSSES = st.lists(st.floats(-100, 100), max_size=20)


def events_of(losses):
    return [{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]


class Recorded:
    """A source that tells how many events were drawn, and whether it was closed."""

    def __init__(self, n=5):
        self.n, self.drawn, self.closed = n, 0, 0

    def events(self):
        try:
            for step in range(1, self.n + 1):
                self.drawn = step
                yield {"step": step, "loss": float(-step)}
        finally:
            self.closed += 1


# ----------------------------------------------------------------- against list comprehensions


@given(LOSSES)
def test_augment(losses):
    events = events_of(losses)
    made = list(augment(lambda e: {"double": 2 * e["loss"]} if e["step"] % 2 else None)(events))
    assert made == [{**e, "double": 2 * e["loss"]} if e["step"] % 2 else e for e in events]
    assert all("double" not in event for event in events)


@given(LOSSES, st.integers(1, 5), st.integers(1, 7))
def test_tap_and_tick(losses, every, start):
    events, seen, ticks = events_of(losses), [], []
    passed = list(
        pipe(events, tap(seen.append, every=every, start=start), tick(lambda: ticks.append(0)))
    )
    assert passed == events
    assert all(a is b for a, b in zip(passed, events, strict=True))
    assert seen == events[start - 1 :: every]
    assert len(ticks) == len(events)


@given(LOSSES, st.integers(0, 25))
def test_take(losses, n):
    assert list(take(n)(events_of(losses))) == events_of(losses)[:n]


@given(LOSSES, st.floats(0, 0.99), st.booleans())
def test_ema_is_the_weighted_mean_in_closed_form(losses, decay, corrected):
    made = list(ema("loss", decay=decay, bias_correction=corrected)(events_of(losses)))
    for t, event in enumerate(made, 1):
        weights = [(1 - decay) * decay ** (t - 1 - i) for i in range(t)]
        expected = sum(w * x for w, x in zip(weights, losses, strict=False))
        expected /= sum(weights) if corrected else 1
        assert event["loss_ema"] == pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert event["loss"] == losses[t - 1]


def test_a_half_life_halves():
    made = list(
        ema("loss", half_life=3, out_key="out", bias_correction=False)(events_of([1, 0, 0, 0]))
    )
    assert made[3]["out"] == pytest.approx(made[0]["out"] / 2)


def test_ema_overwrites_in_a_copy():
    events = [{"loss": 1.0, "loss_ema": "old"}]
    assert list(ema("loss", decay=0.5)(events)) == [{"loss": 1.0, "loss_ema": 1.0}]
    assert events == [{"loss": 1.0, "loss_ema": "old"}]


def test_numbers_are_converted_by_float():
    torch = pytest.importorskip("torch")
    values = [1, "2.5", True, torch.tensor(3.0, requires_grad=True), torch.tensor([4])]
    made = list(ema("loss", decay=0.0)(events_of(values)))
    assert [event["loss_ema"] for event in made] == [1.0, 2.5, 1.0, 3.0, 4.0]


def test_a_stage_can_be_used_again():
    for stage in (ema("loss", decay=0.5), early_stop("loss", 1), take(2), tap(print, every=9)):
        assert list(stage(events_of([1, 2, 3]))) == list(stage(events_of([1, 2, 3])))


# ------------------------------------------------------------------------------- early stopping


@pytest.mark.parametrize(
    ("losses", "patience", "n"),
    [
        ([3, 2, 1, 0], 1, 4),
        ([3, 2, 2, 2, 2, 2], 2, 4),
        ([3, 4, 2, 3, 3, 1], 2, 5),
        ([3, 3, 3], 0, 2),
        ([3, 3, 3], 1, 2),
        ([math.nan, math.nan, 1], 2, 2),
        ([math.nan, 5, math.nan, 4, math.nan], 2, 5),
        ([], 1, 0),
    ],
)
def test_early_stop(losses, patience, n):
    events = events_of(losses)
    assert len(list(pipe(events, early_stop("loss", patience)))) == n
    assert len(list(early_stop(events, "loss", patience))) == n
    assert len(list(early_stop(events, key="loss", patience=patience))) == n
    rising = [{"loss": -loss} for loss in losses]
    assert len(list(early_stop(rising, "loss", patience, mode="max"))) == n


def test_early_stop_wants_more_than_min_delta():
    events = events_of([2.0, 1.5, 1.0, 0.5])
    assert len(list(early_stop(events, "loss", 1, min_delta=0.5))) == 2
    assert len(list(early_stop(events, "loss", 1, min_delta=0.25))) == 4


def test_early_stop_shows_the_signature_of_its_stage():
    assert list(inspect.signature(early_stop).parameters) == [
        "key",
        "patience",
        "mode",
        "min_delta",
    ]
    assert early_stop.__name__ == "early_stop"


# ------------------------------------------------------------------------- lazy, closing, light

STAGES = {
    "augment": augment(lambda event: {"x": 1}),
    "tap": tap(lambda event: None),
    "tick": tick(lambda: None),
    "take": take(3),
    "ema": ema("loss", decay=0.5),
    "early_stop": early_stop("loss", 9),
}


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_nothing_is_drawn_in_advance(stage):
    source = Recorded()
    stream = pipe(source.events(), stage)
    assert source.drawn == 0
    for step in (1, 2, 3):
        assert next(stream)["step"] == step
        assert source.drawn == step


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_closing_a_stage_closes_its_source(stage):
    source = Recorded()
    held = source.events()
    stream = pipe(held, stage, *STAGES.values())
    next(stream)
    stream.close()
    assert source.closed == 1
    assert list(held) == []


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_any_iterable_will_do(stage):
    events = [{"step": 1, "loss": 1.0}]
    for source in (events, tuple(events), iter(events), (event for event in events)):
        assert [event["step"] for event in stage(source)] == [1]


@pytest.mark.parametrize("last", [take(2), early_stop("step", 1)], ids=["take", "early_stop"])
def test_a_stage_that_ends_closes_its_source_and_draws_no_more(last):
    source = Recorded()
    held = source.events()
    assert len(list(pipe(held, tick(lambda: None), last))) == 2
    assert (source.drawn, source.closed) == (2, 1)


def test_a_stage_that_fails_closes_its_source():
    source = Recorded()
    held = source.events()
    stream = pipe(held, tap(lambda event: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        next(stream)
    assert source.closed == 1


def test_a_pipe_of_nothing_passes_everything():
    events = events_of([1, 2])
    assert list(pipe(events)) == events


def test_importing_streams_imports_no_framework():
    code = "import sys, modularml.streams; print({'torch', 'pandas'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "set()"


def test_an_event_is_a_dict():
    event = Event(step=1, train_loss=0.5)
    assert event == {"step": 1, "train_loss": 0.5}
    assert repr(event) == "{'step': 1, 'train_loss': 0.5}"
    assert isinstance(event, dict)


# --------------------------------------------------------------------------------- bad input


BAD = [
    (lambda: take(-1), "n must be an int of at least 0"),
    (lambda: take(1.5), "n must be an int of at least 0"),
    (lambda: tap(print, every=0), "every must be an int of at least 1"),
    (lambda: tap(print, start=0), "start must be an int of at least 1"),
    (lambda: tap(None), "fn must be callable"),
    (lambda: tick(3), "fn must be callable"),
    (lambda: augment({"x": 1}), "fn must be callable"),
    (lambda: pipe([], take(1), 3), "stage 2 of pipe must be callable"),
    (lambda: ema("loss"), "exactly one of decay and half_life"),
    (lambda: ema("loss", decay=0.5, half_life=3), "exactly one of decay and half_life"),
    (lambda: ema("loss", decay=1.0), "decay must be at least 0 and less than 1"),
    (lambda: ema("loss", decay=-0.1), "decay must be at least 0 and less than 1"),
    (lambda: ema("loss", half_life=0), "half_life must be positive"),
    (lambda: ema("loss", half_life=math.inf), "half_life must be positive"),
    (lambda: early_stop("loss", -1), "patience must be"),
    (lambda: early_stop([], "loss", -1), "patience must be"),
    (lambda: early_stop("loss", 1, mode="best"), "mode must be one of 'min', 'max'"),
    (lambda: early_stop("loss", 1, min_delta=-1), "min_delta must be at least 0"),
    (lambda: print_keys("loss", precision=-1), "precision must be an int of at least 0"),
]


@pytest.mark.parametrize(("make", "said"), BAD, ids=range(len(BAD)))
def test_bad_arguments_are_refused_at_once(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


@pytest.mark.parametrize("stage", [ema("los", decay=0.5), early_stop("los", 1)])
def test_a_missing_key_is_a_key_error(stage):
    with pytest.raises(KeyError, match="did you mean 'loss'"):
        list(stage(events_of([1.0])))


@pytest.mark.parametrize(("value", "error"), [("one", ValueError), (None, TypeError)])
def test_what_float_does_not_take(value, error):
    for stage in (ema("loss", decay=0.5), early_stop("loss", 1)):
        with pytest.raises(error):
            list(stage(events_of([value])))


@pytest.mark.parametrize(
    "use",
    [augment(lambda event: {"x": 1}), ema("x", decay=0), early_stop("x", 1), collect],
    ids=["augment", "ema", "early_stop", "collect"],
)
def test_what_is_no_event(use):
    with pytest.raises(NotAnEventError, match="must be a dict") as caught:
        list(use([3]))
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ModularMLError)


def test_augment_says_what_came_back():
    with pytest.raises(ConfigError, match=r"must return a dict or None, got 3"):
        list(augment(lambda event: 3)([{"x": 1}]))


# ---------------------------------------------------------------------------------- printing


def test_how_values_are_printed(capsys):
    torch = pytest.importorskip("torch")
    show = print_keys("a", "b", "c", "d", "e", "f", "g", precision=2)
    show(
        {
            "step": "7",
            "a": 3,
            "b": True,
            "c": "text",
            "d": torch.tensor(0.125, requires_grad=True),
            "e": torch.tensor([1, 2]),
            "f": None,
        }
    )
    line = "step=0007 a=3.00 b=True c=text d=0.12 e=tensor([1, 2]) f=None g=NA\n"
    assert capsys.readouterr().out == line


@pytest.mark.parametrize(
    ("keywords", "event", "line"),
    [
        ({}, {"step": 12345}, "step=12345 x=NA\n"),
        ({}, {"step": "last"}, "step=last x=NA\n"),
        ({}, {"step": float("nan"), "x": 1}, "step=nan x=1.0000\n"),
        ({}, {"x": 1.0}, "x=1.0000\n"),
        ({"include_step": False}, {"step": 1, "x": 2.0}, "x=2.0000\n"),
        ({"step_key": "epoch", "precision": 0}, {"epoch": 3, "x": 2.6}, "epoch=0003 x=3\n"),
    ],
)
def test_where_the_step_goes(capsys, keywords, event, line):
    print_keys("x", **keywords)(event)
    assert capsys.readouterr().out == line
