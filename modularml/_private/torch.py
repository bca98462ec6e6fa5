"""What torch does not make public, and the public ways."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from typing import Any

from modularml._optional import require
from modularml._private import PUBLIC_ONLY

torch = require("torch", purpose="to train torch models")

DispatchMode = torch.utils._python_dispatch.TorchDispatchMode
"""Sees each operation on tensors; torch documents it by this path (*Extending PyTorch*)."""


# -- operations on lists of tensors -----------------------------------------------------------


def for_each(name: str) -> Callable[..., Any]:
    """Return a method of tensors for a list of them, as one call of torch or as a loop."""
    kernel = None if PUBLIC_ONLY else getattr(torch, f"_foreach_{name}", None)
    return kernel or partial(_loop, name)


def _loop(name: str, tensors: Sequence[Any], *others: Any, **settings: Any) -> list[Any]:
    columns = [o if isinstance(o, list | tuple) else [o] * len(tensors) for o in others]
    rows = zip(tensors, *columns, strict=True)
    return [getattr(tensor, name)(*row, **settings) for tensor, *row in rows]


multiply_by_one: Any = (
    None if PUBLIC_ONLY else getattr(torch, "_amp_foreach_non_finite_check_and_unscale_", None)
)
"""Multiplies tensors by a factor, and reports values that are not finite; None without it."""

FUSED_KERNELS: dict[type, Any] = {
    getattr(torch.optim, name): getattr(torch, kernel)
    for name, kernel in (
        ("Adam", "_fused_adam_"),
        ("AdamW", "_fused_adamw_"),
        ("SGD", "_fused_sgd_"),
    )
    if not PUBLIC_ONLY and hasattr(torch, kernel)
}
"""The kernel of an optimizer; the public way is its ``step``."""


def version(tensor: Any) -> Any:
    """Return what differs after a tensor was changed in place: torch's counter, or its bytes."""
    return bytes_of(tensor).tobytes() if PUBLIC_ONLY else tensor._version


def bytes_of(tensor: Any) -> Any:
    """Return the bytes of a tensor of any dtype as an array."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.as_strided(flat.shape, (1,)).view(torch.uint8).numpy()  # one row has any stride


# -- hooks ------------------------------------------------------------------------------------

_HOOKS = ("forward_pre", "forward", "backward_pre", "backward")
_REGISTER = ("forward_pre", "forward", "full_backward_pre", "full_backward")


def hooks_of(module: Any) -> list[Mapping[Any, Any]]:
    """Return the dicts in which a module holds its hooks."""
    if not PUBLIC_ONLY:
        return [
            vars(module)[f"_{name}_hooks"] for name in _HOOKS if f"_{name}_hooks" in vars(module)
        ]
    return [_held(getattr(module, f"register_{name}_hook")) for name in _REGISTER]


def global_hooks() -> list[Mapping[Any, Any]]:
    """Return the dicts of hooks of all modules."""
    module = torch.nn.modules.module
    if not PUBLIC_ONLY:
        return [getattr(module, f"_global_{name}_hooks") for name in _HOOKS]
    return [_held(getattr(module, f"register_module_{name}_hook")) for name in _REGISTER]


def has_weight_hooks(weight: Any) -> bool:
    """Return whether a hook reads the gradient of a weight."""
    if not PUBLIC_ONLY:
        return bool(weight._backward_hooks or weight._post_accumulate_grad_hooks)
    registers = (weight.register_hook, weight.register_post_accumulate_grad_hook)
    return weight.requires_grad and any(_held(register) for register in registers)


def _held(register: Callable[..., Any]) -> Mapping[Any, Any]:
    """Return the dict to which a hook is added, by adding one for a moment."""
    handle = register(lambda *_: None)
    held: Mapping[Any, Any] = handle.hooks_dict_ref()
    handle.remove()
    return held


# -- modules ----------------------------------------------------------------------------------


RESETS = ("reset_parameters", *(() if PUBLIC_ONLY else ("_reset_parameters",)))
"""Methods that draw the weights of a layer again."""

COMPILED_CALL = "_compiled_call_impl"
"""Attribute of modules whose ``compile()`` was called; else None."""


def may_be_flattened(module: Any) -> bool:
    """Return whether calls of a module may be replaced by those of its layers.

    It is called itself where only what is public is used, which does not tell what a call does.
    """
    plain = vars(module).get(COMPILED_CALL) is None and len(hooks_of(module)) == len(_HOOKS)
    return plain and not PUBLIC_ONLY


def layers_of(module: Any) -> dict[str, Any]:
    """Return the layers of a module by name; a layer may be there several times."""
    if PUBLIC_ONLY:
        named = module.named_modules(remove_duplicate=False)
        return {name: layer for name, layer in named if name and "." not in name}
    own: dict[str, Any] = module._modules
    return own


def parameters_of(module: Any) -> dict[str, Any]:
    """Return the dict in which a module holds its own parameters."""
    own: dict[str, Any] = module._parameters
    return own


def compiled(module: Any, arguments: Sequence[Any], settings: Mapping[str, Any]) -> Any:
    """Return a module of tensor operations compiled for tensors like these."""
    if not PUBLIC_ONLY:
        return require("torch._inductor").compile(module, list(arguments), options=dict(settings))
    run = torch.compile(module, fullgraph=True, dynamic=False, options=dict(settings))
    with torch.random.fork_rng(devices=[]):
        run(*[t.detach().clone() for t in arguments])  # it is compiled by its first call
    return lambda *tensors: run(*[t.detach() for t in tensors])


# -- optimizers -------------------------------------------------------------------------------

_METHODS = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
_CACHE = "__dynamo_disable"


def mark_stepped(optimizer: Any) -> None:
    """Record that an optimizer has stepped: torch's schedules warn if they step first."""
    if not PUBLIC_ONLY:
        optimizer._opt_called = True


