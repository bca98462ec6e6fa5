"""Cases in which every two options of a table meet, from a fixed seed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence

Case = dict[str, str]


def covering(
    table: Mapping[str, Sequence[str]],
    allowed: Callable[[Case], bool] = lambda case: True,
    *,
    seed: int = 0,
    tries: int = 60,
) -> list[Case]:
    """Return cases that hold every pair of options which any allowed case holds.

    Greedy: of some random allowed cases around a pair that is still missing, the one is taken that
    has most missing pairs (Cohen et al. 1997, *The AETG system*, IEEE TSE 23).
    """
    rng = random.Random(seed)
    names = list(table)
    missing = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(names, 2)
        for x in table[a]
        for y in table[b]
    }
    cases: list[Case] = []
    while missing:
        pair = min(missing)
        found = []
        for _ in range(tries):
            case = {name: rng.choice(list(table[name])) for name in names} | dict(pair)
            if allowed(case):
                found.append((len(pairs_of(case) & missing), case))
        if not found:  # no case may hold the pair
            missing.discard(pair)
            continue
        best = max(found, key=lambda item: item[0])[1]
        cases.append(best)
        missing -= pairs_of(best)
    return cases


def pairs_of(case: Case) -> set[tuple[tuple[str, str], tuple[str, str]]]:
    """Return the pairs of options that a case holds."""
    return set(itertools.combinations(case.items(), 2))


def name_of(case: Case, plain: Mapping[str, Sequence[str]]) -> str:
    """Return what is not the first option of a case, in the order of the table."""
    return "-".join(v for k, v in case.items() if v != plain[k][0]) or "plain"
