"""Parts of reports: numbers as text, aligned columns and bounded tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from modularml.report.blocks import Code, Facts, Section, Table, shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (True, "yes"),
        (np.int64(1234567), "1,234,567"),
        (0.000123456, "0.0001235"),
        (12.0, "12"),
        (float("inf"), "inf"),
        (["a", 2], "a, 2"),
        ((), "–"),
        ("two\n lines ", "two lines"),
        ("x" * 300, "x" * 239 + "…"),
    ],
)
def test_values_as_text(value: object, text: str) -> None:
    assert shown(value) == text


def test_numbers_of_a_column_have_the_same_decimals_if_their_sizes_are_alike() -> None:
    frame = pd.DataFrame(
        {
            "alike": [1.5, 10.25, np.nan],
            "far": [1e-7, 1.0, 1e6],
            "whole": [1.0, 2000.0, np.nan],
            "text": ["a", None, "b"],
        }
    )
    table = Table.of("t", frame)
    alike, far, whole, text = zip(*table.rows, strict=True)
    assert alike == ("1.50", "10.25", "–")
    assert far == ("1e-07", "1", "1e+06")
    assert whole == ("1", "2,000", "–")
    assert text == ("a", "–", "b")
    assert table.numeric == (True, True, True, False)


def test_a_table_says_what_it_leaves_out() -> None:
    table = Table.of("t", pd.DataFrame(np.zeros((100, 30))), "Note.", most=5)
    assert len(table.rows) == 5
    assert len(table.rows[0]) == 24
    assert table.note == "Note. The first 5 of 100 rows. The first 24 of 30 columns."


def test_long_code_is_cut_and_says_so() -> None:
    code = Code("c", "x" * 60_010)
    assert code.text.endswith("\n… 10 more letters")


def test_facts_leave_out_what_is_unknown() -> None:
    assert Facts.of(rows=3, of_them=None).pairs == (("rows", "3"),)
    assert Section("Scores, <all>!", ()).slug == "scores-all"
    assert Section("日本", ()).slug == "section"
