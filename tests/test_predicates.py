"""Conditions on columns, held against plain numpy and Python."""

import contextlib
import datetime as dt
import json
import operator

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modularml.config import decode, encode
from modularml.errors import ConfigError, DataError
from modularml.predicates import (
    EQ,
    GT,
    GTE,
    LT,
    LTE,
    NE,
    And,
    Between,
    In,
    IsNull,
    Lambda,
    Not,
    NotIn,
    Or,
    Predicate,
    matches,
)

OPERATORS = {
    EQ: operator.eq,
    NE: operator.ne,
    LT: operator.lt,
    LTE: operator.le,
    GT: operator.gt,
    GTE: operator.ge,
}
TEXT = np.array(["a", "b", None, "c"], dtype=object)
TIMES = np.array(["2024-01-01", "2024-02-01", "NaT"], dtype="M8[ns]")

floats = st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), max_size=20)


# --- comparisons


@pytest.mark.parametrize("predicate", OPERATORS)
@given(values=floats, bound=st.floats(allow_nan=False))
def test_comparisons_of_numbers(predicate, values, bound):
    found = predicate(bound)(np.array(values))
    assert found.tolist() == [OPERATORS[predicate](value, bound) for value in values]
    assert found.dtype == bool


# what text with digits means is tested below
words = st.text(st.characters(exclude_categories=["Nd", "Cs"]), max_size=3)


@pytest.mark.parametrize("predicate", OPERATORS)
@given(values=st.lists(words), bound=words)
def test_comparisons_of_text(predicate, values, bound):
    expected = [OPERATORS[predicate](value, bound) for value in values]
    assert predicate(bound)(np.array(values, dtype=object)).tolist() == expected


@pytest.mark.parametrize("dtype", ["int8", "uint8", "float32", "bool", object])
def test_numbers_of_any_type(dtype):
    values = np.array([0, 1, 1]).astype(dtype)
    assert EQ(1)(values).tolist() == [False, True, True]
    assert LT(300)(values).all()
    assert GT(-1)(values).all()


def test_numbers_beyond_the_columns_type():
    assert LT(10**30)(np.array([1, 2])).all()
    assert not In([10**30])(np.array([1, 2])).any()


@pytest.mark.parametrize("values", [TEXT[[0, 1, 3]].astype("U1"), TEXT, TEXT[[0, 1]]])
def test_text_of_any_type(values):
    assert EQ("a")(values).tolist() == [True] + [False] * (len(values) - 1)


def test_nul_characters_count():
    values = np.array(["", "\0"], dtype=object)
    assert EQ("\0")(values).tolist() == [False, True]
    assert LTE("\0")(values).tolist() == [True, True]


def test_missing_values_equal_nothing():
    assert EQ("a")(TEXT).tolist() == [True, False, False, False]
    assert NE("a")(TEXT).tolist() == [False, True, True, True]
    assert GT("a")(TEXT).tolist() == [False, True, False, True]
    assert GT(0)(np.array([1.0, np.nan])).tolist() == [True, False]
    assert GT(0)(np.array([1, None], dtype=object)).tolist() == [True, False]
    assert EQ("a")(np.array([None, None], dtype=object)).tolist() == [False, False]
    assert NE("a")(np.array(["a", pd.NA, None], dtype=object)).tolist() == [False, True, True]
    assert Lambda("lambda x: x == x")(TEXT).tolist() == [True, True, False, True]


@pytest.mark.parametrize(
    "bound",
    [
        "2024-01-15",
        dt.date(2024, 1, 15),
        dt.datetime(2024, 1, 15),  # noqa: DTZ001 - without a zone, on purpose
        np.datetime64("2024-01-15"),
        pd.Timestamp("2024-01-15"),
        pd.Timestamp("2024-01-15", tz="UTC"),
        pd.Timestamp("2024-01-15 02:00", tz="Europe/Berlin"),
    ],
)
def test_times(bound):
    assert GT(bound)(TIMES).tolist() == [False, True, False]
    as_objects = pd.Series(TIMES).astype(object).to_numpy()
    assert GT(bound)(as_objects).tolist() == [False, True, False]
    assert Between(bound, "2024-03-01")(TIMES).tolist() == [False, True, False]


def test_times_in_python_dates():
    dates = np.array([dt.date(2024, 1, 1), None, dt.date(2024, 2, 1)], dtype=object)
    assert GT(dt.date(2024, 1, 15))(dates).tolist() == [False, False, True]
    assert In(["2024-02-01"])(dates).tolist() == [False, False, True]


