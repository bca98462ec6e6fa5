"""Runs of one framework, in an order that can be kept."""

import graphlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modularml.backends import Backend
from modularml.graph.topology import in_segments

KINDS = {"t": Backend.TORCH, "f": Backend.TENSORFLOW, "s": Backend.SCIKIT}


def grouped(text, ties=()):
    """Group nodes of a text such as ``t1 s1<t1 t2<s1``; the letter is the framework."""
    parts = [part.partition("<") for part in text.split()]
    edges = {name: above.split(",") if above else [] for name, _, above in parts}
    backends = {name: KINDS[name[0]] for name in edges}
    return in_segments(list(edges), edges, backends, ties)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("t1 t2<t1", ["t1 t2"]),
        ("t1 s1<t1 t2<s1", ["t1", "s1", "t2"]),
        ("t1 s1 t2<t1,s1", ["s1", "t1 t2"]),  # the estimator first, so that t1 learns from t2
        ("t1 t3 s1<t1 t2<s1,t3 t4<t3", ["t1", "s1", "t3 t2 t4"]),
        ("t1 s1<t1 t2<t1", ["t1 t2", "s1"]),
        ("t1 f1<t1 s1<f1 s2", ["t1 s2", "f1", "s1"]),
        ("t1 s1<t1 t2<s1,t1", ["t1", "s1", "t2"]),  # no order spares the edge from t1 to t2
    ],
)
def test_segments(text, expected):
    found = [set(segment) for segment in grouped(text)]
    wanted = [set(segment.split()) for segment in expected]
    if text.endswith("s2"):  # independent nodes of one depth may stand in either order
        assert {i for part in found[:2] for i in part} == {"t1", "s2"}
        assert found[2:] == [{"f1"}, {"s1"}]
    else:
        assert found == wanted


def test_a_loss_joins_what_it_reads():
    assert grouped("t1 t2 s1<t2", [["t1", "t2"]]) == [["t1", "t2"], ["s1"]]
    assert grouped("t1 t2 s1<t2", [["t1", "s1"]]) == [["t2"], ["s1"], ["t1"]]
    with pytest.raises(graphlib.CycleError):
        grouped("t1 s1<t1", [["t1", "s1"]])


@given(st.data())
def test_everything_runs_once_and_after_what_it_reads(data):
    n = data.draw(st.integers(1, 12))
    ids = [data.draw(st.sampled_from("tfs")) + str(i) for i in range(n)]
    edges = {
        i: data.draw(st.lists(st.sampled_from(ids[:k]), unique=True)) if k else []
        for k, i in enumerate(ids)
    }
    segments = in_segments(ids, edges, {i: KINDS[i[0]] for i in ids})
    order = [i for segment in segments for i in segment]
    assert sorted(order) == sorted(ids)
    assert all(len({i[0] for i in segment}) == 1 for segment in segments)
    assert all(order.index(a) < order.index(i) for i in ids for a in edges[i])
