"""Optimizers of torch without the import of its compiler, which takes a second."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

from modularml._optional import require

torch = require("torch", purpose="to train torch models")

__all__ = ["first_step", "import_dynamo_late"]

_METHODS = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
_CACHE = "__dynamo_disable"


def import_dynamo_late() -> None:
    """Make methods of optimizers import `torch._dynamo` only if a program uses it.

    They are hidden from the compiler by ``torch._dynamo.disable``, for which their first call
    imports it, in each process, although nothing is compiled yet. The attribute used here is not
    public; where torch has none of that name, nothing happens.
    """
    for name in _METHODS:
        method = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if method is not None and not hasattr(method, _CACHE):
            setattr(method, _CACHE, _late(method))


def _late(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        if "torch._dynamo" not in sys.modules:  # so nothing is compiled
            return method(*args, **kwargs)
        hidden = torch._dynamo.disable(method, wrapping=False)
        setattr(method, _CACHE, hidden)
        return hidden(*args, **kwargs)

    return call


def first_step(optimizer: Any) -> None:
    """Step an optimizer without hooks and without ``differentiable=True``, as its `step` does.

    Its own `step` imports `torch._dynamo`, to break graphs that are being compiled.
    """
    if "torch._dynamo" in sys.modules or _has_global_hooks():
        optimizer.step()
        return
    optimizer._opt_called = True  # read by torch's schedulers
    with torch.no_grad():
        inspect.unwrap(type(optimizer).step)(optimizer)


def _has_global_hooks() -> bool:
    module = sys.modules[torch.optim.Optimizer.__module__]
    return any(getattr(module, f"_global_optimizer_{k}_hooks", True) for k in ("pre", "post"))
