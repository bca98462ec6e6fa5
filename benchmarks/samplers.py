"""Samplers against numpy and scipy by hand: the batches of an epoch, pairs and triplets."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.timing import interleave, one_thread, ratio

PAIRS_AT_MOST, EPOCH_AT_MOST, FIRST_MS = 3.0, 1.1, 100.0
K = 3


def samplers(*, quick: bool = False) -> list[dict[str, Any]]:
    """Return a row for each job: value, limit and whether it is kept."""
    one_thread()
    rows = [*epochs(50_000 if quick else 1_000_000, 1 if quick else 5)]
    for n in (2_000,) if quick else (10_000, 100_000):
        rows += partners(n, 1 if quick else 7)
    return [{**row, "ok": row["value"] <= row["limit"]} for row in rows]


# -- all batches of an epoch --------------------------------------------------------------------


def epochs(n: int, repeats: int) -> Iterator[dict[str, Any]]:
    """Shuffled batches of 256, 10 features and 2 targets as tensors; the time to the first."""
    import torch

    import modularml as mm

    rng = np.random.default_rng(0)
    x, y = rng.random((n, 10), dtype=np.float32), rng.random((n, 2), dtype=np.float32)
    features, targets = torch.from_numpy(x.copy()), torch.from_numpy(y.copy())
    columns = {f"x{i}": x[:, i] for i in range(10)} | {f"y{i}": y[:, i] for i in range(2)}
    fs = mm.FeatureSet.from_dict("rows", columns, list(columns)[:10], list(columns)[10:], [])
    node = mm.ModelNode("net", torch.nn.Linear(10, 2), fs)
    graph = mm.ModelGraph([node], optimizer=mm.Optimizer("sgd", opt_kwargs={"lr": 0.1}))
    graph.build()
    loss = mm.AppliedLoss(mm.Loss("mse"), on="net", inputs=["outputs", "targets"])
    sampler = mm.SimpleSampler(batch_size=256, shuffle=True, seed=0)
    binding = mm.InputBinding.for_training(node=node, sampler=sampler, upstream=None)
    feed = mm.TrainPhase("train", input_sources=[binding], losses=[loss]).feed()
    feed.reuses_memory = True  # as in a phase
    number = iter(range(10**6))

    def hand() -> None:
        order = torch.from_numpy(np.random.default_rng(next(number)).permutation(n))
        for at in range(0, n, 256):
            rows = order[at : at + 256]
            features.index_select(0, rows), targets.index_select(0, rows)

    def ours() -> None:
        for _ in feed.epoch(next(number))[1]:
            pass

    def first() -> float:
        before = time.process_time()
        next(feed.epoch(next(number))[1])
        return 1000 * (time.process_time() - before)

    times = interleave({"hand": hand, "ours": ours}, repeats=repeats)
    work = f"all batches of an epoch, {n:,} samples, batch 256 / permuted take by hand"
    yield {"work": work, "value": ratio(times, "ours"), "limit": EPOCH_AT_MOST}
    yield {
        "work": "its first batch (ms)",
        "value": min(first() for _ in range(3)),
        "limit": FIRST_MS,
    }


# -- pairs and triplets -------------------------------------------------------------------------


def partners(n: int, repeats: int) -> Iterator[dict[str, Any]]:
    """Up to three distinct partners of each row: index, draw and shuffle, from nothing."""
    import modularml as mm

    rng = np.random.default_rng(0)
    x, y = rng.random(n), rng.random(n)
    fs = mm.FeatureSet.from_dict("rows", {"x": x, "y": y}, ["x", "y"], [], [], register=False)
    narrow, wide = 20 / n, float(np.sqrt(5 / n))
    near = mm.SimilarityCondition(tolerance=narrow)
    far = mm.SimilarityCondition("dissimilar", tolerance=narrow)
    close = mm.SimilarityCondition(tolerance=wide)
    both = np.stack([x, y], axis=1)

    def epoch(make: Callable[..., Any], *conditions: Any) -> Callable[[], Any]:
        def run() -> Any:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                sampler = make(*conditions, batch_size=256, shuffle=True, seed=0)
                sampler.show_progress = False
                return sampler.epoch(fs.to_view(), 0)

        return run

    jobs = [
        (
            "pairs within a tolerance / sort and searchsorted",
            lambda: pairs_by_sort(x, narrow, rng),
            epoch(mm.PairedSampler, {"x": near}),
        ),
        (
            "triplets within and outside / sort and searchsorted",
            lambda: triplets_by_sort(x, narrow, rng),
            epoch(mm.TripletSampler, {"x": near}, {"x": far}),
        ),
        (
            "pairs within two tolerances / cKDTree",
            lambda: pairs_by_tree(both, wide, rng),
            epoch(mm.PairedSampler, {"x": close, "y": close}),
        ),
    ]
    for name, hand, ours in jobs:
        times = interleave({"hand": hand, "ours": ours}, repeats=repeats)
        yield {
            "work": f"{n:,} anchors, {name} by hand",
            "value": ratio(times, "ours"),
            "limit": PAIRS_AT_MOST,
        }


def distinct(counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw `K` places below each count, anew where two are equal."""
    drawn = (rng.random((len(counts), K)) * counts[:, None]).astype(np.int64)
    while True:
        ordered = np.sort(drawn, axis=1)
        twice = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
        if not twice.any():
            return drawn
        drawn[twice] = (rng.random((twice.sum(), K)) * counts[twice, None]).astype(np.int64)


def pairs_by_sort(x: np.ndarray, tolerance: float, rng: np.random.Generator) -> tuple[Any, ...]:
    order = np.argsort(x)
    values = x[order]
    low = np.searchsorted(values, values - tolerance, "left")
    high = np.searchsorted(values, values + tolerance, "right")
    kept = np.flatnonzero(high - low > K)
    place = low[kept, None] + distinct(high[kept] - low[kept] - 1, rng)
    place += place >= kept[:, None]
    shuffled = rng.permutation(place.size)
    return np.repeat(order[kept], K)[shuffled], order[place].ravel()[shuffled]


def triplets_by_sort(x: np.ndarray, tolerance: float, rng: np.random.Generator) -> tuple[Any, ...]:
    order = np.argsort(x)
    values = x[order]
    low = np.searchsorted(values, values - tolerance, "left")
    high = np.searchsorted(values, values + tolerance, "right")
    kept = np.flatnonzero((high - low > K) & (len(x) - high + low >= K))
    low, high = low[kept], high[kept]
    near = low[:, None] + distinct(high - low - 1, rng)
    near += near >= kept[:, None]
    far = distinct(len(x) - high + low, rng)
    far += (far >= low[:, None]) * (high - low)[:, None]
    shuffled = rng.permutation(near.size)
    anchors = np.repeat(order[kept], K)
    return tuple(a[shuffled] for a in (anchors, order[near].ravel(), order[far].ravel()))


def pairs_by_tree(x: np.ndarray, tolerance: float, rng: np.random.Generator) -> tuple[Any, ...]:
    from scipy.spatial import cKDTree

    found = cKDTree(x).query_pairs(tolerance, p=np.inf, output_type="ndarray")
    a, b = np.concatenate([found, found[:, ::-1]]).T
    order = np.lexsort((rng.random(len(a)), a))
    a, b = a[order], b[order]
    first = np.arange(len(a)) - np.searchsorted(a, a) < K
    shuffled = rng.permutation(first.sum())
    return a[first][shuffled], b[first][shuffled]
