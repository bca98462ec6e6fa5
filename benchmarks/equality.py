"""The same numbers as the hand-written loop: losses within noise, weights to 1e-5."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.cases import DATA, N_ROWS
from benchmarks.loops import HandJob
from benchmarks.ours import OurJob

KINDS = ("mlp", "cnn", "fusion", "frozen")
SEEDS = 4


def sgd_weights(kind: str, *, n_rows: int) -> dict[str, Any]:
    """Compare all weights after two epochs of SGD without shuffling."""
    data = DATA[kind](n_rows)
    hand = HandJob(kind, data, batch_size=64, sgd=True)
    start = hand.weights()
    ours = OurJob(kind, data, batch_size=64, sgd=True, shuffle=False).build(start)
    hand.run(2, shuffle=False)
    ours.run(2)
    apart = distance(ours.weights(), hand.weights())
    moved = distance(start, hand.weights())
    assert moved > 1e-3, f"the hand-written loop for {kind} has learned nothing"
    return {"work": f"weights after 2 epochs of SGD, {kind}", "value": apart, "limit": 1e-5}


def distance(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    """Return the largest difference between two lists of weights."""
    return max((a - b).detach().abs().max().item() for a, b in zip(one, other, strict=True))


def final_loss(kind: str, *, n_rows: int, epochs: int) -> dict[str, Any]:
    """Compare the last epoch's loss, both from the same weights.

    Orders of rows differ, and so do losses: the hand-written loop runs with several seeds, and
    ours may lie as far from their mean as four standard deviations of theirs (and 1 % beside,
    since few seeds estimate a deviation poorly).
    """
    data = DATA[kind](n_rows)
    by_hand = []
    for seed in range(SEEDS):
        hand = HandJob(kind, data, batch_size=64)
        start = hand.weights()
        torch.manual_seed(seed)
        by_hand.append(hand.run(epochs)[-1])
    found = OurJob(kind, data, batch_size=64).build(start).run(epochs)[-1]
    mean, noise = statistics.mean(by_hand), statistics.stdev(by_hand)
    return {
        "work": f"final loss after {epochs} epochs, {kind}",
        "value": abs(found - mean),
        "limit": 4 * noise + 0.01 * mean,
        "ours": found,
        "hand": mean,
    }


def equality(*, quick: bool = False) -> list[dict[str, Any]]:
    """Return one row a comparison; ``ok`` tells whether it holds."""
    n_rows = 1_000 if quick else N_ROWS // 2
    kinds = ("mlp",) if quick else KINDS
    rows = [sgd_weights(kind, n_rows=n_rows) for kind in KINDS]
    rows += [final_loss(kind, n_rows=n_rows, epochs=2 if quick else 4) for kind in kinds]
    return [{**row, "ok": row["value"] <= row["limit"]} for row in rows]
