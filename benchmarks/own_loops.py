"""The small loops: a stream of events, a position, a runner, against what they stand for."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import nn

from benchmarks.loops import mlp
from benchmarks.timing import cpu_seconds, interleave, one_thread, ratio
from modularml.loop import Stream
from modularml.runner import Event, Runner
from modularml.streams import augment, epoch_stream, pipe, take, tap, tick

N_ROWS, BATCH = 20_000, 64
WORK = torch.zeros(12_000)


def own_loops(*, quick: bool = False) -> list[dict[str, Any]]:
    """Measure all of them; ``value`` is a ratio, or microseconds."""
    one_thread()
    repeats = 2 if quick else 5
    return [_epoch_stream(repeats, 2_000 if quick else N_ROWS), *_loops(repeats), _pipe(repeats)]


def _epoch_stream(repeats: int, n: int) -> dict[str, Any]:
    x, y = torch.randn(n, 16), torch.randn(n, 1)
    loss_fn = nn.MSELoss()

    def by_hand() -> None:
        model = mlp()
        optimizer = torch.optim.Adam(model.parameters())
        for _ in range(2):
            order, total = torch.randperm(n), 0.0
            for at in range(0, n, BATCH):
                rows = order[at : at + BATCH]
                optimizer.zero_grad()
                loss = loss_fn(model(x.index_select(0, rows)), y.index_select(0, rows))
                loss.backward()
                optimizer.step()
                total += loss.item() * len(rows)

    def ours() -> None:
        model = mlp()
        optimizer = torch.optim.Adam(model.parameters())
        _exhaust(islice(epoch_stream((x, y), model, optimizer, loss_fn, batch_size=BATCH), 2))

    times = interleave({"hand": by_hand, "ours": ours}, repeats=repeats)
    return _row("epoch_stream / hand-written loop, MLP, batch 64", ratio(times, "ours"), 1.0)


def _loops(repeats: int) -> Iterable[dict[str, Any]]:
    items = range(2_000)

    def body(_: Any) -> None:
        """Take about 50 microseconds, as a small step does."""
        for _ in range(10):
            WORK.add_(1.0)

    def bare() -> None:
        for item in items:
            body(item)

    def stream() -> None:
        for item in Stream(items).data():
            body(item)

    def runner() -> None:
        made = Runner()
        made.on(Event.BATCH, body)
        made.run(items)

    times = interleave({"hand": bare, "Stream": stream, "Runner": runner}, repeats=2 * repeats + 1)
    for name in ("Stream", "Runner"):
        yield _row(f"{name} / bare for, body of about 50 us", ratio(times, name), 1.02)


def _pipe(repeats: int) -> dict[str, Any]:
    n = 20_000
    stages = [tick(int), *[augment(lambda event: {"a": 1})] * 4, *[tap(len)] * 4, take(n)]

    def run() -> None:
        _exhaust(pipe(({"step": i} for i in range(n)), *stages))

    best = min(cpu_seconds(run) for _ in range(repeats + 1))
    return _row("a pipe of ten stages, us an event", 1e6 * best / n, 5.0)


def _exhaust(items: Iterable[Any]) -> None:
    for _ in items:
        pass


def _row(work: str, value: float, limit: float) -> dict[str, Any]:
    return {"work": work, "value": value, "limit": limit, "ok": value <= limit}
