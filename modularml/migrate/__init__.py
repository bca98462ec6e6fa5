"""From ModularML 1.0: names that are called otherwise here, scripts, and files of rows."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "files": ["Converted", "convert"],
        "scripts": ["Finding", "check", "names"],
    },
)
