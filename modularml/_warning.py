"""Warnings that point at the line of user code that caused them."""

from __future__ import annotations

import sys
import sysconfig
import warnings
from pathlib import Path

_PACKAGE = str(Path(__file__).parent)
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the innermost line that is neither of this package nor of a library.

    If there is none, as in a thread of this package, the calling line is used.
    """
    depth, frame = 1, sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        is_library = file.startswith(_LIBRARIES) and "ipykernel" not in file
        if not is_library and not file.startswith((_PACKAGE, "<frozen")):
            break
        # Frames of the import system are skipped by `warnings.warn`, too, and do not count.
        depth += not ("importlib" in file and "_bootstrap" in file)
        frame = frame.f_back  # type: ignore[assignment]
    warnings.warn(message, category, stacklevel=2 if frame is None else depth + 1)
