"""Rows before a model sees them, beside pandas, numpy and scikit-learn as a good user writes it."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from sklearn.model_selection import GroupShuffleSplit, train_test_split
from sklearn.preprocessing import StandardScaler

from benchmarks import environments
from benchmarks.timing import cpu_seconds, interleave, one_thread, ratio, rss_bytes
from modularml import FeatureSet
from modularml.audit import audit
from modularml.splitters import KFoldSplitter

FEATURES = [f"x{i}" for i in range(10)]
TARGETS = ["y0", "y1"]
TAGS = ["cell", "kind"]
SHARES = {"train": 0.8, "test": 0.2}


def rows(*, quick: bool = False) -> list[dict[str, Any]]:
    """Measure all of them; ``value`` is a ratio, or a multiple of the table's size."""
    one_thread()
    scale = 20 if quick else 1
    found = [
        _prepare(1_000_000 // scale),
        *_weigh(quick),
        _group(10_000 // scale),
        _stack(20_000 // scale),
        _read(),
        *_audit(1_000_000 // scale),
        *_wide(10_000 // scale),
        _divide(80_000 // scale),
    ]
    return [{**row, "ok": row["limit"] is None or row["value"] <= row["limit"]} for row in found]


# -- build, split, scale, read ---------------------------------------------------------------


def table(n: int) -> pd.DataFrame:
    """Return 10 floats, 2 targets and 2 tags: 1,000 cells and 5 kinds."""
    rng = np.random.default_rng(0)
    data: dict[str, Any] = {name: rng.normal(size=n) for name in [*FEATURES, *TARGETS]}
    return pd.DataFrame(data | {"cell": rng.integers(0, 1000, n), "kind": rng.integers(0, 5, n)})


def by_hand(df: pd.DataFrame) -> np.ndarray[Any, Any]:
    """Split in three ways, scale on the training rows and return their features."""
    every = np.arange(len(df))
    train, _ = train_test_split(every, test_size=0.2, random_state=0)
    grouped = GroupShuffleSplit(1, test_size=0.2, random_state=0)
    next(grouped.split(every, groups=df["cell"]))
    train_test_split(every, test_size=0.2, random_state=0, stratify=df["kind"])
    x = df[FEATURES].to_numpy()
    scaler = StandardScaler().fit(x[train])
    found: np.ndarray[Any, Any] = scaler.transform(x)[train]
    return found


def ours(df: pd.DataFrame) -> np.ndarray[Any, Any]:
    """Do the same through a FeatureSet."""
    fs = FeatureSet.from_pandas("rows", df, FEATURES, TARGETS, tag_cols=TAGS, register=False)
    fs.split_random(SHARES)
    fs.split_random({"cells": 0.8, "other_cells": 0.2}, group_by="cell")
    fs.split_random({"kinds": 0.8, "other_kinds": 0.2}, stratify_by="kind")
    fs.fit_transform("StandardScaler", domain="features", fit_to_split="train")
    found: np.ndarray[Any, Any] = fs["train"].get_features(fmt="numpy", rep="transformed")
    return found


def _prepare(n: int) -> dict[str, Any]:
    df = table(n)
    assert ours(df).shape == by_hand(df).shape
    times = interleave({"hand": lambda: by_hand(df), "ours": lambda: ours(df)})
    work = f"{n:,} rows: build, 3 splits, scale, read / pandas and scikit-learn"
    return {"work": work, "value": ratio(times, "ours"), "limit": 1.0, "times": times}


def _weigh(quick: bool) -> list[dict[str, Any]]:
    found = environments.run_isolated("rows", *(["--quick"] if quick else []))
    limits = {"ours": None if quick else 2.5, "by hand": None}
    return [
        {
            "work": f"the same, peak memory above the table, {name} (x table)",
            "value": x,
            "limit": limits[name],
        }
        for name, x in found.items()
    ]


def peak_over(work: Callable[[], object]) -> int:
    """Return by how much resident memory rises at most while a call runs, in bytes."""
    start, highest, over = rss_bytes(), [0], threading.Event()

    def watch() -> None:
        while not over.is_set():
            highest[0] = max(highest[0], rss_bytes())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    over.set()
    watcher.join()
    return highest[0] - start


# -- long tables, lists of arrays, no copy ---------------------------------------------------


def _group(n_groups: int, length: int = 100) -> dict[str, Any]:
    """Build samples of 100 steps from shuffled long rows."""
    rng = np.random.default_rng(0)
    rows = rng.permutation(n_groups * length)
    df = pd.DataFrame(
        {
            "cycle": rows // length,
            "step": rows % length,
            "v": rng.normal(size=len(rows)),
            "y": rng.normal(size=len(rows)),
        }
    )

    def hand() -> Any:
        groups = df.sort_values(["cycle", "step"]).groupby("cycle", sort=True)
        v, y = (np.stack([g.to_numpy() for _, g in groups[name]]) for name in ("v", "y"))
        return v, y

    def mine() -> Any:
        return FeatureSet.from_pandas(
            "long", df, "v", "y", group_by="cycle", sort_by="step", register=False
        )

    assert np.array_equal(mine().get_features(fmt="numpy")[:, 0], hand()[0])
    times = interleave({"hand": hand, "ours": mine})
    work = f"{len(df):,} long rows to {n_groups:,} samples by group_by / pandas groupby"
    return {"work": work, "value": ratio(times, "ours"), "limit": 0.5, "times": times}


def _stack(n: int) -> dict[str, Any]:
    """Make one column of a list of arrays."""
    values = list(np.random.default_rng(0).normal(size=(n, 100)))
    data = {"v": values, "y": np.zeros(n)}
    times = interleave(
        {
            "hand": lambda: np.stack(values),
            "ours": lambda: FeatureSet.from_dict("list", data, "v", "y", register=False),
        },
        repeats=15,
    )
    work = f"a list of {n:,} arrays into one column / np.stack"
    return {"work": work, "value": ratio(times, "ours"), "limit": 1.1, "times": times}


def _read() -> dict[str, Any]:
    """Count the bytes that reading one array column copies."""
    x = np.zeros((1000, 100))
    fs = FeatureSet.from_numpy("whole", x, np.zeros(1000), register=False)
    shared = np.shares_memory(fs.get_features(fmt="numpy"), fs.collection.numpy("features.x.raw"))
    return {"work": "copies made by get_features(fmt='numpy')", "value": 1 - shared, "limit": 0}


# -- the audit -------------------------------------------------------------------------------


def _audit(n: int) -> list[dict[str, Any]]:
    fs = FeatureSet.from_pandas("rows", table(n), FEATURES, TARGETS, tag_cols=TAGS, register=False)
    fs.split_random(SHARES, group_by="cell")
    small = FeatureSet.from_numpy(
        "x", np.random.default_rng(0).normal(size=(20_000, 16)), register=False
    )
    small.split_random(SHARES)
    times = interleave(
        {"large": fs.audit, "small": lambda: audit(small, max_rows=20_000, quick=True)}
    )
    return [
        {"work": f"fs.audit() of {n:,} rows (s)", "value": min(times["large"]), "limit": 5.0},
        {
            "work": "what an Experiment audits, 20,000 x 16 (ms)",
            "value": 1e3 * min(times["small"]),
            "limit": 20.0,
        },
    ]


# -- many columns, many groups ---------------------------------------------------------------


def _wide(n_columns: int) -> list[dict[str, Any]]:
    """Build a set of many columns from a frame and from a dict; undo a scaler of them."""
    rng = np.random.default_rng(0)
    data = {f"x{i}": rng.normal(size=100) for i in range(n_columns)}
    df, names = pd.DataFrame(data), list(data)
    works = {
        "hand": lambda: FeatureSet.from_dict("wide", data, names, [], register=False),
        "ours": lambda: FeatureSet.from_pandas("wide", df, names, [], register=False),
    }
    times, undone, n = interleave(works), list[float](), n_columns * 4 // 5
    fs = FeatureSet.from_dict("wide", data, names[:n], [], register=False)
    for _ in range(3):
        fs.fit_transform("StandardScaler", domain="features")
        undone.append(cpu_seconds(fs.undo_all_transforms))
    return [
        {
            "work": f"from_pandas of {n_columns:,} columns / from_dict",
            "value": ratio(times, "ours"),
            "limit": 1.3,
        },
        {
            "work": f"undo_all_transforms, {n:,} columns (s)",
            "value": min(undone),
            "limit": 0.06,
        },
    ]


def _divide(n_groups: int) -> dict[str, Any]:
    """Divide rows by group and stratum."""
    rng, n = np.random.default_rng(0), 5 * n_groups
    columns = {"group": rng.integers(0, n_groups, n), "kind": rng.integers(0, 5, n)}
    splitter = KFoldSplitter(5, group_by="group", stratify_by="kind")
    took = min(cpu_seconds(lambda: splitter.folds(n, columns=columns)) for _ in range(3))
    return {
        "work": f"5 folds by group and stratum, {n_groups:,} groups (s)",
        "value": took,
        "limit": 0.3,
    }


def main(n: int = 1_000_000) -> None:
    """Print how much memory both ways take above the table, as multiples of it."""
    one_thread()
    df, size = table(n), 14 * 8 * n
    ours(df[:10_000])
    by_hand(df[:10_000])
    peaks = {"ours": peak_over(lambda: ours(df)), "by hand": peak_over(lambda: by_hand(df))}
    print(json.dumps({name: peak / size for name, peak in peaks.items()}))


if __name__ == "__main__":
    main(50_000) if "--quick" in sys.argv else main()
