"""What classifiers and regressors of scikit-learn share: parameters, the fit and pickles."""

from __future__ import annotations

import functools
import inspect
import tempfile
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.utils import check_random_state, compute_sample_weight
from sklearn.utils.validation import check_is_fitted, validate_data

from modularml._arguments import at_least
from modularml._typing import Array
from modularml.config import find_code
from modularml.context import ExperimentContext
from modularml.data.featureset import FeatureSet
from modularml.errors import ConfigError, DataError, UnknownNameError
from modularml.experiment import Experiment, FitPhase, TrainPhase
from modularml.io.inspection import inspect as inspect_file
from modularml.io.randomness import OwnRandomness, drawn_seed
from modularml.sklearn.default_build import tabular_mlp
from modularml.sklearn.rows import (
    GROUPS,
    TARGET,
    WEIGHTS,
    columns_of,
    featureset_of,
    keys_of,
    weights_of,
)
from modularml.strategies.member_predictions import NodePredictions, predict_members
from modularml.strategies.variants.settings import settings_of
from modularml.strategies.variants.variant import changed_experiment

Build = Callable[..., Experiment]

SETTINGS = ("graph", "nodes", "phases", "losses", "callbacks")
"""Where config paths begin."""

QUIET = ("show_training_progress", "show_eval_progress", "show_sampler_progress")


