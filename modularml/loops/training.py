"""Training and validation of torch models on tensors in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

from modularml._optional import require
from modularml.backends import BackendAdapter, adapter_for
from modularml.errors import ConfigError, DataError, LossError, ShapeError, UnknownNameError
from modularml.loops.checks import check_callable, check_int, check_module, check_tensors
from modularml.loops.events import Event, NotAnEventError

CHUNK_BYTES = 4 * 2**20
CHUNK_BATCHES = 1024
FEW = 3  # batches


def iter_batches(
    *tensors: Any, batch_size: int = 1, shuffle: bool = True, generator: Any = None
) -> Iterator[tuple[Any, ...]]:
    """Yield batches of tensors that share their first axis.

    Parameters
    ----------
    *tensors : Tensor, shape (n_samples, ...)
        On one device.
    batch_size : int
        Samples per batch; the last one may be smaller.
    shuffle : bool
        Whether samples are shuffled first, with one ``torch.randperm`` on the first tensor's
        device.
    generator : torch.Generator, optional
        For ``torch.randperm``.

    Yields
    ------
    tuple of Tensor, shape (batch_size, ...)
        One for each of `tensors`: views of them without shuffling, else views of a copy
        of some thousand rows.

    Raises
    ------
    ConfigError
        If there is no tensor, or `batch_size` is less than 1.
    ShapeError
        If the tensors differ in length.

    Examples
    --------
    >>> import torch
    >>> features = torch.arange(12).reshape(6, 2)
    >>> targets = torch.arange(6)
    >>> batches = iter_batches(features, targets, batch_size=4, shuffle=False)
    >>> x_batch, y_batch = next(batches)
    >>> x_batch.shape, y_batch.shape
    (torch.Size([4, 2]), torch.Size([4]))
    """
    check_tensors("tensors", tensors)
    check_int("batch_size", batch_size, 1)
    chunks = _batches_by_chunk(tensors, batch_size, shuffle, generator)
    return (batch for _, batches in chunks for batch in batches)


def _batches_by_chunk(
    tensors: Sequence[Any], batch_size: int, shuffle: bool, generator: Any
) -> Iterator[tuple[int, Iterator[tuple[Any, ...]]]]:
    """Yield chunks of an epoch: the number of rows, and their batches.

    Rows are gathered by chunk and batches are slices of a chunk: far fewer copies than one
    gather per batch, and never a copy of everything.
    """
    n, order = len(tensors[0]), None
    # a chunk is whole batches of a few MB together; batches of one gather would share a graph,
    # which the first backward pass frees
    size = batch_size
    if not any(tensor.requires_grad for tensor in tensors):
        n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        fitting = CHUNK_BYTES // max(1, n_bytes // max(1, n) * batch_size)
        size *= max(1, min(fitting, CHUNK_BATCHES))
    if shuffle:
        randperm = require("torch", purpose="to shuffle batches").randperm
        order = randperm(n, generator=generator, device=tensors[0].device)
    for start in range(0, n, size):
        stop = min(start + size, n)
        if order is not None:
            rows = order if size >= n else order[start:stop]
            parts = [tensor.index_select(0, rows) for tensor in tensors]
        else:
            parts = [tensor[start:stop] for tensor in tensors]
        if stop - start <= batch_size:
            yield stop - start, iter((tuple(parts),))
        else:
            yield stop - start, zip(*(part.split(batch_size) for part in parts), strict=True)


class LossShapeError(LossError, ShapeError):
    """A loss is not a scalar tensor."""


def epoch_stream(
    train_data: Sequence[Any],
    model: Any,
    optimizer: Any,
    loss_fn: Callable[..., Any],
    *,
    batch_size: int = 1,
    shuffle: bool = True,
    last_label: bool = True,
    generator: Any = None,
    extra: dict[str, Any] | None = None,
    step_offset: int = 0,
) -> Iterator[Event]:
    """Train a torch model and yield one event per epoch, endlessly.

    Parameters
    ----------
    train_data : sequence of Tensor, shape (n_samples, ...)
        The arguments of `model` and, with `last_label`, the labels as the last.
    model : torch.nn.Module
        Trained in place.
    optimizer : torch.optim.Optimizer
        Optimizer of the parameters of `model`.
    loss_fn : callable
        Called as ``loss_fn(model(*inputs), labels)``; without labels as
        ``loss_fn(model(*inputs))``.
        It must return the mean over the batch, a scalar tensor.
    batch_size : int
        Samples per batch; the last one may be smaller.
    shuffle : bool
        Whether samples are reshuffled in each epoch.
    last_label : bool
        Whether the last tensor is the labels.
    generator : torch.Generator, optional
        For ``torch.randperm``.
    extra : dict, optional
        Merged into each event.
    step_offset : int
        Added to the 1-based number of the epoch.

    Yields
    ------
    Event
        ``step``, ``train_loss`` (mean over the samples of the epoch, float), ``model`` (no copy),
        and `extra`. The epoch is trained when its event is requested.

    Raises
    ------
    ConfigError, ShapeError, DataError
        If an argument is not valid; when called, before any step.
    LossError
        If the loss is not a scalar tensor, or does not depend on trainable parameters. The weights
        are unchanged then.

    Notes
    -----
    The model and all tensors must be on the same device. The model is put into training mode at
    the start of each epoch. A loss that is NaN is reported like any other.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> x = torch.tensor([[1.0], [2.0]])
    >>> y = torch.tensor([[1.0], [2.0]])
    >>> model = nn.Linear(1, 1, bias=False)
    >>> with torch.no_grad():
    ...     _ = model.weight.zero_()
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    >>> stream = epoch_stream((x, y), model, optimizer, nn.MSELoss(), batch_size=2, shuffle=False)
    >>> event = next(stream)
    >>> event["step"], event["train_loss"]
    (1, 2.5)
    """
    check_tensors("train_data", train_data, least=2 if last_label else 1)
    check_int("batch_size", batch_size, 1)
    if not len(train_data[0]):
        raise DataError("train_data must have at least one sample, got tensors of length 0")
    check_module("model", model)
    check_callable("loss_fn", loss_fn)
    if not hasattr(optimizer, "param_groups"):
        raise ConfigError(f"optimizer must be a torch optimizer, got {optimizer!r:.200}")
    loss_of = _loss_of(model, loss_fn, last_label)
    batching = (tuple(train_data), batch_size, shuffle, generator)
    added = dict(extra or {})

    def epochs() -> Iterator[Event]:
        torch = adapter_for("torch")
        for step in count(1 + step_offset):
            model.train()
            train_loss = _train(torch, batching, optimizer, loss_of)
            yield Event({"step": step, "train_loss": train_loss, "model": model, **added})

    return epochs()


def _train(
    adapter: BackendAdapter, batching: tuple[Any, ...], optimizer: Any, loss_of: Callable[..., Any]
) -> float:
    """Train for an epoch and return its mean loss.

    ::

        for each chunk of shuffled rows:
            for each batch of the chunk:
                loss, backward, step
            sum the losses of the chunk
    """
    tensors, batch_size = batching[:2]
    torch, n = require("torch"), len(tensors[0])
    on_host = tensors[0].device.type == "cpu"
    read_loss = (
        torch.Tensor.item if on_host else torch.Tensor.detach
    )  # avoids waiting for the device
    move: Callable[[], Any] = optimizer.step
    if n > FEW * batch_size:  # else building the lists of a direct step does not pay off
        move = require("modularml.backends.torch_fused_optimizers").direct_step(optimizer)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    total, checked = 0.0, False
    with torch.enable_grad():
        for n_rows, batches in _batches_by_chunk(*batching):
            losses = []
            for batch in batches:
                loss = loss_of(*batch)
                if not checked:
                    checked = _check_loss(loss, trained=True)
                for p in params:
                    p.grad = None
                loss.backward()
                move()
                losses.append(read_loss(loss))
            values = losses if on_host else adapter.floats([loss.reshape(()) for loss in losses])
            last = n_rows - batch_size * (len(values) - 1)
            total += batch_size * sum(values[:-1]) + last * values[-1]
    return total / n


def validation_loss(
    val_data: Sequence[Any],
    loss_fn: Callable[..., Any],
    *,
    key: str = "val_loss",
    last_label: bool = True,
) -> Callable[[Event], dict[str, float]]:
    """Create a function for `augment` that computes a validation loss.

    Parameters
    ----------
    val_data : sequence of Tensor, shape (n_samples, ...)
        The arguments of the model and, with `last_label`, the labels as the last. All samples are
        passed at once, not in batches.
    loss_fn : callable
        Called as ``loss_fn(model(*inputs), labels)``; without labels as
        ``loss_fn(model(*inputs))``.
    key : str
        Key of the loss in the event, a float.
    last_label : bool
        Whether the last tensor is the labels.

    Raises
    ------
    ConfigError, ShapeError
        If an argument is not valid.
    ConfigError
        When called: if the model of the event is not a module.
    LossError
        When called: if the loss is not a scalar tensor.

    Notes
    -----
    The model and all tensors must be on the same device. The model of the event is set to
    evaluation mode, and afterwards the mode of each module is restored.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> x = torch.tensor([[1.0], [3.0]])
    >>> validate = validation_loss((x, x), nn.MSELoss())
    >>> validate({"step": 1, "model": nn.Identity()})
    {'val_loss': 0.0}
    """
    check_tensors("val_data", val_data, least=2 if last_label else 1)
    check_callable("loss_fn", loss_fn)
    adapter = adapter_for("torch")

    def validate(event: Event) -> dict[str, float]:
        if not isinstance(event, Mapping):
            raise NotAnEventError(f"{event!r:.80}; put validation_loss(...) into augment(...)")
        if "model" not in event:
            raise UnknownNameError("event key", "model", event)
        model = event["model"]
        check_module("event['model']", model)
        with adapter.modes([(model, False)]), adapter.no_grad():
            loss = _loss_of(model, loss_fn, last_label)(*val_data)
        _check_loss(loss, trained=False)
        return {key: float(loss)}

    return validate


def _loss_of(model: Any, loss_fn: Callable[..., Any], last_label: bool) -> Callable[..., Any]:
    """Return a function that computes the loss of the tensors of a batch."""
    if last_label:
        return lambda *batch: loss_fn(model(*batch[:-1]), batch[-1])
    return lambda *batch: loss_fn(model(*batch))


def _check_loss(loss: Any, *, trained: bool) -> bool:
    if not hasattr(loss, "backward"):
        raise LossShapeError(
            f"loss_fn must return a scalar tensor, got a {type(loss).__name__}: {loss!r:.80}"
        )
    if loss.numel() != 1:
        raise LossShapeError(
            f"loss_fn must return a scalar tensor, got shape {tuple(loss.shape)}; "
            "take the mean over the batch"
        )
    if trained and not loss.requires_grad:
        raise LossError(
            "the loss does not depend on trainable parameters; do not detach the predictions, "
            "and make sure that a parameter of the model requires a gradient"
        )
    return True
