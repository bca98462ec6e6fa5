"""Objects as files that are data and no program: JSON, or safetensors with JSON in its header.

Plain data and numbers go into JSON, tensors and arrays beside it. An object with a ``state_dict``
is saved as that.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_arrays

from modularml._optional import loaded, require
from modularml.errors import ConfigError, DataError
from modularml.io.atomic import write_file

__all__ = ["read_saved", "write_safely"]

TREE = "modularml.tree"


def write_safely(obj: Any, path: str | Path) -> None:
    """Write an object to a file from which it can be read without running code.

    Parameters
    ----------
    obj : object
        None, bool, int, float, str, tensors, arrays, objects whose ``state_dict()`` is made of
        these, and dicts, lists and tuples of them.
    path : path-like
        Its folder is made where there is none. A file that is there is replaced, at once or not
        at all.

    Raises
    ------
    ConfigError
        If a part is something else; it is named.
    MMLError
        If the file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> path = Path(tempfile.mkdtemp()) / "best.json"
    >>> write_safely({"loss": 0.25, "epochs": (3, 4)}, path)
    >>> read_saved(path)
    {'loss': 0.25, 'epochs': (3, 4)}
    """
    path = Path(path)
    data = _to_bytes(obj)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, [data], overwrite=True, verify=read_saved)


def read_saved(path: str | Path) -> Any:
    """Read what `write_safely`, and so a `checkpoint`, has written; no code is run.

    Parameters
    ----------
    path : path-like
        Its suffix does not matter.

    Returns
    -------
    object
        As it was; of an object with a ``state_dict``, that. NumPy scalars come back as numbers.

    Raises
    ------
    DataError
        If the file is neither JSON nor safetensors.
    """
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(8)
    try:
        if b"\0" in start:  # safetensors start with a length, JSON is text
            return _read_tensors(path)
        return _filled(json.loads(path.read_text("utf-8")), {})
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path.name} holds neither JSON nor safetensors: {error}") from error


def _to_bytes(obj: Any) -> bytes:
    found: dict[str, Any] = {}
    tree = json.dumps(_emptied(obj, (), found))
    if not found:
        return tree.encode("utf-8") + b"\n"
    torch = loaded("torch")
    if torch is None or not any(isinstance(value, torch.Tensor) for value in found.values()):
        return bytes(save_arrays(found, {TREE: tree}))
    tensors = {n: v if isinstance(v, torch.Tensor) else torch.tensor(v) for n, v in found.items()}
    return bytes(require("safetensors.torch").save(tensors, {TREE: tree}))


def _read_tensors(path: Path) -> Any:
    with safe_open(path, framework="np") as file:
        text = (file.metadata() or {}).get(TREE)
    kind = "pt" if text is None or '{"$tensor": ' in text else "np"
    if kind == "pt":
        require("torch", purpose="to read tensors")
    with safe_open(path, framework=kind) as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    return found if text is None else _filled(json.loads(text), found)


def _emptied(value: Any, where: tuple[str, ...], found: dict[str, Any]) -> Any:
    """Return a value as JSON, its tensors and arrays moved to `found`."""
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return _emptied(value.item(), where, found)
    if type(value) is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        items = [_emptied(item, (*where, str(i)), found) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, dict):
        inner = [[k, _emptied(v, (*where, str(k)), found)] for k, v in value.items()]
        if all(type(k) is str and not k.startswith("$") for k in value):
            return {k: v for k, v in inner}  # noqa: C416 - pairs of any two are no dict to mypy
        return {"$dict": [[_emptied(k, where, found), v] for k, v in inner]}
    return _moved(value, where, found)


def _moved(value: Any, where: tuple[str, ...], found: dict[str, Any]) -> Any:
    torch = loaded("torch")
    name = base = ".".join(where) or "value"
    while name in found:
        name = f"{base}~{len(found)}"
    if torch is not None and isinstance(value, torch.Tensor) and value.layout is torch.strided:
        found[name] = value.detach().cpu().contiguous().clone()
        return {"$tensor": name}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
        found[name] = np.ascontiguousarray(value).reshape(value.shape)
        return {"$array": name}
    if callable(getattr(value, "state_dict", None)):
        return _emptied(value.state_dict(), where, found)
    place = f" at {' > '.join(where)}" if where else ""
    raise ConfigError(
        f"a {type(value).__name__}{place} cannot be saved as data; give tensors, arrays, plain "
        "data or an object with state_dict, or say how to save it with using=, a function of "
        "the object and the path"
    )


def _filled(tree: Any, found: dict[str, Any]) -> Any:
    """Return the value that `_emptied` was given."""
    if isinstance(tree, list):
        return [_filled(item, found) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if len(tree) == 1:
        tag, inner = next(iter(tree.items()))
        if tag == "$float":
            return float(inner)
        if tag == "$tuple":
            return tuple(_filled(inner, found))
        if tag == "$dict":
            return {_filled(k, found): _filled(v, found) for k, v in inner}
        if tag == "$tensor":
            return found[inner]
        if tag == "$array":
            return np.asarray(found[inner])
    return {key: _filled(item, found) for key, item in tree.items()}
