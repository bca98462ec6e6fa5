"""Type aliases."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
IntArray: TypeAlias = NDArray[np.int64]
Shape: TypeAlias = tuple[int, ...]
Domain: TypeAlias = Literal["features", "targets", "tags"]
Columns: TypeAlias = str | list[str] | None
