"""Artifacts: files of data that are checked when read and run no code."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "inspection": ["inspect", "render"],
        "packaged": ["inspect_packaged_code"],
        "extract_diff": ["diff", "extract"],
    },
)
