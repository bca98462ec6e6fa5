"""What other libraries do not make public, one file a library, with the public way beside it.

With the environment variable ``MODULARML_PUBLIC_ONLY=1`` only the public ways run. They are slower,
and what has none is refused or left out.
"""

import os

__all__ = ["PUBLIC_ONLY"]

PUBLIC_ONLY = os.environ.get("MODULARML_PUBLIC_ONLY", "") not in ("", "0")
"""Whether only the public ways run."""
