"""TensorFlow training steps: plain ones, and those with `StepOptions`."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import tensorflow as tf

from modularml._private.keras import all_layers
from modularml.backends.base import Compute, NotFiniteError, Step
from modularml.backends.step_options import StepOptions
from modularml.backends.tensorflow_optimizers import LossScale, trained
from modularml.errors import LossError

logger = logging.getLogger(__name__)

_MARK, ROWS = "modularml loss ", "modularml rows: "


def any_rows(run: Callable[..., Any], n_scalars: int = 0) -> Callable[..., Any]:
    """Return a function as one graph, traced once for any number of rows.

    The first `n_scalars` arguments are scalars; axis 0 of all others is rows.
    """
    graph = tf.function(run, autograph=False)
    traced: list[Any] = []

    def call(*tensors: Any) -> Any:
        if not traced:  # later calls reuse this trace
            rows = [tf.TensorSpec((None, *t.shape[1:]), t.dtype) for t in tensors[n_scalars:]]
            traced.append(graph.get_concrete_function(*tensors[:n_scalars], *rows))
        return graph(*tensors)

    return call


def several_steps(
    gradients: Callable[[Sequence[Any]], tuple[Any, ...]],
    update: Callable[[Sequence[Any]], None],
    *,
    compiles: bool,
) -> Callable[..., tuple[list[Any], list[Any]] | None]:
    """Return a function that trains on several batches of one shape in one call.

    Parameters
    ----------
    gradients : callable
        Returns losses, outputs and gradients of a batch.
    update : callable
        Updates the weights with gradients.
    compiles : bool
        Whether XLA compiles it.

    Returns
    -------
    callable
        Takes the inputs of each batch, and losses and outputs of one of this shape that has run, if
        one has; returns losses and outputs of each. A batch whose losses are not finite is the
        last, and does not update the weights. It returns None, and changes nothing, if a model
        cannot be traced so.
    """
    known: dict[Any, tuple[int, Any]] = {}  # the most batches of a call, and its graph

    def traced(inputs: Sequence[Any], like: Sequence[Any] | None, most: int) -> Any:
        kinds = [tf.TensorSpec(t.shape, t.dtype) for t in inputs]
        several = [tf.TensorSpec((most, *t.shape), t.dtype) for t in inputs]
        try:
            if like is None:
                forward = tf.function(lambda *inputs: gradients(inputs)[:2], autograph=False)
                like = forward.get_concrete_function(*kinds).structured_outputs
            run = partial(_loop, gradients, update, like)
            graph = tf.function(run, autograph=False, jit_compile=compiles or None)
            graph.get_concrete_function(tf.TensorSpec((), tf.int32), several)
        except Exception as error:  # noqa: BLE001 - of any layer that no loop can hold
            reason = str(error).strip().partition("\n")[0]
            logger.info("note: batches are trained one a call: %s", reason)
            return None
        return graph

    def call(inputs: Sequence[Sequence[Any]], like: Sequence[Any] | None) -> Any:
        n, shapes = len(inputs), tuple(t.shape for t in inputs[0])
        if n > known.get(shapes, (0, None))[0]:
            most = n + 1 + n // 16  # of epochs whose first batch has not run before
            if like is not None:
                like = [[tf.TensorSpec(t.shape, t.dtype) for t in part] for part in like]
            known[shapes] = most, traced(inputs[0], like, most)
        most, graph = known[shapes]
        if graph is None:
            return None
        filled = [*inputs, *[inputs[-1]] * (most - n)]
        stacked = [tf.raw_ops.Pack(values=list(slot)) for slot in zip(*filled, strict=True)]
        n, losses, outputs = graph(tf.constant(n), stacked)
        n = int(n)
        rows = zip(*(loss.numpy().tolist() for loss in losses), strict=True)
        parts = zip(*(tf.unstack(out) for out in outputs), strict=True)
        return list(rows)[:n], list(parts)[:n]

    return call


def _loop(
    gradients: Callable[[Sequence[Any]], tuple[Any, ...]],
    update: Callable[[Sequence[Any]], None],
    like: Sequence[Any],
    n: Any,
    stacked: Sequence[Any],
) -> Any:
    """Train on the first n of stacked batches; see `several_steps`."""
    most, n_losses = stacked[0].shape[0], len(like[0])

    def one(i: Any, is_finite: Any, arrays: Any) -> Any:
        losses, outputs, grads = gradients([slot[i] for slot in stacked])
        is_finite = tf.reduce_all([tf.math.is_finite(loss) for loss in losses])

        def move() -> Any:
            update(grads)
            return i + 1

        with tf.control_dependencies([tf.cond(is_finite, move, lambda: i)]):
            values = zip(arrays, (*losses, *outputs), strict=True)
            return i + 1, is_finite, [a.write(i, v) for a, v in values]

    tensors = [t for part in like for t in part]
    arrays = [tf.TensorArray(t.dtype, most, element_shape=t.shape) for t in tensors]
    i, _, arrays = tf.while_loop(
        lambda i, is_finite, _: is_finite & (i < n), one, (0, tf.constant(True), arrays)
    )
    tables = [a.stack() for a in arrays]
    return i, tables[:n_losses], tables[n_losses:]


def called(run: Callable[..., Any]) -> Step:
    """Return a function as one graph; failed checks become errors of losses."""
    graph = any_rows(run)

    def step(inputs: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        try:
            losses, outputs = graph(*inputs)
        except tf.errors.InvalidArgumentError as error:
            if ROWS in error.message:
                problem = error.message.split(ROWS)[1].split("] [")[0].replace("\\'", "'")
                raise LossError(problem) from None
            match = re.search(rf"{_MARK}(\d+) : Tensor had (.*) values", error.message)
            if match is None:
                raise
            value = {"-Inf": -math.inf, "+Inf": math.inf}.get(match[2], math.nan)
            raise NotFiniteError(int(match[1]), value) from None
        return losses, outputs

    return step


class PlainStep:
    """A training step without options, and one of several batches of one shape in one call.

    Parameters
    ----------
    compute : Compute
    optimizers : sequence
    scale : callable or None
        Of an optimizer that scales the loss.
    compiles : bool
        Whether XLA compiles the call of several batches.
    """

    def __init__(
        self, compute: Compute, optimizers: Sequence[Any], scale: Any, *, compiles: bool
    ) -> None:
        trainable = [[v for v in trained(o) if v.trainable] for o in optimizers]
        watched = [v.value for variables in trainable for v in variables]
        self._error: NotFiniteError | None = None

        def gradients(inputs: Sequence[Any]) -> tuple[Any, ...]:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(watched)
                total, losses, outputs = compute(inputs)
                total = total if scale is None else scale(total)
            return losses, outputs, tape.gradient(total, watched)

        def update(grads: Sequence[Any]) -> None:
            left = iter(grads)
            for optimizer, variables in zip(optimizers, trainable, strict=True):
                pairs = [(g, v) for v in variables if (g := next(left)) is not None]
                if pairs:
                    optimizer.apply(*map(list, zip(*pairs, strict=True)))

        def run(*inputs: Any) -> Any:
            losses, outputs, grads = gradients(inputs)
            check = tf.raw_ops.CheckNumericsV2  # fails if a loss is not finite
            checked = [check(tensor=t, message=f"{_MARK}{i}") for i, t in enumerate(losses)]
            with tf.control_dependencies(checked):
                update(grads)
            return losses, outputs

        self._step, self._several = called(run), several_steps(gradients, update, compiles=compiles)

    def __call__(self, inputs: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        """Compute the losses of a batch, and update the weights."""
        if self._error is not None:  # of this batch, whose losses are known
            error, self._error = self._error, None
            raise error
        return self._step(inputs)

    def several(
        self, inputs: Sequence[Sequence[Any]], like: Sequence[Any] | None
    ) -> tuple[Sequence[Any], Sequence[Any]] | None:
        """Return losses and outputs of each batch, up to one whose losses are not finite.

        The next call of the step, for that batch, raises its error. None if it is not supported.
        """
        done = self._several(inputs, like)
        if done is None:
            return None
        losses, outputs = done
        for place, value in enumerate(losses[-1]):
            if not math.isfinite(value):
                self._error = NotFiniteError(place, value)
                return losses[:-1], outputs[:-1]
        return losses, outputs


def clipped(grads: Sequence[Any], norm: float | None, value: float | None) -> tuple[list[Any], Any]:
    """Return gradients clipped by value, then by norm, and the norm before."""
    if value is not None:
        grads = [tf.clip_by_value(g, -value, value) for g in grads]
    total = tf.linalg.global_norm(list(grads))
    if norm is not None:
        dense = [tf.convert_to_tensor(g) for g in grads]  # as Keras does before clipping
        grads = tf.clip_by_global_norm(dense, norm, use_norm=total)[0]
    return list(grads), total


def in_precision(compute: Compute, options: StepOptions) -> Compute:
    """Return a computation whose float32 layers compute in half precision.

    The policies of layers are changed while a step is traced and restored afterwards. Weights and
    outputs of models stay float32.
    """
    policy = {"bf16": "mixed_bfloat16", "fp16": "mixed_float16"}[options.precision]

    def run(inputs: Sequence[Any]) -> Any:
        layers = [la for m in options.models for la in all_layers(m.inner)]
        plain = [(la, la.dtype_policy) for la in layers if la.compute_dtype == "float32"]
        try:
            for model in options.models:
                model.output_dtype = tf.float32
            for layer, _ in plain:
                layer.dtype_policy = policy
            return compute(inputs)
        finally:
            for layer, before in plain:
                layer.dtype_policy = before
            for model in options.models:
                model.output_dtype = None

    return run


class ExtendedStep:
    """A step with `StepOptions`; gradients are one graph, the update another.

    See `modularml.backends.torch_step.ExtendedStep` for `closing` and `sizes`.
    """

    closing = False
    sizes: tuple[float, float] | None = None

    def __init__(self, compute: Compute, optimizers: Sequence[Any], options: StepOptions) -> None:
        self.options, self.optimizers = options, list(optimizers)
        self.owned = [[v for v in trained(o) if v.trainable] for o in optimizers]
        self.clips = options.clips or [(None, None)] * len(self.optimizers)
        watched = [v.value for variables in self.owned for v in variables]

        def gradients(weight: Any, *inputs: Any) -> Any:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(watched)
                total, losses, outputs = compute(inputs)
                total = total * tf.cast(weight, total.dtype)
            return losses, outputs, tape.gradient(total, watched)

        self.gradients = any_rows(gradients, 1)
        scaled = options.precision == "fp16" or options.scale_loss
        self.scale = LossScale.of(self.optimizers[0]) if scaled else None
        self.begin()

    @property
    def _factor(self) -> float:
        return 1.0 if self.scale is None else self.scale.scale

    def begin(self) -> None:
        """Begin an epoch; discard gradients that were not applied."""
        self.held: list[Any] | None = None
        self.n_batches, self.first, self.rows = 0, 1.0, 0.0

    def end(self) -> None:
        """End an epoch."""

    def __call__(self, inputs: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        """Compute the losses of a batch, and update the weights if due."""
        n = self.sizes[0] if self.sizes is not None else len(inputs[0])
        if not self.n_batches:
            self.first = n or 1.0
        weight = n / self.first
        losses, outputs, grads = self.gradients(tf.constant(weight * self._factor), *inputs)
        values = [float(loss) for loss in losses]
        wrong = next((i for i, v in enumerate(values) if not math.isfinite(v)), None)
        if wrong is None:
            before = self.held or [None] * len(grads)
            self.held = [_sum(a, b) for a, b in zip(before, grads, strict=True)]
            self.n_batches, self.rows = self.n_batches + 1, self.rows + n
        elif self.options.on_nonfinite != "skip":
            raise NotFiniteError(wrong, values[wrong])
        if self.n_batches and (self.closing or self.n_batches == self.options.accumulate):
            self._move()
        return losses, outputs

    def _move(self) -> None:
        weight = (self.rows / self.first or 1.0) * self._factor
        grads = iter(self.held or ())
        self.begin()
        moves = []
        for optimizer, own_variables, limits in zip(
            self.optimizers, self.owned, self.clips, strict=True
        ):
            pairs = [
                (_scaled(g, 1 / weight), v) for v in own_variables if (g := next(grads)) is not None
            ]
            if self.options.squares is not None:
                values = [getattr(g, "values", g) for g, _ in pairs]
                squares = [float(tf.reduce_sum(tf.cast(v, tf.float64) ** 2)) for v in values]
                self.options.squares.record([v for _, v in pairs], squares)
            clipped_grads, norm = clipped([g for g, _ in pairs], *limits)
            watched = any(limits) or self.options.on_nonfinite != "raise" or self.scale
            if watched and not math.isfinite(float(norm)):
                if self.scale is not None:
                    self.scale.update(sound=False)
                elif self.options.on_nonfinite != "skip":
                    raise NotFiniteError(0, float(norm), "gradient")
                return
            moves.append((optimizer, clipped_grads, [v for _, v in pairs]))
        for optimizer, clipped_grads, variables in moves:
            if variables:
                optimizer.apply(clipped_grads, variables)
        if self.scale is not None:
            self.scale.update(sound=True)
        for schedule in self.options.schedules:
            schedule.step()


def _sum(a: Any, b: Any) -> Any:
    if a is None or b is None:
        return b if a is None else a
    if not isinstance(a, tf.IndexedSlices) or not isinstance(b, tf.IndexedSlices):
        return tf.convert_to_tensor(a) + tf.convert_to_tensor(b)
    values, rows = ([getattr(g, name) for g in (a, b)] for name in ("values", "indices"))
    return tf.IndexedSlices(tf.concat(values, 0), tf.concat(rows, 0), a.dense_shape)


def _scaled(grad: Any, factor: float) -> Any:
    """Multiply a gradient; sparse ones, as of an Embedding, stay sparse."""
    if isinstance(grad, tf.IndexedSlices):
        return tf.IndexedSlices(grad.values * factor, grad.indices, grad.dense_shape)
    return grad * factor
