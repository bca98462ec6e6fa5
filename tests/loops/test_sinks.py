"""Sinks: what is kept, what is written, and when a stream is closed."""

import io
import json

import pandas as pd
import pytest

from modularml.errors import ConfigError
from modularml.streams import collect, collect_jsonl, collect_pd

MODEL = object()


def stream():
    for step in (1, 2):
        yield {"step": step, "loss": step / 2, "model": MODEL}


def written(events, **kw):
    buffer = io.StringIO()
    assert collect_jsonl(events, buffer, **kw) is None
    return [json.loads(line) for line in buffer.getvalue().splitlines()]


SINKS = {
    "collect": collect,
    "collect_pd": lambda events, **kw: collect_pd(events, **kw).to_dict("records"),
    "collect_jsonl": written,
}


@pytest.mark.parametrize("sink", SINKS.values(), ids=SINKS)
def test_what_is_kept(sink):
    assert sink(stream()) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}]
    assert sink(stream(), include=["loss", "none"]) == [{"loss": 0.5}, {"loss": 1.0}]
    assert sink(stream(), exclude=("model", "loss")) == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("exclude", [None, [], ["step"]])
def test_exclude_only_omits(exclude):
    kept = {"step", "loss"} - set(exclude or ())
    assert {*collect(stream(), exclude=exclude)[0]} == kept
    collect_jsonl(stream(), io.StringIO(), exclude=exclude)
    assert {*collect_pd(stream(), exclude=exclude).columns} == kept


def test_the_model_is_there_where_it_is_included():
    assert collect(stream(), include=["model"])[0] == {"model": MODEL}


def test_events_are_copied():
    event = {"step": 1}
    (row,) = collect([event])
    assert row == event
    assert row is not event


@pytest.mark.parametrize("sink", SINKS.values(), ids=SINKS)
def test_both_selections_are_refused_before_anything_is_drawn(sink):
    events = stream()
    with pytest.raises(ValueError, match="only one of include and exclude"):
        sink(events, include=["step"], exclude=["loss"])
    assert next(events)["step"] == 1
    with pytest.raises(ConfigError, match="sequence of str"):
        sink(events, include="step")


def test_a_file_is_overwritten_and_its_folder_made(tmp_path):
    path = tmp_path / "runs" / "my_experiment.jsonl"
    for _ in range(2):
        collect_jsonl(stream(), path, include=["step"])
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    collect_jsonl([], str(path))
    assert path.read_text() == ""


def test_lines_are_written_as_events_come(tmp_path):
    path, seen = tmp_path / "log.jsonl", []

    def watched():
        for event in stream():
            seen.append(path.read_text().count("\n"))
            yield event

    collect_jsonl(watched(), path)
    assert seen == [0, 1]


def test_what_is_no_json_says_what_to_do(tmp_path):
    events = stream()
    with pytest.raises(TypeError) as caught:
        collect_jsonl(events, tmp_path / "log.jsonl", include=["model"])
    assert "exclude=" in caught.value.__notes__[0]
    assert list(events) == []  # closed


def test_no_events_give_an_empty_frame():
    assert collect_pd([]).empty
    assert list(collect_pd([], include=["step"]).columns) == ["step"]


def test_a_frame_has_a_row_an_event():
    frame = collect_pd([{"a": 1}, {"a": 2, "b": 3}])
    pd.testing.assert_frame_equal(frame, pd.DataFrame({"a": [1, 2], "b": [None, 3.0]}))


def test_without_pandas_nothing_is_drawn(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    events = stream()
    with pytest.raises(ImportError, match="pandas"):
        collect_pd(events)
    assert next(events)["step"] == 1
