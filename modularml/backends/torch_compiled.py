"""Losses and gradients of torch models as one compiled function of a batch."""

from __future__ import annotations

import logging
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from modularml._optional import require
from modularml._private.torch import compiled, for_each
from modularml.backends.base import Compute
from modularml.backends.step_options import NotStackableError, StackMember, StepOptions
from modularml.backends.torch_member import MemberModels, agree
from modularml.backends.torch_tracing import lifted, traced

torch = require("torch", purpose="to train torch models")

logger = logging.getLogger(__name__)

_MAX_OPERATIONS = 1_500  # of a trace: compiling takes up to a second for 30 of them
_LONG = 5.0  # seconds; what torch has in its cache takes less
_OFTEN = 3
_SETTINGS = {"fallback_random": True}  # the draws of the plain step
_multiply = for_each("mul_")


def missing_compiler() -> str | None:
    """Return why no step can be compiled for this machine's CPU; None if one can."""
    compilers = [os.environ.get("CXX", "g++"), "clang++", "cl"]
    if any(map(shutil.which, compilers)):
        return None
    return f"it needs a C++ compiler, and none of {', '.join(compilers)} was found"


class CompiledGradients:
    """Computes losses and outputs of a batch, and gradients with them.

    It replaces the function that computes losses alone: the backward pass of the total that it
    returns only hands out gradients, so that all that a step does before and after stays the same.
    Batches that are not compiled go to that function.

    Parameters
    ----------
    compute : Compute
        Returns the losses of a batch.
    optimizers : sequence of torch.optim.Optimizer
        Of all weights that need gradients.
    options : StepOptions
        With the models and losses that `compute` calls.
    """

    def __init__(self, compute: Compute, optimizers: Sequence[Any], options: StepOptions) -> None:
        params = [p for o in optimizers for g in o.param_groups for p in g["params"]]
        self._compute, self._params = compute, [p for p in params if p.requires_grad]
        self._never: str | None
        self._whole = MemberModels(
            StackMember(compute, options.models, optimizers, options, (), losses=options.losses)
        )
        if any(p.device.type != "cpu" for p in params):
            self._never = "weights are not on the CPU; the models are compiled one by one"
        elif options.precision != "float32":
            self._never = f"precision={options.precision!r} is not supported with it"
        else:
            parallel = "data_parallel=True is not supported with it" if options.parallel else None
            self._never = parallel or missing_compiler()
        self._rows: int | None = None
        self._why = "samplers alternate, nodes are of several frameworks, or steps run by hand"
        self._functions: dict[Any, _Function | None] = {}
        self._attributes: Any = None
        self._due = False
        self._logged: set[str] = set()
        self._n = 0

    def begin(self, n_rows: int, readers: Sequence[str]) -> None:
        """Begin an epoch: batches of so many rows are compiled, unless callbacks read each.

        Batches of other sizes, such as a shorter last one, run plainly wherever they come.
        """
        reader = f"{readers[0]} looks at each batch" if readers else ""
        self._why = self._never or reader
        self._rows = None if self._why else n_rows
        self._due = True
        if self._rows is not None and self._functions:
            try:
                same = self._attributes == self._whole.attributes()
            except NotStackableError:
                same = False
            if not same:  # an attribute of a model or loss is another now; what is refused stays so
                self._functions = {k: None for k, run in self._functions.items() if run is None}

    def __call__(self, inputs: Sequence[Any]) -> tuple[Any, Sequence[Any], Sequence[Any]]:
        """Return the total loss, each loss and each output of a batch."""
        if self._why:
            self._log_once(self._why)
        if len(inputs[0]) != self._rows:
            return self._compute(inputs)
        key = tuple([t.shape for t in inputs])
        if key not in self._functions or (self._due and not self._still_computes(key, inputs)):
            self._functions[key] = self._compiled(inputs)
        self._due = False
        function = self._functions[key]
        return self._compute(inputs) if function is None else function(inputs)

    def _log_once(self, reason: str) -> None:
        if reason not in self._logged:
            self._logged.add(reason)
            logger.warning("note: compile=True, but the plain step runs: %s", reason)

    def _still_computes(self, key: Any, inputs: Sequence[Any]) -> bool:
        """Return whether the plain forward pass has the losses of what was compiled."""
        function = self._functions[key]
        if function is None:
            return True
        with self._buffers_kept(), torch.no_grad():
            wanted = self._compute(inputs)[1]
        with self._buffers_kept():
            losses = function(inputs)[1]
        return agree(losses, wanted)

    def _compiled(self, inputs: Sequence[Any]) -> _Function | None:
        """Return the compiled function for batches of these shapes; None if there is none."""
        begun = time.perf_counter()
        try:
            self._attributes = self._whole.attributes()
            function = self._traced(inputs)
            self._check(function, inputs)
        except NotStackableError as error:
            self._log_once(str(error))
            return None
        self._n += 1
        seconds = time.perf_counter() - begun
        level = logging.WARNING if seconds > _LONG else logging.INFO
        logger.log(level, "note: the training step was compiled in %.1f s", seconds)
        if self._n == _OFTEN:
            logger.warning(
                "note: the training step was compiled for the %dth time, as models, losses or the "
                "shape of batches change; compile=False may be faster",
                self._n,
            )
        return function

    def _traced(self, inputs: Sequence[Any]) -> _Function:
        used, n_losses = list[Any](), list[int]()

        def step(*batch: Any) -> Sequence[Any]:
            with torch.enable_grad():
                total, losses, outputs = self._compute(batch)
                grads = torch.autograd.grad(total, self._params, allow_unused=True)
            pairs = [(p, g) for p, g in zip(self._params, grads, strict=True) if g is not None]
            if any(g.is_sparse for _, g in pairs):
                raise NotStackableError("gradients are sparse")
            used.extend(p for p, _ in pairs)
            n_losses.append(len(losses))
            return *losses, *(g for _, g in pairs), *outputs

        # other rows and weights than those that the function is held against: what a model
        # computes from them outside of torch would be a constant of the trace
        other = [t[torch.arange(len(t)) // 2] for t in inputs]
        tensors = [t for t in self._whole.tensors().values() if t.is_floating_point()]
        before = [t.detach().clone() for t in tensors]
        try:
            for tensor in tensors:
                tensor.data.mul_(1.02)
            with self._nothing_kept():
                graph = traced(step, other, _MAX_OPERATIONS, "compile")
        finally:
            for tensor, value in zip(tensors, before, strict=True):
                tensor.data.copy_(value)
        module, constants = lifted(graph)
        run = _inductor(module, [*constants, *inputs])
        return _Function(run, constants, used, n_losses[0])

    def _check(self, function: _Function, inputs: Sequence[Any]) -> None:
        """Compare losses, gradients, outputs and buffers with those of the plain step."""
        buffers = list(self._whole.buffers())
        with self._nothing_kept():
            with torch.enable_grad():
                total, losses, outputs = self._compute(inputs)
            total.backward()
            wanted = [t.detach().clone() for t in (*losses, *outputs, *buffers)]
            grads = [p.grad.detach() for p in function.params]
        with self._nothing_kept():
            function.find_copied(inputs)
        with self._nothing_kept():
            own_total, own_losses, own_outputs = function(inputs)
            own = [t.clone() for t in (*own_losses, *own_outputs, *buffers)]
        if not agree(own, wanted) or not agree(own_total.grads, grads, together=True):
            raise NotStackableError("compiled, it has other losses, outputs or gradients")

    @contextmanager
    def _buffers_kept(self) -> Iterator[None]:
        """Restore buffers and random states after a block."""
        before = [(t, t.clone()) for t in self._whole.buffers()]
        with torch.random.fork_rng(devices=[]):
            yield
        for tensor, value in before:
            tensor.copy_(value)

    @contextmanager
    def _nothing_kept(self) -> Iterator[None]:
        """Restore weights, buffers, gradients and random states after a block."""
        with self._whole.unchanged(), torch.random.fork_rng(devices=[]):
            for p in self._params:
                p.grad = None
            yield


class _Function:
    """A compiled function of a batch, called as a `Compute`."""

    def __init__(
        self, run: Callable[..., Any], tensors: Sequence[Any], params: Sequence[Any], n_losses: int
    ) -> None:
        self._run, self._tensors, self.params, self._n = run, tensors, params, n_losses
        self._copied: dict[int, Any] = {}

    def find_copied(self, inputs: Sequence[Any]) -> None:
        """Find gradients and outputs that share memory, to be copied from now on.

        A gradient may be that of another weight, or a constant: steps change it in place. One that
        is not laid out in memory as its weight is copied too, as kernels of optimizers need that.
        """
        tensors = (*self._tensors, *inputs)
        known = {t.untyped_storage().data_ptr() for t in tensors if t.numel()}
        likes = dict(enumerate(self.params, self._n))
        for i, value in enumerate(self._values(inputs)):
            like = likes.get(i)
            place = value.untyped_storage().data_ptr()
            shared = place in known and value.numel()
            if shared or (like is not None and like.stride() != value.stride()):
                self._copied[i] = like
            known.add(place)

    def _values(self, inputs: Sequence[Any]) -> Sequence[Any]:
        before = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        try:
            values: Sequence[Any] = self._run(*self._tensors, *inputs)
        finally:
            torch.set_grad_enabled(before)
        return values

    def __call__(self, inputs: Sequence[Any]) -> tuple[Any, Sequence[Any], Sequence[Any]]:
        values = self._values(inputs)
        if self._copied:
            values = list(values)
            for i, like in self._copied.items():
                value = values[i]
                values[i] = torch.empty_like(value if like is None else like).copy_(value)
        n, m = self._n, self._n + len(self.params)
        return _Total(self.params, values[n:m]), values[:n], values[m:]


class _Total:
    """A total loss whose gradients are known."""

    __slots__ = ("grads", "params")

    def __init__(self, params: Sequence[Any], grads: Sequence[Any]) -> None:
        self.params, self.grads = params, grads

    def __mul__(self, weight: float) -> _Total:
        _multiply(self.grads, weight)
        return self

    def backward(self) -> None:
        """Add the gradients to those that parameters have."""
        for p, grad in zip(self.params, self.grads, strict=True):
            if p.grad is None:
                p.grad = grad
            else:
                p.grad.add_(grad)


def _inductor(module: Any, arguments: Sequence[Any]) -> Callable[..., Any]:
    """Return a traced module compiled by torch.

    Raises
    ------
    NotStackableError
        If an operation cannot be compiled.
    """
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of the compiler's own parts
            run: Callable[..., Any] = compiled(module, arguments, _SETTINGS)
            return run
    except Exception as error:
        raise NotStackableError.of(error) from error
