"""Use of rows by phases: training, model selection or reporting."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modularml._typing import IntArray
from modularml.audit.identity import shared
from modularml.audit.pairs import is_training
from modularml.data.audit_report import Finding
from modularml.data.ids import id_texts

if TYPE_CHECKING:
    from modularml.data.featureset import FeatureSet

__all__ = ["Use", "plan_leaks"]

_CHOOSING = re.compile("train|fit|val|dev|stop|tune|watch")
_WORDS = {
    "train": ("trains on", "train on other rows, or report on a split that nothing has seen"),
    "choose": (
        "stops or chooses by",
        "stop and choose by a validation split, and report on a third one",
    ),
}


@dataclass(frozen=True, eq=False)
class Use:
    """Rows that a phase of a plan uses.

    Parameters
    ----------
    phase : str
        Label.
    role : {'train', 'choose', 'test'}
        Whether weights move by them, something is chosen by them, or they are reported on.
    fs : FeatureSet
    split : str or None
        None for all rows.
    rows : ndarray of int64
    """

    phase: str
    role: str
    fs: FeatureSet
    split: str | None
    rows: IntArray


def plan_leaks(uses: Sequence[Use]) -> Iterator[Finding]:
    """Find rows that a plan reports on though it trained on them or chose by them.

    A split that is named for training or validation may be reported on beside one that is clean.
    All rows at once, without a split, are no test.
    """
    tests = [u for u in uses if u.role == "test" and u.split is not None]
    others = [u for u in uses if u.role != "test"]
    common = {
        (i, k): shared(test.fs, test.rows, other.fs, other.rows)
        for i, test in enumerate(tests)
        for k, other in enumerate(others)
    }
    clean = {i for i in range(len(tests)) if not any(len(common[i, k]) for k in range(len(others)))}
    seen = set()
    for (i, k), rows in common.items():
        test, other = tests[i], others[k]
        known_as = str(test.split)
        is_report = other.split == known_as and other.fs is test.fs
        if not len(rows) or (test.split, other.split, other.role) in seen:
            continue
        if is_report and (is_training(known_as) or (clean and _CHOOSING.search(known_as.lower()))):
            continue
        seen.add((test.split, other.split, other.role))
        does, remedy = _WORDS[other.role]
        ids = tuple(id_texts(test.fs.collection.ids[rows[:5]]).tolist())
        soft = other.role == "choose" and is_report and _CHOOSING.search(known_as.lower())
        kind, splits = f"plan_{other.role}s_on_test", (str(other.split), known_as)
        if kind in test.fs.audit_allowed:
            continue
        yield Finding(
            "warning" if soft else "error", kind, (), splits, len(rows),
            f"phase {other.phase!r} {does} {len(rows)} of the {len(test.rows)} rows of split "
            f"{known_as!r} that phase {test.phase!r} tests on; {remedy}", ids,
            measure=f"{len(rows)} rows are the same by their ids or by all that they hold",
            remedy=remedy, allow=kind,
        )  # fmt: skip
