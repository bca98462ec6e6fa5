"""Rows and columns as views, and views of views, held against numpy indexing and Python sets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modularml.data import FeatureSet, FeatureSetView
from modularml.errors import ConfigError, DataError, UnknownNameError
from modularml.predicates import GT, Between, In

N = 20


def make(label="fs", n=N, seed=0):
    rng = np.random.default_rng(seed)
    data = {
        "x": rng.normal(size=(n, 2)),
        "y": np.arange(n) * 1.0,
        "g": [f"g{i % 4}" for i in range(n)],
        "k": np.arange(n) % 3,
    }
    return FeatureSet.from_dict(label, data, "x", "y", ["g", "k"], register=False)


def rows(view):
    return view.get_targets()["y"].astype(int).tolist()


positions = st.lists(st.integers(-N, N - 1), max_size=2 * N)


@settings(max_examples=60, deadline=None)
@given(positions, st.data())
def test_views_of_views_are_index_arithmetic(first, data):
    fs, expected = make(), np.arange(N)[first]
    view = fs.take(first)
    assert rows(view) == expected.tolist()
    for _ in range(2):
        again = (
            data.draw(st.lists(st.integers(-len(view), len(view) - 1), max_size=N))
            if len(view)
            else []
        )
        view, expected = view.take(again), expected[again]
        assert rows(view) == expected.tolist()
        assert view.indices.tolist() == expected.tolist()
        np.testing.assert_array_equal(
            view.get_features("np")[:, 0], fs.column("features.x.raw")[expected]
        )
        assert view.get_sample_uuids("list") == fs.get_sample_uuids()[expected].tolist()


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([N], f"index {N} is out of range for {N} rows"),
        ([-N - 1], f"index {-N - 1} is out of range"),
        ([0.5], "must be integers, got float64; use filter"),
        ([True, False], "must be integers, got bool; use filter"),
        (["a"], "must be integers"),
        ([[0, 1]], "one-dimensional"),
    ],
)
def test_positions_that_are_none(indices, message):
    with pytest.raises(DataError, match=message):
        make().take(indices)


def test_take_takes_what_looks_like_positions():
    fs = make()
    for form in ([1, 3], (1, 3), np.array([1, 3], "u1"), range(1, 4, 2)):
        assert rows(fs.take(form, label="some")) == [1, 3]
    assert rows(fs.take(2)) == [2]
    assert len(fs.take([])) == 0


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({"g": "g1"}, lambda i: i % 4 == 1),
        ({"g": ["g1", "g2"]}, lambda i: i % 4 in (1, 2)),
        ({"tags.g.raw": {"g0"}, "k": 1}, lambda i: i % 4 == 0 and i % 3 == 1),
        ({"y": GT(15)}, lambda i: i > 15),
        ({"y": Between(3, 5) | In([9])}, lambda i: 3 <= i <= 5 or i == 9),
        ({"y": lambda y: y % 2 == 0}, lambda i: i % 2 == 0),
        ({"x": lambda x: x.shape[1] * np.ones(len(x)) > 1}, lambda i: True),
        ({"y": -1}, lambda i: False),
        ({}, lambda i: True),
    ],
)
def test_filter(conditions, expected):
    fs = make()
    assert rows(fs.filter(conditions=conditions)) == [i for i in range(N) if expected(i)]
    back = fs.take(np.arange(N)[::-1]).filter(conditions=conditions, label="found")
    assert rows(back) == [i for i in range(N)[::-1] if expected(i)]
    assert back.label == "found"


def test_filter_keeps_the_columns_of_a_view():
    view = make().select(targets="y").filter(conditions={"g": "g1"})
    assert view.columns == ["targets.y.raw"]


def test_filter_means_the_user_s_own_units_before_and_after_scaling():
    fs = make()
    before = rows(fs.filter(conditions={"y": GT(15)}))
    fs.fit_transform("StandardScaler", domain="targets")
    assert fs.filter(conditions={"y": GT(15)}).indices.tolist() == before
    scaled = fs.get_targets(rep="transformed")["y"]
    assert (
        fs.filter(conditions={"y.transformed": GT(1)}).indices.tolist()
        == np.flatnonzero(scaled > 1).tolist()
    )


@pytest.mark.parametrize(
    ("conditions", "error", "message"),
    [
        ({"gg": 1}, UnknownNameError, "unknown column 'gg'"),
        ({"*": 1}, UnknownNameError, "it matches 4 columns"),
        ({"y": lambda y: y}, DataError, "'y'.*one truth value a row"),
        ({"y": lambda y: [True]}, DataError, "'y'.*one truth value a row"),
        ({"y": GT("a")}, DataError, "'y'"),
        ({"y": lambda y: y.nope}, DataError, "'y'.*failed"),
    ],
)
def test_conditions_that_make_no_sense(conditions, error, message):
    with pytest.raises(error, match=message):
        make().filter(conditions=conditions)


def test_select():
    fs = make()
    view = fs.take([3, 1]).select(tags="k", features="x", label="some")
    assert view.columns == ["features.x.raw", "tags.k.raw"]
    assert (view.label, rows_of(view)) == ("some", [3, 1])
    assert view.select("k").columns == ["tags.k.raw"]
    with pytest.raises(UnknownNameError, match="unknown column 'y'"):
        view.select("y")
    wide = view.expand_columns()
    assert (wide.columns, wide.label, rows_of(wide)) == (fs.column_names, "some_expanded", [3, 1])
    none = fs.select([])
    assert (none.columns, len(none), none.get_all_keys(), none.get_data()) == ([], N, [], {})


def rows_of(view):
    return view.indices.tolist()


def test_ids_pick_rows_in_the_order_asked():
    fs = make()
    ids = fs.get_sample_uuids()
    assert rows(fs.take_sample_uuids(ids[[5, 2, 2]], label="these")) == [5, 2, 2]
    assert rows(fs.take([7, 5, 2]).take_sample_uuids([ids[2], ids[7]])) == [2, 7]
    assert len(fs.take_sample_uuids([])) == 0
    with pytest.raises(DataError, match=rf"{ids[3]} is not in 'part' \(2 of 3 are missing\)"):
        fs.take([0, 1], label="part").take_sample_uuids(ids[[0, 3, 4]])
    with pytest.raises(DataError, match="must be UUID text, got 'no'"):
        fs.take_sample_uuids(["no"])


@settings(max_examples=60, deadline=None)
@given(positions, positions, st.booleans())
def test_sets_of_rows(first, second, elsewhere):
    fs = make()
    other = make("other") if elsewhere else fs  # the same data, so the same ids
    a, b = fs.take(first), other.take(second)
    mine, theirs = rows(a), rows(b)
    assert rows(a.take_intersection(b)) == [i for i in mine if i in theirs]
    assert rows(a.take_difference(b, label="rest")) == [i for i in mine if i not in theirs]
    by_other = rows(a.take_intersection(b, order="other"))
    assert by_other == [i for i in theirs if i in mine]
    assert a.is_disjoint_with(b) == (not set(mine) & set(theirs))
    ids = fs.get_sample_uuids()
    assert a.get_overlap_with(b) == [ids[i] for i in mine if i in theirs]


def test_sets_of_rows_of_whole_sets():
    fs, other = make(), make("other", seed=1)
    assert fs.is_disjoint_with(other)
    assert not fs.is_disjoint_with(fs.take([1]))
    assert len(fs.take_difference(fs.take([1, 2]))) == N - 2
    assert fs.get_overlap_with(other) == []
    with pytest.raises(ConfigError, match="order must be 'self' or 'other', got 'both'"):
        fs.take_intersection(other, order="both")


# -- views ----------------------------------------------------------------------------------------


def test_padded_rows_hold_no_data():
    fs = make()
    view = FeatureSetView(fs, np.array([4, -1, 2, -1]), fs.column_names, "padded")
    assert view.indices.tolist() == [4, -1, 2, -1]
    assert view.valid_indices.tolist() == [4, 2]
    assert (len(view), rows(view)) == (2, [4, 2])
    assert view.get_features("np").shape == (2, 1, 2)
    assert len(view.get_sample_uuids()) == len(view.to_pandas()) == 2
    assert rows(view.take([1])) == [2]
    assert rows(view.filter(conditions={"y": GT(3)})) == [4]
    assert view.select("y").indices.tolist() == [4, -1, 2, -1]
    assert view.expand_columns().indices.tolist() == [4, -1, 2, -1]
    assert view.take_difference(fs.take([4])).indices.tolist() == [2]
    fs.add_split(view)
    assert "padded: 2" in repr(fs)


def test_a_view_is_frozen():
    fs, wanted = make(), np.array([3, 1])
    view = FeatureSetView(fs, wanted, ["targets.y.raw"])
    wanted[0] = 0
    assert rows(view) == [3, 1]
    with pytest.raises(ValueError, match="read-only"):
        view.indices[0] = 5
    with pytest.raises(AttributeError):
        view.label = "other"
    assert view != FeatureSetView(fs, wanted, ["targets.y.raw"])
    assert len({view, view}) == 1


@pytest.mark.parametrize(
    ("indices", "columns", "error", "message"),
    [
        ([N], ["targets.y.raw"], DataError, f"between 0 and {N - 1}"),
        ([-2], ["targets.y.raw"], DataError, "got -2 to -2"),
        ([0.7], ["targets.y.raw"], DataError, "must be integers, got float64"),
        ([True], ["targets.y.raw"], DataError, "must be integers, got bool"),
        ([0], ["targets.z.raw"], UnknownNameError, "did you mean 'targets.y.raw'"),
    ],
)
def test_views_that_cannot_be(indices, columns, error, message):
    with pytest.raises(error, match=message):
        FeatureSetView(make(), np.array(indices), columns)


def test_config_of_a_view(fresh_context):
    fs = make()
    fresh_context.register_experiment_node(fs)
    view = fs.take([3, 1], label="some").select("y")
    config = view.get_config()
    again = FeatureSetView.from_config(config)
    assert (again.source, again.label, again.columns) == (fs, "some", ["targets.y.raw"])
    assert rows(again) == [3, 1]
    fresh_context.remove_node(label="fs")
    with pytest.raises(UnknownNameError, match="unknown node 'fs'"):
        FeatureSetView.from_config(config)


def test_from_featureset():
    fs = make()
    assert len(FeatureSetView.from_featureset(fs)) == N
    view = FeatureSetView.from_featureset(fs, rows=np.array([2]), columns=[], label="a")
    assert (len(view), view.columns, view.label) == (1, [], "a")
    assert fs.to_view().to_view().source is fs
    assert fs.to_view().label == "fs"


def test_a_view_becomes_a_set(fresh_context):
    fs = make()
    own = fs.take([5, 3]).select(["y", "x"]).to_featureset("own")
    assert own in fresh_context.available_nodes.values()
    assert own.column_names == ["targets.y.raw", "features.x.raw"]
    assert rows(own) == [5, 3]
    assert not own.is_disjoint_with(fs)
    np.testing.assert_array_equal(own.get_features("np"), fs.get_features("np")[[5, 3]])
    whole = fs.to_featureset("whole", register=False)
    assert whole.get_sample_uuids("list") == fs.get_sample_uuids("list")
    with pytest.raises(DataError, match="row 1 has the same id as row 0"):
        fs.take([2, 2]).to_featureset("twice")
    assert fs.take([2, 2]).to_arrow().num_rows == 2
    assert not fresh_context.has_node(label="twice")
