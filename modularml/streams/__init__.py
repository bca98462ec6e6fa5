"""Training as a stream of events: a source, stages that pass events on, and sinks.

An event is a dict, one an epoch. A stage takes an iterator of events and returns another one;
`pipe` puts stages one after another; a sink uses the events up::

    events = pipe(
        epoch_stream((x, y), model, optimizer, loss_fn, batch_size=32),
        augment(validation_loss((x_val, y_val), loss_fn)),
        ema("train_loss", half_life=5),
        tap(print_keys("train_loss_ema", "val_loss"), every=10),
        early_stop("val_loss", patience=10),
        take(500),
    )
    history = collect(events)

Everything is lazy: an epoch is trained when somebody asks for its event.
"""

from modularml.streams.batching import iter_batches
from modularml.streams.events import Event, NotAnEventError
from modularml.streams.metrics import early_stop, ema
from modularml.streams.printing import print_keys
from modularml.streams.sinks import collect, collect_jsonl, collect_pd
from modularml.streams.stages import augment, pipe, take, tap, tick
from modularml.streams.training import LossShapeError, epoch_stream, validation_loss

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
