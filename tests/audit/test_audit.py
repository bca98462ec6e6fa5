"""Audits: every leak that is planted is found, row by row, and clean data has no findings."""

import time

import numpy as np
import pandas as pd
import pytest
import scipy.special
import scipy.stats
from sklearn.datasets import (
    load_breast_cancer,
    load_diabetes,
    load_digits,
    load_iris,
    load_linnerud,
    load_wine,
)

from modularml.audit.duplicates import like_rows
from modularml.audit.preprocessing import normal_share
from modularml.audit.similarity import ALPHA, at_least, hashes, scores, z_to_p
from modularml.audit.target import affine_residuals, standardised
from modularml.data import FeatureSet
from modularml.errors import ConfigError, UnknownNameError
from modularml.splitters import KFoldSplitter, TimeSeriesSplitter

N = 200
THIRDS = {"train": 0.6, "val": 0.2, "test": 0.2}


def table(seed=0, **more):
    """Return columns without a leak: cells in blocks of 10 rows, time in order."""
    rng = np.random.default_rng(seed)
    found = {
        "a": rng.normal(size=N),
        "wave": rng.normal(size=(N, 40)).astype(np.float32),
        "y": rng.normal(size=N),
        "cell": np.repeat([f"c{i:02}" for i in range(N // 10)], 10),
        "day": np.datetime64("2020-01-01") + np.arange(N),
    }
    return {**found, **more}


def make(data, splits=None, tags=("cell", "day")):
    """Return a set of these columns, with splits given as rows."""
    features = [key for key in data if key not in ("y", "cell", "day")]
    fs = FeatureSet.from_dict("cells", data, features, "y", list(tags), register=False)
    for name, rows in (splits or {"train": range(120), "test": range(120, N)}).items():
        fs.add_split(fs.take(rows, label=name))
    return fs


def only(report, kind):
    """Return the one finding there is, which must be of this kind."""
    assert [f.kind for f in report] == [kind], report
    return report[0]


def first_ids(fs, rows):
    return tuple(fs.take(sorted(rows)[:5]).get_sample_uuids("list"))


def with_copies(values, targets, sources, noise=0.0):
    values = values.copy()
    rng = np.random.default_rng(1)
    values[targets] = values[sources] + noise * rng.normal(size=values[sources].shape)
    return values


class TestPlantedLeaks:
    def test_nothing_where_nothing_is_planted(self):
        report = make(table()).audit(time="day")
        assert report.ok
        assert not report

    def test_rows_in_two_splits(self):
        fs = make(table(), {"train": range(120), "test": range(113, N)})
        finding = only(fs.audit(groups=[]), "shared_rows")
        assert (finding.severity, finding.splits) == ("error", ("train", "test"))
        assert finding.count == 7
        assert finding.sample_ids == first_ids(fs, range(113, 120))

    @pytest.mark.parametrize("groups", [None, "cell"])
    def test_a_group_in_two_splits(self, groups):
        fs = make(table(), {"train": range(114), "test": range(114, N)})  # cell 11: rows 110-119
        finding = only(fs.audit(groups=groups), "shared_groups")
        assert finding.severity == ("warning" if groups is None else "error")
        assert ("by its name" in finding.message) == (groups is None)
        assert finding.columns == ("tags.cell.raw",)
        assert finding.count == 6
        assert finding.sample_ids == first_ids(fs, range(114, 120))
        assert "6 of 86 rows of 'test' share their 'cell' with 'train' (1 of 9" in finding.message
        assert fs.audit(groups=[]).ok

    def test_a_group_that_another_split_was_grouped_by(self):
        fs = make(table(batch=np.arange(N) // 20), {"odd": range(70), "even": range(70, N)})
        fs.split_random({"a": 0.5, "b": 0.5}, group_by="batch")
        finding = only(fs.audit(), "shared_groups")
        assert finding.columns == ("features.batch.raw",)
        assert finding.splits == ("odd", "even")
        assert finding.count == 10
        assert "group_by='batch'" in finding.message

    @pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "?", "text"])
    def test_equal_rows_in_two_splits(self, dtype):
        test, train = [150, 121, 199], [3, 119, 3]
        rng = np.random.default_rng(2)
        if dtype == "text":
            more = np.array([f"t{i}" for i in rng.integers(0, 1000, N)], dtype=object)
        else:
            more = rng.integers(0, 2 if dtype == "?" else 1000, N).astype(dtype)
        data = {
            key: with_copies(values, test, train) if values.dtype.kind == "f" else values
            for key, values in table(more=more).items()
            if key != "y"
        }
        data["more"][test] = data["more"][train]
        data["a"][[3, 150, 199]] = np.nan, np.nan, -np.nan  # equal, as far as rows go
        fs = make({**data, "y": table()["y"]})
        assert fs.audit()[0].kind == "duplicate_rows"
        finding = only([f for f in fs.audit() if f.kind != "not_finite"], "duplicate_rows")
        assert (finding.severity, finding.count) == ("warning", 3)
        assert set(finding.sample_ids) == set(first_ids(fs, test))

    def test_equal_rows_by_chance_are_only_noted(self):
        rng = np.random.default_rng(0)
        data = {k: rng.integers(0, 5, N) for k in ("a", "b")} | {"y": rng.normal(size=N)}
        fs = make(data, tags=())
        train = set(zip(data["a"][:120], data["b"][:120], strict=True))
        same = [i for i in range(120, N) if (data["a"][i], data["b"][i]) in train]
        finding = only(fs.audit(), "duplicate_rows")
        assert (finding.severity, finding.count) == ("info", len(same))
        assert fs.audit().ok

    @pytest.mark.parametrize("noise", [1e-4, 5e-4])
    def test_sequences_that_are_nearly_equal(self, noise):
        data = table()
        test, train = [130, 140, 150, 160], [1, 1, 60, 119]
        data["wave"] = with_copies(data["wave"], test, train, noise) * 7 + 1000
        fs = make(data)
        finding = only(fs.audit(), "similar_sequences")
        assert finding.columns == ("features.wave.raw",)
        assert finding.count == 4
        assert set(finding.sample_ids) == set(first_ids(fs, test))
        assert "times closer" in finding.measure
        assert finding.p_value < 1e-3
        assert fs.audit(tolerance=noise / 2).ok
        assert fs.audit(tolerance=0).ok

    @pytest.mark.parametrize("split", [None, "test", "most"])
    def test_a_scaler_that_saw_other_rows(self, split):
        fs = FeatureSet.from_dict("cells", table(), ["a", "wave"], "y", "day", register=False)
        if split is None:
            fs.fit_transform("StandardScaler", domain="features", keys="a")
        fs.add_split(fs.take(range(120), label="train"))
        fs.add_split(fs.take(range(120, N), label="test"))
        if split == "most":
            fs.add_split(fs.take(range(150), label="most"))
        if split:
            fs.fit_transform("StandardScaler", domain="features", keys="a", fit_to_split=split)
        finding = next(f for f in fs.audit() if f.kind == "scaler_fit")
        rows = range(120, 150 if split == "most" else N)
        assert (finding.severity, finding.splits) == ("error", ("train", "test"))
        assert finding.columns == ("features.a.raw",)
        assert finding.count == len(rows)
        assert finding.sample_ids == first_ids(fs, rows)
        fs.undo_all_transforms()
        fs.fit_transform("StandardScaler", domain="features", keys="a", fit_to_split="train")
        assert "scaler_fit" not in [f.kind for f in fs.audit()]

    @pytest.mark.parametrize("scaler", ["PerSampleMinMaxScaler", "Normalizer", "Negate"])
    def test_scalers_that_learn_nothing_may_see_all_rows(self, scaler):
        fs = FeatureSet.from_dict("cells", table(), "wave", "y", register=False)
        fs.fit_transform(scaler, domain="features", merged_axes=(1, 2))
        fs.split_random(THIRDS)
        assert not fs.audit()

    def test_a_scaler_for_another_division_is_only_noted(self):
        fs = make(table())
        fs.fit_transform("StandardScaler", domain="features", keys="a", fit_to_split="train")
        fs.split_random({"p": 0.5, "q": 0.5}, group_by="cell")
        finding = only(fs.audit(), "scaler_fit")
        assert (finding.severity, finding.splits) == ("info", ("p", "q"))

    def test_a_scaler_for_a_split_within_the_split_it_saw_is_only_noted(self):
        fs = make(table())
        fs["train"].split_random({"fit": 0.8, "inner": 0.2}, group_by="cell")
        fs.fit_transform("StandardScaler", domain="features", keys="a", fit_to_split="train")
        finding = only(fs.audit(), "scaler_fit")
        assert (finding.severity, finding.splits) == ("info", ("fit", "inner"))

    @pytest.mark.parametrize("factor", [1.0, -3.5])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_a_feature_that_repeats_the_target(self, factor, dtype):
        data = table()
        data["copy"] = (factor * data["y"] + 2).astype(dtype)
        data["wave"][:, 17] = data["y"]
        fs = make(data)
        found = list(fs.audit(tolerance=0))
        assert [f.kind for f in found] == ["target_copy"] * 2
        assert {f.columns[0] for f in found} == {"features.copy.raw", "features.wave.raw"}
        assert all((f.severity, f.columns[1]) == ("error", "targets.y.raw") for f in found)
        assert all(f.count == N for f in found)

    def test_a_feature_that_all_but_repeats_the_target(self):
        data = table()
        data["near"] = data["y"] + 5e-4 * np.random.default_rng(3).normal(size=N)
        finding = only(make(data).audit(), "target_copy")
        assert finding.severity == "warning"
        assert make(data).audit(tolerance=1e-4).ok

    def test_a_label_that_is_repeated_as_text(self):
        data = table(kind=np.array(list("abcd") * 50, dtype=object))
        data["y"] = data["kind"]
        assert only(make(data).audit(), "target_copy").columns[0] == "features.kind.raw"

    def test_time_order(self):
        fs = make(
            table(), {"train": [*range(110), 130], "test": [*range(110, 130), *range(131, N)]}
        )
        assert fs.audit(groups=[]).ok  # nobody said that time matters
        finding = only(fs.audit(groups=[], time="day"), "time_order")
        assert (finding.severity, finding.columns) == ("error", ("tags.day.raw",))
        assert finding.count == 20
        assert finding.sample_ids == first_ids(fs, range(110, 130))

    @pytest.mark.parametrize("written", ["dates", "text", "seconds"])
    def test_time_order_is_guessed_where_neighbours_are_alike(self, written):
        drift = np.cumsum(np.random.default_rng(8).normal(size=N))
        when = {
            "dates": table()["day"],
            "text": table()["day"].astype(str).astype(object),
            "seconds": np.arange(N) * 0.5,
        }[written]
        data = {"a": drift, "y": drift + table()["a"], "elapsed": when}
        fs = FeatureSet.from_dict("cells", data, "a", "y", "elapsed", register=False)
        fs.split_random({"train": 0.5, "test": 0.5})
        newest = fs["train"].indices.max()
        finding = only(fs.audit(), "time_order")
        assert (finding.severity, finding.count) == ("warning", (fs["test"].indices < newest).sum())
        assert "next to each other in time" in finding.measure
        fs.clear_splits()
        fs.add_split(fs.take(range(100), label="train"))
        fs.add_split(fs.take(range(100, N), label="test"))
        assert fs.audit().ok

    def test_dates_that_do_not_bear_on_the_rows_are_no_time(self):
        fs = FeatureSet.from_dict("cells", table(), "a", "y", ["cell", "day"], register=False)
        fs.split_random({"train": 0.5, "test": 0.5})
        assert fs.audit(groups=[]).ok

    def test_rows_older_than_all_training_rows(self):
        fs = make(table(), {"train": range(80, N), "test": range(80)})
        finding = only(fs.audit(groups=[]), "time_order")
        assert (finding.severity, finding.count) == ("warning", 80)

    def test_constant_columns(self):
        data = table(flat=np.full(N, 3.0), flat_wave=np.ones((N, 8), np.float32))
        data["y"] = np.zeros(N, dtype=int)
        found = {f.columns[0]: f.severity for f in make(data).audit()}
        assert found == {
            "targets.y.raw": "warning",
            "features.flat.raw": "info",
            "features.flat_wave.raw": "info",
        }

    def test_what_a_recorded_step_has_filled_is_no_finding(self):
        data = table()
        data["wave"][::7, 1] = np.nan
        fs = make(data)
        assert {f.kind for f in fs.audit()} == {"not_finite"}
        fs.fit_transform("SimpleImputer", domain="features", keys="wave", fit_to_split="train")
        assert fs.audit().ok
        fs.undo_last_transform("features", "wave")
        assert {f.kind for f in fs.audit()} == {"not_finite"}

    def test_one_value_in_all_training_rows_is_no_finding(self):
        dark = np.where(np.arange(N) < 160, 0.0, np.arange(N))
        fs = make(table(dark=dark), {"train": range(160), "test": range(160, N)})
        assert "prepared_before" not in {f.kind for f in fs.audit()}

    def test_values_that_are_not_finite(self):
        data = table()
        data["a"][[4, 9]] = np.nan, np.inf
        data["wave"][150, 3] = np.nan
        fs = make(data)
        found = {f.columns[0]: f for f in fs.audit()}
        assert {name: f.count for name, f in found.items()} == {
            "features.a.raw": 2,
            "features.wave.raw": 1,
        }
        assert found["features.a.raw"].sample_ids == first_ids(fs, [4, 9])
        assert not fs.audit().ok


class TestCleanData:
    @pytest.mark.parametrize(
        "load",
        [load_diabetes, load_iris, load_digits, load_wine, load_breast_cancer, load_linnerud],
    )
    def test_proper_splits_have_no_findings(self, load):
        data = load()
        x = pd.DataFrame(data.data)
        keep = ~x.duplicated() & True  # iris holds one flower twice
        columns = {f"x{i}": x[keep][i].to_numpy() for i in x if x[i].nunique() > 4}
        fs = FeatureSet.from_numpy("clean", columns, data.target[keep], register=False)
        for seed in range(3):
            fs.clear_splits()
            fs.split_random(THIRDS, seed=seed)
            fs.undo_all_transforms()
            fs.fit_transform("StandardScaler", domain="features", fit_to_split="train")
            assert not fs.audit()

    def test_iris_holds_one_flower_twice(self):
        data = load_iris()
        fs = FeatureSet.from_numpy("iris", data.data, data.target, register=False)
        fs.add_split(fs.take(range(120), label="train"))
        fs.add_split(fs.take(range(120, 150), label="test"))
        finding = only(fs.audit(), "duplicate_rows")
        assert finding.sample_ids == first_ids(fs, [142])  # the copy of flower 101

    def test_images(self):
        fs = FeatureSet.from_numpy("digits", load_digits().images, load_digits().target)
        fs.split_random(THIRDS, stratify_by="y")
        assert not fs.audit()


class TestPairs:
    """Splits that may have rows in common."""

    def test_folds(self):
        fs = FeatureSet.from_dict("cells", table(), "a", "y", ["cell", "day"], register=False)
        fs.split(KFoldSplitter(5, group_by="cell"))
        assert fs.audit().ok
        fs.clear_splits()
        fs.split(TimeSeriesSplitter(4, order_by="day"))
        assert fs.audit(groups=[], time="day").ok
        found = fs.audit(groups="cell", time="day")
        assert {f.splits for f in found} <= {(f"fold_{i}_train", f"fold_{i}_val") for i in range(4)}

    def test_a_split_of_a_split_and_a_second_division(self):
        fs = make(table())
        fs["train"].split_random({"fit": 0.8, "inner": 0.2}, group_by="cell")
        fs.split_random({"left": 0.5, "right": 0.5}, group_by="cell", seed=1)
        fs.add_split(fs["train"].take(range(10), label="small"))
        assert fs.audit().ok

    def test_a_part_of_train_that_is_meant_for_testing(self):
        fs = make(table(), {"train": range(N), "val": range(150, N)})
        assert fs.audit(groups=[])[0].count == 50

    def test_two_calls_on_parts_of_the_rows(self):
        fs = FeatureSet.from_dict("cells", table(), "a", "y", "cell", register=False)
        fs.take(range(105)).split_random({"train": 0.5, "val": 0.5}, group_by="cell")
        fs.take(range(105, N)).split_random({"test": 0.5, "last": 0.5}, group_by="cell")
        assert {f.count for f in fs.audit()} <= {5}
        assert not fs.audit().ok  # cell 10 is on both sides of row 105


def test_report_shows_itself():
    data = table()
    data["a"][3] = np.nan
    data["<b>"] = np.ones(N)
    fs = make(data, {"train": range(120), "test": range(110, N)})
    report = fs.audit(groups=[])
    assert [f.severity for f in report] == ["error", "warning", "info"]
    assert repr(report).splitlines()[0] == (
        "audit of 'cells': shared_rows (error), not_finite (warning), constant (info)"
    )
    assert len(repr(report).splitlines()) == 4
    frame = report.to_pandas()
    assert frame["count"].tolist() == [10, 1, N]
    assert list(frame) == [
        *("severity", "kind", "columns", "splits", "count", "message", "sample_ids"),
        *("measure", "p_value", "remedy", "allow"),
    ]
    shown = report._repr_html_()
    assert shown.count("<tr") == 3
    assert "&lt;b&gt;" in shown
    assert "<b>'" not in shown
    assert "nothing found" in repr(make(table()).audit())


def test_arguments():
    fs = make(table())
    with pytest.raises(ConfigError, match="tolerance must be at least 0, got -1"):
        fs.audit(tolerance=-1)
    with pytest.raises(ConfigError, match="max_rows must be at least 1"):
        fs.audit(max_rows=0)
    with pytest.raises(UnknownNameError, match="cell"):
        fs.audit(groups="celll")
    empty = FeatureSet.from_dict("empty", {"x": [], "y": []}, "x", "y", register=False)
    assert not empty.audit()


def test_fewer_rows_are_looked_at_on_request():
    data = table()
    data["a"], data["wave"] = (
        with_copies(data[k], slice(120, N), slice(0, 80)) for k in ("a", "wave")
    )
    fs = make(data)
    assert only(fs.audit(), "duplicate_rows").count == 80
    fewer = fs.audit(max_rows=60)
    assert {f.kind for f in fewer} <= {"duplicate_rows", "similar_sequences"}
    assert 0 < next(f.count for f in fewer if f.kind == "duplicate_rows") < 80
    assert "60 of 200 rows" in repr(fewer)


class TestLikeness:
    def test_near_rows_as_each_against_each(self):
        rng = np.random.default_rng(5)
        base = rng.normal(size=(150, 12))
        values = base[rng.integers(0, 150, 300)] + 0.02 * rng.normal(size=(300, 12))
        train, test = np.arange(200), np.arange(200, 300)
        away = np.sqrt(np.square(values[test, None] - values[None, train]).mean(axis=2)).min(axis=1)
        for share in (0.005, 0.018, 0.02, 0.03):
            wanted = test[away <= share * values.std()]
            assert like_rows(values, train, test, share).tolist() == wanted.tolist()

    def test_codes_as_pandas_groups(self):
        rng = np.random.default_rng(6)
        columns = [rng.integers(0, 3, 500), rng.choice([0.0, -0.0, np.nan, 1.5], 500)]
        wanted = pd.DataFrame(dict(enumerate(columns))).groupby([0, 1], dropna=False).ngroup()
        words = zip(*(hashes(values).tolist() for values in columns), strict=True)
        pairs = {*zip(words, wanted.tolist(), strict=True)}
        assert len(pairs) == wanted.nunique() == len({a for a, _ in pairs})

    def test_residuals_as_least_squares(self):
        rng = np.random.default_rng(7)
        x, y = rng.normal(size=(50, 3)), rng.normal(size=(50, 2))
        y[:, 0] += 2 * x[:, 1]
        wanted = [
            min(
                np.sqrt(np.polyfit(x[:, i], y[:, j], 1, full=True)[1][0] / 50) / y[:, j].std()
                for i in range(3)
            )
            for j in range(2)
        ]
        np.testing.assert_allclose(affine_residuals(x, standardised(y)), wanted, rtol=1e-9)


def test_a_large_table_takes_seconds():
    rng = np.random.default_rng(0)
    n = 1_000_000
    columns = {f"x{i}": rng.normal(size=n) for i in range(10)}
    fs = FeatureSet.from_numpy("big", columns, rng.normal(size=n), register=False)
    fs.split_random(THIRDS)
    start = time.process_time()
    assert not fs.audit()
    assert time.process_time() - start < 5


def test_one_fact_is_one_finding_though_two_reasons_tell_it():
    rng = np.random.default_rng(5)
    character = np.repeat(rng.normal(size=(20, 1)), 10, axis=0)  # rows of a cell are alike
    fs = make(table(wave=(character + 0.05 * rng.normal(size=(N, 40))).astype(np.float32)))
    fs.clear_splits()
    fs.split_random(THIRDS, group_by="cell", seed=0)  # and were kept together by another split
    pool = np.union1d(fs["train"].indices, fs["val"].indices)
    for name, rows in (("learn", pool[::2]), ("check", pool[1::2])):
        fs.add_split(fs.take(rows, label=name))
    found = [f for f in fs.audit() if f.kind == "shared_groups" and "check" in f.splits]
    assert len({(f.columns, f.splits, f.count) for f in found}) == len(found)
    own = [f for f in found if f.splits == ("learn", "check")]
    assert [(f.columns, f.count) for f in own] == [(("tags.cell.raw",), len(pool) // 2)]


def test_copies_keep_what_is_allowed():
    fs = FeatureSet.from_dict("rows", {"x": [1.0, 2.0], "y": [0, 0]}, "x", "y", register=False)
    fs.audit(allow=["constant:y"])
    assert fs.copy().audit_allowed == ("constant:y",)


def test_normal_scores_equal_those_of_scipy():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(300, 4)).round(1)
    values[rng.random(300) < 0.2, 1] = np.nan
    values[:, 2] = np.nan
    expected = []
    for column in values.T:
        known = np.isfinite(column)
        share = (scipy.stats.rankdata(column[known]) - 0.5) / max(1, known.sum())
        score = np.zeros(300)
        score[known] = scipy.special.ndtri(share)
        expected.append(score / (score.std() or 1.0))
    found = scores(values)
    np.testing.assert_allclose(found, np.transpose(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("expected", [0.0, 1e-8, 0.3, 4.5, 100.0, 3e4])
@pytest.mark.parametrize("share", [0, 0.5, 1, 1.001, 1.5, 4, 50])
def test_the_chance_of_a_count_is_that_of_scipy(expected, share):
    count = int(np.ceil(share * expected)) + (share > 1)
    theirs = scipy.stats.poisson.sf(count - 1, expected)
    if count <= expected:
        assert theirs > 1 / 3
        assert at_least(count, expected) == 1
    else:
        np.testing.assert_allclose(at_least(count, expected), theirs, rtol=1e-9, atol=1e-300)


def test_few_deviations_cannot_count():
    assert scipy.stats.t.sf(3, 23) > 10 * ALPHA
    assert z_to_p(2.9) == 1
    np.testing.assert_allclose(z_to_p(4.0), scipy.stats.t.sf(4, 23))


def test_the_share_of_a_normal_distribution_is_that_of_scipy():
    values = np.concatenate([np.linspace(-9, 9, 2001), [-1e300, 1e300, -np.inf, np.inf]])
    np.testing.assert_allclose(normal_share(values), scipy.special.ndtr(values), rtol=0, atol=1e-7)
