"""Config and state: there and back, by name, and never more than data."""

import datetime as dt
import enum
import functools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.decomposition import PCA
from sklearn.preprocessing import MinMaxScaler

from modularml.config import (
    Configurable,
    Stateful,
    config_registry,
    decode,
    encode,
    find_code,
    names_mean,
)
from modularml.errors import ConfigError, UnknownNameError


class Colour(enum.Enum):
    RED = "red"
    PAIR = (1, 2)


class Plain(Configurable):
    def __init__(self, a, b=2, *, c=None):
        self.a, self.b, self.c = a, b, c


class Open(Configurable):
    not_config = frozenset({"hidden"})

    def __init__(self, a=1, hidden=None, **rest):
        self.a, self.hidden, self.rest = a, hidden, rest

    def method(self):
        return self


class Counter(Stateful):
    def __init__(self):
        self.n_ = 0
        self.other = 1
        self._private_ = 2


def double(x):
    return 2 * x


def there_and_back(value):
    return decode(json.loads(json.dumps(encode(value))))


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
nested = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.builds(slice, plain, plain, plain)
        | st.dictionaries(st.text(), inner, max_size=3)
        | st.dictionaries(st.integers() | st.tuples(st.text()), inner, max_size=3)
        | st.sets(plain, max_size=3)
    ),
    max_leaves=10,
)


@given(nested)
def test_plain_data_comes_back(value):
    found = there_and_back(value)
    assert found == value
    assert type(found) is type(value)


@given(
    hnp.arrays(
        st.sampled_from(["f4", ">f8", "i2", "?", "M8[s]", "U3"]), hnp.array_shapes(min_side=0)
    )
)
def test_arrays_come_back(value):
    found = there_and_back(value)
    assert (found.dtype, found.shape) == (value.dtype, value.shape)
    np.testing.assert_array_equal(found, value)
    found[...] = found  # may be written to


@pytest.mark.parametrize(
    "value",
    [
        Colour.RED,
        Colour.PAIR,
        Path("a/b"),
        double,
        np.mean,
        np.add,
        len,
        dict,
        dt.datetime(2020, 1, 2, 3, 4, 5, 6),  # noqa: DTZ001
        dt.datetime(2020, 1, 2, tzinfo=dt.UTC),
        dt.date(2020, 1, 2),
        np.datetime64("2020-01-02T03:04:05.000000006"),
        np.timedelta64(3, "D"),
        {1: "a", (2, 3): {"$x": [Colour.RED]}},
        Plain(1, c=[Plain(2, b=(1, 2))]),
        Plain(np.float32(1.5), np.int64(3)),
        Plain(np.arange(3)),
        Plain(float("inf"), b=float("nan")),
        Plain(double, Plain),
        frozenset({1, 2}),
    ],
    ids=range(20),
)
def test_values_come_back(value):
    assert there_and_back(value) == value


def test_estimators_come_back_with_their_arguments():
    found = there_and_back(MinMaxScaler((0, 2), clip=True))
    assert found.get_params() == MinMaxScaler((0, 2), clip=True).get_params()
    assert there_and_back(PCA).__name__ == "PCA"


def local():
    def inner():
        pass

    class Inner(Configurable):
        pass

    return inner, Inner


@pytest.mark.parametrize(
    "value",
    [
        lambda x: x,
        local()[0],
        Open().method,
        functools.partial(double, 1),
        object(),
        b"bytes",
        1j,
        np.array([object()]),
        {"a": [lambda: 1]},
        local()[1],
    ],
    ids=range(10),
)
def test_what_could_not_be_found_again_is_refused(value):
    with pytest.raises(ConfigError, match="cannot be"):
        encode(value)
    with pytest.raises(ConfigError, match="cannot be"):
        Plain(value).get_config()


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ({"$type": "Plane", "params": {}}, UnknownNameError, "unknown class 'Plane'"),
        (
            {"$type": "Plain", "params": {"aa": 1}},
            UnknownNameError,
            "unknown parameter 'aa' of Plain",
        ),
        ({"$code": "nowhere_at_all:x"}, ConfigError, "import 'nowhere_at_all' first"),
        ({"$code": "json:nope.dumps"}, ConfigError, "module 'json' has no 'nope.dumps'"),
        ({"$enum": "os:system", "value": "true"}, ConfigError, "'os:system' is no Enum"),
        (
            {"$estimator": "subprocess:Popen", "params": {"args": "true"}},
            ConfigError,
            "is no estimator",
        ),
    ],
)
def test_configs_that_name_what_they_must_not(value, error, message):
    with pytest.raises(error, match=message):
        decode(value)


