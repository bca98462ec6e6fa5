"""Training of several small torch models of one architecture as one.

Parameters get a leading axis, one entry a member. The step of one member is vectorized over it by
``torch.func.vmap``, and traced once into a flat list of tensor operations, so that a step pays for
no transform. Each member's weights and optimizer states are views of the stacked ones.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from modularml._optional import require
from modularml.backends.base import NotFiniteError
from modularml.backends.step_options import NotStackableError, StackMember
from modularml.backends.torch_member import MemberModels, OwnStep, agree, differences, state_for
from modularml.backends.torch_stacked_optimizer import StackedOptimizer, clip_members
from modularml.backends.torch_tracing import ReplacedDropouts, traced

torch = require("torch", purpose="to train torch models")


class TorchStack:
    """The training steps of several members as one.

    While attached, the weights and optimizer states of a member are views of those of the stack, so
    that they are current after each step.

    Parameters
    ----------
    members : sequence of StackMember
        Of one architecture, with parameters on one device.
    inputs : sequence of sequence of tensor
        A batch of each member, for tracing and for comparing each member with its own step.
    random_states : sequence of mapping
        Of each member, before this batch.

    Raises
    ------
    NotStackableError
        If models differ in more than numbers, or an operation cannot be vectorized.
    """

    def __init__(
        self,
        members: Sequence[StackMember],
        inputs: Sequence[Sequence[Any]],
        random_states: Sequence[Mapping[str, Any]],
    ) -> None:
        self.members = list(members)
        self.n, self.live = len(members), set(range(len(members)))
        self._whole = [MemberModels(member) for member in members]
        self._own = [whole.tensors() for whole in self._whole]
        _check_alike(self._own)
        alone = [
            whole.losses_and_gradients(own_inputs, state)
            for whole, own_inputs, state in zip(self._whole, inputs, random_states, strict=True)
        ]
        names = [list(member.gradients) for member in alone]
        if any(own != names[0] for own in names):
            raise NotStackableError("different weights get gradients")
        self._trained = names[0]
        if len({len(member.dropouts) for member in alone}) > 1:
            raise NotStackableError("they differ in dropout layers")
        dropouts = [member.dropouts for member in alone]
        self._dropouts = list(zip(*dropouts, strict=True))  # shape and rate of each, by member
        _check_attributes(self._whole, alone)
        device = next(iter(self._own[0].values())).device
        self._generators = [torch.Generator(device) for _ in members]
        self._stacked = {
            name: torch.stack([own[name].detach() for own in self._own]) for name in self._own[0]
        }
        self._factors = self._loss_factors(device)
        self._masks: list[Any] = []
        self._shapes = [t.shape for t in inputs[0]]
        self._set_generators(random_states)
        self._graph = self._trace(inputs)
        self._set_generators(random_states)
        self._check_against(dict(enumerate(alone)), inputs)
        if len({len(member.optimizers) for member in members}) > 1:
            raise NotStackableError("they differ in optimizers")
        ids = [{id(t): name for name, t in own.items()} for own in self._own]
        self._optimizers = [
            StackedOptimizer(own_optimizers, ids, self._stacked, self._trained)
            for own_optimizers in zip(*(member.optimizers for member in members), strict=True)
        ]
        self._attributes = [whole.attributes() for whole in self._whole]
        self._grads: Mapping[str, Any] = {}

    # -- members ------------------------------------------------------------------------------

    def fits(self, inputs: Sequence[Sequence[Any]]) -> bool:
        """Return whether batches have the shapes that the step was made for."""
        return all([t.shape for t in own] == self._shapes for own in inputs)

    def is_current(self, place: int, inputs: Sequence[Any], state: Mapping[str, Any]) -> bool:
        """Return whether models and losses still compute what the step was made for.

        Attributes of all members are compared, and what one member's own step computes.

        Parameters
        ----------
        place : int
            Of that member.
        inputs : sequence of tensor
            Its next batch.
        state : mapping
            Its random states.
        """
        whole = self._whole[place]
        try:
            if any(a != w.attributes() for a, w in zip(self._attributes, self._whole, strict=True)):
                return False
            alone = whole.losses_and_gradients(inputs, state)
            if list(alone.gradients) != self._trained or len(alone.dropouts) != len(self._masks):
                return False
            if any(d != own[place] for d, own in zip(alone.dropouts, self._dropouts, strict=True)):
                return False
            self._copy_weights([place])
            self._generators[place].set_state(state_for(self._generators[place], state))
            self._check_against({place: alone}, [inputs] * self.n)
        except Exception:  # noqa: BLE001 - it is found again when a stack is made anew
            return False
        return True

    def attach(self, random_states: Sequence[Mapping[str, Any]], places: Sequence[int]) -> None:
        """Copy weights, optimizer states and random states of some members into the stack.

        Places of others stay vacant.
        """
        self.live, self._grads = set(places), {}
        self._copy_weights(places)
        for name, stacked in self._stacked.items():
            for place in places:
                self._own[place][name].data = stacked[place]
        self._set_generators(random_states)
        for optimizer in self._optimizers:
            optimizer.adopt(self.live)

    def detach(self, places: Sequence[int] | None = None) -> None:
        """Give members, by default all, memory of their own; they take no part in later steps."""
        for place in sorted(self.live) if places is None else places:
            self.live.discard(place)
            for tensor in self._own[place].values():
                tensor.data = tensor.data.clone()
            for name, grads in self._grads.items():  # as a member's own step leaves them
                self._own[place][name].grad = grads[place].clone()
            for optimizer in self._optimizers:
                optimizer.release(place)

    def _copy_weights(self, places: Sequence[int]) -> None:
        with torch.no_grad():
            for name, stacked in self._stacked.items():
                for place in places:
                    stacked[place].copy_(self._own[place][name])

    def _set_generators(self, random_states: Sequence[Mapping[str, Any]]) -> None:
        for generator, state in zip(self._generators, random_states, strict=True):
            generator.set_state(state_for(generator, state))

    def update_random_states(self, random_states: Sequence[dict[str, Any]]) -> None:
        """Write the random states that members have after the steps so far."""
        if not self._dropouts:
            return
        for place in self.live:
            generator, states = self._generators[place], random_states[place]["torch"]
            if generator.device.type == "cpu":
                states["cpu"] = generator.get_state().numpy().copy()
            else:
                states["cuda"][generator.device.index or 0] = generator.get_state().numpy().copy()

    def settings_changed(self) -> None:
        """Read learning rates and other settings of optimizers again."""
        for optimizer in self._optimizers:
            optimizer.read_settings(self.live)

    # -- the step -----------------------------------------------------------------------------

    def step(
        self, inputs: Sequence[Sequence[Any]]
    ) -> tuple[Sequence[Sequence[float]], Sequence[Sequence[Any]], Mapping[int, Exception]]:
        """Compute the losses of a batch of each member, and update the weights.

        A member with a loss or gradient that is not finite is detached with unchanged weights, and
        one whose schedule fails with changed ones.

        Parameters
        ----------
        inputs : sequence of sequence of tensor
            By member; those of detached members are not used.

        Returns
        -------
        losses : sequence of sequence of float
            By member.
        outputs : sequence of sequence of tensor
            By member.
        errors : mapping of int to Exception
            By member.

        Raises
        ------
        NotStackableError
            If an operation fails; nothing has changed then.
        """
        if len(self.live) < self.n:  # vacant places compute on the rows of another
            some = next(iter(self.live))
            inputs = [own if i in self.live else inputs[some] for i, own in enumerate(inputs)]
        with torch.no_grad():
            with self._undone_if_failed():
                losses, grads, outputs = self._run([torch.stack(slot) for slot in zip(*inputs)])  # noqa: B905 - checked when traced
            values: list[list[float]] = losses.tolist()
            errors: dict[int, Exception] = {}
            for place in self.live:
                wrong = [i for i, v in enumerate(values[place]) if not math.isfinite(v)]
                if wrong:
                    errors[place] = NotFiniteError(wrong[0], values[place][wrong[0]])
            if errors:
                self.detach(list(errors))
            self._update(grads, errors)
        parts = [out.unbind(0) for out in outputs]
        return values, list(zip(*parts, strict=True)), errors

    @contextmanager
    def _undone_if_failed(self) -> Iterator[None]:
        """Restore buffers and random states if an operation fails, as for an index out of range."""
        buffers = [(self._stacked[name], self._stacked[name].clone()) for name in self._written]
        states = [g.get_state() for g in self._generators] if self._masks else []
        try:
            yield
        except Exception as error:
            for tensor, before in buffers:
                tensor.copy_(before)
            for generator, state in zip(self._generators, states, strict=False):
                generator.set_state(state)
            raise NotStackableError.of(error) from error

    def _run(self, batch: Sequence[Any]) -> tuple[Any, list[Any], Sequence[Any]]:
        """Return losses of shape (members, losses), gradients and outputs."""
        self._draw_masks()
        n = len(self._trained)
        losses, *rest = self._graph(*self._stacked.values(), *batch, *self._masks, self._factors)
        if losses.shape[1] > self._factors.shape[1]:  # a last column tells
            if losses[:, -1].any():
                raise IndexError("index out of range in self")
            losses = losses[:, :-1]
        return losses, rest[:n], rest[n:]

    def _update(self, grads: list[Any], errors: dict[int, Exception]) -> None:
        self._grads = by_name = dict(zip(self._trained, grads, strict=True))
        limits = self.members[0].options.clips
        for optimizer, (norm, value) in zip(self._optimizers, limits, strict=False):
            if norm is None and value is None:
                continue
            own = [by_name[name] for name in optimizer.names]
            norms = clip_members(own, norm, value).tolist()
            for place in [i for i in self.live if not math.isfinite(norms[i])]:
                errors[place] = NotFiniteError(0, norms[place], "gradient")
                self.detach([place])
        for optimizer in self._optimizers:
            optimizer.move(by_name, self.live)
        if any(member.options.schedules for member in self.members):
            for place in sorted(self.live):
                try:
                    for schedule in self.members[place].options.schedules:
                        schedule.step()
                except Exception as error:  # noqa: BLE001 - a function of the user's in one of them
                    errors[place] = error
                    self.detach([place])
            self.settings_changed()

    def _draw_masks(self) -> None:
        """Draw the dropout masks of a batch as `torch.nn.Dropout` does."""
        for mask, rates in zip(self._masks, self._dropouts, strict=True):
            for place, (_, rate) in enumerate(rates):
                lane, generator = mask[place], self._generators[place]
                if rate in (0.0, 1.0):  # torch draws nothing then
                    lane.fill_(1.0 - rate)
                else:
                    lane.bernoulli_(1.0 - rate, generator=generator).div_(1.0 - rate)

    # -- preparation --------------------------------------------------------------------------

    def _loss_factors(self, device: Any) -> Any:
        """Return the weight of each member's losses relative to those of the first."""
        first = self.members[0].loss_weights
        rows = []
        for member in self.members:
            pairs = list(zip(member.loss_weights, first, strict=True))
            if any((own == 0) != (other == 0) for own, other in pairs):
                raise NotStackableError("a loss has weight 0 in some of them")
            rows.append([1.0 if other == 0 else own / other for own, other in pairs])
        return torch.tensor(rows, dtype=torch.float64, device=device).reshape(self.n, len(first))

    def _trace(self, inputs: Sequence[Sequence[Any]]) -> Any:
        names, n_slots = list(self._stacked), len(inputs[0])
        weighted = bool((self._factors != 1).any())
        shapes = {tuple((t.shape, t.dtype) for t in own) for own in inputs}
        if len(shapes) > 1:
            raise NotStackableError("their batches differ in shape")
        whole, trained = self._whole[0], self._trained
        dtype = self._stacked[trained[0]].dtype
        self._factors = self._factors.to(dtype)
        for rates in self._dropouts:
            shape, device = rates[0][0], self._factors.device
            self._masks.append(torch.empty((self.n, *shape), dtype=dtype, device=device))

        def losses_of(weights: Any, held: Any, batch: Any, masks: Any, factors: Any) -> Any:
            with ReplacedDropouts(masks) as mode:
                call = torch.func.functional_call(whole, {**weights, **held}, (batch,))
            total, losses, outputs = call
            rows = torch.stack([loss.reshape(()) for loss in losses])
            if weighted:
                rows = rows * factors
                total = rows.sum()
            if flags := mode.out_of_range:
                rows = torch.cat([rows, torch.stack(flags).any().to(rows.dtype).reshape(1)])
            return total, (rows, tuple(outputs))

        gradients = torch.func.grad(losses_of, has_aux=True)

        def one(*flat: Any) -> Any:
            tensors = dict(zip(names, flat[: len(names)], strict=True))
            batch, masks = flat[len(names) :][:n_slots], flat[len(names) + n_slots : -1]
            weights = {name: tensors.pop(name) for name in trained}
            grads, (rows, outputs) = gradients(weights, tensors, batch, masks, flat[-1])
            return rows, *(grads[name] for name in trained), *outputs

        self._draw_masks()
        batch = [torch.stack(slot) for slot in zip(*inputs, strict=True)]
        arguments = (*self._stacked.values(), *batch, *self._masks, self._factors)
        with self._buffers_kept() as kept:
            graph = traced(torch.func.vmap(one, randomness="error"), arguments)
            self._written = [k for k, t in kept.items() if not torch.equal(self._stacked[k], t)]
        return graph

    @contextmanager
    def _buffers_kept(self) -> Iterator[dict[str, Any]]:
        """Restore buffers, such as running statistics, after a block."""
        kept = {k: t.clone() for k, t in self._stacked.items() if k not in self._trained}
        yield kept
        for name, values in kept.items():
            self._stacked[name].copy_(values)

    def _check_against(self, alone: Mapping[int, OwnStep], inputs: Sequence[Sequence[Any]]) -> None:
        """Compare losses and gradients with those of some members' own steps."""
        with torch.no_grad(), self._buffers_kept():
            losses, grads, _ = self._run([torch.stack(slot) for slot in zip(*inputs, strict=True)])
        for place, own in alone.items():
            same = np.allclose(losses[place].tolist(), own.losses, 1e-4, 1e-6, equal_nan=True)
            gradients = [own.gradients[name] for name in self._trained]
            if not same or not agree([g[place] for g in grads], gradients, together=True):
                raise NotStackableError(
                    "a model or loss of some differs from the first in more than weights, rates "
                    "and loss weights"
                )


