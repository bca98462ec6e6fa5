"""The registry: names in any case, closest names, late loading."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modularml._registry import Registry
from modularml.errors import RegistrationError, UnknownNameError, closest


@given(st.dictionaries(st.text(alphabet="abcXYZ", min_size=1), st.integers(), min_size=1))
def test_like_a_dict_that_ignores_case(entries):
    plain = {name.casefold(): (name, value) for name, value in entries.items()}
    registry = Registry("thing")
    for name, value in entries.items():
        registry.register(name, value, overwrite=True)
    assert len(registry) == len(plain)
    for name, value in plain.values():
        assert registry[name] == registry[name.swapcase()] == value
        assert name.upper() in registry
    assert set(registry) == {name for name, _ in plain.values()}


def test_names_that_are_taken():
    registry = Registry("colour", {"Red": 1})
    assert registry.register("red", 1) == 1
    assert list(registry) == ["red"]
    with pytest.raises(RegistrationError, match=r"colour name 'RED' is taken by 1.*overwrite=True"):
        registry.register("RED", 2)
    assert registry["red"] == 1
    registry.register("RED", 2, overwrite=True)
    assert dict(registry) == {"RED": 2}
    assert (registry.name_of(2), registry.name_of(1)) == ("RED", None)
    assert repr(registry) == "Registry('colour', ['RED'])"


def test_unknown_names():
    registry = Registry("colour", {"Red": 1, "Green": 2})
    with pytest.raises(
        UnknownNameError, match="unknown colour 'grean'; did you mean 'Green'"
    ) as caught:
        registry["grean"]
    assert isinstance(caught.value, KeyError)
    assert str(caught.value).startswith("unknown")
    assert registry.get("grean") is None
    assert 3 not in registry
    with pytest.raises(UnknownNameError, match="there are none"):
        Registry("colour")["x"]


def test_entries_that_are_loaded_late():
    calls = []

    def loader(name, cls):
        return lambda: calls.append(name) or cls

    late = {cls.__name__: loader(cls.__name__, cls) for cls in (int, str, float)}
    registry = Registry("thing", {"int": bool}, late=late)
    assert "STR" in registry
    assert list(registry) == ["int", "str", "float"]
    assert registry["INT"] is bool
    assert registry.name_of(object()) is None
    assert registry.is_late("str")
    assert not calls
    assert registry["str"] is str
    assert registry.name_of(str) == "str"
    assert not registry.is_late("str")
    assert calls == ["str"]
    registry.register("FLOAT", complex, overwrite=True)
    assert (registry["float"], registry.name_of(float), calls) == (complex, None, ["str"])


def test_loading_that_fails_is_tried_again():
    answers = [ImportError("not yet"), 1]

    def load():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    registry = Registry("thing", late={"Late": load})
    with pytest.raises(ImportError, match="not yet"):
        registry["late"]
    assert registry["late"] == 1


def test_closest():
    assert closest("x", []) == "there are none"
    assert closest("zzz", ["a", "b"]) == "known: 'a', 'b'"
    assert closest("MSELOS", ["MSELoss", "Huber"]) == "did you mean 'MSELoss'?"
    assert closest("q", [str(i) for i in range(50)]).endswith(", ...")


def test_threads_that_ask_first_at_the_same_time_all_find_the_entries():
    def load():
        started.set()
        go.wait(5)
        return 1

    started, go = threading.Event(), threading.Event()
    colours = Registry("colour", late={"Red": load})
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(colours.__getitem__, "red")
        started.wait(5)
        second = pool.submit(colours.__getitem__, "red")
        threading.Timer(0.05, go.set).start()
        assert first.result(5) == second.result(5) == 1
