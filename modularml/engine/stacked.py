"""Runs of several experiments side by side, whose epochs are trained as one where possible.

Each run is an ordinary one in a thread of its own, and only one thread computes at a time. Where a
run would train an epoch, it waits until all others have come to an epoch or ended; equal models are
then trained together by a `TorchStack`, and each run continues with its losses and weights.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from itertools import chain
from typing import Any

from modularml.backends import adapter_for
from modularml.backends.step_options import NotStackableError, StackMember
from modularml.data.execution_context import ExecutionContext
from modularml.engine.interruption import Signals, is_interruption, shared_signals
from modularml.engine.loop import RunningEpoch, batch_runner, run_batches
from modularml.graph.input_tensors import run_step
from modularml.graph.model_node import ModelNode
from modularml.io.randomness import (
    exclusive_randomness,
    one_owner,
    random_states,
    set_random_states,
)

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 2**17
_MIN_SHARE = 0.7  # of the places of a stack that must be taken
_FEWEST_STEPS = 5_000  # of all members, below which little time is saved
MOST_WEIGHTS = 300_000
"""Weights of a member above which arithmetic takes most of a step."""


def pays(experiment: Any, plan: Any, n_members: int) -> bool:
    """Return whether training several copies of an experiment as one is likely to be faster.

    It is for torch models that are trained for at least 5,000 steps in all; large models are
    recognized when they are built, see `SideBySide`.
    """
    graph = experiment.model_graph
    if graph is None:
        return False
    n_steps = 0.0
    for node in graph.nodes.values():
        if isinstance(node, ModelNode) and not node.is_frozen:
            adapter = adapter_for(node.backend)
            if adapter.gradients and not adapter.stacks:
                return False
    with experiment.ctx.activate():
        for phase in plan.flatten():
            if phase.training and (source := phase.input_sources[0]).sampler is not None:
                n_rows = len(source.resolve_input_view())
                n_steps += phase.n_epochs * n_rows / source.sampler.batch_size
    return n_steps * n_members >= _FEWEST_STEPS


class SideBySide:
    """Runs functions side by side, and trains their epochs together.

    Parameters
    ----------
    works : sequence of callable
        Each runs one experiment and returns a result.
    saves : bool
        Whether runs write checkpoints, so that signals end them between two batches.
    width : int
        The largest number of members trained as one.
    fewest_steps : int
        The number of steps of members that a stack must serve, as it must be traced first.
    most_weights : int, optional
        Larger members are trained one after another.
    level : int
        Level of the line in the log that says why runs are not trained together.

    Attributes
    ----------
    reasons : dict of str to int
        Why epochs were not trained together, with the number of runs.
    n_together : int
        The number of epochs of members that were trained together.
    """

    def __init__(
        self,
        works: Sequence[Callable[[], Any]],
        *,
        saves: bool = False,
        width: int = 50,
        fewest_steps: int = 300,
        most_weights: int | None = MOST_WEIGHTS,
        level: int = logging.INFO,
    ) -> None:
        self.signals = Signals() if saves else None
        self.width, self.fewest_steps, self.most_weights = width, fewest_steps, most_weights
        self.level, self.n_together = level, 0
        self.reasons: dict[str, int] = {}
        self._back = threading.Semaphore(0)
        with one_owner():
            self._members = [_Member(i, work, self) for i, work in enumerate(works)]
        self._stacks: list[tuple[tuple[_Member, ...], Hashable, Any]] = []
        self._refused: set[Hashable] = set()
        self._failed: set[Hashable] = set()
        self._interrupted: BaseException | None = None

    def outcomes(self) -> Iterator[tuple[int, Any]]:
        """Yield the number of each run that has ended, with its result or its error.

        Raises
        ------
        KeyboardInterrupt, SystemExit
            If a signal ended the runs.
        """
        running = list(self._members)
        try:
            if self.signals is not None:
                self.signals.__enter__()
            while running:
                for member in list(running):
                    with exclusive_randomness():
                        self._resume(member)
                    if member.ended:
                        running.remove(member)
                        if member.error is not None and is_interruption(member.error):
                            self._interrupted = self._interrupted or member.error
                        else:
                            yield member.number, member.error or member.result
                if self._interrupted is None:
                    with exclusive_randomness():
                        self._train([member for member in running if member.step is not None])
            if self._interrupted is not None:
                raise self._interrupted
        finally:
            with exclusive_randomness():  # end the runs that wait
                own = random_states(plain=False)
                for member in running:
                    while not member.ended:
                        member.reply = self._interrupted or KeyboardInterrupt()
                        member.turn.release()
                        self._wait()
                set_random_states(own)
            if self.signals is not None:
                self.signals.__exit__(None, None, None)

    def _resume(self, member: _Member) -> None:
        """Let a run compute until it waits at an epoch or ends; its random states are set."""
        own = random_states(plain=False)
        set_random_states(member.random_states)
        try:
            member.turn.release()
            interruption = self._wait()
        finally:
            member.random_states = random_states(plain=False)
            set_random_states(own)
        if interruption is not None:
            raise interruption

    def _wait(self) -> BaseException | None:
        """Wait for the run that computes; return a signal's error that came meanwhile."""
        error = None
        while True:
            try:
                self._back.acquire()
                return error
            except BaseException as caught:  # noqa: BLE001 - raised when the run has stopped
                error = caught

    def _train(self, waiting: Sequence[_Member]) -> None:
        """Train the epochs of waiting runs, as far as they can be trained together."""
        left = list(waiting)
        if len({member.step.kind for member in waiting if member.step is not None}) > 1:
            self.note("models differ in shape, so those of equal shape are trained together")
        while len(left) > 1 and not self._is_stopping():
            groups: dict[Hashable, list[_Member]] = defaultdict(list)
            for member in left:
                if (key := member.key()) is not None and key not in self._refused:
                    groups[key].append(member)
            left = []
            for key, group in groups.items():
                n = -(-len(group) // self.width)  # parts of nearly equal size
                for i in range(n):
                    part = group[i * len(group) // n : (i + 1) * len(group) // n]
                    if len(part) > 1 and self._train_together(part, key):
                        left += part
        for stack in {id(s): s for _, _, s in self._stacks}.values():
            stack.detach()

    def _is_stopping(self) -> bool:
        return self.signals is not None and self.signals.number != 0

    def _train_together(self, members: list[_Member], key: Hashable) -> bool:
        """Train the batches that all members have; return whether any were trained."""
        n_steps = min(member.n_left for member in members)
        found = self._stack_of(members, key, n_steps)
        if found is None:
            return False
        places, stack = found
        by_place = {places.index(member): member for member in members}
        states = [member.random_states for member in places]
        stack.attach(states, list(by_place))
        n_trained = 0
        try:
            with _brief_collections():
                while n_trained < n_steps and by_place and not self._is_stopping():
                    if not self._step(stack, len(places), by_place):
                        break
                    n_trained += 1
        except NotStackableError as error:  # a member whose own step fails raises it again
            self.note(str(error), len(by_place))
            n_steps = 0
        stack.update_random_states(states)
        stack.detach()
        self.n_together += len(by_place) if n_trained else 0
        return 0 < n_trained <= n_steps

    def _step(self, stack: Any, n_places: int, by_place: dict[int, _Member]) -> bool:
        """Train one batch of each member; return False if their shapes are others now."""
        contexts: dict[int, Any] = {
            place: member.next_context() for place, member in by_place.items()
        }
        some = next(iter(contexts.values()))
        if None in contexts.values() or not stack.fits([c.tensors for c in contexts.values()]):
            for place, ctx in contexts.items():
                by_place[place].give_back(ctx)
            return False
        inputs = [contexts.get(place, some).tensors for place in range(n_places)]
        try:
            losses, outputs, errors = stack.step(inputs)
        except NotStackableError:
            for place, ctx in contexts.items():
                by_place[place].give_back(ctx)
            raise
        for place, ctx in contexts.items():
            member = by_place[place]
            if place in errors:
                member.fail(ctx, errors[place])
            else:
                ctx.values, ctx.outs = losses[place], outputs[place]
                member.end_batch(ctx)
        for place in [place for place, member in by_place.items() if member.reply is not None]:
            del by_place[place]
            stack.detach([place])
        return True

    def _stack_of(
        self, members: list[_Member], key: Hashable, n_steps: int
    ) -> tuple[tuple[_Member, ...], Any] | None:
        """Return a stack for members of one kind, and the members of its places."""
        for places, own_key, stack in self._stacks:
            is_enough = len(members) >= _MIN_SHARE * len(places)
            fits = own_key == key and is_enough and set(members) <= set(places)
            if fits and self._is_current(stack, members, places):
                return places, stack
        n_epochs = min(member.n_epochs_left for member in members)
        if n_steps * n_epochs * len(members) < self.fewest_steps:
            return None
        places = tuple(members)
        made = self._made(places, key)
        if made is None:
            return None
        self._stacks = [s for s in self._stacks if not set(s[0]) <= set(places)]
        self._stacks.append((places, key, made))
        return places, made

    def _made(self, members: tuple[_Member, ...], key: Hashable) -> Any:
        """Return a new stack, or None if members cannot be trained as one."""
        contexts: list[Any] = [member.next_context() for member in members]
        states = [member.random_states for member in members]
        steps: list[Any] = [member.step for member in members]
        try:
            adapter = members[0].running.feed.layout.adapter
            return adapter.stack(steps, [ctx.tensors for ctx in contexts], states)
        except Exception as error:  # noqa: BLE001 - members that fail alone raise it themselves
            if isinstance(error, NotStackableError) or key in self._failed:
                self._refused.add(key)
            self._failed.add(key)
            self.note(str(NotStackableError.of(error)), len(members))
            return None
        finally:
            for member, ctx in zip(members, contexts, strict=True):
                member.give_back(ctx)

    def _is_current(
        self, stack: Any, members: Sequence[_Member], places: Sequence[_Member]
    ) -> bool:
        """Return whether models, losses and optimizers are those that a stack was made for."""
        for member in members:
            plan = stack.members[places.index(member)].plan
            if member.step is None or member.step.plan is not plan:
                return False
        member = members[self.n_together % len(members)]  # another one in each epoch
        ctx: Any = member.next_context()
        try:
            return bool(stack.is_current(places.index(member), ctx.tensors, member.random_states))
        finally:
            member.give_back(ctx)

    def note(self, reason: str, n: int = 1) -> None:
        """Log once why runs are not trained together."""
        if reason not in self.reasons:
            logger.log(self.level, "note: not all runs are trained as one: %s", reason)
        self.reasons[reason] = self.reasons.get(reason, 0) + n


@contextmanager
def _brief_collections() -> Iterator[None]:
    """Exempt all objects that exist from the search for reference cycles within a block.

    Recorded outputs make it search often, each time through all objects of the frameworks.
    """
    is_free = gc.isenabled() and gc.get_freeze_count() == 0
    if is_free:
        gc.freeze()
    try:
        yield
    finally:
        if is_free:
            gc.unfreeze()


class _Member:
    """One of the runs, in a thread of its own."""

    def __init__(self, number: int, work: Callable[[], Any], runs: SideBySide) -> None:
        self.number, self.work, self.runs = number, work, runs
        self.turn = threading.Semaphore(0)
        self.random_states: dict[str, Any] = random_states(plain=False)
        self.ended = False
        self.result: Any = None
        self.error: BaseException | None = None
        self.reply: BaseException | None = None
        self.running: Any = None
        self.step: StackMember | None = None
        self._reasons: set[str] = set()
        context = copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._run,), daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.turn.acquire()
        batch_runner.set(self.run_batches)
        shared_signals.set(self.runs.signals)
        try:
            if self.reply is not None:
                raise self.reply
            self.result = self.work()
        except BaseException as error:  # noqa: BLE001 - handed to the caller
            self.error = error
        self.ended = True
        del self.work  # it holds on to much
        self.runs._back.release()

    def run_batches(self, running: RunningEpoch) -> None:
        """Wait for the others before an epoch of training; run what they leave."""
        if running.phase.training:
            self._begin(running)
        if self.step is not None:
            self.runs._back.release()
            self.turn.acquire()
            reply, self.reply = self.reply, None
            self.step = None
            if reply is not None:
                raise reply
            if running.values and self.runs._is_stopping():
                running.hooks("on_batch_end", running.epoch, exec_ctx=running.last)
        run_batches(running)

    def _begin(self, running: RunningEpoch) -> None:
        self.step = None
        try:
            if readers := running.hooks.readers_of_batches():
                raise NotStackableError(f"callback {readers[0].label!r} looks at each batch")
            step = running.feed.stack_member(running.phase.step_options())
            if running.epoch == 0 or self.running is None or self.running.feed is not running.feed:
                adapter, limit = running.feed.layout.adapter, self.runs.most_weights
                n = sum(adapter.count_parameters(model)[0] for model in step.models)
                if limit is not None and n > limit:
                    raise NotStackableError(
                        f"a model has {n:,} weights, more than {limit:,}, so little time would be "
                        "saved"
                    )
            self.step = step
            running.feed.chunk_bytes = _CHUNK_BYTES  # of each member, all of which are in use
            self.running = running
        except NotStackableError as error:
            if str(error) not in self._reasons:
                self._reasons.add(str(error))
                self.runs.note(str(error))

    @property
    def n_left(self) -> int:
        """Number of batches of the epoch that have not run."""
        n: int = self.running.n_batches - len(self.running.values)
        return n

    @property
    def n_epochs_left(self) -> int:
        """Number of epochs of the phase, with the current one."""
        n: int = self.running.phase.n_epochs - self.running.epoch
        return n

    def key(self) -> Hashable:
        """Return what members trained as one have in common; None if no batch is left."""
        ctx: Any = self.next_context()
        if ctx is None or self.step is None or self.reply is not None:
            return None
        self.give_back(ctx)
        shapes = tuple((tuple(t.shape), t.dtype) for t in ctx.tensors)
        return shapes, self.step.kind, self.step.options.clips

    def next_context(self) -> ExecutionContext | None:
        """Return the next batch of its epoch, and remove it; an error in it ends the run."""
        try:
            return next(self.running.contexts, None)
        except Exception as error:  # noqa: BLE001 - raised in its thread
            self.reply = error
            return None

    def give_back(self, ctx: ExecutionContext | None) -> None:
        """Put a batch back that has not run."""
        if ctx is not None:
            self.running.contexts = chain([ctx], self.running.contexts)

    def end_batch(self, ctx: ExecutionContext) -> None:
        """Record a batch; an error, for example of a loss that is no mean, ends the run."""
        try:
            self.running.end_batch(ctx)
        except Exception as error:  # noqa: BLE001 - raised in its thread
            self.reply = error

    def fail(self, ctx: ExecutionContext, error: Exception) -> None:
        """End the run with the error that its own step would have raised."""

        def step(tensors: Sequence[Any]) -> Any:
            raise error

        try:
            run_step(ctx, self.running.feed.plan, step, ctx.tensors)
        except Exception as raised:  # noqa: BLE001 - raised in its thread
            self.reply = raised
