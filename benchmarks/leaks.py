"""Planted leaks and sound sets: how many leaks the audit finds, and how often it is wrong.

``python -m benchmarks.leaks [--seeds 3] [kind ...]`` prints a table. A leak counts as found where
an error or a warning of one of its kinds names a planted column or row, and nothing innocent.
"""

from __future__ import annotations

import argparse
import time
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.leaks_of_labs import LAB_CLEAN, LAB_LEAKS
from benchmarks.planted import (
    BEFORE,
    COPIES,
    CURVES,
    GROUPS,
    RNG,
    TARGET,
    TIME,
    Planted,
    again,
    classes,
    cut,
    dealt,
    drifting,
    lab,
    rows_of,
    tones,
    units,
)
from modularml.splitters import KFoldSplitter

__all__ = ["CLEAN", "LEAKS", "Planted", "found", "measure"]

LEAKS: dict[str, Callable[[RNG, int], Planted]] = {}
CLEAN: dict[str, Callable[[RNG, int], Planted]] = {}


def leak(make: Any) -> Any:
    LEAKS[make.__name__] = make
    return make


def clean(make: Any) -> Any:
    CLEAN[make.__name__] = make
    return make


SIZE = (350, 700, 1100)

# -- leaks ---------------------------------------------------------------------------------------