def test_durations():
    values = np.array([1, 3], dtype="m8[h]")
    assert GT(dt.timedelta(hours=2))(values).tolist() == [False, True]
    assert GT(pd.Timedelta("2h"))(values.astype(object)).tolist() == [False, True]


@pytest.mark.parametrize(
    ("inclusive", "expected"),
    [("both", [1, 2, 3]), ("left", [1, 2]), ("right", [2, 3]), ("neither", [2])],
)
def test_between(inclusive, expected):
    values = np.arange(5)
    assert np.flatnonzero(Between(1, 3, inclusive)(values)).tolist() == expected


# --- membership and null


@given(floats, st.lists(st.integers(-3, 3), max_size=5))
def test_membership_of_numbers(values, items):
    found = In(items)(np.array(values, dtype=float))
    assert found.tolist() == [value in items for value in values]
    assert NotIn(items)(np.array(values, dtype=float)).tolist() == (~found).tolist()


@pytest.mark.parametrize("items", [["a", "z"], ("a", "z"), {"a", "z"}, np.array(["a", "z"])])
def test_membership_of_text(items):
    assert In(items)(TEXT).tolist() == [True, False, False, False]
    assert NotIn(items)(TEXT).tolist() == [False, True, True, True]
    assert In(items)(np.array(["z", "b"])).tolist() == [True, False]


def test_membership_among_none():
    assert In([])(TEXT).tolist() == [False] * 4


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([1.0, np.nan]), [False, True]),
        (TIMES, [False, False, True]),
        (TEXT, [False, False, True, False]),
        (np.array([1, 2]), [False, False]),
        (np.array(["a", ""]), [False, False]),
        (np.array([], dtype=float), []),
    ],
)
def test_is_null(values, expected):
    assert IsNull()(values).tolist() == expected


# --- joining


@given(floats)
def test_joins_are_numpys(values):
    values = np.array(values, dtype=float)
    a, b = GT(0), LT(10)
    assert (a & b)(values).tolist() == ((values > 0) & (values < 10)).tolist()
    assert (a | b)(values).tolist() == ((values > 0) | (values < 10)).tolist()
    assert (~a)(values).tolist() == (~(values > 0)).tolist()
    assert And(a, b, ~IsNull())(values).tolist() == (a & b)(values).tolist()


def test_joining_anything_else_is_refused():
    with pytest.raises(ConfigError, match="And takes predicates, got 3"):
        GT(1) & 3
    with pytest.raises(ConfigError, match="at least one"):
        Or()
    with pytest.raises(ConfigError, match=r"& \| ~"):
        GT(1) and LT(3)
    with pytest.raises(ConfigError, match=r"& \| ~"):
        not GT(1)


PREDICATES = [
    EQ("a"),
    NE(1.5),
    LT(True),
    GTE("2024-01-01"),
    In([1, 2]),
    NotIn({"a", "b"}),
    In(np.array([1.5, 2.5])),
    Between(1, 2, "left"),
    IsNull(),
    Lambda("lambda x: x >= 80"),
    And(GT(1), LT(3), NE(2)),
    Or(GT(1), Not(IsNull())),
    ~(GT(1) | In(("a", 1))),
]


@pytest.mark.parametrize("predicate", PREDICATES)
def test_config_round_trip(predicate):
    found = decode(json.loads(json.dumps(encode(predicate))))
    assert found == predicate
    assert repr(found) == repr(predicate)
    assert predicate.clone() == predicate
    assert type(predicate).from_config(predicate.get_config()) == predicate


def test_repr_reads_like_the_condition():
    assert repr(GT(1) & ~IsNull() | Lambda("lambda x: x < 0")) == (
        "((GT(value=1) & ~IsNull()) | Lambda('lambda x: x < 0'))"
    )


def test_predicates_differ_by_their_arguments():
    assert GT(1) != GT(2)
    assert GT(1) != GTE(1)
    assert GT(1) & LT(2) != LT(2) & GT(1)


class Even(Predicate):
    def __call__(self, values):
        return values % 2 == 0


def test_a_predicate_of_ones_own():
    condition = Even() & GT(2)
    assert matches(condition, np.arange(6), column="x").tolist() == [False] * 4 + [True, False]
    assert decode(encode(condition)) == condition


