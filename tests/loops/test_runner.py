"""`Runner`: order of events, and stopping and resuming at every point of a run."""

import pickle

import pytest

from modularml.errors import ConfigError, ExecutionError, ModularMLError
from modularml.runner import Event, Runner
from modularml.runner.attachments import LambdaReducer, MeanReducer, SumReducer


def logged(runner):
    """Write down every event of a runner: what, which epoch, how many batches, which batch."""
    log = []
    for event in Event:

        def write(state, event=event):
            log.append((event.name, state["epoch"], state["n_iters"], state["batch"]))

        runner.on(event, write)
    return log


# ----------------------------------------------------------------------------------- a run


def test_the_order_of_events():
    runner = Runner()
    log = logged(runner)
    runner.run("ab", max_epoch=2)
    assert log == [
        ("STARTED", 0, 0, None),
        ("EPOCH_STARTED", 1, 0, None),
        ("BATCH", 1, 1, "a"),
        ("BATCH", 1, 2, "b"),
        ("EPOCH_FINISHED", 1, 2, "b"),
        ("EPOCH_STARTED", 2, 2, "b"),
        ("BATCH", 2, 3, "a"),
        ("BATCH", 2, 4, "b"),
        ("EPOCH_FINISHED", 2, 4, "b"),
        ("FINISHED", 2, 4, "b"),
    ]


def test_the_documented_state():
    runner = Runner()
    running = []
    runner.on(Event.BATCH, lambda state: running.append(state["running"]))
    assert runner.state == {}
    batches = range(3)
    runner.state["mine"] = "kept"
    runner.run(batches, max_epoch=2)
    assert running == [True] * 6
    public = {key: value for key, value in runner.state.items() if not key.startswith("_")}
    assert public == {
        "batches": batches,
        "max_epoch": 2,
        "n_iters": 6,
        "running": False,
        "epoch": 2,
        "batch": 2,
        "mine": "kept",
    }


def test_ways_to_listen():
    runner, seen = Runner(), []
    assert runner.on(Event.BATCH, lambda state: seen.append(1)) is None
    assert runner.on(Event.BATCH, [lambda s: seen.append(2), lambda s: seen.append(3)]) is None

    @runner.on(Event.BATCH)
    def four(state):
        seen.append(4)

    assert four({}) is None
    seen.clear()
    runner.on(Event.BATCH, iter([lambda s: seen.append(5)]))
    runner.on(Event.BATCH, lambda s: seen.append(0), rank=-1)
    runner.run("a")
    assert seen == [0, 1, 2, 3, 4, 5]


def test_a_callback_may_add_another():
    runner, seen = Runner(), []

    @runner.on(Event.BATCH)
    def add(state):
        if state["n_iters"] == 1:
            runner.on(Event.BATCH, lambda state: seen.append(state["batch"]))

    runner.run("abc")
    assert seen == ["b", "c"]


def test_callbacks_may_change_the_state():
    runner, seen = Runner(), []
    runner.on(Event.BATCH, lambda state: seen.append(state["batch"]))

    @runner.on(Event.EPOCH_STARTED)
    def swap(state):
        state["batches"] = "x" * state["epoch"]
        state["max_epoch"] = 3

    runner.run("never", max_epoch=1)
    assert "".join(seen) == "xxxxxx"


@pytest.mark.parametrize("batches", [[], range(0), iter(())])
def test_an_epoch_may_be_empty(batches):
    runner = Runner()
    log = logged(runner)
    runner.run(batches)
    assert [entry[0] for entry in log] == ["STARTED", "EPOCH_STARTED", "EPOCH_FINISHED", "FINISHED"]


def test_no_epochs_at_all():
    runner = Runner()
    log = logged(runner)
    runner.run("ab", max_epoch=0)
    assert [entry[0] for entry in log] == ["STARTED", "FINISHED"]


def test_a_runner_can_run_again():
    runner = Runner()
    log = logged(runner)
    runner.run("ab", max_epoch=2)
    first = log.copy()
    log.clear()
    runner.run("ab", max_epoch=2)
    assert log == first


# -------------------------------------------------------------------- stopping and resuming


class Shuffled:
    """Batches that know their own place, and have another order in each pass."""

    def __init__(self, n):
        self.n, self.passes, self.place = n, 0, 0

    def __iter__(self):
        while self.place < self.n:
            self.place += 1
            yield (self.passes * 5 + (self.place - 1) * 3) % 100
        self.passes, self.place = self.passes + 1, 0

    def state_dict(self):
        return dict(vars(self))

    def load_state_dict(self, state):
        vars(self).update(state)


