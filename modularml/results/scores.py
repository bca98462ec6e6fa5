"""Lookup of scores by name, in scikit-learn and torchmetrics; those of survival models."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from modularml._optional import has, require
from modularml._private.sklearn import scorer_parts
from modularml._typing import Array
from modularml.backends import adapter_for
from modularml.errors import ConfigError, ModularMLError, UnknownNameError, expect


def concordance_index(true: Array, out: Array) -> float:
    """Return Harrell's concordance index of predicted times.

    Parameters
    ----------
    true : ndarray, shape (n,) or (n, 2)
        Times, or times and whether the event was observed (1) or censored (0).
    out : ndarray, shape (n,) or (n, 1)
        Predicted times, or any number that is greater for later events.

    Returns
    -------
    float
        Share of comparable pairs in the right order, 0 to 1; equal predictions count half. 0.5 is
        chance. A pair is comparable if the earlier time is an observed event; of equal times, an
        observed event is before a censored one.

    Raises
    ------
    ValueError
        If no pair is comparable, an event is neither 0 nor 1, or a number is NaN.

    Notes
    -----
    Harrell, Califf, Pryor, Lee & Rosati 1982, *Evaluating the yield of medical tests*, JAMA 247.

    Examples
    --------
    >>> import numpy as np
    >>> concordance_index(np.array([[1, 1], [2, 0], [3, 1]]), np.array([2.0, 1.0, 3.0]))
    0.5
    """
    wide, predicted = true.reshape(len(true), -1).astype(np.float64), out.astype(np.float64)
    if wide.shape[1] not in (1, 2) or predicted.size != len(true):
        raise ValueError(
            "targets must be times, or times and events (two columns), and outputs one number per "
            f"row, got shapes {true.shape} and {out.shape}"
        )
    time, predicted = wide[:, 0], predicted.ravel()
    event = wide[:, 1] if wide.shape[1] == 2 else np.ones(len(time))
    if not np.isin(event, (0, 1)).all():
        raise ValueError("the second target column must be 1 for observed events, else 0")
    if np.isnan(time).any() or np.isnan(predicted).any():
        raise ValueError("times and outputs must not be NaN")
    right, pairs = 0.0, 0
    for i in np.flatnonzero(event):
        later = (time > time[i]) | ((time == time[i]) & (event == 0))
        pairs += int(later.sum())
        is_equal = predicted[later] == predicted[i]
        right += (predicted[later] > predicted[i]).sum() + 0.5 * is_equal.sum()
    if not pairs:
        raise ValueError("no two rows are comparable")
    return float(right / pairs)


def risk_concordance_index(true: Array, out: Array) -> float:
    """Return Harrell's concordance index of predicted risks, which are greater for early events.

    The outputs of a Cox model are such risks; see `concordance_index`.
    """
    return concordance_index(true, -out.astype(np.float64))


Meaning: TypeAlias = Literal["auto", "values", "logits", "probabilities"]
Score: TypeAlias = Callable[[Array, Array], float]
"""Maps targets and outputs, both of shape (n, ...), to a number."""
Metrics: TypeAlias = str | Score | Sequence[str | Score] | Mapping[str, str | Score]
"""Names of scores, functions of targets and outputs, several of these, or functions by name."""

_SHORT = {
    "brier": "brier_score_loss",
    "mae": "mean_absolute_error",
    "mse": "mean_squared_error",
    "rmse": "root_mean_squared_error",
}
_ERRORS = (
    "mean_absolute_error",
    "root_mean_squared_error",
    "median_absolute_error",
    "max_error",
)
"""Scores in the unit of the targets."""
_SHARES = ("accuracy", "f1", "auc", "precision", "recall", "r2", "explained_variance", "_index")
"""Parts of names of scores without a unit."""
_OWN = {f.__name__: f for f in (concordance_index, risk_concordance_index)}
_DIRECTIONS = {
    **dict.fromkeys(("loss", "error", "err", "nll", "mape", "perplexity"), False),
    **dict.fromkeys(("acc", "auc", "auroc", "mcc", "kappa", "cohen_kappa_score", "iou"), True),
    **dict.fromkeys(_OWN, True),
    **dict.fromkeys(("dice", "c_index", "cindex", "pearson", "spearman", "corr", "ssim"), True),
}
"""Whether greater is better, for common names of user-defined metrics."""


def find_score(
    score: str | Callable[..., float],
    options: Mapping[str, Any] | None = None,
    meaning: Meaning = "auto",
) -> Score:
    """Return the score function of a name.

    Parameters
    ----------
    score : str or callable
        A scorer of scikit-learn (``"r2"``, ``"accuracy"``, ``"neg_mean_squared_error"``), a
        function of `sklearn.metrics` (``"mean_absolute_error"``, or ``"mae"``, ``"mse"``,
        ``"rmse"`` and ``"brier"`` for short), a class of `torchmetrics`
        (``"MeanAbsoluteError"``), in this order, or a function of targets and outputs.
        ``"concordance_index"`` and ``"risk_concordance_index"`` are Harrell's, of outputs that are
        times or risks; see `concordance_index`.
    options : dict, optional
        Passed to a function or class.
    meaning : {'auto', 'values', 'logits', 'probabilities'}
        What outputs are, for scikit-learn: numbers or labels that are compared directly, or class
        scores. ``auto``: several columns against one column of integers are class scores
        (probabilities if each row is positive and sums to 1); anything else is values.

    Raises
    ------
    UnknownNameError
        If there is no such score; the closest are listed.
    ConfigError
        If `meaning` is not one of these.
    """
    if meaning not in get_args(Meaning):
        raise ConfigError(f"outputs must be one of {get_args(Meaning)}, got {meaning!r}")
    kwargs = dict(options or {})
    if callable(score):

        def with_axes_of_targets(true: Array, out: Array) -> float:
            fits = squeezed(out).shape == squeezed(true).shape
            return float(score(true, out.reshape(true.shape) if fits else out, **kwargs))

        return with_axes_of_targets
    metrics, name = require("sklearn.metrics"), name_of_score(score)
    name = _SHORT.get(name, name)
    if name in _OWN:
        return _with_name(name, lambda true, out: _OWN[name](true, out, **kwargs))
    if name in metrics.get_scorer_names() and not kwargs:
        return _with_name(name, _score_of(metrics.get_scorer(name), meaning))
    if (function := _function(name)) is not None:
        predicts = list(inspect.signature(function).parameters)[1] == "y_pred"
        method = "predict" if predicts else "predict_proba"
        scorer = metrics.make_scorer(function, response_method=method, **kwargs)
        return _with_name(name, _score_of(scorer, meaning, kwargs))
    torchmetrics = require("torchmetrics") if has("torchmetrics") else None
    cls: Any = getattr(torchmetrics, name, None)
    if not isinstance(cls, type):
        names = [*_SHORT, *_OWN, *metrics.get_scorer_names(), *filter(_function, metrics.__all__)]
        raise UnknownNameError("metric", name, [*names, *getattr(torchmetrics, "__all__", [])])
    as_tensor = adapter_for("torch").from_numpy
    return _with_name(
        name, lambda true, out: cls(**kwargs)(as_tensor(squeezed(out)), as_tensor(squeezed(true)))
    )


def greater_is_better(score: str | Callable[..., Any]) -> bool | None:
    """Return whether greater values of a score are better; None if unknown.

    Greater is better for every scorer of scikit-learn. For functions of `sklearn.metrics` the name
    decides, for classes of torchmetrics ``higher_is_better``. A user-defined function may have an
    attribute ``greater_is_better``.
    """
    if callable(score):
        known: bool | None = getattr(score, "greater_is_better", None)
        return known
    name = _SHORT.get(score, score)
    if name.lower() in _DIRECTIONS:
        return _DIRECTIONS[name.lower()]
    if name in require("sklearn.metrics").get_scorer_names():
        return True
    if _function(name) is not None:
        lower = name.endswith(("_error", "_loss", "_deviance"))
        return not lower if lower or name.endswith(("_score", "_corrcoef")) else None
    torchmetrics = require("torchmetrics") if name[:1].isupper() and has("torchmetrics") else None
    known = getattr(getattr(torchmetrics, name, None), "higher_is_better", None)
    return greater_is_better(name.lower()) if known is None and name != name.lower() else known


def axis_of_score(name: str, unit: str = "") -> str:
    """Return the axis that a score is drawn on, with its unit if targets have a unit.

    ``error (Ah)``, ``squared error (Ah²)``, or ``score`` of those without a unit; its own name if
    it is unknown. The name may have a prefix, such as ``val_rmse``.
    """
    full = next((_SHORT[k] for k in _SHORT if _ends(name, k)), name)
    if _ends(full, "mean_squared_error") and not _ends(full, "root_mean_squared_error"):
        square = f"({unit})²" if set(unit) & set(" /·*") else f"{unit}²"
        return f"squared error{unit and f' ({square})'}"
    if any(_ends(full, error) for error in _ERRORS):
        return f"error{unit and f' ({unit})'}"
    return "score" if any(share in name.lower() for share in _SHARES) else name


def _ends(name: str, end: str) -> bool:
    return name == end or name.endswith((f"_{end}", f".{end}"))


def name_of_score(score: str | Callable[..., Any]) -> str:
    """Return the name of a score: itself, or that of a function.

    Raises
    ------
    ConfigError
        If it has no name.
    """
    function = getattr(score, "func", score)
    name = score if isinstance(score, str) else getattr(function, "__name__", "")
    if not name:
        raise ConfigError(
            f"metrics must be names or functions of targets and outputs, got {score!r}; for an "
            "object pass its name, such as 'r2', a function, or a dict {name: object}"
        )
    return name


def scores_by_name(metrics: Metrics) -> dict[str, str | Score]:
    """Return names and functions by the name that they are reported under."""
    if isinstance(metrics, Mapping):
        return dict(metrics)
    single = isinstance(metrics, str) or callable(metrics)
    listed: Any = [metrics] if single else expect("metrics", metrics, Iterable, "a list of names")
    return {name_of_score(score): score for score in listed}


def find_scores(metrics: Metrics, meaning: Meaning = "auto") -> dict[str, Score]:
    """Return score functions by name; user-defined ones get reshaped outputs."""
    return {k: find_score(score, meaning=meaning) for k, score in scores_by_name(metrics).items()}


def default_score(model: Any) -> str | None:
    """Return the default score of a scikit-learn estimator, or None.

    Parameters
    ----------
    model : BaseModel
    """
    base, estimator = require("sklearn.base"), getattr(model, "inner", None)
    if not hasattr(estimator, "get_params"):
        return None
    kinds = {"r2": base.is_regressor, "accuracy": base.is_classifier}
    return next((score for score, fits in kinds.items() if fits(estimator)), None)


def _with_name(name: str, call: Score) -> Score:
    """Wrap a score so that errors name it and the shapes of its arguments."""

    def score(true: Array, out: Array) -> float:
        try:
            return float(call(true, out))
        except (ValueError, TypeError, RuntimeError) as error:
            if isinstance(error, ModularMLError):
                raise
            is_nan = np.isnan(out) if out.dtype.kind == "f" else np.zeros(out.shape, dtype=bool)
            if n_missing := is_nan.reshape(len(out), -1).any(axis=1).sum():
                raise ConfigError(
                    f"metric {name!r} cannot be computed, as outputs of {n_missing} of {len(out)} "
                    "rows are NaN: their features are missing, or weights are not finite. Fill "
                    "missing features with a recorded step, such as fs.fit_transform("
                    "'SimpleImputer', domain='features'), or leave these rows out"
                ) from error
            raise ConfigError(
                f"metric {name!r} cannot be computed from targets of {true.dtype} {true.shape} and "
                f"outputs of {out.dtype} {out.shape}: {str(error).rstrip('.')}. Choose another "
                "metric, or say what the outputs are with outputs='values', 'logits' or "
                "'probabilities'"
            ) from error

    return score


def _score_of(scorer: Any, meaning: Meaning, options: Mapping[str, Any] | None = None) -> Score:
    """Return a scorer as a function of targets and outputs.

    A score of probabilities gets the labels of all output columns, as the rows may contain fewer
    classes.
    """
    function, kwargs, made = scorer_parts(scorer) or (None, {}, {})
    takes = inspect.signature(function).parameters if function is not None else {}
    of_classes = getattr(function, "__name__", "") == "log_loss" or "y_pred" not in list(takes)[:2]
    by_class = of_classes and "labels" in takes and "labels" not in (options or {})

    def score(true: Array, out: Array) -> float:
        fixed, final_scorer = _FixedOutputs(true, out, meaning), scorer
        if by_class and fixed.meaning != "values":
            how = {**made, **kwargs, "labels": fixed.classes_}
            final_scorer = require("sklearn.metrics").make_scorer(function, **how)
        return float(final_scorer(fixed, out, squeezed(true)))

    return score


def _function(name: str) -> Any:
    """Return a function of `sklearn.metrics` of targets and predictions, or None."""
    function = getattr(require("sklearn.metrics"), name, None)
    names = list(inspect.signature(function).parameters) if inspect.isfunction(function) else []
    return function if len(names) > 1 and all(n.startswith("y_") for n in names[:2]) else None


class _FixedOutputs:
    """An estimator for scikit-learn's scorers that returns given outputs."""

    def __init__(self, true: Array, out: Array, meaning: Meaning) -> None:
        true, out = squeezed(true), squeezed(out)
        self.meaning = _meaning(true, out) if meaning == "auto" else meaning
        if self.meaning == "values":
            return
        n = max(2, out[0].size)
        self.classes_ = np.arange(n)
        labels = np.unique(true).tolist() if true.ndim == 1 else []
        if invalid := [label for label in labels if label not in range(n)]:
            raise ConfigError(
                f"outputs are scores of the classes 0 to {n - 1}, and the targets hold "
                f"{invalid[0]!r}; number the classes from 0, or let the node output labels "
                "(output_method='predict')"
            )

    def predict(self, out: Array) -> Array:
        """Return values, or the most likely class."""
        flat = squeezed(out)
        if self.meaning == "values":
            return flat
        if flat.ndim == 1:
            return (flat > (0.5 if self.meaning == "probabilities" else 0.0)).astype(np.int64)
        return np.asarray(flat.argmax(axis=1))

    def predict_proba(self, out: Array) -> Array:
        """Return the probability of each class."""
        return _shares(squeezed(out), self.meaning)

    def decision_function(self, out: Array) -> Array:
        """Return scores: higher for the second class, or one column per class."""
        flat = squeezed(out)
        return np.asarray(flat[:, 1] - flat[:, 0]) if flat.shape[1:] == (2,) else flat

    def fit(self, *_: Any) -> None:
        """Do nothing; scikit-learn checks that an estimator has this method."""

    def __sklearn_tags__(self) -> Any:
        tools = require("sklearn.utils")
        kind = "regressor" if self.meaning == "values" else "classifier"
        tags = {f"{kind}_tags": getattr(tools, f"{kind.capitalize()}Tags")()}
        return tools.Tags(estimator_type=kind, target_tags=tools.TargetTags(required=True), **tags)