def test_nothing_is_imported():
    import sys

    assert "this" not in sys.modules
    with pytest.raises(ConfigError, match="import 'this' first"):
        find_code("this:s")
    assert "this" not in sys.modules


def test_names_may_be_given_a_meaning():
    with names_mean({"Plain": Open, "m:f": double}):
        assert isinstance(decode({"$type": "Plain", "params": {}}), Open)
        assert decode({"$code": "m:f"}) is double
        with pytest.raises(ConfigError, match="'m:g' was not resolved"):
            find_code("m:g")
        with pytest.raises(ConfigError, match="'Open' was not resolved"):
            decode({"$type": "Open", "params": {}})
    assert isinstance(decode({"$type": "Plain", "params": {"a": 1}}), Plain)


# -- Configurable ---------------------------------------------------------------------------------


def test_config_is_the_arguments():
    made = Plain(1, c=(2, 3))
    assert made.get_config() == {"a": 1, "b": 2, "c": {"$tuple": [2, 3]}}
    assert Plain.from_config(made.get_config()) == made
    assert made.clone() == made
    assert made.clone() is not made
    assert Open(hidden=3).get_config() == {"a": 1}
    assert Open.from_config({"a": 1, "more": 2}).rest == {"more": 2}


def test_unknown_arguments_list_the_closest():
    with pytest.raises(
        UnknownNameError, match=r"unknown parameter 'aaa' of Plain; did you mean 'a'"
    ):
        Plain.from_config({"a": 1, "aaa": 2})


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (Plain(1), Plain(1), True),
        (Plain(1), Plain(1, 3), False),
        (Plain(1), Open(1), False),
        (Plain(1), 1, False),
        (Plain(np.arange(2)), Plain(np.arange(2)), True),
        (Plain(np.arange(2)), Plain([0, 1]), False),
        (Plain(np.array([np.nan])), Plain(np.array([np.nan])), True),
        (Plain(float("nan")), Plain(np.float64("nan")), True),
        (Plain([np.arange(2)]), Plain([np.arange(2)]), True),
        (Plain({"x": np.arange(2)}), Plain({"x": np.arange(3)}), False),
        (Plain({"x": 1}), Plain({"y": 1}), False),
    ],
    ids=range(11),
)
def test_equality_and_hash(a, b, equal):
    assert (a == b) == equal
    assert not equal or hash(a) == hash(b)


def test_repr_shows_what_differs_from_the_defaults():
    assert repr(Plain(1)) == "Plain(a=1)"
    assert repr(Plain([1], 2, c="x")) == "Plain(a=[1], c='x')"


def test_classes_register_by_name():
    assert config_registry["plain"] is Plain

    class _Hidden(Configurable):
        pass

    assert "_Hidden" not in config_registry


def test_a_user_s_class_does_not_take_the_name_of_ours():
    import modularml.samplers

    ours = modularml.samplers.SimpleSampler
    kind = type("SimpleSampler", (Configurable,), {"__module__": "mine"})
    assert config_registry["SimpleSampler"] is ours
    with pytest.raises(ConfigError, match=r"mine:SimpleSampler cannot be found again.*rename it"):
        encode(kind())
    assert there_and_back(ours(seed=1)) == ours(seed=1)


def test_a_class_that_is_defined_again_takes_the_place_of_the_first():
    space = {"__module__": "notebook"}
    old = type("Cell", (Configurable,), dict(space))
    new = type("Cell", (Configurable,), dict(space))
    assert config_registry["Cell"] is new
    assert type(there_and_back(new())) is new
    with pytest.raises(ConfigError, match="notebook:Cell is an older one"):
        encode(old())


def test_state():
    counter = Counter()
    counter.n_ = 5
    assert counter.get_state() == {"n_": 5}
    again = Counter()
    again.set_state(counter.get_state())
    assert again.n_ == 5
    for name in ("other", "_private_"):
        with pytest.raises(ConfigError, match=f"{name!r} is no state of Counter"):
            again.set_state({name: 1})
