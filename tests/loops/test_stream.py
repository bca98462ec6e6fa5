"""`Stream`: the examples of its reference, then resuming at every point of a run."""

import copy
import json
from itertools import chain, count, repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modularml.errors import ConfigError, DataError
from modularml.loop import Stream

QUIET = {"show_progress": False}


class Shuffled:
    """A loader that keeps its own place: an order for each pass, and how far it has got."""

    def __init__(self, n):
        self.n, self.passes, self.place = n, 0, 0

    def __len__(self):
        return self.n

    def __iter__(self):
        while self.place < self.n:
            self.place += 1
            yield (self.passes * 7 + (self.place - 1) * 3) % 100
        self.passes, self.place = self.passes + 1, 0

    def state_dict(self):
        return {"passes": self.passes, "place": self.place}

    def load_state_dict(self, state):
        self.passes, self.place = state["passes"], state["place"]


# ------------------------------------------------------------------------- the plain reference


def test_the_most_common_loop():
    stream = Stream(["a", "b"])
    assert (stream.epoch, stream.iteration, stream.loader) == (0, 0, ["a", "b"])
    seen = [(stream.epoch, stream.iteration, x) for e in stream.epochs(2, **QUIET) for x in e]
    assert seen == [(1, 1, "a"), (1, 2, "b"), (2, 3, "a"), (2, 4, "b")]


def test_loop_a_and_loop_b_of_the_tutorial():
    a, b = Stream(range(3)), Stream(range(3))
    seen_a, seen_b = [], []
    while a.epoch < 2:
        a.increment_epoch()
        seen_a += list(a.data())
    while b.epoch < 2:
        b.increment_epoch()
        seen_b += [b.next() for _ in range(len(b.loader))]
    assert seen_a == seen_b == [0, 1, 2, 0, 1, 2]


def test_an_infinite_stream_of_data():
    stream = Stream(range(3))
    seen = []
    for item in stream.data(float("inf")):
        seen.append(item)
        if stream.iteration % 5 == 0:
            break
    assert seen == [0, 1, 2, 0, 1]


def test_an_infinite_loop_of_epochs():
    stream = Stream(range(2))
    for epoch in stream.epochs(float("inf"), **QUIET):
        assert list(epoch) == [0, 1]
        if stream.epoch == 4:
            break
    assert stream.iteration == 8


@given(st.lists(st.integers(), min_size=1, max_size=5), st.integers(0, 4), st.integers(1, 7))
def test_epochs_cut_one_endless_iterator(items, n_epochs, size):
    stream = Stream(items)
    endless = [item for _ in range(n_epochs * size) for item in items][: n_epochs * size]
    epochs = [list(epoch) for epoch in stream.epochs(n_epochs, size, **QUIET)]
    assert [len(epoch) for epoch in epochs] == [size] * n_epochs
    assert list(chain.from_iterable(epochs)) == endless
    assert stream.state_dict() == {"epoch": n_epochs, "iteration": n_epochs * size}


def test_the_loader_may_change_in_mid_epoch():
    stream = Stream(["a"] * 4)
    seen = []
    for epoch in stream.epochs(2, 3, **QUIET):
        for batch in epoch:
            seen.append(batch)
            if stream.iteration == 2:
                stream.set_loader(["b"] * 9)
    assert "".join(seen) == "aabbbb"


def test_an_epoch_can_be_cut_short():
    stream = Stream(range(4))
    seen = []
    for epoch in stream.epochs(2, **QUIET):
        for item in epoch:
            seen.append(item)
            if item == 1:
                stream.reload_iterator()
                break
    assert seen == [0, 1, 0, 1]
    assert stream.epoch == 2


def test_reloading_an_iterator_changes_nothing():
    stream = Stream(iter(range(5)))
    assert [stream.next(), stream.next()] == [0, 1]
    stream.reload_iterator()
    assert stream.next() == 2


