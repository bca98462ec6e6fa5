"""Which classes and functions a file may name, and finding them without running anything.

A name is resolved, in this order: by what the caller gave (`custom_objects=`), among the classes
registered in this process and our own, among code of the user's that is imported already, and by
an import below a prefix that the caller allows (`allow_import=`). The standard library and
installed packages are closed, but for a few kinds of objects of the frameworks.
"""

from __future__ import annotations

import enum
import hashlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from modularml._arguments import is_like_estimator
from modularml._optional import has, require
from modularml._warning import warn
from modularml.config import config_registry, current_name
from modularml.errors import MMLError
from modularml.io import limits

PACKAGES = (
    "modularml.scalers",
    "modularml.splitters",
    "modularml.samplers",
    "modularml.data",
    "modularml.training",
    "modularml.graph",
    "modularml.models.sklearn",
    "modularml.results",
    "modularml.engine",
    "modularml.phases",
    "modularml.experiment",
    "modularml.callbacks",
    "modularml.tracking",
)
"""Where our own classes live; imported when a file names a class that is not there yet."""

MODEL_PACKAGES = {"torch": "modularml.models.torch", "tensorflow": "modularml.models.tensorflow"}
"""Those of our own models; a framework is imported with them."""

LIBRARIES = {
    "torch": ("torch",),
    "keras": ("modularml.backends.tensorflow",),
    "sklearn": (
        *("sklearn.preprocessing", "sklearn.decomposition", "sklearn.compose", "sklearn.pipeline"),
        *("sklearn.impute", "sklearn.linear_model", "sklearn.svm", "sklearn.neighbors"),
        *("sklearn.neural_network", "sklearn.naive_bayes", "sklearn.discriminant_analysis"),
        *("sklearn.cluster", "sklearn.cross_decomposition", "sklearn.feature_selection"),
        *("sklearn.model_selection", "sklearn.ensemble", "sklearn.tree", "sklearn.mixture"),
        *("sklearn.gaussian_process", "sklearn.calibration", "sklearn.covariance"),
        *("sklearn.kernel_approximation", "sklearn.kernel_ridge", "sklearn.isotonic"),
        *("sklearn.multiclass", "sklearn.multioutput", "sklearn.manifold", "sklearn.metrics"),
        *("sklearn.random_projection", "sklearn.feature_extraction", "sklearn.dummy"),
        *("sklearn.semi_supervised", "sklearn.frozen", "sklearn.impute._iterative"),
        "sklearn.model_selection._search_successive_halving",
    ),
    "numpy": ("numpy",),
    "xgboost": ("xgboost",),
    "lightgbm": ("lightgbm",),
}

_TAGS = {"$type": "type", "$enum": "enum", "$code": "code", "$estimator": "estimator"}
_TAGS["$fitted"] = "estimator"


def names_in(tree: Any) -> Iterator[tuple[str, str]]:
    """Yield (role, name) for everything in a tree that names a class or function."""
    stack = [tree]
    while stack:
        item = stack.pop()
        if isinstance(item, list):
            stack.extend(item)
        elif isinstance(item, dict):
            for key, value in item.items():
                if key in _TAGS:
                    yield _TAGS[key], value
                elif key == "$dict" and isinstance(value, list):
                    pairs = (p for p in value if isinstance(p, list) and len(p) == 2)
                    yield from ((_TAGS[p[0]], p[1]) for p in pairs if str(p[0]) in _TAGS)
                if isinstance(value, dict | list):
                    stack.append(value)