@pytest.mark.parametrize(
    "make",
    [
        lambda: EQ(None),
        lambda: EQ(float("nan")),
        lambda: EQ(np.datetime64("NaT")),
        lambda: GT([1, 2]),
        lambda: EQ({"a": 1}),
        lambda: In("abc"),
        lambda: In(3),
        lambda: In([1, None]),
        lambda: In([1.0, np.nan]),
        lambda: Between(3, 1),
        lambda: Between(1, 3, "outer"),
        lambda: Between(None, 3),
        lambda: Not(3),
        lambda: Lambda(3),
    ],
    ids=range(14),
)
def test_senseless_arguments(make):
    with pytest.raises(ConfigError):
        make()


# --- Lambda

X = np.array([-3.0, 0.0, 1.0, 2.0, 5.0, 79.9, 80.0, np.nan, np.inf])


@pytest.mark.parametrize(
    "source",
    [
        "lambda x: x >= 80",
        "lambda x: 80 <= x",
        "lambda x: 1 < x <= 80",
        "lambda volts: volts == 2",
        "lambda x: x != x",
        "lambda x: (x > 1) & (x < 80) | (x == 0)",
        "lambda x: ~(x > 1)",
        "lambda x: not x > 1",
        "lambda x: x < 0 or x > 2 and x < 80",
        "lambda x: x in [1, 2, -3]",
        "lambda x: x not in (1, 2.0)",
        "lambda x: x * 2 + 1 > 5 - x / 2",
        "lambda x: x // 2 == 1",
        "lambda x: x % 2 == 1",
        "lambda x: x ** 2 == 25",
        "lambda x: 2 ** x > 4",
        "lambda x: -x > +2",
        "lambda x: 1 / x > 0.3",
        "lambda x: True and x > 1",
        "  lambda x: (\n x > 1)",
    ],
)
def test_text_means_what_python_means(source):
    python = eval(source.strip(), {}, {})

    def one(value):
        with np.errstate(all="ignore"):
            return bool(python(np.float64(value)) & True)

    assert Lambda(source)(X).tolist() == [one(value) for value in X]


NUMBERS = st.sampled_from(["x", "1", "2.5", "-3"])
ARITHMETIC = st.recursive(
    NUMBERS,
    lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(
        lambda t: f"({t[0]} {t[1]} {t[2]})"
    ),
    max_leaves=4,
)
CONDITIONS = st.recursive(
    st.tuples(ARITHMETIC, st.sampled_from(["<", "<=", "==", "!=", ">", ">="]), NUMBERS).map(
        lambda t: f"(x + {t[0]} {t[1]} {t[2]})"
    ),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("&|"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        inner.map(lambda part: f"(~{part})"),
    ),
    max_leaves=4,
)


@settings(deadline=None)
@given(CONDITIONS)
def test_any_condition_is_what_numpy_gives(condition):
    source = f"lambda x: {condition}"
    with np.errstate(all="ignore"):
        expected = eval(source)(X)
    assert Lambda(source)(X).tolist() == expected.tolist()


def test_text_on_text_and_times():
    assert Lambda("lambda c: c in ['a', 'c']")(TEXT).tolist() == [True, False, False, True]
    assert Lambda("lambda c: c > 'a'")(TEXT).tolist() == [False, True, False, True]
    assert Lambda("lambda t: t > '2024-01-15'")(TIMES).tolist() == [False, True, False]


