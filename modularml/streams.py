"""Training as a stream of events: a source, stages that pass events on, and sinks.

An event is a dict, one an epoch. A stage takes an iterator of events and returns another one;
`pipe` puts stages one after another; a sink consumes the events::

    events = pipe(
        epoch_stream((x, y), model, optimizer, loss_fn, batch_size=32),
        augment(validation_loss((x_val, y_val), loss_fn)),
        ema("train_loss", half_life=5),
        tap(print_keys("train_loss_ema", "val_loss"), every=10),
        early_stop("val_loss", patience=10),
        take(500),
    )
    history = collect(events)

Everything is lazy: an epoch is trained when its event is requested.
"""

from modularml.loops.event_stages import augment, early_stop, ema, pipe, take, tap, tick
from modularml.loops.events import (
    Event,
    NotAnEventError,
    collect,
    collect_jsonl,
    collect_pd,
    print_keys,
)
from modularml.loops.training import LossShapeError, epoch_stream, iter_batches, validation_loss

__all__ = [
    "Event",
    "LossShapeError",
    "NotAnEventError",
    "augment",
    "collect",
    "collect_jsonl",
    "collect_pd",
    "early_stop",
    "ema",
    "epoch_stream",
    "iter_batches",
    "pipe",
    "print_keys",
    "take",
    "tap",
    "tick",
    "validation_loss",
]