class ExperimentEstimator(BaseEstimator):  # type: ignore[misc]
    """Parameters, rows, the fit and the file of both estimators."""

    experiment_: Experiment

    def __init__(
        self,
        build: Build | None = None,
        *,
        node: str | None = None,
        validation_fraction: float | None = None,
        allow_nan: bool = False,
        random_state: Any = None,
        verbose: bool = False,
        **params: Any,
    ) -> None:
        self.build, self.node, self.validation_fraction = build, node, validation_fraction
        self.allow_nan, self.random_state, self.verbose = allow_nan, random_state, verbose
        if params:
            self._check_extra(params)
        self.__dict__.update(params)

    # -- parameters ---------------------------------------------------------------------------

    def _build_arguments(self) -> dict[str, Any]:
        """Return the defaults of the arguments of `build`, apart from the rows, by name."""
        build: Any = tabular_mlp if self.build is None else self.build
        if not callable(build):  # scikit-learn wants values checked in fit
            return {}
        arguments = list(inspect.signature(build).parameters.values())[1:]
        taken = {*self._get_param_names(), *dir(type(self))}
        if same := [a.name for a in arguments if a.name in taken or a.name.strip("_") != a.name]:
            raise ConfigError(
                f"build has arguments {same}, which are parameters or methods of "
                f"{type(self).__name__} or begin or end with an underscore; rename them"
            )
        kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return {a.name: a.default for a in arguments if a.kind not in kinds}

    def _check_extra(self, names: Iterable[str]) -> None:
        """Refuse parameters that are neither arguments of `build` nor config paths."""
        if self.build is not None and not callable(self.build):
            return
        known = self._build_arguments()
        for name in names:
            root, is_nested, _ = name.partition("__")
            is_path = is_nested and root in SETTINGS and root not in known
            if name not in known and not is_path:
                raise UnknownNameError(
                    f"parameter of {type(self).__name__}",
                    name,
                    [*self._get_param_names(), *known],
                    "pass arguments of build, or settings by path such as graph__optimizer__lr=",
                )

    def _extra(self) -> dict[str, Any]:
        """Return the arguments of `build` and settings by path that were passed."""
        own = self._get_param_names()
        return {k: v for k, v in vars(self).items() if k not in own and k.strip("_") == k}

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters, with arguments of `build` and settings by path.

        Parameters
        ----------
        deep : bool
            Whether the defaults of `build` and the parameters of nested estimators are included.
        """
        params: dict[str, Any] = super().get_params(deep=deep)
        if deep:
            defaults = self._build_arguments().items()
            params |= {k: v for k, v in defaults if v is not inspect.Parameter.empty}
        for name, value in self._extra().items():
            params[name] = value
            if deep and hasattr(value, "get_params") and not inspect.isclass(value):
                params |= {f"{name}__{k}": v for k, v in value.get_params().items()}
        return params

    def set_params(self, **params: Any) -> Self:
        """Set parameters, arguments of `build` and settings by path; return the estimator."""
        before = self.build
        self.build = params.pop("build", before)
        try:
            known, own = self._build_arguments(), self._get_param_names()
            values = {**known, **vars(self), **params}
            is_nested = {k for k, v in values.items() if k in known and hasattr(v, "set_params")}
            nested = [k for k in params if "__" in k and k.partition("__")[0] in is_nested]
            extra = {k: v for k, v in params.items() if k not in own and k not in nested}
            self._check_extra(extra)
        except (ConfigError, UnknownNameError):
            self.build = before
            raise
        for root in {name.partition("__")[0] for name in nested} - vars(self).keys() - extra.keys():
            extra[root] = clone(known[root])
        self.__dict__.update(extra)
        super().set_params(**{k: v for k, v in params.items() if k not in extra})
        return self

    # -- fit ----------------------------------------------------------------------------------

    def fit(
        self,
        X: Any,  # noqa: N803 - scikit-learn's name
        y: Any,
        sample_weight: Any = None,
        groups: Any = None,
    ) -> Self:
        """Build an experiment for the rows and run it.

        Parameters
        ----------
        X : DataFrame or array-like, shape (n_samples, n_features)
        y : array-like, shape (n_samples,), or (n_samples, n_outputs) of a regressor
        sample_weight : array-like, shape (n_samples,), optional
            At least 0. A tag ``sample_weight`` of the rows, which weights the losses of all phases
            that learn, and of evaluations that share them, unless `build` made losses that read
            it.
        groups : array-like, shape (n_samples,), optional
            Rows of a group stay together when some are held out; a tag ``groups`` of the rows.

        Raises
        ------
        ConfigError
            If `build` or another parameter cannot be used.
        UnknownNameError
            If a path names no setting of the experiment.
        DataError
            If the rows cannot be used; scikit-learn raises other kinds of ValueError.
        """
        self.__dict__.pop("experiment_", None)  # a fit that fails leaves no older one
        target, keys = self._target(y), keys_of(X)
        columns = columns_of(self, X, keys, reset=True)
        weights, class_weight = weights_of(sample_weight), getattr(self, "class_weight", None)
        if class_weight is not None:
            of_class = compute_sample_weight(class_weight, target)
            weights = of_class if weights is None else np.asarray(weights * of_class)
        tags = {WEIGHTS: weights, GROUPS: groups}
        random_state = self.random_state
        if random_state is None:
            seed = drawn_seed()
        elif isinstance(random_state, Integral):
            at_least(0, random_state=int(random_state))
            seed = int(random_state)
        else:
            seed = int(check_random_state(random_state).randint(2**31 - 1))
        ctx = ExperimentContext(registration_policy="error")
        with ctx.activate(), OwnRandomness().seeded(seed, "models"):
            rows = featureset_of(columns, target, tags)
            self._split(rows, seed)
            experiment = self._changed(self._built(rows, ctx), seed)
            if experiment.seed is None:
                experiment.seed = seed
            if weights is not None:
                _weigh(experiment, class_weight)
            show: dict[str, Any] = dict.fromkeys(QUIET, bool(self.verbose))
            experiment.run(**show)
        self.experiment_, self._keys, self._y_shape = experiment, keys, target.shape[1:]
        return self

    def _target(self, y: Any) -> Array:
        """Return y as scikit-learn checks it."""
        target = validate_data(self, "no_validation", y, multi_output=True, y_numeric=True)
        return np.asarray(target, dtype=np.float64)

    def _split(self, rows: FeatureSet, seed: int) -> None:
        """Split rows into ``train`` and ``val``, by groups, else with equal shares of classes.

        Classes are encoded.
        """
        fraction, classes = self.validation_fraction, getattr(self, "classes_", None)
        if classes is not None and len(classes) < 2:
            raise DataError(
                f"y has one class, {classes[0]!r}; a classifier needs at least two classes"
            )
        ratios, options = {"train": 1.0}, dict[str, Any]()
        if fraction is not None:
            is_number = isinstance(fraction, Real) and not isinstance(fraction, bool)
            if not is_number or not 0 < fraction < 1:
                raise ConfigError(
                    "validation_fraction must be a number between 0 and 1, or None, got "
                    f"{fraction!r}"
                )
            groups = GROUPS if GROUPS in rows.get_tag_keys(False, False) else None
            strata = TARGET if classes is not None and groups is None else None
            ratios = {"train": 1 - float(fraction), "val": float(fraction)}
            options = {"group_by": groups, "stratify_by": strata, "seed": seed}
        rows.split_random(ratios, **options)
        if classes is None:
            return
        known = rows.get_split("train").get_targets("numpy").ravel().tolist()
        if lacking := sorted(set(classes.tolist()) - set(known), key=str):
            raise DataError(
                f"all rows of the classes {lacking[:5]} are held out by validation_fraction="
                f"{fraction}; pass more rows of them, or omit it"
            )
        rows.fit_transform("LabelEncoder", domain="targets", fit_to_split="train")

    def _built(self, rows: FeatureSet, ctx: ExperimentContext) -> Experiment:
        """Call `build` and check what it returns."""
        known = self._build_arguments()
        build: Any = tabular_mlp if self.build is None else self.build
        if not callable(build):
            raise ConfigError(
                "build must be a function or class that takes a FeatureSet and returns an "
                f"Experiment, or None for modularml.sklearn.tabular_mlp; got {build!r:.80}"
            )
        self._check_extra(self._extra())
        values = {k: v for k, v in {**known, **self._extra()}.items() if k in known}
        given = {k: v for k, v in values.items() if v is not inspect.Parameter.empty}
        experiment = build(rows, **clone(given, safe=False))  # which training does not change
        if not isinstance(experiment, Experiment):
            raise ConfigError(f"build must return an Experiment, got {experiment!r:.80}")
        if experiment.ctx is not ctx or experiment.model_graph is None:
            raise ConfigError(
                "build must return an experiment of the active context, which holds the rows, with "
                "a ModelGraph; use Experiment.from_active_context(label)"
            )
        if self.node is not None:
            experiment.model_graph.get_node(self.node)
        if experiment.seed is not None and self.random_state is not None:
            raise ConfigError(
                f"the experiment of build has seed={experiment.seed}, and random_state is "
                f"{self.random_state!r}; omit one of them"
            )
        return experiment

    def _changed(self, experiment: Experiment, seed: int) -> Experiment:
        """Return the experiment with its settings by path, and new weights if there are any."""
        known = self._build_arguments()
        extra = {k: v for k, v in self._extra().items() if k not in known}
        if not extra:
            return experiment
        graph: Any = experiment.model_graph
        if not graph.is_built:
            graph.build()
        settings = settings_of(experiment, experiment.execution_plan)
        paths = {path.replace(".", "__"): path for path in settings}
        for name in extra:
            if name not in paths:
                raise UnknownNameError("setting", name, paths)
        changed = changed_experiment(
            experiment, {paths[name]: value for name, value in extra.items()}, seed
        )
        changed.seed, changed._audit = experiment.seed, experiment._audit
        return changed

    # -- predictions --------------------------------------------------------------------------

    def _predicted(self, X: Any) -> NodePredictions:  # noqa: N803
        check_is_fitted(self, "experiment_")
        columns = columns_of(self, X, self._keys, reset=False)
        outputs: Any = getattr(self, "outputs", "values")
        predicted = predict_members(
            {"": self.experiment_}, columns, [], node=self.node, outputs=outputs, audit=False
        )
        if len(predicted) > 1:
            names = [p.rows.label for p in predicted]
            raise ConfigError(f"the graph ends in several nodes {names}; pass one as node=")
        return predicted[0]

    # -- files --------------------------------------------------------------------------------

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = bool(self.allow_nan)
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """Return parameters, and the experiment as the bytes of a file without rows.

        A file names classes. Those of a script have no name in a worker process, where `build` has
        none either; there the experiment is pickled as it is.
        """
        state = dict(super().__getstate__())
        build: Any = self.build
        while isinstance(build, functools.partial):
            build = build.func
        build = build if hasattr(build, "__qualname__") else type(build)
        has_name = self.build is None
        with suppress(AttributeError, ConfigError):
            has_name = has_name or find_code(f"{build.__module__}:{build.__qualname__}") is build
        if "experiment_" in state and has_name:
            with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
                warnings.filterwarnings("ignore", category=UserWarning)  # of rows in estimators
                path = self.experiment_.save(Path(folder) / "estimator", rows=False)
                names = [entry["name"] for entry in inspect_file(path)["classes"]]
                own = {name: find_code(name) for name in names}
                state["experiment_"] = path.read_bytes(), own
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if isinstance(state.get("experiment_"), tuple):
            data, own = state["experiment_"]
            with tempfile.TemporaryDirectory() as folder, ExperimentContext().activate():
                path = Path(folder) / "estimator.exp.mml"
                path.write_bytes(data)
                state = {**state, "experiment_": Experiment.load(path, custom_objects=own)}
        super().__setstate__(state)


def _weigh(experiment: Experiment, class_weight: Any) -> None:
    """Weigh the losses of all phases that learn, unless a loss reads the weights already."""
    plan = experiment.execution_plan.flatten()
    phases = [phase for phase in plan if isinstance(phase, FitPhase | TrainPhase)]
    losses = [applied for phase in phases for applied in phase.losses]
    if not losses:
        raise ConfigError(
            f"{WEIGHTS} was passed, but no phase of the experiment has a loss that could be "
            f"weighted; pass losses=[AppliedLoss(...)] in build, or omit {WEIGHTS}"
        )
    if class_weight is not None and any(applied.class_weight is not None for applied in losses):
        raise ConfigError(
            f"class_weight={class_weight!r} was passed, and a loss of build has a class_weight, so "
            "classes would be weighted twice; omit one of them"
        )
    columns = [applied.sample_weight for applied in losses if applied.sample_weight is not None]
    names = [getattr(column, "column", column) for column in columns]
    if any(WEIGHTS in name.split(".") for name in names):
        return
    if names:
        raise ConfigError(
            f"{WEIGHTS} was passed, but losses of build are weighted by {names}; read the tag "
            f"{WEIGHTS!r} there instead, or omit one of them"
        )
    graph: Any = experiment.model_graph
    for applied in losses:
        applied.sample_weight = WEIGHTS
    for phase in phases:
        phase.check(graph)
