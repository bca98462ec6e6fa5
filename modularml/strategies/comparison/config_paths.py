"""Values of an experiment's config by path, such as ``graph.optimizer.lr``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from modularml.config import Configurable, encode
from modularml.errors import ConfigError
from modularml.experiment import Experiment

Values = Iterator[tuple[str, Any]]

_NOT_SETTINGS = frozenset({"label", "node_id", "paired", "defaults", "version", "show_progress"})
"""Keys that name parts, or follow from other settings."""


def config_of(experiment: Experiment) -> dict[str, Any]:
    """Return the config of an experiment as plain data.

    Objects that cannot be rebuilt from data, such as a network of your own class, are described.
    """
    try:
        return experiment.get_config()
    except ConfigError:
        described = {
            "model_graph": experiment.model_graph,
            "execution_plan": experiment.execution_plan,
            "checkpointing": experiment.checkpointing,
            "callbacks": experiment.exp_callbacks,
            "results_config": experiment.results_config,
        }
        names = ("label", "audit", "seed", "deterministic")
        plain = {name: getattr(experiment, name) for name in names}
        return {**plain, **{name: _described(value) for name, value in described.items()}}


def config_by_path(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of an experiment's config by path.

    Paths are those of a sweep: ``graph.optimizer.lr``, ``nodes.net.hidden_dim``,
    ``phases.train.sampler.batch_size``, ``phases.train.losses.mse_net.weight``.

    Parameters
    ----------
    config : mapping
        From `Experiment.get_config` or the ``config.json`` of a file.
    """
    values: dict[str, Any] = {}
    for name in ("seed", "deterministic", "audit"):
        values[name] = config.get(name)
    graph = _params(config.get("model_graph"))
    values |= dict(_flat("graph.optimizer", graph.get("optimizer")))
    for node in graph.get("nodes", ()):
        values |= dict(_of_node(node))
    values |= dict(_of_phases(_params(config.get("execution_plan")).get("phases", ()), "phases."))
    for name in ("callbacks", "checkpointing", "results_config"):
        values |= dict(_flat(name, config.get(name)))
    return values


def _described(value: Any) -> Any:
    """Return a value as `encode` does, with a description of what it refuses."""
    if isinstance(value, Configurable) or hasattr(value, "_params"):
        params = {
            name: _described(
                list(param.values())  # of a graph or group
                if name in ("nodes", "phases") and isinstance(param, Mapping)
                else param
            )
            for name, param in value._params().items()
        }
        return {"$type": type(value).__name__, "params": params}
    if isinstance(value, list | tuple):
        return [_described(item) for item in value]
    try:
        return encode(value)
    except ConfigError:
        shown = re.sub(r" at 0x[0-9a-f]+", "", repr(value))
        return " ".join(shown.split())


def _params(tree: Any) -> dict[str, Any]:
    return dict(tree.get("params", {})) if isinstance(tree, Mapping) else {}


def _name(code: str) -> str:
    """Return the name of a class from its import path."""
    return code.rpartition(":")[2]


def _of_node(node: Mapping[str, Any]) -> Values:
    params = _params(node)
    path = f"nodes.{params.get('label')}"
    model = params.pop("model", None)
    if isinstance(model, Mapping) and "params" in model:
        inner = _params(model)
        code = inner.pop("model_class", None)
        own = inner.pop("model", None)
        yield f"{path}.model", _leaf(code or own or {"$type": model.get("$type")})
        if isinstance(own, Mapping) and "$estimator" in own:
            yield from _of_estimator(path, own)
        yield from _entries(path, inner)
    elif model is not None:
        yield f"{path}.model", _leaf(model)
    else:
        yield path, node.get("$type")
    yield from _entries(path, params)


def _of_phases(phases: Sequence[Mapping[str, Any]], path: str) -> Values:
    for phase in phases:
        params = _params(phase)
        label = params.get("label")
        if "phases" in params:
            yield from _of_phases(params["phases"], f"{path}{label}/")
        else:
            yield from _of_phase(f"{path}{label}", phase)


def _of_phase(path: str, phase: Mapping[str, Any]) -> Values:
    params = _params(phase)
    yield path, phase.get("$type")
    sources = [_params(source) for source in params.pop("input_sources", ())]
    splits = dict.fromkeys(str(source.get("split")) for source in sources)
    yield f"{path}.split", ", ".join(splits)
    samplers = [source["sampler"] for source in sources if source.get("sampler") is not None]
    for sampler in samplers[:1]:
        yield from _flat(f"{path}.sampler", sampler)
    yield from _entries(path, params)


def _of_estimator(path: str, tree: Mapping[str, Any], prefix: str = "") -> Values:
    """Yield the parameters of an estimator, of inner ones as ``step__parameter``."""
    for name, value in tree["params"].items():
        steps = value if isinstance(value, list) else [[name, value]]
        pairs = [step.get("$tuple") if isinstance(step, Mapping) else step for step in steps]
        inner = [
            pair
            for pair in pairs
            if isinstance(pair, list | tuple)
            and len(pair) > 1
            and isinstance(pair[1], Mapping)
            and "$estimator" in pair[1]
        ]
        if not inner:
            yield f"{path}.{prefix}{name}", _leaf(value)
        for pair in inner:
            step = f"{prefix}{pair[0]}"
            yield f"{path}.{step}", _name(pair[1]["$estimator"])
            yield from _of_estimator(path, pair[1], f"{step}__")


def _flat(path: str, tree: Any) -> Values:
    """Yield the values of a tree of plain data by path."""
    if isinstance(tree, Mapping) and "params" in tree:
        if str(tree.get("$type")).endswith("Phase"):
            yield from _of_phase(path, tree)
            return
        yield path, _name(str(tree.get("$type", tree.get("$estimator"))))
        yield from _entries(path, tree["params"])
    elif isinstance(tree, Mapping) and not any(key.startswith("$") for key in tree):
        yield from _entries(path, tree)
    elif isinstance(tree, list) and any(_params(item) for item in tree):
        for i, item in enumerate(tree):
            label = _params(item).get("label") or _leaf(item) or i
            yield from _flat(f"{path}.{label}", item)
    else:
        yield path, _leaf(tree)


def _entries(path: str, params: Mapping[str, Any]) -> Values:
    for name, value in params.items():
        if name in _NOT_SETTINGS:
            continue
        if isinstance(value, Mapping) and value.get("$type") == "Loss":
            yield from _entries(path, _params(value))
        elif name.endswith("_kwargs") and isinstance(value, Mapping | None):
            yield from _flat(path, value) if value else ()
        else:
            yield from _flat(f"{path}.{name}", value)


def _leaf(value: Any) -> Any:
    """Return a value that can be compared and shown in a table."""
    if isinstance(value, Mapping):
        for key in ("$code", "$type", "$estimator"):
            if key in value:
                return _name(str(value[key]))
        if "$enum" in value:
            return value["value"]
        if "$tuple" in value:
            return _leaf(value["$tuple"])
        return ", ".join(f"{key}={_leaf(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(str(_leaf(item)) for item in value)
    return value