def a_runner():
    """A runner with a bit of everything, and its log."""
    runner = Runner()
    MeanReducer("mean").attach_on(runner)
    SumReducer("sum", value="batch").attach_on(runner)
    LambdaReducer("most", max, value="batch").attach_on(runner)
    log = logged(runner)

    @runner.on(Event.BATCH)
    def work(state):
        state["output"] = 2 * state["batch"] + state["epoch"]

    @runner.on(Event.EPOCH_FINISHED)
    def results(state):
        log.append((state["mean"], state["sum"], state["most"]))

    return runner, log


BATCHES = {"list": lambda: [3, 1, 4], "stateful": lambda: Shuffled(3)}
N_EVENTS = 2 + 2 * 5  # STARTED and FINISHED; each epoch with its ends and three batches


def uninterrupted(kind):
    runner, log = a_runner()
    runner.run(BATCHES[kind](), max_epoch=2)
    return log


def nth_event(runner, n, act):
    """Call a function at the n-th event, after all other callbacks."""
    count = iter(range(1000))
    for event in Event:
        runner.on(event, lambda state: act(state) if next(count) == n else None, rank=9)


def stop(state):
    state["running"] = False


def fail(state):
    raise RuntimeError("power cut")


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
@pytest.mark.parametrize("n", range(N_EVENTS))
def test_a_stop_and_a_resume_equal_an_uninterrupted_run(kind, elsewhere, n):
    whole = uninterrupted(kind)
    runner, log = a_runner()
    nth_event(runner, n, stop)
    runner.run(BATCHES[kind](), max_epoch=2)
    assert runner.state["running"] is False
    if n < N_EVENTS - 1:  # stopped before the end: FINISHED came at the stop
        assert log.pop()[0] == "FINISHED"
    before = log.copy()
    if elsewhere:
        state = pickle.loads(pickle.dumps(runner.state))
        runner, log = a_runner()
        runner.state = state
    else:
        log.clear()
    runner.resume()
    after = log.copy()
    if n >= N_EVENTS - 2:  # nothing was left to do, and FINISHED had been told
        assert after == []
        assert before == (whole[:-1] if n == N_EVENTS - 2 else whole)
    else:
        assert before + after == whole
    assert runner.state["running"] is False


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
@pytest.mark.parametrize("n", range(N_EVENTS))
def test_an_error_and_a_resume_equal_an_uninterrupted_run(kind, elsewhere, n):
    whole = uninterrupted(kind)
    runner, log = a_runner()
    nth_event(runner, n, fail)
    with pytest.raises(RuntimeError, match="power cut"):
        runner.run(BATCHES[kind](), max_epoch=2)
    before = log.copy()
    if elsewhere:
        state = pickle.loads(pickle.dumps(runner.state))
        runner, log = a_runner()
        nth_event(runner, -1, fail)
        runner.state = state
    else:
        log.clear()
    runner.resume()
    assert before + log == whole


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("rank", [-9, 0, 9])
def test_a_copy_of_the_state_at_any_event_can_be_resumed(kind, rank):
    whole = uninterrupted(kind)
    runner, log = a_runner()
    copies = []
    for event in Event:
        runner.on(event, lambda state: copies.append((len(log), pickle.dumps(state))), rank=rank)
    runner.run(BATCHES[kind](), max_epoch=2)
    assert log == whole
    assert len(copies) == N_EVENTS
    for done, state in copies:
        other, rest = a_runner()
        for event in Event:
            other.on(event, lambda state: None, rank=rank)
        other.state = pickle.loads(state)
        other.resume()
        assert whole[:done] + rest == whole


def test_a_generator_goes_on_where_it_was():
    runner, seen = Runner(), []
    runner.on(Event.BATCH, lambda state: seen.append(state["batch"]))
    runner.on(Event.BATCH, lambda state: state.update(running=state["n_iters"] not in (1, 3)))
    runner.run(iter(range(5)))
    runner.resume()
    runner.resume()
    assert seen == [0, 1, 2, 3, 4]


def test_an_earlier_state_put_back_means_earlier_batches():
    runner, seen = Runner(), []
    runner.on(Event.BATCH, lambda state: seen.append(state["batch"]))
    runner.on(Event.BATCH, lambda state: state.update(running=state["n_iters"] != 2))
    runner.run("abcd")
    early = dict(runner.state)
    runner.resume()
    runner.state.update(early)
    runner.resume()
    assert "".join(seen) == "abcdcd"


class Broken:
    """Batches of which one cannot be loaded the first time."""

    def __init__(self):
        self.is_broken = True

    def __iter__(self):
        for batch in "abcd":
            if batch == "c" and self.is_broken:
                self.is_broken = False
                raise OSError("disk")
            yield batch


def test_batches_that_raise_can_be_resumed():
    runner, seen = Runner(), []
    runner.on(Event.BATCH, lambda state: seen.append(state["batch"]))
    with pytest.raises(OSError, match="disk"):
        runner.run(Broken())
    runner.resume()
    assert "".join(seen) == "abcd"