def as_probabilities(outputs: Array, meaning: Meaning, label: str) -> Array:
    """Return class scores as probabilities, in the same shape.

    Parameters
    ----------
    outputs : ndarray, shape (n, n_classes), or (n, 1) for the second of two classes
    meaning : {'auto', 'logits', 'probabilities'}
        ``auto``: probabilities if no number is negative and each row sums to 1, else logits.
    label : str
        Name of the node, for messages.

    Raises
    ------
    ConfigError
        If a single column is ambiguous, or the outputs are not what `meaning` says.
    """
    if outputs.ndim != 2:
        raise ConfigError(
            f"outputs of node {label!r} have shape {outputs.shape[1:]}, not one score per class; "
            "pass outputs='values' to average them as they are"
        )
    if meaning == "auto":
        if outputs.shape[1] == 1:
            raise ConfigError(
                f"one column of class scores of node {label!r} may be logits or probabilities; say "
                "which with outputs='logits' or 'probabilities'"
            )
        meaning = "probabilities" if _sums_to_one(outputs) else "logits"
    if meaning == "probabilities" and not ((outputs >= 0) & (outputs <= 1 + 1e-4)).all():
        raise ConfigError(
            f"outputs of node {label!r} are not between 0 and 1, so not probabilities; pass "
            "outputs='logits'"
        )
    shares = _shares(outputs if outputs.shape[1] > 1 else outputs[:, 0], meaning)
    return shares if outputs.shape[1] > 1 else shares[:, 1:]