def step_hooks(optimizer: Any) -> tuple[Mapping[Any, Any], Mapping[Any, Any]]:
    """Return the dicts of hooks before and after a step."""
    if not PUBLIC_ONLY:
        return optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks
    registers = (optimizer.register_step_pre_hook, optimizer.register_step_post_hook)
    before, after = map(_held, registers)
    return before, after


def import_dynamo_late() -> None:
    """Make methods of optimizers import `torch._dynamo` only if a program uses it.

    They are hidden from the compiler by ``torch._dynamo.disable``, for which their first call
    imports it, in each process, although nothing is compiled yet; that takes a second. Where torch
    has no attribute of the name that is used here, nothing happens.
    """
    for name in () if PUBLIC_ONLY else _METHODS:
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


def late_step(optimizer: Any) -> Callable[[], Any]:
    """Return the step of an optimizer, without the import of the compiler if it is torch's own."""
    if PUBLIC_ONLY:
        return lambda: optimizer.step()  # noqa: PLW0108 - schedules replace it later
    step: Callable[[], Any] = optimizer.step
    if not type(optimizer).__module__.startswith("torch.optim."):
        return step
    own = getattr(step, "_wrapped_by_lr_sched", "step" not in vars(optimizer))
    return partial(first_step, optimizer) if own else step


def first_step(optimizer: Any) -> None:
    """Step an optimizer of torch as its `step` does.

    Its own `step` imports `torch._dynamo`, to break graphs that are being compiled. It is called if
    there are hooks or ``differentiable=True``.
    """
    module = sys.modules[torch.optim.Optimizer.__module__]
    hooks = [getattr(module, f"_global_optimizer_{k}_hooks", True) for k in ("pre", "post")]
    differentiable = any(group.get("differentiable") for group in optimizer.param_groups)
    if "torch._dynamo" in sys.modules or differentiable or any((*hooks, *step_hooks(optimizer))):
        optimizer.step()
        return
    mark_stepped(optimizer)
    with torch.no_grad():
        inspect.unwrap(type(optimizer).step)(optimizer)
