"""Optimizer steps of torch with less around them.

``optimizer.step()`` prepares its lists anew at each call, which costs more than the arithmetic of
a small model. Here the lists are made once and torch's own fused kernel is called on them: the
same kernel, on the same tensors of the optimizer's own state, so ``state_dict`` stays true.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modularml._optional import require

torch = require("torch", purpose="to train torch models")

__all__ = ["direct_step"]

_ONE = torch.tensor(1.0)  # wrapped once; a bare 1 would be wrapped at every step
_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


def direct_step(optimizer: Any) -> Callable[[], Any]:
    """Return a function that does what ``optimizer.step()`` does.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer

    Returns
    -------
    callable
        The optimizer's own ``step`` where its kernel is not one of those known here.
    """
    kernel = _KERNELS.get(type(optimizer))
    if kernel is None or not _is_plain(optimizer):
        step: Callable[[], Any] = optimizer.step
        return step
    return _Direct(optimizer, kernel)


class _Direct:
    """Calls the fused kernel on lists that are made once."""

    def __init__(self, optimizer: Any, kernel: Callable[..., None]) -> None:
        self.optimizer, self.kernel = optimizer, kernel
        self.groups: list[_Group] | None = None

    def __call__(self) -> None:
        optimizer = self.optimizer
        if self.groups is None:
            optimizer.step()  # makes the state
            self.groups = _groups_of(optimizer)
            return
        lists = []
        for group in self.groups:
            grads = [p.grad for p in group.params]
            if any(g is None for g in grads) or not group.is_current(optimizer):
                self.groups = None
                optimizer.step()
                return
            lists.append(grads)
        with torch.no_grad():
            for group, grads in zip(self.groups, lists, strict=True):
                self.kernel(group, grads)


def _groups_of(optimizer: Any) -> list[_Group] | None:
    """Return the lists, or None while some parameter has had no gradient yet."""
    groups = [_Group(optimizer, group) for group in optimizer.param_groups]
    return groups if all(p.grad is not None for g in groups for p in g.params) else None


class _Group:
    """Parameters of one group that are being moved, and their state, as flat lists."""

    __slots__ = ("hyper", "params", "state", "steps")

    def __init__(self, optimizer: Any, group: dict[str, Any]) -> None:
        self.hyper = group
        self.params = [p for p in group["params"] if p.requires_grad]
        states = [optimizer.state[p] for p in self.params if p in optimizer.state]
        names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")
        self.state = {n: [s[n] for s in states if s.get(n) is not None] for n in names}
        self.steps = [s["step"] for s in states if "step" in s]

    def is_current(self, optimizer: Any) -> bool:
        """Tell whether the lists still are the optimizer's own (a state may have been loaded)."""
        if not self.params:
            return True
        state = optimizer.state[self.params[0]]
        return all(not own or state.get(name) is own[0] for name, own in self.state.items())


def _adam(group: _Group, grads: list[Any]) -> None:
    _run_adam(torch._fused_adam_, group, grads)


def _adamw(group: _Group, grads: list[Any]) -> None:
    _run_adam(torch._fused_adamw_, group, grads)


def _run_adam(kernel: Any, group: _Group, grads: list[Any]) -> None:
    hyper, state = group.hyper, group.state
    beta1, beta2 = hyper["betas"]
    torch._foreach_add_(group.steps, _ONE, alpha=1.0)
    kernel(
        group.params,
        grads,
        state["exp_avg"],
        state["exp_avg_sq"],
        state["max_exp_avg_sq"],
        group.steps,
        lr=hyper["lr"],
        beta1=beta1,
        beta2=beta2,
        weight_decay=hyper["weight_decay"],
        eps=hyper["eps"],
        amsgrad=hyper["amsgrad"],
        maximize=hyper["maximize"],
    )


def _sgd(group: _Group, grads: list[Any]) -> None:
    hyper = group.hyper
    torch._fused_sgd_(
        group.params,
        grads,
        group.state["momentum_buffer"],
        weight_decay=hyper["weight_decay"],
        momentum=hyper["momentum"],
        lr=hyper["lr"],
        dampening=hyper["dampening"],
        nesterov=hyper["nesterov"],
        maximize=hyper["maximize"],
        is_first_step=False,
    )


_KERNELS: dict[type, Callable[[_Group, list[Any]], None]] = {
    cls: run
    for cls, run, name in (
        (torch.optim.Adam, _adam, "_fused_adam_"),
        (torch.optim.AdamW, _adamw, "_fused_adamw_"),
        (torch.optim.SGD, _sgd, "_fused_sgd_"),
    )
    if hasattr(torch, name) and hasattr(torch, "_foreach_add_")
}


def _is_plain(optimizer: Any) -> bool:
    """Tell whether a step is the fused kernel and nothing else: no hooks, one dtype on the host."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    same = len({p.dtype for p in params}) == 1 and all(p.device.type == "cpu" for p in params)
    fused = all(group.get("fused") for group in optimizer.param_groups)
    plain_lr = all(isinstance(group["lr"], float | int) for group in optimizer.param_groups)
    hooked = any(getattr(optimizer, name, None) for name in _HOOKS)
    decoupled = any(group.get("decoupled_weight_decay") for group in optimizer.param_groups)
    odd = decoupled and not isinstance(optimizer, torch.optim.AdamW)
    return fused and same and plain_lr and not hooked and not odd