def _shares(flat: Array, meaning: Meaning) -> Array:
    """Return scores of shape (n, n_classes) or (n,) as probabilities of each class."""
    flat = flat.astype(np.float64)
    if flat.ndim == 1 and meaning == "probabilities":
        return np.column_stack([1 - flat, flat])
    if meaning == "probabilities":
        sums = flat.sum(axis=1, keepdims=True)
        return np.asarray(flat / sums if np.allclose(sums, 1, atol=1e-4) else flat)
    if flat.ndim == 1:
        flat = np.column_stack([np.zeros(len(flat)), flat])
    shares = np.exp(flat - flat.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


def _sums_to_one(out: Array) -> bool:
    return bool((out >= 0).all()) and np.allclose(out.sum(axis=1), 1, atol=1e-4)


def squeezed(values: Array) -> Array:
    """Drop axes of length 1 after the first."""
    sizes = [n for n in values.shape[1:] if n != 1]
    return np.asarray(values.reshape(len(values), *sizes))


def _meaning(true: Array, out: Array) -> Meaning:
    if true.ndim != 1 or true.dtype.kind not in "biuUO" or out.dtype.kind != "f":
        return "values"
    if out.ndim == 1 and set(np.unique(true)) <= {0, 1}:
        raise ConfigError(
            "one column of outputs against labels 0 and 1 may be logits, probabilities or values; "
            "say which with outputs='logits', 'probabilities' or 'values'"
        )
    if out.ndim != 2:
        return "values"
    return "probabilities" if _sums_to_one(out) else "logits"
