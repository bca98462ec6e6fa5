"""Joins of FeatureSets."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import modularml as mml
from modularml.errors import ConfigError, DataError, UnknownNameError

rng = np.random.default_rng(3)


def sets(n=40, machines=6):
    rows = pd.DataFrame(
        {
            "machine": rng.integers(0, machines, n).astype(str),
            "batch": rng.integers(0, 2, n),
            "v": rng.normal(size=n),
            "rul": rng.normal(size=n),
        }
    )
    facts = pd.DataFrame(
        [(str(m), b, rng.normal(), m * 10) for m in range(machines) for b in range(2)],
        columns=["machine", "batch", "age", "site"],
    ).sample(frac=1, random_state=0)
    left = mml.FeatureSet.from_pandas(
        "rows", rows, "v", "rul", tag_cols=["machine", "batch"], register=False
    )
    right = mml.FeatureSet.from_pandas(
        "facts", facts, "age", [], tag_cols=["machine", "batch", "site"],
        unit={"age": "d"}, kind={"site": "category"}, register=False,
    )  # fmt: skip
    return rows, facts, left, right


class TestEqualKeys:
    def test_equals_merge(self):
        rows, facts, left, right = sets()
        made = left.join(right, ["machine", "batch"], register=False)
        expected = rows.merge(facts, on=["machine", "batch"], how="left")
        for key in ("v", "age", "site", "rul"):
            values = made.get_data(columns=key, fmt="numpy").ravel()
            assert np.array_equal(values, expected[key].to_numpy())
        assert made.get_sample_uuids("list") == left.get_sample_uuids("list")
        assert made.collection.schema["features.age.raw"].unit == "d"
        assert made.collection.schema["tags.site.raw"].kind == "category"
        assert made.label == "rows_facts"

    def test_keys_by_other_names_of_views(self):
        rows, facts, left, right = sets()
        one = right.filter(conditions={"batch": 1}).select(["machine", "age"])
        renamed = mml.FeatureSet.from_dict(
            "one", {"unit": one.get_tags()["machine"], "age": one.get_features()["age"]},
            "age", [], "unit", register=False,
        )  # fmt: skip
        made = left.take([5, 3]).join(
            renamed, {"machine": "unit"}, rename={"age": "years"}, register=False
        )
        ages = facts[facts["batch"] == 1].set_index("machine")["age"]
        expected = ages[rows["machine"].iloc[[5, 3]]].to_numpy()
        assert np.array_equal(made.get_features()["years"], expected)
        assert "unit" not in made.get_tag_keys(False, False)

    def test_rows_without_a_match(self):
        rows, _, left, right = sets()
        part = right.filter(conditions={"machine": lambda m: m != "2"})
        keep = (rows["machine"] != "2").to_numpy()
        with pytest.warns(
            UserWarning, match=rf"{(~keep).sum()} of 40 rows of 'rows' have no match"
        ):
            made = left.join(part, ["machine", "batch"], register=False)
        assert np.array_equal(made.get_features()["v"], rows["v"][keep])
        assert made.dropped[0].sample_uuids == left.get_sample_uuids()[~keep].tolist()
        assert "no match in facts with on=['machine', 'batch']" in repr(made)
        with pytest.raises(DataError, match="missing='error'"):
            left.join(part, ["machine", "batch"], missing="error", register=False)
        with pytest.raises(DataError, match="holds int64, which has no NaN"):
            left.join(part, ["machine", "batch"], missing="nan", register=False)
        made = left.join(part, ["machine", "batch"], columns="age", missing="nan", register=False)
        assert np.array_equal(np.isnan(made.get_features()["age"]), ~keep)

    def test_keeps_scalers_and_masks(self):
        values = {"s": [[1.0, 2.0], [3.0, 0.0]], "m": [[True, True], [True, False]], "id": [1, 2]}
        right = mml.FeatureSet.from_dict(
            "curves", values, "s", [], "id", mask={"s": "m"}, register=False
        )
        left = mml.FeatureSet.from_dict(
            "rows", {"v": [1.0, 2, 4], "y": [0, 1, 2], "id": [2, 1, 2]}, "v", "y", "id",
            register=False,
        )  # fmt: skip
        left.fit_transform("StandardScaler", domain="features")
        made = left.join(right, "id", rename={"m": "held"}, register=False)
        assert made.collection.schema["features.s.raw"].mask == "held"
        assert made.get_tags()["held"].tolist() == [[True, False], [True, True], [True, False]]
        before = made.get_features()["v"]
        assert np.array_equal(before, left.get_features()["v"])
        made.undo_all_transforms()
        assert made.get_features()["v"].tolist() == [1, 2, 4]

    def test_what_is_refused(self):
        _, _, left, right = sets()
        with pytest.raises(DataError, match=r"6 of 12 rows.*would multiply rows of 'rows'"):
            left.join(right, "machine", register=False)
        with pytest.raises(DataError, match="both 'rows' and 'facts' have the columns"):
            left.join(right, asof={"v": "age"}, register=False)
        with pytest.raises(DataError, match="cannot be compared"):
            left.join(right, {"machine": "site"}, register=False)
        other = mml.FeatureSet.from_dict(
            "notes", {"machine": ["M1"], "w": [0.0]}, "w", [], "machine", register=False
        )
        with pytest.raises(DataError, match="none of the 40 rows of 'rows' has a match in 'notes'"):
            left.join(other, "machine", register=False)
        with pytest.raises(ConfigError, match="join needs on="):
            left.join(right, register=False)
        with pytest.raises(ConfigError, match="tolerance=1 applies to asof="):
            left.join(right, "machine", tolerance=1, register=False)
        with pytest.raises(ConfigError, match="missing must be"):
            left.join(right, "machine", missing="skip", register=False)
        with pytest.raises(UnknownNameError, match="rename="):
            left.join(right, ["machine", "batch"], rename={"agee": "x"}, register=False)
        with pytest.raises(ConfigError, match="other must be a FeatureSet"):
            left.join({"a": [1]}, "machine", register=False)
        with pytest.raises(DataError, match="has no column 'plant'"):
            left.join(right, "plant", register=False)


def in_time(unit="ns", zone=None, numbers=False):
    def times(n):
        at = rng.integers(0, 200, n)
        if numbers:
            return at * (0.5 if numbers == "float" else 1)
        stamps = pd.Timestamp("2024-03-01", tz=zone) + pd.to_timedelta(at, "h")
        return stamps.as_unit(unit)

    left = pd.DataFrame(
        {"t": times(80), "m": rng.choice(list("abc"), 80), "v": rng.normal(size=80)}
    )
    right = pd.DataFrame(
        {"t": times(30), "m": rng.choice(list("ab"), 30), "level": rng.normal(size=30)}
    )
    return left, right.drop_duplicates(["m", "t"])


def as_sets(left, right):
    return (
        mml.FeatureSet.from_pandas("w", left, "v", [], tag_cols=["t", "m"], register=False),
        mml.FeatureSet.from_pandas("e", right, "level", [], tag_cols=["t", "m"], register=False),
    )


class TestAsOf:
    @pytest.mark.parametrize(
        ("options", "tolerance"),
        [
            ({}, None),
            ({}, "9h"),
            ({"unit": "s"}, pd.Timedelta("30h")),
            ({"zone": "Europe/Berlin"}, np.timedelta64(24, "h")),
            ({"numbers": "int"}, 12),
            ({"numbers": "float"}, 7.5),
        ],
    )
    @pytest.mark.parametrize("by", [None, "m"])
    def test_equals_merge_asof(self, options, tolerance, by):
        left, right = in_time(**options)
        if by is None:
            right = right.drop_duplicates("t")
        a, b = as_sets(left, right)
        made = a.join(
            b, by, asof="t", tolerance=tolerance, columns="level", missing="nan", register=False
        )
        left["place"] = np.arange(len(left))
        wanted = tolerance
        if tolerance is not None and not options.get("numbers"):
            wanted = pd.Timedelta(tolerance)
        expected = pd.merge_asof(
            left.sort_values("t", kind="stable"), right.sort_values("t"), on="t", by=by,
            tolerance=wanted,
        ).sort_values("place")  # fmt: skip
        assert np.array_equal(
            made.get_features()["level"], expected["level"].to_numpy(), equal_nan=True
        )
        assert by is None or np.isnan(expected["level"]).any()

    def test_of_equal_times_the_last_row_counts(self):
        left = mml.FeatureSet.from_dict(
            "w", {"t": [3, 1], "v": [0, 0]}, "v", [], "t", register=False
        )
        right = mml.FeatureSet.from_dict(
            "e", {"t": [3, 2, 3, 4], "x": [1.0, 2, 3, 4]}, "x", [], "t", register=False
        )
        with pytest.warns(UserWarning, match="1 of 2 rows"):
            made = left.join(right, asof="t", register=False)
        assert made.get_features()["x"].tolist() == [3]

    def test_missing_times_have_no_match(self):
        left = mml.FeatureSet.from_dict(
            "w", {"t": [3.0, np.nan], "v": [0, 0]}, "v", [], "t", register=False
        )
        right = mml.FeatureSet.from_dict(
            "e", {"t": [np.nan, 1.0], "x": [1.0, 2]}, "x", [], "t", register=False
        )
        made = left.join(right, asof="t", missing="nan", register=False)
        assert np.array_equal(made.get_features()["x"], [2, np.nan], equal_nan=True)

    def test_windows_get_the_last_event(self):
        left, right = in_time()
        left["at"] = left.groupby("m")["t"].rank(method="first")
        fs = mml.FeatureSet.from_pandas("log", left, "v", [], tag_cols=["t", "m"], register=False)
        with pytest.warns(UserWarning, match=r"3 of 80 rows have the same 't'"):
            windows = fs.windows("v", length=4, step=2, series="m", order="t", register=False)
        made = windows.join(as_sets(left, right)[1], "m", asof="t", missing="nan", register=False)
        assert made.kept_together == ["m"]
        for m, t, level in zip(
            *made.get_tags(tags=["m"]).values(), windows.to_pandas()["tags.t.raw"],
            made.get_features()["level"], strict=True,
        ):  # fmt: skip
            before = right[(right["m"] == m) & (right["t"] <= t)].sort_values("t")
            assert (before["level"].iloc[-1] == level) if len(before) else np.isnan(level)

    def test_bad_tolerance(self):
        a, b = as_sets(*in_time())
        with pytest.raises(ConfigError, match="tolerance must be a duration"):
            a.join(b, "m", asof="t", tolerance=3, register=False)
        with pytest.raises(ConfigError, match="tolerance must be a duration"):
            a.join(b, "m", asof="t", tolerance="soon", register=False)
        with pytest.raises(ConfigError, match="tolerance must be at least 0"):
            a.join(b, "m", asof="t", tolerance="-1h", register=False)
        b = as_sets(*in_time(zone="UTC"))[1]
        with pytest.raises(DataError, match="time zone None, and those in 'e' UTC"):
            a.join(b, "m", asof="t", register=False)
        c, d = as_sets(*in_time(numbers="int"))
        with pytest.raises(ConfigError, match="tolerance must be a number"):
            c.join(d, "m", asof="t", tolerance="3h", register=False)
        with pytest.raises(DataError, match="must hold numbers or times"):
            c.join(d, asof="m", register=False)


def test_columns_of_views():
    rows, facts, left, right = sets()
    one = right.filter(conditions={"batch": 1}).select(["age"])
    made = left.select(["v", "batch"]).join(one, "machine", register=False)
    assert made.get_all_keys(False, False) == ["v", "batch", "age"]
    assert made.label == "rows_facts"
    ages = facts[facts["batch"] == 1].set_index("machine")["age"]
    assert np.array_equal(made.get_features()["age"], ages[rows["machine"]])
