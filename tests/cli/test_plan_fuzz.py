"""Plans with random mistakes: each is run, or refused with its position."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modularml.cli import main
from modularml.io.yamltext import dump_yaml, load_marked
from tests.cli import plans
from tests.fuzz.share import SEED, SHARE

FOLDS = "folds: {bindings: [{fs: cells, source_splits: [train, val], group_by: cell}]}\n"
SWEEP = "sweep: {space: {graph.optimizer.lr: {log_float: [1e-4, 0.1]}}, n_trials: 2, seed: 1}\n"
VALUES: list[Any] = [None, True, 0, -1, 1e9, float("nan"), "", "x", "cells", "net", "train", [], {}]
VALUES += [[1, 2], ["x"], {"a": 1}, {"$code": "os:system"}, {"$tuple": [1]}, {"$dict": [[1, 2]]}]
VALUES += [{"$enum": "a:b", "value": 1}, {"$array": "zz", "dtype": "f4", "shape": [1]}]
VALUES += [{"$type": name, "params": {}} for name in ("SimpleSampler", "EvalPhase", "Nobody")]
VALUES += [{"$type": "SimpleSampler"}]


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def mutated(tree: Any, rng: random.Random) -> Any:
    tree = copy.deepcopy(tree)
    path = rng.choice(list(places(tree)))
    holder = tree
    for key in path[:-1]:
        holder = holder[key]
    what = rng.choice(["set", "set", "delete", "add"])
    if what == "set":
        holder[path[-1]] = copy.deepcopy(rng.choice(VALUES))
    elif what == "delete":
        del holder[path[-1]]
    elif isinstance(holder, dict):
        holder[rng.choice(["x", "label", "$type", 3])] = copy.deepcopy(rng.choice(VALUES))
    else:
        holder.append(copy.deepcopy(holder[path[-1]]))
    return tree


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_random_mistakes_are_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    plans.write_table(tmp_path)
    rng = random.Random(SEED)
    bases = [load_marked(extra + plans.PLAN)[0] for extra in ("", FOLDS, SWEEP)]
    statuses = []
    for _ in range(max(60, int(600 * SHARE))):
        tree = mutated(rng.choice(bases), rng)
        with contextlib.suppress(TypeError):  # a tag without arguments is none
            Path("plan.yaml").write_text(dump_yaml(tree))
        statuses.append(main(["run", "plan.yaml", "--dry-run"]))
        said = capsys.readouterr().err
        assert said.startswith("modularml: ") or statuses[-1] == 0
    assert set(statuses) == {0, 2}
