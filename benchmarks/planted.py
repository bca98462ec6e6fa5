"""Tables with planted leaks: what lists of them share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

import modularml as mml

RNG = np.random.Generator
PARTS = {"train": 0.65, "val": 0.15, "test": 0.2}


@dataclass
class Planted:
    """A set, and what a right finding names: kinds of findings, column keys, rows."""

    fs: Any
    kinds: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    rows: Any = None


def rows_of(d: dict[str, Any], tags: Any = None) -> Any:
    """Return a FeatureSet of columns; what is neither tag nor ``y`` is a feature."""
    tags = list(tags or [])
    features = [c for c in d if c != "y" and c not in tags]
    return mml.FeatureSet.from_dict("set", d, features, "y", tags or None, register=False)


def dealt(fs: Any, s: int, **how: Any) -> Any:
    fs.split_random(PARTS, seed=7 + s, **how)
    return fs


def cut(fs: Any, **parts: Any) -> Any:
    for name, rows in parts.items():
        fs.add_split(fs.take(np.asarray(rows), label=name))
    return fs


def lab(r: RNG, n: int, k: int = 6) -> dict[str, Any]:
    """Return k dependent measurements of several shapes, and a target that they explain half of."""
    z = r.normal(size=(n, k)) + 0.5 * r.normal(size=(n, 1))
    shapes = (lambda v: v, np.exp, lambda v: 1 / (1 + np.exp(-v)), lambda v: 5 + v + 0.2 * v**2)
    d = {f"q{i}": shapes[i % 4](z[:, i]) for i in range(k)}
    return d | {"y": np.tanh(z[:, 0]) + 0.6 * z[:, 1] ** 2 + 0.8 * r.normal(size=n)}


def classes(r: RNG, n: int, m: int) -> dict[str, Any]:
    d = lab(r, n)
    return d | {"y": np.digitize(d["y"], np.quantile(d["y"], np.arange(1, m) / m))}


def again(r: RNG, d: dict[str, Any], n: int, change: Any = lambda c, v: v) -> tuple[Any, Any]:
    """Return the table with n of its rows again, changed and mixed in, and the rows of pairs."""
    m = len(d["y"])
    pick, mix = r.choice(m, n, replace=False), r.permutation(m + n)
    out = {c: np.concatenate([v, change(c, v[pick])])[mix] for c, v in d.items()}
    return out, np.argsort(mix)[np.r_[pick, m : m + n]]


def tones(r: RNG, n: int, length: int = 120) -> Any:
    t = np.arange(length) / length
    out = 0.05 * r.normal(size=(n, length))
    for _ in range(5):
        f, p, w, c = (
            r.uniform(2, 25, (n, 1)),
            r.uniform(0, 6.3, (n, 1)),
            r.uniform(0.05, 0.3, (n, 1)),
            r.random((n, 1)),
        )
        out += r.normal(size=(n, 1)) * np.sin(2 * np.pi * f * t + p) * np.exp(-(((t - c) / w) ** 2))
    return out


def units(r: RNG, m: int, each: int, share: float = 0.75) -> tuple[Any, dict[str, Any]]:
    g = r.permutation(np.repeat(np.arange(m), each))
    z = np.sqrt(share) * r.normal(size=(m, 5))[g] + np.sqrt(1 - share) * r.normal(size=(len(g), 5))
    d = {f"m{i}": z[:, i] for i in range(5)}
    return g, d | {"y": z[:, 0] * z[:, 1] + 0.7 * r.normal(size=m)[g] + 0.5 * r.normal(size=len(g))}


def drifting(r: RNG, n: int, k: int = 4) -> dict[str, Any]:
    def walk() -> Any:
        out = r.normal(size=n)
        for i in range(1, n):
            out[i] += 0.97 * out[i - 1]
        return out

    d = {f"w{i}": walk() for i in range(k)}
    return d | {"y": d["w0"] + walk()}


COPIES = ("duplicate_rows", "near_duplicate_rows")
CURVES = (*COPIES, "similar_sequences")
GROUPS = ("shared_groups",)
TARGET = ("target_copy", "target_in_feature", "target_in_features", "target_of_neighbour",
          "target_encoding", "target_in_id")  # fmt: skip
BEFORE = ("prepared_before", "scaler_fit")
TIME = ("time_order", "time_ties", "row_order")