@leak
def copies_exact(r, s):
    d, rows = again(r, lab(r, SIZE[s]) | {"n_events": r.poisson(4, SIZE[s])}, SIZE[s] // 12)
    return Planted(dealt(rows_of(d), s), COPIES, rows=rows)


@leak
def copies_with_small_noise(r, s):
    d, rows = again(
        r, lab(r, SIZE[s]), SIZE[s] // 10, lambda c, v: v + 0.003 * v.std() * r.normal(size=len(v))
    )
    return Planted(dealt(rows_of(d), s), COPIES, rows=rows)


@leak
def copies_augmented(r, s):
    d, rows = again(
        r,
        lab(r, SIZE[s], 10),
        SIZE[s] // 6,
        lambda c, v: v + 0.04 * v.std() * r.normal(size=len(v)),
    )
    return Planted(dealt(rows_of(d), s), COPIES, rows=rows)


@leak
def copies_of_images(r, s):
    img = np.clip(r.normal(128, 50, (SIZE[s], 8, 8)), 0, 255).astype(np.uint8)
    d = {"image": img, "dose": r.normal(size=SIZE[s]), "y": r.normal(size=SIZE[s])}
    d, rows = again(r, d, SIZE[s] // 10,
                    lambda c, v: v if c == "image" else r.normal(size=len(v)))  # fmt: skip
    return Planted(dealt(rows_of(d), s), CURVES, rows=rows)


@leak
def copies_with_nan(r, s):
    d = lab(r, SIZE[s])
    d["q2"][r.random(SIZE[s]) < 0.3] = np.nan
    d, rows = again(r, d, SIZE[s] // 10)
    return Planted(dealt(rows_of(d), s), COPIES, rows=rows)


@leak
def rare_class_oversampled(r, s):
    d = classes(r, SIZE[s], 2)
    rare = np.flatnonzero(d["y"] == 1)[: SIZE[s] // 20]
    more = np.repeat(rare, 4)
    mix = r.permutation(SIZE[s] + len(more))
    out = {c: np.concatenate([v, v[more]])[mix] for c, v in d.items()}
    rows = np.argsort(mix)[np.r_[rare, SIZE[s] : SIZE[s] + len(more)]]
    return Planted(dealt(rows_of(out), s, stratify_by="y"), COPIES, rows=rows)


@leak
def curves_scaled_and_offset(r, s):
    c = tones(r, SIZE[s])
    d, rows = again(r, {"trace": c, "y": c.max(1)}, SIZE[s] // 10,
                    lambda k, v: v if k == "y" else
                    v * r.uniform(0.3, 4, (len(v), 1)) + r.normal(size=(len(v), 1)))  # fmt: skip
    return Planted(dealt(rows_of(d), s), CURVES, ("trace",), rows)


@leak
def curves_upside_down(r, s):
    c = tones(r, SIZE[s])
    d, rows = again(
        r, {"trace": c, "y": c.std(1)}, SIZE[s] // 10, lambda k, v: -v if k == "trace" else v
    )
    return Planted(dealt(rows_of(d), s), CURVES, ("trace",), rows)


@leak
def windows_that_overlap(r, s):
    n, length, step = SIZE[s], 96, (48, 32, 64)[s]
    long = tones(r, 1, 100)[0][:0]
    long = np.convolve(r.normal(size=n * step + length + 40), np.hanning(9), "valid")
    c = np.stack([long[i * step : i * step + length] for i in range(n)])
    mix = r.permutation(n)
    fs = dealt(rows_of({"window": c[mix], "y": c.std(1)[mix] + 0.1 * r.normal(size=n)}), s)
    return Planted(fs, CURVES, ("window",), np.arange(n))


@leak
def group_in_a_compound_id(r, s):
    g, d = units(r, SIZE[s] // 8, 8)
    names = [f"{'BKT'[s]}{i:03d}_{k}" for k, i in enumerate(g)]
    return Planted(
        dealt(rows_of(d | {"sample_name": names}, ["sample_name"]), s), GROUPS, ("sample_name",)
    )


@leak
def group_with_and_without_prefix(r, s):
    g, d = units(r, SIZE[s] // 10, 10)
    late = r.random(len(g)) < 0.3
    names = [f"{i}" if b else f"rig-{i:02d}" for i, b in zip(g, late, strict=True)]
    fs = cut(
        rows_of(d | {"bench": names}, ["bench"]),
        train=np.flatnonzero(~late),
        test=np.flatnonzero(late),
    )
    return Planted(fs, GROUPS, ("bench",))


@leak
def group_number_among_the_features(r, s):
    g, d = units(r, SIZE[s] // 9, 9)
    return Planted(dealt(rows_of(d | {"coil": r.permutation(900)[g] + 100}), s), GROUPS, ("coil",))


@leak
def folds_that_ignore_groups(r, s):
    g, d = units(r, SIZE[s] // 8, 8)
    fs = rows_of(d | {"bobbin": [f"b{i * 7}" for i in g]}, ["bobbin"])
    fs.split(KFoldSplitter(4, shuffle=True, seed=s))
    return Planted(fs, GROUPS, ("bobbin",))


@leak
def target_in_bins(r, s):
    d = lab(r, SIZE[s])
    return Planted(
        dealt(
            rows_of(
                d | {"band": np.digitize(d["y"], np.quantile(d["y"], np.linspace(0.1, 0.9, 9)))}
            ),
            s,
        ),
        TARGET,
        ("band",),
    )


@leak
def target_rounded(r, s):
    d = lab(r, SIZE[s])
    return Planted(dealt(rows_of(d | {"read_out": np.round(d["y"] * 4)}), s), TARGET, ("read_out",))


@leak
def target_with_noise(r, s):
    d = lab(r, SIZE[s])
    return Planted(
        dealt(rows_of(d | {"probe": 3 - d["y"] + 0.04 * d["y"].std() * r.normal(size=SIZE[s])}), s),
        TARGET,
        ("probe",),
    )


@leak
def class_as_flags(r, s):
    d = classes(r, SIZE[s], 4)
    hot = np.eye(4)[d["y"]][:, r.permutation(4)]
    more = {"flag": hot} if s else {f"flag{i}": hot[:, i] for i in range(4)}
    return Planted(dealt(rows_of(d | more), s), TARGET, tuple(more))


@leak
def class_by_what_is_missing(r, s):
    d = classes(r, SIZE[s], 2)
    d["assay"] = r.normal(size=SIZE[s])
    d["assay"][d["y"] == 1] = np.nan
    return Planted(dealt(rows_of(d), s), TARGET, ("assay",))


@leak
def product_of_two_features(r, s):
    d = lab(r, SIZE[s])
    d["y"] = np.exp(0.5 * d["y"])
    rate = np.exp(r.normal(size=SIZE[s]))
    return Planted(
        dealt(rows_of(d | {"rate": rate, "hours": d["y"] / rate}), s), TARGET, ("rate", "hours")
    )


@leak
def target_of_the_row_before(r, s):
    d = lab(r, SIZE[s])
    return Planted(
        dealt(rows_of(d | {"last": np.r_[d["y"][0], d["y"][:-1]]}), s), TARGET, ("last",)
    )


@leak
def class_in_the_name_of_the_row(r, s):
    d = classes(r, SIZE[s], 3)
    word = np.array(["alder", "birch", "cedar"])[d["y"]]
    names = [f"{w}/{k:05d}" for w, k in zip(word, r.permutation(SIZE[s]), strict=True)]
    return Planted(dealt(rows_of(d | {"filename": names}), s), TARGET, ("filename",))


@leak
def target_encoder_of_all_rows(r, s):
    n = SIZE[s]
    d, town = lab(r, n), r.integers(0, n // 8, n)
    d["y"] = d["y"] + 0.5 * r.normal(size=n // 8)[town]
    n_in, total = np.bincount(town), np.bincount(town, d["y"])
    smooth = (0, 10, 0)[s]
    code = (total + smooth * d["y"].mean()) / (n_in + smooth)
    return Planted(
        dealt(rows_of(d | {"town": [f"t{i}" for i in town], "town_code": code[town]}, ["town"]), s),
        TARGET,
        ("town_code",),
    )


@leak
def ranges_of_all_rows(r, s):
    d = lab(r, SIZE[s], 9)
    d |= {c: (v - v.min()) / (v.max() - v.min()) for c, v in d.items() if c != "y"}
    return Planted(dealt(rows_of(d), s), BEFORE, tuple(c for c in d if c != "y"))


@leak
def holes_filled_with_means_of_all_rows(r, s):
    d = lab(r, SIZE[s])
    for c in ("q0", "q1", "q3"):
        lost = r.random(SIZE[s]) < 0.15
        d[c][lost] = d[c][~lost].mean() if s != 1 else np.median(d[c][~lost])
    return Planted(dealt(rows_of(d), s), BEFORE, ("q0", "q1", "q3"))


@leak
def scores_of_components_of_all_rows(r, s):
    d = lab(r, SIZE[s], 8)
    x = np.stack([v for c, v in d.items() if c != "y"], 1)
    x = x - x.mean(0)
    p = x @ np.linalg.svd(x, full_matrices=False)[2].T
    more = {"pcs": p[:, :5]} if s else {f"pc{i}": p[:, i] for i in range(5)}
    return Planted(dealt(rows_of(more | {"y": d["y"]}), s), BEFORE, tuple(more))


@leak
def seconds_dealt_at_random(r, s):
    d, mix = drifting(r, SIZE[s]), r.permutation(SIZE[s])
    d = {c: v[mix] for c, v in d.items()} | {"elapsed": (np.arange(SIZE[s]) * 0.5 + 3)[mix]}
    return Planted(dealt(rows_of(d, ["elapsed"]), s), TIME, ("elapsed",))


@leak
def days_written_as_numbers(r, s):
    d, mix = drifting(r, SIZE[s]), r.permutation(SIZE[s])
    day = (np.datetime64("2020-03-01") + np.arange(SIZE[s])).astype(object)
    d |= {"recorded": np.array([t.year * 10_000 + t.month * 100 + t.day for t in day])}
    return Planted(
        dealt(rows_of({c: v[mix] for c, v in d.items()}, ["recorded"]), s), TIME, ("recorded",)
    )


@leak
def tested_on_the_past(r, s):
    d = lab(r, SIZE[s]) | {"made": np.datetime64("2022-01-01") + np.arange(SIZE[s])}
    n = SIZE[s] // 4
    return Planted(
        cut(rows_of(d, ["made"]), train=range(n, SIZE[s]), test=range(n)), TIME, ("made",)
    )


@leak
def days_cut_in_two(r, s):
    n = SIZE[s]
    d = drifting(r, n) | {"day": np.datetime64("2022-01-01") + np.arange(n) // 25}
    at = (2 * n // 3) // 25 * 25 + 12
    return Planted(cut(rows_of(d, ["day"]), train=range(at), test=range(at, n)), TIME, ("day",))


@leak
def splits_that_meet(r, s):
    rows, n = r.permutation(SIZE[s]), SIZE[s]
    fs = cut(rows_of(lab(r, n)), alpha=rows[: 2 * n // 3], omega=rows[n // 2 :])
    return Planted(fs, ("shared_rows",), rows=rows[n // 2 : 2 * n // 3])


@leak
def lot_number_of_a_sorted_table(r, s):
    d = lab(r, SIZE[s])
    o = np.argsort(-d["y"])
    d = {c: v[o] for c, v in d.items()} | {"lot": [f"L{i:06d}" for i in range(SIZE[s])]}
    return Planted(dealt(rows_of(d, ["lot"] if s == 2 else None), s), TARGET, ("lot",))


# -- sound sets ----------------------------------------------------------------------------------


@clean
def heavy_tails(r, s):
    d = {f"c{i}": r.standard_cauchy(SIZE[s]) for i in range(5)}
    return Planted(dealt(rows_of(d | {"y": r.normal(size=SIZE[s]) + np.sign(d["c0"])}), s))


@clean
def counts(r, s):
    d = {f"n{i}": r.poisson(2 + 3 * (i % 2), SIZE[s]) for i in range(6)}
    return Planted(dealt(rows_of(d | {"y": d["n0"] + r.normal(size=SIZE[s])}), s))


@clean
def groups_kept_whole(r, s):
    g, d = units(r, SIZE[s] // 8, 8, 0.9)
    return Planted(dealt(rows_of(d | {"bobbin": g}, ["bobbin"]), s, group_by="bobbin"))


@clean
def groups_kept_whole_in_folds(r, s):
    g, d = units(r, SIZE[s] // 8, 8, 0.9)
    fs = rows_of(d | {"patient": g}, ["patient"])
    fs.split(KFoldSplitter(4, group_by="patient"))
    return Planted(fs)


@clean
def honest_dates(r, s):
    n = SIZE[s]
    d = drifting(r, n) | {"when": np.datetime64("2021-01-01") + np.arange(n)}
    return Planted(cut(rows_of(d, ["when"]), train=range(2 * n // 3), test=range(2 * n // 3, n)))


@clean
def words_in_documents(r, s):
    x = r.poisson(r.gamma(0.15, 1, 200)[None] * r.gamma(2, 0.3, (SIZE[s], 1)))
    return Planted(dealt(rows_of({"words": x.astype(float), "y": r.integers(0, 2, SIZE[s])}), s))


@clean
def smooth_sines(r, s):
    t = np.linspace(0, 1, 80)
    f, p = r.uniform(1, 4, (SIZE[s], 1)), r.uniform(0, 6.3, (SIZE[s], 1))
    return Planted(
        dealt(
            rows_of(
                {
                    "sine": np.sin(6.3 * f * t + p) + 0.02 * r.normal(size=(SIZE[s], 80)),
                    "y": f[:, 0],
                }
            ),
            s,
        )
    )


@clean
def spectra_of_few_peaks(r, s):
    t = np.linspace(0, 1, 150)
    h = r.lognormal(0, 0.4, (SIZE[s], 4))
    c = sum(
        h[:, [i]] * np.exp(-(((t - m) / 0.06) ** 2)) for i, m in enumerate((0.15, 0.4, 0.6, 0.85))
    )
    return Planted(
        dealt(
            rows_of(
                {
                    "spectrum": c + 0.005 * r.normal(size=c.shape),
                    "y": h[:, 0] + 0.2 * r.normal(size=SIZE[s]),
                }
            ),
            s,
        )
    )


@clean
def random_walks(r, s):
    c = np.cumsum(r.normal(size=(SIZE[s], 60)), 1)
    return Planted(dealt(rows_of({"path": c, "y": c[:, -1] + 5 * r.normal(size=SIZE[s])}), s))


@clean
def charging_curves(r, s):
    t = np.linspace(0, 1, 100)
    a, b = 1 + 0.1 * r.normal(size=(SIZE[s], 1)), 3 + 0.3 * r.normal(size=(SIZE[s], 1))
    c = a * (1 - np.exp(-b * t)) + 0.003 * r.normal(size=(SIZE[s], 100))
    return Planted(dealt(rows_of({"voltage": c, "y": a[:, 0] + 0.05 * r.normal(size=SIZE[s])}), s))


@clean
def blobs(r, s):
    k = r.integers(0, 3, SIZE[s])
    x = 2.2 * r.normal(size=(3, 6))[k] + r.normal(size=(SIZE[s], 6))
    return Planted(
        dealt(rows_of({f"b{i}": x[:, i] for i in range(6)} | {"y": k}), s, stratify_by="y")
    )


@clean
def tight_clusters(r, s):
    k = r.integers(0, 25, SIZE[s])
    x = 4 * r.normal(size=(25, 5))[k] + 0.3 * r.normal(size=(SIZE[s], 5))
    return Planted(
        dealt(
            rows_of(
                {f"b{i}": x[:, i] for i in range(5)} | {"y": x[:, 0] + 2 * r.normal(size=SIZE[s])}
            ),
            s,
        )
    )


@clean
def linear_law(r, s):
    x = r.normal(size=(SIZE[s], 6))
    y = x @ r.normal(size=6)
    return Planted(
        dealt(
            rows_of(
                {f"x{i}": x[:, i] for i in range(6)}
                | {"y": y + 0.15 * y.std() * r.normal(size=SIZE[s])}
            ),
            s,
        )
    )


@clean
def five_sites(r, s):
    site = r.integers(0, 5, SIZE[s])
    d = lab(r, SIZE[s])
    d["y"] = d["y"] + 2 * r.normal(size=5)[site]
    return Planted(dealt(rows_of(d | {"site": [f"site {i}" for i in site]}, ["site"]), s))


@clean
def shifts_without_bearing(r, s):
    d = lab(r, SIZE[s]) | {
        "clerk": r.integers(0, 40, SIZE[s]),
        "weekday": r.integers(0, 7, SIZE[s]),
    }
    return Planted(dealt(rows_of(d, ["clerk", "weekday"]), s))


@clean
def scaled_on_train(r, s):
    fs = dealt(rows_of(lab(r, SIZE[s])), s)
    fs.fit_transform(
        ("StandardScaler", "MinMaxScaler", "RobustScaler")[s],
        domain="features",
        fit_to_split="train",
    )
    return Planted(fs)


@clean
def table_scaled_on_train(r, s):
    d = lab(r, SIZE[s])
    rows = r.permutation(SIZE[s])
    train, test = rows[: SIZE[s] // 2], rows[SIZE[s] // 2 :]
    for c in [c for c in d if c != "y"]:
        v = d[c][train]
        d[c] = (d[c] - v.mean()) / v.std() if s else (d[c] - v.min()) / (v.max() - v.min())
    return Planted(cut(rows_of(d), train=train, test=test))


@clean
def fractions(r, s):
    d = {f"f{i}": np.round(r.beta(1, 2, SIZE[s]), 2) for i in range(4)} | {"p": r.random(SIZE[s])}
    return Planted(dealt(rows_of(d | {"y": d["f0"] + r.normal(size=SIZE[s])}), s))


@clean
def coded_design(r, s):
    n = SIZE[s] // 16 * 16
    levels = np.array(np.meshgrid(*[[-1.0, 1.0]] * 4)).reshape(4, -1)
    d = {f"factor{i}": np.tile(levels[i], n // 16) for i in range(4)} | {"noise": r.normal(size=n)}
    return Planted(dealt(rows_of(d | {"y": d["factor0"] * d["factor1"] + r.normal(size=n)}), s))


@clean
def people(r, s):
    n = SIZE[s]
    age = r.integers(18, 90, n)
    d = {
        "age": age,
        "income": np.round(np.exp(r.normal(10, 0.5, n)), -2),
        "sex": r.integers(0, 2, n),
        "children": r.poisson(1.2, n),
    }
    return Planted(
        dealt(
            rows_of(
                d | {"y": age * 0.1 + r.normal(size=n), "person_id": r.permutation(n)},
                ["person_id"],
            ),
            s,
        )
    )


@clean
def sorted_by_target(r, s):
    d = classes(r, SIZE[s], 3) if s else lab(r, SIZE[s])
    o = np.argsort(d["y"], kind="stable")
    return Planted(dealt(rows_of({c: v[o] for c, v in d.items()}), s))


@clean
def sorted_by_a_feature(r, s):
    d = lab(r, SIZE[s])
    o = np.argsort(d["q1"])
    return Planted(dealt(rows_of({c: v[o] for c, v in d.items()}), s))


@clean
def many_columns_few_rows(r, s):
    x = r.normal(size=(60 + 20 * s, 2000))
    return Planted(dealt(rows_of({"genes": x, "y": r.integers(0, 2, len(x))}), s))


@clean
def words_as_features(r, s):
    n = SIZE[s]
    d = lab(r, n, 3) | {
        "colour": r.choice(["red", "blue", "green"], n),
        "shape": r.choice(list("abcdef"), n),
    }
    return Planted(dealt(rows_of(d), s))


@clean
def many_zeros(r, s):
    d = {f"z{i}": np.where(r.random(SIZE[s]) < 0.7, 0, r.gamma(2, 1, SIZE[s])) for i in range(6)}
    return Planted(dealt(rows_of(d | {"y": sum(d.values()) + r.normal(size=SIZE[s])}), s))


@clean
def few_rows(r, s):
    return Planted(dealt(rows_of(lab(r, (20, 32, 45)[s], 4)), s))


@clean
def running_number_without_meaning(r, s):
    return Planted(dealt(rows_of(lab(r, SIZE[s]) | {"row": np.arange(SIZE[s])}), s))


@clean
def strong_predictor(r, s):
    d = lab(r, SIZE[s])
    return Planted(
        dealt(
            rows_of(
                d | {"gauge": d["y"] + (0.15, 0.2, 0.25)[s] * d["y"].std() * r.normal(size=SIZE[s])}
            ),
            s,
        )
    )


@clean
def one_sensor_only(r, s):
    x = r.uniform(-3, 3, SIZE[s])
    return Planted(dealt(rows_of({"x": x, "y": np.sin(x)}), s))


@clean
def part_of_train_for_a_quick_look(r, s):
    fs = dealt(rows_of(lab(r, SIZE[s])), s)
    return Planted(cut(fs, quick=fs["train"].indices[:50]))


def _known(name: str) -> Callable[[RNG, int], Planted]:
    def make(r: RNG, s: int) -> Planted:
        from sklearn import datasets

        data = getattr(datasets, f"load_{name}")()
        x, y = np.asarray(data.data, float), np.asarray(data.target)
        keep = np.sort(np.unique(x, axis=0, return_index=True)[1])
        y = y[:, 0] if y.ndim > 1 else y
        d = (
            {f"x{i}": x[keep, i] for i in range(x.shape[1])}
            if name != "digits"
            else {"image": x[keep]}
        )
        return Planted(dealt(rows_of(d | {"y": y[keep]}), s))

    make.__name__ = name
    return make


for _name in ("digits", "diabetes", "iris", "wine", "breast_cancer", "linnerud"):
    clean(_known(_name))

# -- judging -------------------------------------------------------------------------------------


def found(planted: Planted, findings: Any) -> bool:
    """Tell whether a serious finding names the planted leak and nothing innocent."""
    ids = planted.fs.get_sample_uuids()
    guilty = None if planted.rows is None else {str(ids[i]) for i in np.unique(planted.rows)}
    for f in findings:
        if f.severity == "info" or f.kind not in planted.kinds:
            continue
        keys = {c.split(".")[1] for c in f.columns}
        if planted.columns and not keys & set(planted.columns):
            continue
        if f.kind in TARGET and keys - set(planted.columns) - {"y", "town"}:
            continue
        if guilty is None or (f.sample_ids and set(map(str, f.sample_ids)) <= guilty):
            return True
    return False


def measure(
    name: str, seeds: int = 3, salt: int = 4711, **asked: Any
) -> tuple[int, list[str], float]:
    """Return how often a kind was found (or raised an alarm), what was said, and the slowest."""
    hits, said, slowest = 0, [], 0.0
    for s in range(seeds):
        r = np.random.default_rng([salt, zlib.crc32(name.encode()), s])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            planted = _kinds(True)[name](r, s)
        at = time.perf_counter()
        findings = list(planted.fs.audit(**asked))
        slowest = max(slowest, time.perf_counter() - at)
        serious = [f for f in findings if f.severity != "info"]
        said += [
            f"{s}:{f.kind}[{f.severity}] {','.join(c.split('.')[1] for c in f.columns[:3])}"
            for f in serious
        ]
        hits += found(planted, findings) if name in _kinds(False) else bool(serious)
    return hits, said, slowest


def _kinds(also_clean: bool) -> dict[str, Any]:
    """Return the kinds of leaks, here and in labs, and of sound sets too."""
    return {**LEAKS, **LAB_LEAKS, **(CLEAN | LAB_CLEAN if also_clean else {})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--salt", type=int, default=4711, help="for other draws of each kind")
    parser.add_argument("--labs", action="store_true", help="the kinds of leaks_of_labs.py")
    args = parser.parse_args()
    leaks, sound = LEAKS, CLEAN
    if args.labs:
        sound, leaks = LAB_CLEAN, LAB_LEAKS
    for title, kinds in (("leaks found", leaks), ("false alarms", sound)):
        total = 0
        chosen = [k for k in kinds if not args.kinds or k in args.kinds]
        for name in chosen:
            hits, said, slowest = measure(name, args.seeds, args.salt)
            total += hits
            odd = (hits < args.seeds) if kinds is leaks else hits
            print(
                f"{name:40} {hits} of {args.seeds} {slowest:6.2f} s  "
                f"{'; '.join(said)[:150] if odd else ''}",
                flush=True,
            )
        print(f"{title}: {total} of {args.seeds * len(chosen)}\n")


if __name__ == "__main__":
    main()
