"""More planted leaks and sound sets, as labs have them: cells, patients, spectra, machines, genes.

``python -m benchmarks.leaks --labs [--seeds 3] [kind ...]`` prints a table. They were written down
and measured before any check was adjusted to them.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from benchmarks.planted import (
    BEFORE,
    COPIES,
    CURVES,
    GROUPS,
    PARTS,
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
    units,
)
from modularml.splitters import KFoldSplitter

__all__ = ["LAB_CLEAN", "LAB_LEAKS"]

LAB_LEAKS: dict[str, Any] = {}
LAB_CLEAN: dict[str, Any] = {}
SIZE = (320, 640, 1000)


def leak(make: Any) -> Any:
    LAB_LEAKS[make.__name__] = make
    return make


def clean(make: Any) -> Any:
    LAB_CLEAN[make.__name__] = make
    return make


def hashed(values: Any) -> list[str]:
    return [hashlib.md5(f"salt{v}".encode()).hexdigest()[:10] for v in values]


def cycled(r: Any, n_cells: int, n_cycles: int) -> tuple[Any, dict[str, Any]]:
    """Return cells that age over cycles, each in its own way, and a life that they share."""
    cell = np.repeat(np.arange(n_cells), n_cycles)
    k = np.tile(np.arange(n_cycles), n_cells)
    start, fade, heat, ohm = (r.normal(size=n_cells)[cell] for _ in range(4))
    health = 1 - 0.004 * k * np.exp(0.3 * fade) + 0.01 * start
    d = {
        "cycle": k,
        "capacity": health + 0.003 * r.normal(size=len(k)),
        "peak_temp": 30 + 2 * heat + 0.02 * k + 0.5 * r.normal(size=len(k)),
        "resistance": 20 + 2 * ohm + 0.1 * k + 0.4 * r.normal(size=len(k)),
        "y": 800 - 120 * fade + 40 * start + 10 * r.normal(size=len(k)),
    }
    return cell, d


def spectra(r: Any, n: int, noise: float = 0.002) -> tuple[Any, Any]:
    t = np.linspace(0, 1, 160)
    h = r.lognormal(0, 0.6, (n, 9))
    lines = np.exp(-(((t - np.linspace(0.06, 0.94, 9)[:, None]) / 0.03) ** 2))
    return h, h @ lines + noise * r.normal(size=(n, len(t)))


def stains(r: Any, n: int) -> Any:
    """Return pictures of a few round spots on a ground, as bytes."""
    g = np.stack(np.meshgrid(np.arange(12), np.arange(12)))[None]
    img = 40 + 8 * r.normal(size=(n, 12, 12))
    for _ in range(4):
        at = r.uniform(1, 10, (n, 2, 1, 1))
        far = np.square(g - at).sum(axis=1)
        img += r.uniform(40, 160, (n, 1, 1)) * np.exp(-far / r.uniform(1, 6, (n, 1, 1)))
    return np.clip(img, 0, 255).astype(np.uint8)


# -- leaks ---------------------------------------------------------------------------------------


@leak
def cells_by_barcode(r, s):
    cell, d = cycled(r, SIZE[s] // 16, 16)
    d["barcode"] = [f"LG M50 #{c * 13 + 100}" for c in cell]
    return Planted(dealt(rows_of(d, ["barcode"]), s), GROUPS, ("barcode",))


@leak
def visits_under_hashed_names(r, s):
    g, d = units(r, SIZE[s] // 3, 3, 0.6)
    return Planted(dealt(rows_of(d | {"token": hashed(g)}, ["token"]), s), GROUPS, ("token",))


@leak
def patients_by_date_of_birth(r, s):
    g, d = units(r, SIZE[s] // 5, 5, 0.7)
    born = np.datetime64("1930-01-01") + r.permutation(25_000)[: g.max() + 1]
    return Planted(dealt(rows_of(d | {"born": born[g]}, ["born"]), s), GROUPS, ("born",))


@leak
def stations_by_coordinates(r, s):
    g, d = units(r, SIZE[s] // 12, 12, 0.6)
    m = g.max() + 1
    where = {
        "lat": np.round(r.uniform(47, 54, m), 4)[g],
        "lon": np.round(r.uniform(6, 14, m), 4)[g],
    }
    return Planted(dealt(rows_of(d | where), s), GROUPS, ("lat", "lon"))


@leak
def machines_as_flags(r, s):
    g, d = units(r, 25, SIZE[s] // 25, 0.6)
    return Planted(
        dealt(rows_of(d | {"machine": np.eye(25, dtype=np.uint8)[g]}), s), GROUPS, ("machine",)
    )


@leak
def spectra_measured_three_times(r, s):
    h, c = spectra(r, SIZE[s])
    pick = r.choice(SIZE[s], SIZE[s] // 12, replace=False)
    rows = np.r_[np.arange(SIZE[s]), pick, pick]
    t = np.linspace(-1, 1, c.shape[1])
    m = len(rows) - SIZE[s]
    again_ = c[rows]
    again_[SIZE[s] :] *= r.uniform(0.85, 1.2, (m, 1))
    again_[SIZE[s] :] += r.normal(0, 0.05, (m, 1)) + r.normal(0, 0.05, (m, 1)) * t
    again_ += 0.004 * r.normal(size=again_.shape)
    mix = r.permutation(len(rows))
    y = (h[:, 0] + 0.2 * r.normal(size=SIZE[s]))[rows][mix]
    guilty = np.flatnonzero(np.isin(rows[mix], pick))
    return Planted(dealt(rows_of({"nir": again_[mix], "y": y}), s), CURVES, ("nir",), guilty)


@leak
def pairs_the_other_way_round(r, s):
    n, m = SIZE[s], SIZE[s] // 6
    a, b = r.normal(size=(n, 4)), r.normal(size=(n, 4))
    pick, mix = r.choice(n, m, replace=False), r.permutation(n + m)
    left, right = np.concatenate([a, b[pick]])[mix], np.concatenate([b, a[pick]])[mix]
    y = np.square(a - b).sum(1) + r.normal(size=n)
    d = {f"left{i}": left[:, i] for i in range(4)} | {f"right{i}": right[:, i] for i in range(4)}
    rows = np.argsort(mix)[np.r_[pick, n : n + m]]
    return Planted(dealt(rows_of(d | {"y": np.r_[y, y[pick]][mix]}), s), COPIES, rows=rows)


@leak
def images_brighter_and_moved(r, s):
    def change(c, v):
        if c != "stain":
            return v
        moved = np.roll(v, 1, axis=2).astype(float)
        return np.clip(moved * 0.9 + 15 + r.normal(size=v.shape), 0, 255).astype(np.uint8)

    img = stains(r, SIZE[s])
    d = {"stain": img, "y": img.mean(axis=(1, 2)) + r.normal(size=SIZE[s])}
    d, rows = again(r, d, SIZE[s] // 8, change)
    return Planted(dealt(rows_of(d), s), CURVES, ("stain",), rows)


@leak
def rare_class_interpolated(r, s):
    d = classes(r, SIZE[s], 2)
    rare = np.flatnonzero(d["y"] == 1)[: SIZE[s] // 10]
    names = [c for c in d if c != "y"]
    x = np.stack([d[c] for c in names], 1)
    z = (x - x.mean(0)) / x.std(0)
    near = np.square(z[rare][:, None] - z[rare][None]).sum(-1)
    np.fill_diagonal(near, np.inf)
    one = np.repeat(np.arange(len(rare)), 4)
    other = np.argsort(near, axis=1)[one, r.integers(0, 3, len(one))]
    w = r.random((len(one), 1))
    new = x[rare[one]] * (1 - w) + x[rare[other]] * w
    mix = r.permutation(SIZE[s] + len(one))
    out = {c: np.r_[d[c], new[:, i]][mix] for i, c in enumerate(names)}
    out["y"] = np.r_[d["y"], np.ones(len(one), int)][mix]
    rows = np.argsort(mix)[np.r_[rare, SIZE[s] : len(mix)]]
    return Planted(dealt(rows_of(out), s), COPIES, rows=rows)


@leak
def series_resampled_to_finer_steps(r, s):
    d = lab(r, SIZE[s] // 8 + 1)
    at = np.arange(SIZE[s]) / 8
    fine = {c: np.interp(at, np.arange(len(v)), v) for c, v in d.items()}
    return Planted(dealt(rows_of(fine), s), (*COPIES, *TIME), rows=np.arange(SIZE[s]))


@leak
def stay_between_two_dates(r, s):
    d = lab(r, SIZE[s])
    days = np.maximum(1, np.round(8 + 3 * d["y"])).astype(int)
    admitted = np.datetime64("2019-01-01") + r.integers(0, 900, SIZE[s])
    d |= {"admitted": admitted, "discharged": admitted + days, "y": days.astype(float)}
    return Planted(dealt(rows_of(d), s), TARGET, ("admitted", "discharged"))


@leak
def log_root_or_rank_of_target(r, s):
    d = lab(r, SIZE[s])
    d["y"] = np.exp(0.4 * d["y"])
    bent = (np.log10(d["y"]), np.sqrt(d["y"]), np.argsort(np.argsort(d["y"])) + 1.0)[s]
    return Planted(dealt(rows_of(d | {"index": bent}), s), TARGET, ("index",))


@leak
def class_by_how_much_is_missing(r, s):
    d = classes(r, SIZE[s], 4)
    empty = np.argsort(r.random((SIZE[s], 4)), axis=1) < d["y"][:, None]
    tests = {f"assay{i}": np.where(empty[:, i], np.nan, r.normal(size=SIZE[s])) for i in range(4)}
    return Planted(dealt(rows_of(d | tests), s), TARGET, tuple(tests))


@leak
def class_as_hashed_text(r, s):
    d = classes(r, SIZE[s], (3, 6, 12)[s])
    return Planted(dealt(rows_of(d | {"category": hashed(d["y"])}), s), TARGET, ("category",))


@leak
def calendar_in_three_columns(r, s):
    d, mix = drifting(r, SIZE[s]), r.permutation(SIZE[s])
    day = (np.datetime64("2020-03-01") + np.arange(SIZE[s])).astype(object)
    d |= {k: np.array([getattr(t, k) for t in day]) for k in ("year", "month", "day")}
    fs = dealt(rows_of({c: v[mix] for c, v in d.items()}), s)
    return Planted(fs, TIME, ("year", "month", "day"))


@leak
def quantiles_of_all_rows(r, s):
    from scipy.special import ndtri

    d = lab(r, SIZE[s])
    names = [c for c in d if c != "y"]
    for c in names:
        rank = np.argsort(np.argsort(d[c]))
        d[c] = rank / (SIZE[s] - 1) if s == 1 else ndtri((rank + 0.5) / SIZE[s])
    return Planted(dealt(rows_of(d), s), BEFORE, tuple(names))


@leak
def genes_standardised_as_one_array(r, s):
    x = np.log1p(r.negative_binomial(2, 0.02, (SIZE[s], 300))).astype(np.float32)
    y = r.integers(0, 2, SIZE[s])
    x = (x - x.mean(0)) / x.std(0)
    return Planted(dealt(rows_of({"genes": x, "y": y}), s, stratify_by="y"), BEFORE, ("genes",))


# -- sound sets ----------------------------------------------------------------------------------


@clean
def cells_kept_whole(r, s):
    cell, d = cycled(r, SIZE[s] // 16, 16)
    d["barcode"] = [f"LG M50 #{c * 13 + 100}" for c in cell]
    return Planted(dealt(rows_of(d, ["barcode"]), s, group_by="barcode"))


@clean
def patients_seen_once(r, s):
    n = SIZE[s]
    age = r.integers(20, 95, n)
    d = lab(r, n, 4) | {
        "age": age,
        "born": np.datetime64("2021-01-01") - age * 365 - r.integers(0, 365, n),
        "token": hashed(range(n)),
    }
    d["y"] = d["y"] + 0.03 * age
    return Planted(dealt(rows_of(d, ["born", "token"]), s))


@clean
def replicate_spectra_kept_together(r, s):
    h, c = spectra(r, SIZE[s] // 3)
    g = r.permutation(np.repeat(np.arange(len(c)), 3))
    d = {"nir": c[g] + 0.004 * r.normal(size=(len(g), c.shape[1])), "vial": g, "y": h[g, 0]}
    return Planted(dealt(rows_of(d, ["vial"]), s, group_by="vial"))


@clean
def stains_of_few_kinds(r, s):
    k = r.integers(0, 4, SIZE[s])
    t = np.stack(np.meshgrid(np.arange(12), np.arange(12)))[None]
    at = np.array([[3, 3], [8, 3], [3, 8], [8, 8]])[k][:, :, None, None] + r.normal(
        0, 0.7, (SIZE[s], 2, 1, 1)
    )
    img = 30 + 180 * np.exp(-np.square(t - at).sum(1) / r.uniform(3, 6, (SIZE[s], 1, 1)))
    img = np.clip(img + 6 * r.normal(size=img.shape), 0, 255).astype(np.uint8)
    return Planted(dealt(rows_of({"stain": img, "y": k}), s, stratify_by="y"))


@clean
def times_to_an_event(r, s):
    n = SIZE[s]
    d = lab(r, n, 4) | {"stage": r.integers(1, 5, n), "arm": r.choice(["a", "b"], n)}
    life = r.exponential(np.exp(2 - 0.3 * d["stage"] + 0.2 * d["q0"]))
    d["y"] = np.minimum(np.ceil(life * 30), 365.0)
    d["entered"] = np.datetime64("2018-01-01") + r.integers(0, 700, n)
    return Planted(dealt(rows_of(d, ["entered"]), s))


@clean
def samples_on_a_map(r, s):
    n = SIZE[s]
    d = lab(r, n) | {"lat": r.uniform(47, 54, n).round(3), "lon": r.uniform(6, 14, n).round(3)}
    return Planted(dealt(rows_of(d), s))


@clean
def hours_and_seasons_forward(r, s):
    n = SIZE[s]
    when = np.datetime64("2022-01-01T00") + np.arange(n) * 5
    hour, day = (np.arange(n) * 5) % 24, (np.arange(n) * 5) // 24
    d = drifting(r, n, 2) | {
        "hour": hour,
        "weekday": day % 7,
        "month": np.array([t.month for t in when.astype("M8[s]").astype(object)]),
        "hour_sin": np.sin(hour * np.pi / 12),
        "hour_cos": np.cos(hour * np.pi / 12),
    }
    load = d.pop("y") + 2 * np.sin(hour * np.pi / 12)
    d |= {"load_before": np.r_[load[0], load[:-1]], "y": load, "when": when}
    cut_at = 2 * n // 3
    fs = rows_of(d, ["when"])
    return Planted(cut(fs, train=range(cut_at), test=range(cut_at, n)))


@clean
def genes_on_plates(r, s):
    n = SIZE[s] // 2
    plate = r.integers(0, 6, n)
    rate = r.gamma(0.8, 60, 300)[None] * np.exp(0.2 * r.normal(size=(6, 300)))[plate]
    x = np.log1p(r.poisson(rate * r.gamma(2, 0.5, (n, 1))))
    d = {"genes": x, "plate": [f"P{p}" for p in plate], "y": r.integers(0, 2, n)}
    return Planted(dealt(rows_of(d, ["plate"]), s, stratify_by="y"))


@clean
def calibration_levels(r, s):
    n = SIZE[s]
    level = r.choice([0, 1, 2, 5, 10, 20], n).astype(float)
    d = {f"band{i}": (0.1 + 0.02 * i) * level + 0.25 * r.normal(size=n) for i in range(4)}
    d |= {"temperature": r.normal(22, 1, n).round(1), "operator": r.choice(list("ABC"), n)}
    return Planted(dealt(rows_of(d | {"y": level}, ["operator"]), s))


@clean
def thirty_kinds_as_flags(r, s):
    n = SIZE[s]
    k = r.integers(0, 30, n)
    flags = {f"species_{i}": (k == i).astype(np.int8) for i in range(30)}
    d = lab(r, n, 4)
    d["y"] = d["y"] + r.normal(size=30)[k]
    return Planted(dealt(rows_of(d | flags | {"batch_code": hashed(r.integers(0, 8, n))}), s))


@clean
def missing_more_often_in_a_class(r, s):
    d = classes(r, SIZE[s], 2)
    for i in range(5):
        d[f"assay{i}"] = r.normal(size=SIZE[s])
        d[f"assay{i}"][r.random(SIZE[s]) < 0.1 + 0.15 * d["y"]] = np.nan
    fs = dealt(rows_of(d), s)
    fs.audit(allow=["not_finite"])
    return Planted(fs)


@clean
def drift_with_means_of_the_past(r, s):
    n = SIZE[s]
    d = drifting(r, n, 2)
    past = np.r_[d["y"][0], d["y"][:-1]]
    run = np.convolve(past, np.ones(5) / 5)[:n]
    d |= {"past_mean": run, "t": np.arange(n) * 0.25}
    return Planted(cut(rows_of(d, ["t"]), train=range(n // 2), val=range(n // 2, 3 * n // 4),
                       test=range(3 * n // 4, n)))  # fmt: skip


@clean
def features_in_several_forms(r, s):
    d = lab(r, SIZE[s], 4)
    x = np.exp(r.normal(size=SIZE[s]))
    d |= {"flow": x, "log_flow": np.log(x), "root_flow": np.sqrt(x), "flow_squared": x**2}
    return Planted(dealt(rows_of(d), s))


@clean
def machines_kept_whole_in_folds(r, s):
    g, d = units(r, 20, SIZE[s] // 20, 0.8)
    run = [f"M{i:02d}-R{k}" for k, i in enumerate(g)]
    fs = rows_of(d | {"machine": [f"M{i:02d}" for i in g], "run": run}, ["machine", "run"])
    fs.split(KFoldSplitter(4, group_by="machine"))
    return Planted(fs)


@clean
def array_scaled_on_train(r, s):
    x = np.log1p(r.gamma(2, 2, (SIZE[s], 40)))
    rows = r.permutation(SIZE[s])
    n = int(PARTS["train"] * SIZE[s])
    x = ((x - x[rows[:n]].mean(0)) / x[rows[:n]].std(0)).astype(np.float32)
    fs = rows_of({"panel": x, "y": x[:, 0] + r.normal(size=SIZE[s])})
    return Planted(cut(fs, train=rows[:n], test=rows[n:]))