def test_an_iterator_may_run_dry():
    stream = Stream(iter(range(5)))
    assert [list(epoch) for epoch in stream.epochs(9, 2, **QUIET)] == [[0, 1], [2, 3], [4]]
    assert list(stream.data(3)) == []
    with pytest.raises(StopIteration):
        stream.next()
    stream.set_loader(iter("x"))
    assert list(stream.data(3)) == ["x"]


def test_data_takes_nothing_in_advance():
    taken = []
    stream = Stream(taken.append(n) or n for n in count())
    items = stream.data(5)
    assert taken == []
    next(items), next(items)
    assert taken == [0, 1]
    assert list(stream.data(0)) == []


# ---------------------------------------------------------------------------------- the state


def test_a_loader_without_a_state_stays_where_it_is():
    stream = Stream(range(10))
    stream.next(), stream.next()
    stream.increment_epoch()
    assert stream.state_dict() == {"epoch": 1, "iteration": 2}
    resumed = Stream(range(10))
    resumed.load_state_dict(stream.state_dict())
    assert resumed.state_dict() == {"epoch": 1, "iteration": 2}
    assert resumed.next() == 0


def walk(stream, states=None, n_epochs=3, size=None):
    """Run to the end; write down every batch and every end of an epoch, and all states."""
    log = []
    for epoch in stream.epochs(n_epochs, size, **QUIET):
        for batch in epoch:
            log.append((stream.epoch, stream.iteration, batch))
            if states is not None:
                states.append((len(log), json.dumps(stream.state_dict())))
        log.append(("end of", stream.epoch))
        if states is not None:
            states.append((len(log), json.dumps(stream.state_dict())))
    return log


@pytest.mark.parametrize("size", [None, 2, 3, 4, 6, 9])
def test_resuming_at_every_point_equals_never_stopping(size):
    states = [(0, json.dumps(Stream(Shuffled(4)).state_dict()))]
    whole = walk(Stream(Shuffled(4)), states, size=size)
    assert len(states) == len(whole) + 1
    for done, state in states:
        resumed = Stream(Shuffled(4))
        resumed.load_state_dict(json.loads(state))
        assert json.dumps(resumed.state_dict()) == state
        assert whole[:done] + walk(resumed, size=size) == whole


def test_resuming_in_the_middle_meets_the_next_batch():
    stream = Stream(Shuffled(5))
    first = [stream.next(), stream.next()]
    resumed = Stream(Shuffled(5))
    resumed.load_state_dict(stream.state_dict())
    assert first + [resumed.next() for _ in range(3)] == list(Shuffled(5))


def test_a_loop_that_raises_can_be_resumed():
    whole = walk(Stream(Shuffled(4)))
    stream, log = Stream(Shuffled(4)), []

    def work():
        for epoch in stream.epochs(3, **QUIET):
            for batch in epoch:
                log.append((stream.epoch, stream.iteration, batch))
                if stream.iteration == 6:
                    raise KeyboardInterrupt
            log.append(("end of", stream.epoch))

    with pytest.raises(KeyboardInterrupt):
        work()
    resumed = Stream(Shuffled(4))
    resumed.load_state_dict(stream.state_dict())
    assert log + walk(resumed) == whole


def test_the_state_is_a_copy():
    class Live(Shuffled):
        def state_dict(self):
            return vars(self)

    stream = Stream(Live(4))
    stream.next()
    before = stream.state_dict()
    kept = copy.deepcopy(before)
    stream.next()
    assert before == kept


def test_a_state_of_a_finished_loop_has_nothing_left():
    stream = Stream(Shuffled(3))
    walk(stream, n_epochs=2)
    resumed = Stream(Shuffled(3))
    resumed.load_state_dict(stream.state_dict())
    assert walk(resumed, n_epochs=2) == []
    assert [entry for entry in walk(resumed, n_epochs=3) if entry[0] == "end of"]


# -------------------------------------------------------------------------------- the bar