def _check_attributes(wholes: Sequence[MemberModels], alone: Sequence[OwnStep]) -> None:
    """Refuse members that differ in attributes other than rates of their dropouts."""
    first = wholes[0].owners()
    rates = [{rate for _, rate in member.dropouts} for member in alone]
    for whole, own_rates in zip(wholes[1:], rates[1:], strict=True):
        others = whole.owners()
        if len(others) != len(first):
            raise NotStackableError("their models differ in layers")
        for name, *values in differences(first, others):
            if not all(
                isinstance(value, float | int) and float(value) in own
                for value, own in zip(values, (rates[0], own_rates), strict=True)
            ):
                raise NotStackableError(f"they differ in {name}")


def _check_alike(own: Sequence[Mapping[str, Any]]) -> None:
    """Refuse members whose parameters differ in name, shape, dtype or device."""
    kinds = [{k: (t.shape, t.dtype, t.device) for k, t in tensors.items()} for tensors in own]
    if any(kind != kinds[0] for kind in kinds):
        raise NotStackableError("their models differ in shape")
    if not kinds[0]:
        raise NotStackableError("their models have no weights")
    for tensors in own:
        parts = sorted((t.data_ptr(), t.nbytes) for t in tensors.values() if t.numel())
        if any(a + n > b for (a, n), (b, _) in itertools.pairwise(parts)):
            raise NotStackableError("two weights share memory, but are not one parameter")