def test_bits_of_whole_numbers():
    values = np.array([0, 3, 4, 7])
    assert Lambda("lambda x: (x & 4) > 0")(values).tolist() == [False, False, True, True]
    assert Lambda("lambda flag: flag")(values > 3).tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    ("source", "what", "at"),
    [
        ("lambda x: __import__('os').remove('x')", "a call", 10),
        ("lambda x: x.sum() > 1", "a call", 10),
        ("lambda x: x.size > 1", "an attribute", 10),
        ("lambda x: 1 < x[0]", "an index", 14),
        ("lambda x: x > y", "the name 'y'", 14),
        ("lambda x: x is None", "the operator Is", 10),
        ("lambda x: x == None", "the constant None", 15),
        ("lambda x: x > 1j", "the constant 1j", 14),
        ("lambda x: x > b'a'", "the constant b'a'", 14),
        ("lambda x: x ^ 1", "the operator BitXor", 10),
        ("lambda x: x << 1", "the operator LShift", 10),
        ("lambda x: x @ x", "the operator MatMult", 10),
        ("lambda x: (lambda y: y)", "a second lambda", 11),
        ("lambda x: [y for y in x]", "ListComp", 10),
        ("lambda x: x if x else x", "if-else", 10),
        ("lambda x: f'{x}' == 'a'", "an f-string", 10),
        ("lambda x: (y := x) > 1", "an assignment", 11),
        ("lambda x: x == [1, 2]", "a list outside `in`", 15),
        ("lambda x: (x, 1)", "a tuple outside `in`", 10),
        ("lambda x: x in 'abc'", "`in` with anything but a list", 10),
        ("lambda x: x in [x, 1]", "`in` with anything but a list", 10),
        ("lambda x: x in [[1], 2]", "`in` with anything but a list", 10),
        ("lambda x: x > 1 and 1 < 2", "a comparison of constants", 20),
        ("lambda x: 'é' < x.a", "an attribute", 16),
        ("lambda x: " + "-" * 500 + "x > 1", "deeper nesting", 70),
    ],
)
def test_anything_else_is_refused_with_its_place(source, what, at):
    with pytest.raises(ConfigError) as caught:
        Lambda(source)
    assert str(caught.value).startswith(what)
    assert f"(at column {at} of " in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x > 1", "must begin with 'lambda x:'"),
        ("lambda: 1 > 2", "one argument"),
        ("lambda x, y: x > y", "one argument"),
        ("lambda *x: x > 1", "one argument"),
        ("lambda x=1: x > 1", "one argument"),
        ("lambda x: True", "does not use"),
        ("lambda x: x >", "no valid expression"),
        ("lambda x: x > 1; import os", "no valid expression"),
        ("lambda x: " + "(" * 500, "no valid expression"),
        ("lambda x: x > \0", "no valid expression"),
        ("lambda x: x > " + "1" * 3000, "at most 2000 characters"),
        ("", "non-empty"),
    ],
)
def test_text_that_is_no_condition(source, message):
    with pytest.raises(ConfigError, match=message):
        Lambda(source)


@given(st.text(max_size=30))
def test_no_text_does_anything_but_be_refused(text):
    with contextlib.suppress(ConfigError):
        Lambda(f"lambda x: {text}")


def test_large_powers_overflow_quietly():
    assert not Lambda("lambda x: x > 9 ** 9 ** 9 ** 9")(np.array([1.0, 2.0])).any()
    assert Lambda("lambda x: x ** -1 < 1")(np.array([1, 2])).tolist() == [False, True]


@pytest.mark.parametrize(
    ("source", "values", "message"),
    [
        ("lambda x: x + 1", X, "gives float64, not true or false"),
        ("lambda x: x > 1 & x < 3", X, "bind more tightly"),
        ("lambda x: x and x > 1", X, "join conditions"),
        ("lambda x: x + 1 > 2", TEXT, "arithmetic needs numbers, got text"),
        ("lambda x: 'a' * 9 > x", X, "arithmetic needs numbers, got text"),
        ("lambda x: x > 'a'", X, "numbers and cannot be compared with 'a'"),
        ("lambda x: x in ['a']", X, "numbers and cannot be compared with 'a'"),
        ("lambda x: -x > 1", np.array([True]), "cannot be computed on bool"),
        ("lambda x: x + 10 ** 30 > 1", np.zeros((3, 2)), "array of shape"),
    ],
)
def test_text_that_does_not_suit_the_column(source, values, message):
    with pytest.raises(DataError, match=message):
        Lambda(source)(values)


# --- matches


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (2, [2]),
        (np.int64(2), [2]),
        ([1, 2], [1, 2]),
        ({1, 2}, [1, 2]),
        (np.array([1, 2]), [1, 2]),
        (pd.Series([1, 2]), [1, 2]),
        (range(2), [0, 1]),
        (GT(2), [3, 4]),
        (lambda v: v > 2, [3, 4]),
        (lambda v: (v > 2).tolist(), [3, 4]),
        (lambda v: pd.Series(v) > 2, [3, 4]),
    ],
    ids=range(11),
)
def test_matches_takes_anything_that_says_which_rows(condition, expected):
    mask = matches(condition, np.arange(5), column="x")
    assert mask.dtype == bool
    assert np.flatnonzero(mask).tolist() == expected


def test_a_string_is_one_value():
    assert matches("ab", np.array(["a", "ab"]), column="x").tolist() == [False, True]


def test_arrays_by_a_callable():
    values = np.arange(6).reshape(3, 2)
    assert matches(lambda v: v.max(axis=1) > 2, values, column="x").tolist() == [False, True, True]


