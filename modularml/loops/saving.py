"""Objects in files of data without code: JSON, or safetensors with JSON metadata.

Plain data is stored as JSON, tensors and arrays as safetensors. An object with a ``state_dict``
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
from modularml.config import decode_items, encode_items
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
        Its folder is created if missing. An existing file is replaced atomically.

    Raises
    ------
    ConfigError
        If a part has another type; the message names it.
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
    """Read a file of `write_safely` or of a `checkpoint`, without running code.

    Parameters
    ----------
    path : path-like
        Its suffix does not matter.

    Returns
    -------
    object
        The saved object, or its ``state_dict``. NumPy scalars are returned as Python numbers.

    Raises
    ------
    DataError
        If the file is neither JSON nor safetensors.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = write_safely({"epoch": 3}, f"{folder}/state")
    ...     read_saved(f"{folder}/state")
    {'epoch': 3}
    """
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(8)
    try:
        if b"\0" in start:  # safetensors start with a length, JSON is text
            return _read_tensors(path)
        return _with_tensors(json.loads(path.read_text("utf-8")), {})
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path.name} holds neither JSON nor safetensors: {error}") from error


def _to_bytes(obj: Any) -> bytes:
    tensors_found: dict[str, Any] = {}
    tree = json.dumps(_without_tensors(obj, (), tensors_found))
    if not tensors_found:
        return tree.encode("utf-8") + b"\n"
    torch = loaded("torch")
    if torch is None or not any(
        isinstance(value, torch.Tensor) for value in tensors_found.values()
    ):
        return bytes(save_arrays(tensors_found, {TREE: tree}))
    tensors = {
        n: v if isinstance(v, torch.Tensor) else torch.tensor(v) for n, v in tensors_found.items()
    }
    return bytes(require("safetensors.torch").save(tensors, {TREE: tree}))


def _read_tensors(path: Path) -> Any:
    with safe_open(path, framework="np") as file:
        text = (file.metadata() or {}).get(TREE)
    kind = "pt" if text is None or '{"$tensor": ' in text else "np"
    if kind == "pt":
        require("torch", purpose="to read tensors")
    with safe_open(path, framework=kind) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    return tensors if text is None else _with_tensors(json.loads(text), tensors)


def _without_tensors(value: Any, path: tuple[str, ...], tensors: dict[str, Any]) -> Any:
    """Return a value as JSON, with its tensors and arrays moved to `found`."""
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return _without_tensors(value.item(), path, tensors)
    if type(value) is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if type(value) in (list, tuple) or isinstance(value, dict):
        return encode_items(
            value,
            lambda item, key: _without_tensors(
                item, path if key is None else (*path, key), tensors
            ),
        )
    torch = loaded("torch")
    name = base = ".".join(path) or "value"
    while name in tensors:
        name = f"{base}~{len(tensors)}"
    if torch is not None and isinstance(value, torch.Tensor) and value.layout is torch.strided:
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"$tensor": name}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
        tensors[name] = np.ascontiguousarray(value).reshape(value.shape)
        return {"$array": name}
    if callable(getattr(value, "state_dict", None)):
        return _without_tensors(value.state_dict(), path, tensors)
    place = f" at {' > '.join(path)}" if path else ""
    raise ConfigError(
        f"a {type(value).__name__}{place} cannot be saved as data; pass tensors, arrays, plain "
        "data or an object with state_dict, or pass using=, a function of the object and the "
        "path that saves it"
    )


def _with_tensors(tree: Any, tensors: dict[str, Any]) -> Any:
    """Return the original value of `_without_tensors`."""
    if isinstance(tree, dict) and len(tree) == 1:
        tag, inner = next(iter(tree.items()))
        if tag == "$float":
            return float(inner)
        if tag in ("$tensor", "$array"):
            return tensors[inner] if tag == "$tensor" else np.asarray(tensors[inner])
    return decode_items(tree, lambda item: _with_tensors(item, tensors))