def failing_at(batch):
    runner, seen, broken = Runner(), [], [batch]

    @runner.on(Event.BATCH)
    def work(state):
        if state["batch"] in broken:
            broken.remove(state["batch"])
            raise RuntimeError
        seen.append(state["batch"])

    @runner.on(Event.EPOCH_FINISHED)
    def end(state):
        seen.append("|")

    with pytest.raises(RuntimeError):
        runner.run("abc", max_epoch=2)
    return runner, seen


@pytest.mark.parametrize("batch", "abc")
def test_a_batch_that_failed_is_passed_over_or_repeated(batch):
    runner, seen = failing_at(batch)
    runner.resume()
    assert "".join(seen) == "abc".replace(batch, "") + "|abc|"
    runner, seen = failing_at(batch)
    runner.resume(repeat_last_batch=True)
    assert "".join(seen) == "abc|abc|"
    assert runner.state["n_iters"] == 6


def test_the_last_batch_of_a_finished_epoch_is_not_repeated():
    runner = Runner()
    log = logged(runner)
    runner.on(Event.EPOCH_FINISHED, lambda state: state.update(running=False))
    runner.run("ab", max_epoch=2)
    log.clear()
    runner.resume(repeat_last_batch=True)
    assert [entry[0] for entry in log] == [
        "EPOCH_STARTED",
        "BATCH",
        "BATCH",
        "EPOCH_FINISHED",
        "FINISHED",
    ]


def test_a_callback_that_raises_is_called_again_and_those_before_it_are_not():
    runner, calls, broken = Runner(), [], [True]

    def middle(state):
        if broken:
            raise OSError(broken.pop())
        calls.append("middle")

    runner.on(
        Event.EPOCH_FINISHED,
        [lambda s: calls.append("first"), middle, lambda s: calls.append("last")],
    )
    with pytest.raises(OSError, match="True"):
        runner.run("a")
    runner.resume()
    assert calls == ["first", "middle", "last"]


def test_an_early_stop_holds_where_a_later_callback_raises():
    runner, epochs, broken = Runner(), [], [True]
    runner.on(Event.EPOCH_STARTED, lambda state: epochs.append(state["epoch"]))
    runner.on(Event.EPOCH_FINISHED, lambda state: state.update(running=state["epoch"] < 2))

    @runner.on(Event.EPOCH_FINISHED)
    def checkpoint(state):
        if state["epoch"] == 2 and broken:
            raise OSError(broken.pop())

    with pytest.raises(OSError, match="True"):
        runner.run("a", max_epoch=5)
    runner.resume()
    assert epochs == [1, 2]
    runner.resume()  # asked again, it goes on
    assert epochs == [1, 2, 3]


def test_more_epochs_after_the_end():
    runner = Runner()
    log = logged(runner)
    runner.run("a", max_epoch=1)
    log.clear()
    runner.resume()
    assert log == []
    runner.state["max_epoch"] = 2
    runner.resume()
    assert [entry[0] for entry in log] == ["EPOCH_STARTED", "BATCH", "EPOCH_FINISHED", "FINISHED"]


def test_the_documented_keys_are_enough_to_resume():
    runner, seen = Runner(), []
    runner.on(Event.BATCH, lambda state: seen.append((state["epoch"], state["batch"])))
    runner.state = {
        "batches": "ab",
        "max_epoch": 3,
        "n_iters": 4,
        "running": False,
        "epoch": 2,
        "batch": "b",
    }
    runner.resume()
    assert seen == [(3, "a"), (3, "b")]


# ---------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("event", ["BATCH", None, 3, Event])
def test_what_is_no_event(event):
    for listen in (lambda: Runner().on(event, print), lambda: Runner().on(event)):
        with pytest.raises(TypeError, match=r"event must be one of Event\.STARTED") as caught:
            listen()
        assert isinstance(caught.value, ModularMLError)
        assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("callbacks", [3, "print", [print, 3]])
def test_what_is_no_callback(callbacks):
    runner = Runner()
    with pytest.raises(TypeError, match="a callback must be callable"):
        runner.on(Event.STARTED, callbacks)
    runner.run("a")  # none was added


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((None,), "batches must be an iterable"),
        ((3,), "batches must be an iterable"),
        (("ab", -1), "max_epoch must be an int of at least 0"),
        (("ab", 1.5), "max_epoch must be an int of at least 0"),
    ],
)
def test_bad_arguments_start_nothing(args, said):
    runner = Runner()
    log = logged(runner)
    with pytest.raises(ConfigError, match=said):
        runner.run(*args)
    assert log == []
    assert runner.state == {}


def test_what_never_ran_cannot_be_resumed():
    runner = Runner()
    with pytest.raises(ExecutionError, match="no run to resume"):
        runner.resume()
    runner.state["epoch"] = 3
    with pytest.raises(RuntimeError, match="lacks batches, max_epoch"):
        runner.resume()