@pytest.mark.parametrize("condition", [3, [1, 2], GT(1), IsNull(), Lambda("lambda x: x > 1")])
def test_arrays_by_anything_else_are_refused(condition):
    with pytest.raises(DataError, match=r"column 'voltage'.*shape \(2,\).*callable"):
        matches(condition, np.zeros((3, 2)), column="voltage")


@pytest.mark.parametrize("condition", [3, GT(3), [1, 2], LT(True), Between(1, 2)])
def test_unlike_types_are_refused(condition):
    with pytest.raises(DataError, match=r"column 'cell'.*holds text.*\(numbers\)"):
        matches(condition, TEXT, column="cell")


def test_mixed_objects_cannot_be_ordered():
    mixed = np.array([1, "a"], dtype=object)
    with pytest.raises(DataError, match="column 'x'"):
        matches(GT(3), mixed, column="x")
    assert matches("a", mixed, column="x").tolist() == [False, True]


@pytest.mark.parametrize(
    ("condition", "error", "message"),
    [
        (lambda v: v.sum(), DataError, "one truth value a row"),
        (lambda v: v[:2] > 1, DataError, r"one truth value a row \(bool, shape \(5,\)\)"),
        (lambda v: v, DataError, "one truth value a row"),
        (lambda v: v["a"], DataError, "failed on its array of shape"),
        (lambda v: [True, [False, True]], DataError, "failed on its array of shape"),
        (None, ConfigError, "IsNull"),
        ({"a": 1}, ConfigError, "mapping"),
        (np.ones(5, dtype=bool), ConfigError, "not as a mask"),
        ([1.0, None], ConfigError, "missing value"),
        ("2024", DataError, "numbers and cannot be compared"),
    ],
    ids=range(10),
)
def test_bad_conditions_name_the_column(condition, error, message):
    with pytest.raises(error, match=f"column 'x'.*{message}"):
        matches(condition, np.arange(5), column="x")


def test_text_that_is_no_time():
    with pytest.raises(DataError, match="'soon' is no time"):
        matches(GT("soon"), TIMES, column="t")


@given(floats)
def test_values_are_not_changed(values):
    values = np.array(values, dtype=float)
    before = values.copy()
    values.flags.writeable = False
    for condition in (1.0, [1.0], GT(1) & LT(3), Lambda("lambda x: x + 1 > 3"), IsNull()):
        matches(condition, values, column="x")
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "int64", "uint64"])
def test_membership_finds_what_equality_finds(dtype):
    if np.dtype(dtype).kind == "f":
        values = np.array([0.1, 0.2, 0.5, 0.1, np.nan, 3.0], dtype)
        items = [0.1, np.float64(0.5), np.float32(0.2), 3, 7]
    else:
        values = np.array([1, 2, 100, np.iinfo(dtype).max, np.iinfo(dtype).max - 1], dtype)
        items = [1, np.int64(2), 100.0, 0.5, int(np.iinfo(dtype).max), 2**70, -(2**65)]
    found = np.any([EQ(item)(values) for item in items[:-2]], axis=0)
    np.testing.assert_array_equal(In(items[:-2])(values), found)
    np.testing.assert_array_equal(NotIn(items[:-2])(values), ~found)
    assert In(items)(values).sum() >= 3
    assert In([items[0]])(values)[0]


def test_an_array_of_values_is_found_in_a_narrow_column():
    values = np.array([0.1, 0.2], "float32")
    assert In(np.array([0.1, 0.3]))(values).tolist() == [True, False]
    assert EQ(np.float64(0.1))(values).tolist() == [True, False]
    assert Lambda("lambda x: x in [0.1, 0.5]")(values).tolist() == [True, False]


def test_text_is_in_the_order_that_it_means():
    cycles = np.array(["9", "10", "11", "100"], object)
    assert GT("10")(cycles).tolist() == [False, False, True, True]
    assert Between("9", "11")(cycles).tolist() == [True, True, True, False]
    days = np.array(["2024-01-31", "2023-12-31"], object)
    assert LT("2024-01-01")(days).tolist() == [False, True]
    with pytest.raises(DataError, match=r"text such as '13/01/2024'.*to_datetime"):
        GT("02/02/2024")(np.array(["13/01/2024", "01/03/2024"], object))
    days = np.array(["13/01/2024", "1/3/2024"], object)
    assert EQ("13/01/2024")(days).tolist() == [True, False]
    assert LT("m")(np.array(["a", "z"], object)).tolist() == [True, False]