@pytest.fixture
def _as_in_a_notebook(monkeypatch):
    monkeypatch.setattr("modularml.progress.IN_NOTEBOOK", True)


@pytest.mark.usefixtures("_as_in_a_notebook")
def test_one_bar_over_the_whole_loop(capsys):
    stream = Stream(range(4))
    for epoch in stream.epochs(3):
        assert list(epoch) == [0, 1, 2, 3]
    shown = capsys.readouterr().err
    assert "12/12" in shown
    assert shown.count("\n") == 1
    assert "0%" in shown


@pytest.mark.usefixtures("_as_in_a_notebook")
def test_the_bar_goes_on_after_resuming(capsys):
    state = {"epoch": 1, "iteration": 4}
    stream = Stream(range(4))
    stream.load_state_dict(state)
    for epoch in stream.epochs(2):
        list(epoch)
    assert " 4/8 " in capsys.readouterr().err


def test_no_bar_where_none_is_wanted(capsys):
    list(map(list, Stream(range(4)).epochs(2, **QUIET)))
    assert capsys.readouterr().err == ""


# --------------------------------------------------------------------------------- bad input


class Unsized:
    def __iter__(self):
        return iter(())

    def __len__(self):
        raise TypeError("no length")


@pytest.mark.parametrize("empty", [[], (), {}, ""])
def test_an_empty_loader_is_refused(empty):
    with pytest.raises(ConfigError, match="must not be empty"):
        Stream(empty)
    stream = Stream([1])
    with pytest.raises(ConfigError, match="must not be empty"):
        stream.set_loader(empty)
    assert stream.next() == 1


def test_a_loader_that_turns_out_to_be_empty():
    with pytest.raises(DataError, match="has no batches"):
        Stream(Unsized()).next()


@pytest.mark.parametrize("loader", [None, 3, len])
def test_a_loader_must_be_iterable(loader):
    with pytest.raises(ConfigError, match="iterable of batches"):
        Stream(loader)


@pytest.mark.parametrize("loader", [repeat(0), Unsized()])
def test_a_size_is_needed_where_there_is_no_length(loader):
    with pytest.raises(ConfigError, match="n_items must be given"):
        Stream(loader).data()
    with pytest.raises(ConfigError, match="epoch_size must be given"):
        Stream(loader).epochs(3)


@pytest.mark.parametrize("n", [-1, 1.5, float("nan"), "3"])
def test_sizes_are_checked_at_once(n):
    stream = Stream([1, 2])
    with pytest.raises(ConfigError, match="n_items must be an int of at least 0"):
        stream.data(n)
    with pytest.raises(ConfigError, match="epoch_size must be an int of at least 1"):
        stream.epochs(2, n)
    with pytest.raises(ConfigError, match="max_epoch must be an int of at least 0"):
        stream.epochs(n)
    with pytest.raises(ConfigError, match="epoch_size must be an int of at least 1"):
        stream.epochs(2, 0)
    assert stream.state_dict() == {"epoch": 0, "iteration": 0}


@pytest.mark.parametrize(
    "state",
    [None, {}, {"epoch": 1}, {"epoch": -1, "iteration": 0}, {"epoch": 1, "iteration": 2.0}],
)
def test_a_bad_state_changes_nothing(state):
    stream = Stream([1, 2])
    with pytest.raises(ConfigError, match="state_dict"):
        stream.load_state_dict(state)
    assert stream.state_dict() == {"epoch": 0, "iteration": 0}


def test_a_state_of_another_kind_of_loader_changes_nothing():
    state = Stream(Shuffled(3)).state_dict() | {"epoch": 2}
    stream = Stream([1, 2, 3])
    with pytest.raises(ConfigError, match="no load_state_dict"):
        stream.load_state_dict(state)
    assert stream.epoch == 0


def test_the_counters_and_the_loader_are_read_only():
    stream = Stream([1])
    for name in ("epoch", "iteration", "loader"):
        with pytest.raises(AttributeError):
            setattr(stream, name, 1)