def described(names: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    """Describe the user's own classes and functions, for the manifest."""
    found = {}
    for role, name in names:
        obj = config_registry.get(name) if role == "type" else _imported(name)
        module = str(getattr(obj, "__module__", "numpy"))  # which says nothing before 2.1
        if obj is not None and module.split(".")[0] not in (*LIBRARIES, "modularml", "builtins"):
            found[f"{module}:{obj.__qualname__}"] = {"role": role, "sha256": source_hash(obj)}
    return [{"name": name, **facts} for name, facts in sorted(found.items())]


def source_hash(obj: Any) -> str | None:
    """Return the hash of a class's or function's source; None where there is none to read."""
    try:
        return hashlib.sha256(inspect.getsource(obj).encode()).hexdigest()
    except (OSError, TypeError):
        return None


class Resolver:
    """Finds what the names in a file mean.

    Parameters
    ----------
    path : Path
        For messages.
    named : list of dict
        What the manifest says of custom classes.
    custom_objects : mapping of str to object, optional
        By bare name or ``module:qualname``.
    allow_import : iterable of str
        Prefixes of modules that may be imported.
    packaged : callable, optional
        From ``module:qualname`` to what code packed with the file defines, or None.
    """

    def __init__(
        self,
        path: Path,
        named: list[dict[str, Any]],
        custom_objects: Mapping[str, Any] | None = None,
        allow_import: Iterable[str] = (),
        packaged: Callable[[str], Any] = lambda name: None,
    ) -> None:
        self.path, self.packaged = path, packaged
        self.custom = dict(custom_objects or {})
        self.prefixes = (allow_import,) if isinstance(allow_import, str) else tuple(allow_import)
        self.named = {str(entry.get("name")): entry.get("sha256") for entry in named}
        self.has_code = any("code" in entry for entry in named)

    def resolve(
        self,
        names: Iterable[tuple[str, str]],
        *,
        nodes: bool = True,
        missing: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """Return what each name means.

        Parameters
        ----------
        names : iterable of (str, str)
            Role and name.
        nodes : bool
            Whether classes may be named whose objects enter the context when they are made.
        missing : dict of str to str, optional
            Filled with names that mean nothing here, and why, where these are no error. A name
            that a file may not use is one in any case.

        Raises
        ------
        MMLError
            If one means nothing here, or something that a file may not name.
        """
        found: dict[str, Any] = {}
        pairs: dict[tuple[str, str], None] = {}
        for role, name in names:
            wants_module = role != "type"
            if not isinstance(name, str) or len(name) > 500 or (":" in name) is not wants_module:
                problem = f"{name!r:.80} names no class"
                raise MMLError(limits.FOREIGN, self.path, "", problem, _DISTRUST)
            pairs[role, name] = None
        # those whose classes may import a framework last: unknown names are refused before
        libraries = {name: name.partition(":")[0].split(".")[0] in LIBRARIES for _, name in pairs}
        for role, name in sorted(pairs, key=lambda p: libraries[p[1]] or home_of(p[1]) is not None):
            obj = self._class(name) if role == "type" else self._code(name)
            if obj is None:
                obj = self.packaged(self._full(name))
            if obj is None:
                error = self._missing(role, name)
                if missing is None or _imported(self._full(name)) is not None or _is_closed(name):
                    raise error
                missing[name] = str(error)
                continue
            is_node = hasattr(obj, "node_id") and hasattr(obj, "context")
            is_node |= getattr(obj, "artifact_kind", "") in ("en", "exp", "fs", "mg")
            if not _fits(role, obj) or (is_node and not nodes):
                raise MMLError(limits.NO_CLASS, self.path, name[:120], f"is no {role}", _DISTRUST)
            found[name] = obj
        return found

    def _class(self, name: str) -> Any:
        if name in self.custom:
            return self.custom[name]
        full = next((t for t in self.named if bare_name(t) == name), None)
        if full in self.custom:
            return self.custom[full]
        if full is not None and name not in set(config_registry):
            self._import(full.partition(":")[0])
        if name not in set(config_registry) and (home := home_of(name)) is not None:
            require(home)
        obj = config_registry[name] if name in set(config_registry) else None
        if full is not None and obj is not None and obj.__module__ != full.partition(":")[0]:
            sha = self.named[full]  # of another module: the one in the file if of the same source
            if sha is None or source_hash(obj) != sha:
                return None
        self._compare(obj)
        return obj

    def _code(self, name: str) -> Any:
        name = current_name(name)
        module, _, path = name.partition(":")
        for key in (name, path.rpartition(".")[2]):
            if key in self.custom:
                return self.custom[key]
        allowed = self._import(module)
        if module in _homes().values() and not module.startswith(tuple(MODEL_PACKAGES.values())):
            require(module)
        for library in LIBRARIES.get(module.split(".")[0], ()):
            if module == library or module.startswith(f"{library}."):
                require(library)
        obj = _imported(name)
        if obj is None or not (allowed or _may_be_named(obj, module)):
            return None
        self._compare(obj)
        return obj

    def _import(self, module: str) -> bool:
        """Import a module if the caller allows it; tell whether they do."""
        allowed = any(module == p or module.startswith(f"{p}.") for p in self.prefixes)
        if allowed and module not in sys.modules:
            require(module)
        return allowed

    def _compare(self, obj: Any) -> None:
        name = f"{getattr(obj, '__module__', '')}:{getattr(obj, '__qualname__', '')}"
        named = self.named.get(name)
        if named and source_hash(obj) not in (None, named):
            warn(
                f"{name} has changed since {self.path.name} was written; results may differ",
            )

    def _full(self, name: str) -> str:
        return next((t for t in self.named if bare_name(t) == name), name)

    def _missing(self, role: str, name: str) -> MMLError:
        full = self._full(name)
        short = bare_name(name)
        module, given = full.partition(":")[0].split(".")[0], f"custom_objects={{{short!r}: ...}}"
        hint = f"Import it first, pass {given}, or allow_import=[{module!r}] if you trust it"
        if module == "__main__":
            hint = f"It stood in the script that saved it; pass {given}, or move it to a module"
        if role == "type" and (other := config_registry.get(name)) is not None:
            hint += f"; {other.__module__}:{other.__qualname__} has its name and another source"
        if self.has_code:
            hint += "; its code is packed with it: read inspect_packaged_code(path), then pass "
            hint += "allow_packaged_code=True"
        sha = self.named.get(full)
        problem = f"needs the {role} {full!r:.200}{f' (source sha256 {sha[:12]})' if sha else ''}"
        return MMLError(limits.NO_CLASS, self.path, "", f"{problem}, which is not here", hint)


def bare_name(full: str) -> str:
    """Return the bare name of ``module:qualname``."""
    return full.rpartition(":")[2].rpartition(".")[2]


def _is_closed(name: str) -> bool:
    """Tell whether ``module:qualname`` lies where no class of a user's is."""
    module, colon, _ = name.partition(":")
    root = module.split(".")[0]
    return bool(colon) and root != "__main__" and (root in _OPEN or root in sys.stdlib_module_names)


_DISTRUST = "Do not trust this file; ask its sender"


@cache
def _homes() -> dict[str, str]:
    """Return modules of our own by the names of the classes in them, read from their source.

    So a name that no class has is known for one before any framework is imported.
    """
    found: dict[str, str] = {}
    packages = (*PACKAGES, *MODEL_PACKAGES.values())
    root = Path(__file__).parents[1]
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        module = ".".join(("modularml", *(p for p in parts if p != "__init__")))
        for name in _NAMES.findall(file.read_text(encoding="utf-8")):
            if name not in found or module.startswith(packages):
                found[name] = module  # the last one: torch, where TensorFlow has a class too
    return found


_NAMES = re.compile(r'^(?:class |    config_name = ")([\w.]+)', re.MULTILINE)


def known_names() -> list[str]:
    """Return the names of our classes and of those that are registered."""
    return sorted({*config_registry, *_homes()})


def home_of(name: str) -> str | None:
    """Return the module of our own that has a class of this name, if it can be imported here."""
    module = _homes().get(name)
    needs = next(
        (f for f, package in MODEL_PACKAGES.items() if (module or "").startswith(package)), None
    )
    return module if needs is None or has(needs) else None


def _imported(name: str) -> Any:
    """Return an object of an imported module, if it is that module's own and not borrowed."""
    module, _, path = name.partition(":")
    obj: Any = sys.modules.get(module)
    for part in path.split("."):
        obj = getattr(obj, part, None) if not part.startswith("__") else None
    own = getattr(obj, "__module__", None) == module and getattr(obj, "__qualname__", None) == path
    return obj if own or (module == "numpy" and _from_numpy(obj, module)) else None


def _may_be_named(obj: Any, module: str) -> bool:
    root = module.split(".")[0]
    if root in _OPEN:
        return bool(_OPEN[root](obj, module))
    found = sys.modules[module]
    file = getattr(found, "__file__", None)
    if root in sys.stdlib_module_names and module != "__main__":
        return False
    installed = file is not None and {"site-packages", "dist-packages"} & set(Path(file).parts)
    return module == "__main__" or (file is not None and not installed)


def _from_modularml(obj: Any, module: str) -> bool:
    return isinstance(obj, type) and (
        issubclass(obj, enum.Enum) or any(obj is known for known in config_registry.values())
    )


def _from_torch(obj: Any, module: str) -> bool:
    torch = require("torch")
    if isinstance(obj, type):
        layer = issubclass(obj, torch.nn.Module) and module.startswith("torch.nn.modules.")
        return layer or (
            issubclass(obj, torch.optim.Optimizer) and module.startswith("torch.optim.")
        )
    return module == "torch.nn.functional"


def _from_keras(obj: Any, module: str) -> bool:
    keras = require("keras")
    kinds = (keras.Layer, keras.optimizers.Optimizer, keras.losses.Loss)
    open_to_code = (keras.layers.Lambda, keras.layers.TorchModuleWrapper)
    return isinstance(obj, type) and issubclass(obj, kinds) and not issubclass(obj, open_to_code)


def _from_sklearn(obj: Any, module: str) -> bool:
    kernel = require("sklearn.gaussian_process.kernels").Kernel
    split = require("sklearn.model_selection")
    splitters = (split.BaseCrossValidator, split.BaseShuffleSplit)
    kinds = (require("sklearn.base").BaseEstimator, kernel, *splitters)
    if isinstance(obj, type):
        return issubclass(obj, kinds)
    return module.startswith(_ON_ARRAYS)


_ON_ARRAYS = (
    "sklearn.feature_selection._",
    "sklearn.metrics._classification",
    "sklearn.metrics._ranking",
    "sklearn.metrics._regression",
    "sklearn.metrics.pairwise",
    "sklearn.cluster._kmeans",
)
"""Modules of functions that only compute with arrays: scores, kernels, distances."""


def _from_numpy(obj: Any, module: str) -> bool:
    numpy = require("numpy")
    if isinstance(obj, type):
        return issubclass(obj, numpy.number | numpy.bool_)
    statistics = (numpy.mean, numpy.median, numpy.min, numpy.max, numpy.sum)
    return isinstance(obj, numpy.ufunc) or any(obj is known for known in statistics)


def _is_estimator(obj: Any, module: str) -> bool:
    return isinstance(obj, type) and issubclass(obj, require("sklearn.base").BaseEstimator)


_OPEN: dict[str, Callable[[Any, str], bool]] = {
    "modularml": _from_modularml,
    "torch": _from_torch,
    "keras": _from_keras,
    "sklearn": _from_sklearn,
    "numpy": _from_numpy,
    "xgboost": _is_estimator,
    "lightgbm": _is_estimator,
    "builtins": lambda obj, module: obj in (bool, int, float, complex, str),
}


def _fits(role: str, obj: Any) -> bool:
    if role == "type":
        return isinstance(obj, type) and hasattr(obj, "from_config") and hasattr(obj, "get_config")
    if role == "enum":
        return isinstance(obj, type) and issubclass(obj, enum.Enum)
    if role == "estimator":
        return isinstance(obj, type) and is_like_estimator(obj)
    return callable(obj)
