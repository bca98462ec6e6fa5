"""Groups of parameters, and their kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modularml.errors import UnknownNameError


def grouped(
    named: Mapping[str, Any], known: Sequence[str], arguments: Mapping[str, Mapping[str, Any]]
) -> list[Any]:
    """Return parameters in groups, first those in no group.

    A group whose parameters are all frozen now is empty, and is filled once they are unfrozen.
    """
    group_of = {}
    for name in dict.fromkeys([*named, *known]):
        matching = [key for key in arguments if f"{name}.".startswith(f"{key}.")]
        group_of[name] = max(matching, key=len, default="")
    if unknown := [key for key in arguments if key not in group_of.values()]:
        parts = {n.rsplit(".", i)[0] for n in group_of for i in range(n.count(".") + 1)}
        raise UnknownNameError("group of parameters", unknown[0], parts)
    groups: dict[str, Any] = {"": {"params": []}}
    groups |= {name: {"params": [], "name": name, **own} for name, own in arguments.items()}
    for name, parameter in named.items():
        groups[group_of[name]]["params"].append(parameter)
    return [group for name, group in groups.items() if name or "" in group_of.values()]


def kinds_of(named: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Return shape, dtype and device of parameters by name."""
    return {
        name: (tuple(p.shape), str(p.dtype), str(getattr(p, "device", "")))
        for name, p in named.items()
    }
