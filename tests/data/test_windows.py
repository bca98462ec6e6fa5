"""Windows of series."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from numpy.lib.stride_tricks import sliding_window_view

import modularml as mml
from modularml.errors import ConfigError, DataError, UnknownNameError
from modularml.splitters import KFoldSplitter, RandomSplitter

rng = np.random.default_rng(0)


def arrays(n=6, steps=20, **more):
    data = {
        "current": rng.normal(size=(n, steps)).astype(np.float32),
        "temperature": rng.normal(size=(n, steps, 2)),
        "soh": rng.normal(size=n),
        "cell": [f"c{i // 2}" for i in range(n)],
        **more,
    }
    features = ["current", "temperature"]
    return data, mml.FeatureSet.from_dict(
        "runs", data, features, "soh", ["cell"], unit={"current": "A"}, register=False
    )


def long_table(sizes=(12, 9, 15)):
    frame = pd.DataFrame(
        {
            "cell": np.repeat([f"c{i}" for i in range(len(sizes))], sizes),
            "t": np.concatenate([np.arange(n) for n in sizes]),
            "v": rng.normal(size=sum(sizes)),
            "y": rng.normal(size=sum(sizes)),
            "when": pd.Timestamp("2024-01-01", tz="Europe/Berlin")
            + pd.to_timedelta(np.arange(sum(sizes)), "h"),
        }
    ).sample(frac=1, random_state=1)
    return frame, mml.FeatureSet.from_pandas(
        "log", frame, "v", "y", tag_cols=["cell", "t", "when"], register=False
    )


class TestArrays:
    def test_equals_sliding_window_view(self):
        data, fs = arrays()
        made = fs.windows(["current", "temperature"], length=7, step=3, register=False)
        expected = sliding_window_view(data["current"], 7, axis=1)[:, ::3].reshape(-1, 7)
        assert np.array_equal(made.get_features()["current"], expected)
        expected = sliding_window_view(data["temperature"], 7, axis=1)[:, ::3]
        expected = np.moveaxis(expected, -1, 2).reshape(-1, 7, 2)
        assert np.array_equal(made.get_features()["temperature"], expected)
        assert made.get_feature_dtypes(False, False)["current"] == np.float32
        assert made.collection.schema["features.current.raw"].unit == "A"

    def test_knows_sample_and_steps(self):
        data, fs = arrays()
        part = fs.take([4, 1])
        made = part.windows("current", length=6, step=5, register=False)
        assert made.label == "runs_windows"
        made = made.take([5, 2, 0])
        tags, place = made.get_tags(), dict(zip(fs.get_sample_uuids(), range(6), strict=True))
        rows = [place[i] for i in tags["window_source"]]
        assert rows == [1, 4, 4]
        for row, start, stop, window, soh, cell in zip(
            rows, tags["window_start"], tags["window_stop"], made.get_features()["current"],
            made.get_targets()["soh"], tags["cell"], strict=True,
        ):  # fmt: skip
            assert np.array_equal(window, data["current"][row, start:stop])
            assert soh == data["soh"][row]
            assert cell == data["cell"][row]

    def test_windows_do_not_overlap_by_default(self):
        data, fs = arrays()
        made = fs.windows("current", length=6, register=False)
        assert np.array_equal(
            made.get_features()["current"], data["current"][:, :18].reshape(-1, 6)
        )

    def test_padded_series_end_at_their_data(self):
        values = np.arange(1.0, 13).reshape(2, 6)
        mask = np.array([[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0]], dtype=bool)
        fs = mml.FeatureSet.from_dict(
            "runs", {"v": values, "m": mask, "y": [0, 1]}, "v", "y", mask="m", register=False
        )
        with pytest.raises(DataError, match="row 1 has 2 steps"):
            fs.windows("v", length=3, step=1, register=False)
        made = fs.windows("v", length=3, step=1, pad=-1.0, register=False)
        assert made.get_features()["v"].tolist() == [
            *([1, 2, 3], [2, 3, 4], [3, 4, 5]),
            [7, 8, -1],
        ]
        assert made.get_tags()["m"].tolist() == [[True] * 3] * 3 + [[True, True, False]]
        assert made.collection.schema["features.v.raw"].mask == "m"
        assert made.get_tags()["window_stop"].tolist() == [3, 4, 5, 2]

    def test_target_per_step(self):
        data, _ = arrays()
        data["soh"] = rng.normal(size=(6, 20))
        fs = mml.FeatureSet.from_dict("runs", data, "current", "soh", "cell", register=False)
        with pytest.raises(DataError, match="one value per step; pass target='last'"):
            fs.windows("current", length=5, register=False)
        last = fs.windows("current", length=5, target="last", register=False)
        assert np.array_equal(last.get_targets()["soh"], data["soh"][:, 4::5].ravel())
        whole = fs.windows("current", length=5, target="window", register=False)
        assert np.array_equal(whole.get_targets()["soh"], data["soh"].reshape(-1, 5))

    def test_windows_of_windows_are_places_of_the_series(self):
        data, fs = arrays()
        outer = fs.windows("current", length=10, step=10, register=False)
        inner = outer.windows("current", length=4, step=3, register=False)
        place = dict(zip(fs.get_sample_uuids(), range(6), strict=True))
        tags = inner.get_tags()
        for source, start, stop, window in zip(
            tags["window_source"], tags["window_start"], tags["window_stop"],
            inner.get_features()["current"], strict=True,
        ):  # fmt: skip
            assert np.array_equal(window, data["current"][place[source], start:stop])
        assert inner.kept_together == ["window_source"]


class TestRows:
    def test_equals_sliding_window_view_of_each_series(self):
        frame, fs = long_table()
        made = fs.windows(
            "v", length=4, step=2, series="cell", order="t", target="last", register=False
        )
        expected, last, ends = [], [], []
        for _, part in frame.sort_values("t").groupby("cell"):
            expected.append(sliding_window_view(part["v"].to_numpy(), 4)[::2])
            last.append(part["y"].to_numpy()[3::2])
            ends.append(part["when"].to_numpy()[3::2])
        assert np.array_equal(made.get_features()["v"], np.concatenate(expected))
        assert np.array_equal(made.get_targets()["y"], np.concatenate(last))
        when = made.to_pandas()["tags.when.raw"]
        assert str(when.dt.tz) == "Europe/Berlin"
        assert when.tolist() == np.concatenate(ends).tolist()
        first = fs.take_sample_uuids(made.get_tags()["window_source"])
        assert np.array_equal(first.get_features()["v"], made.get_features()["v"][:, 0])
        assert np.array_equal(first.get_tags()["t"], made.get_tags()["window_start"])

    def test_target_of_a_series_must_be_constant(self):
        _, fs = long_table()
        with pytest.raises(DataError, match="changes within a series; pass target='last'"):
            fs.windows("v", length=4, series="cell", order="t", register=False)

    def test_short_series_is_named(self):
        _, fs = long_table()
        with pytest.raises(DataError, match="1 of 3 series: cell='c1' has 9 steps"):
            fs.windows("v", length=10, series="cell", order="t", target="last", register=False)
        made = fs.windows(
            "v", length=10, series="cell", order="t", target="last", pad=0.0, register=False
        )
        assert made.get_tags()["mask"].sum(axis=1).tolist() == [10, 9, 10]

    def test_one_series(self):
        _, fs = long_table((12,))
        made = fs.windows("v", length=4, order="t", target="last", register=False)
        assert len(made) == 3
        assert made.kept_together == ["window_series"]


class TestSplits:
    @pytest.mark.parametrize("splitter", [KFoldSplitter(3), RandomSplitter({"a": 0.5, "b": 0.5})])
    def test_keep_series_together(self, splitter):
        fs = arrays()[1].windows("current", length=5, step=2, register=False)
        parts = fs.split(splitter, return_views=True, register=False)
        names = [n for n in parts if n in ("a", "b") or n.endswith("val")]
        seen = [set(parts[n].get_tags()["window_source"]) for n in names]
        assert sum(map(len, seen)) == len(set().union(*seen)) == 6

    def test_folds_keep_series_together(self):
        from modularml.strategies.folds import CVBinding, make_folds

        fs = arrays()[1].windows("current", length=5, step=2, register=False)
        fs.add_split(fs.take(range(len(fs)), "all"))
        made = make_folds([CVBinding(fs, "all")], n_folds=3, n_repeats=2, seed=0, splitter=None)
        assert len(made) == 6
        for fold in made:
            sides = fold.sides[fs.label]
            source = fs.get_tags()["window_source"]
            assert not set(source[sides.train]) & set(source[sides.val])

    def test_audit_sees_overlap(self):
        fs = arrays()[1].windows("current", length=5, step=2, keep_together=False, register=False)
        fs.split_random({"train": 0.5, "test": 0.5})
        found = [f for f in fs.audit() if f.kind == "overlapping_windows"]
        tags = fs.get_tags()
        expected = 0
        rows = {n: fs[n].indices for n in ("train", "test")}
        for i in rows["test"]:
            expected += any(
                tags["window_source"][i] == tags["window_source"][j]
                and tags["window_start"][j] < tags["window_stop"][i]
                and tags["window_stop"][j] > tags["window_start"][i]
                for j in rows["train"]
            )
        assert found[0].count == expected > 0
        assert found[0].severity == "error"

    def test_audit_finds_no_overlap_between_series(self):
        fs = arrays()[1].windows("current", length=5, step=2, register=False)
        fs.split_random({"train": 0.5, "test": 0.5})
        assert not [f for f in fs.audit() if f.kind == "overlapping_windows"]

    def test_marks_survive_files_and_copies(self, tmp_path):
        fs = arrays()[1].windows("current", length=5, step=2, register=False)
        fs.fit_transform("StandardScaler", domain="features", merged_axes=(0, 2))
        loaded = mml.FeatureSet.load(fs.save(tmp_path / "w"))
        for made in (loaded, fs.copy(), fs.take([1, 3]).to_featureset("few", register=False)):
            assert made.kept_together == ["window_source"]
            assert made.collection.schema.window_keys("start", "stop") == [
                "window_start",
                "window_stop",
            ]


class TestBadInput:
    def test_arguments(self):
        fs = arrays()[1]
        with pytest.raises(ConfigError, match="length must be at least 1"):
            fs.windows("current", length=0, register=False)
        with pytest.raises(ConfigError, match="length must be a whole number of steps, got 2"):
            fs.windows("current", length=2.5, register=False)
        with pytest.raises(ConfigError, match="step must be at least 1"):
            fs.windows("current", length=3, step=0, register=False)
        with pytest.raises(ConfigError, match="target must be one of"):
            fs.windows("current", length=3, target="first", register=False)
        with pytest.raises(DataError, match="6 of 6 series: row 0 has 20 steps"):
            fs.windows("current", length=21, register=False)
        with pytest.raises(DataError, match="holds one value per row; name the columns"):
            fs.windows("soh", length=3, register=False)

    def test_scaled_columns_are_refused(self):
        fs = arrays()[1]
        fs.fit_transform("StandardScaler", domain="features", keys="current")
        with pytest.raises(DataError, match=r"is scaled, and windows.*'current.raw'"):
            fs.windows("current", length=3, register=False)
        assert len(fs.windows("current.raw", length=20, register=False)) == 6

    def test_pad_of_another_type(self):
        _, fs = long_table()
        with pytest.raises(DataError, match="pad='x' does not fit column 'v'"):
            fs.windows(
                "v", length=10, series="cell", order="t", target="last", pad="x", register=False
            )


def test_columns_of_a_view():
    _, fs = arrays()
    made = fs.select(["current", "cell"]).windows("current", length=5, register=False)
    assert made.get_all_keys(False, False) == [
        *("current", "window_source", "window_start", "window_stop", "cell")
    ]
    with pytest.raises(UnknownNameError):
        fs.select(["current"]).windows("temperature", length=5, register=False)
    _, fs = long_table()
    part = fs.select(["v"]).windows("v", length=4, series="cell", order="t", register=False)
    assert part.kept_together == ["cell"]
    assert "when" not in part.get_tag_keys(False, False)


def test_ties_in_time_are_counted():
    table = {"v": [0.0, 1, 2, 3], "m": list("aaab"), "t": [0, 1, 1, 1], "y": [0.0, 1, 2, 3]}
    fs = mml.FeatureSet.from_dict("t", table, "v", "y", ["m", "t"], register=False)
    with pytest.warns(UserWarning, match=r"1 of 4 rows have the same 't' .*series=\['m'\]"):
        made = fs.windows(
            "v", length=1, series="m", order="t", target="last", register=False, label="w"
        )
    assert made.get_features()["v"].ravel().tolist() == [0, 1, 2, 3]
    with pytest.warns(UserWarning, match=r"2 of 4 rows .*series= is not given"):
        fs.windows("v", length=1, order="t", target="last", register=False)
