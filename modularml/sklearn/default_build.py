"""The experiment that an estimator builds by default."""

from __future__ import annotations

from sklearn.preprocessing import OrdinalEncoder

from modularml.callbacks import Callback, EarlyStopping, EvalLossMetric, Evaluation
from modularml.data.featureset import FeatureSet
from modularml.data.references import FeatureSetReference
from modularml.errors import DataError
from modularml.experiment import Experiment, TrainPhase
from modularml.graph import ModelGraph, ModelNode
from modularml.samplers import SimpleSampler
from modularml.training import AppliedLoss, Loss, Optimizer


def tabular_mlp(
    rows: FeatureSet,
    *,
    hidden_dim: int = 64,
    n_layers: int = 2,
    dropout: float = 0.0,
    lr: float = 0.01,
    weight_decay: float = 0.0,
    batch_size: int = 32,
    n_epochs: int = 100,
    patience: int = 10,
) -> Experiment:
    """Return an experiment that trains a torch `TabularMLP` on the split ``train``.

    Numbers are standardized, as is a numeric target; text and categories get embeddings, with a row
    for unknown ones. With a split ``val``, training stops early and restores the best epoch.

    Parameters
    ----------
    rows : FeatureSet
        With the target ``y``; classes are encoded.
    hidden_dim, n_layers, dropout
        See `TabularMLP`.
    lr, weight_decay : float
        Of AdamW.
    batch_size, n_epochs : int
    patience : int
        Epochs without a better loss on ``val`` before training stops.

    Raises
    ------
    DataError
        If a feature is a time or a sequence.
    MissingDependencyError
        If torch is not installed.

    Examples
    --------
    >>> from modularml.sklearn import ExperimentRegressor
    >>> ExperimentRegressor(tabular_mlp).build is tabular_mlp
    True
    """
    from modularml.models.torch.networks import TabularMLP  # noqa: PLC0415 - imports torch

    inputs = _inputs(rows)
    shape = None
    classes = any(record.domain == "targets" for record in rows.scaler_records)
    if classes:
        shape = (len(rows.scaler_records[0].scaler.wrapped.classes_),)
    else:
        rows.fit_transform("StandardScaler", domain="targets", fit_to_split="train")
    model = TabularMLP(
        hidden_dim=hidden_dim, n_layers=n_layers, dropout=dropout, output_shape=shape
    )
    net = ModelNode("net", model, inputs, targets="y")
    ModelGraph([net], Optimizer("adamw", opt_kwargs={"lr": lr, "weight_decay": weight_decay}))
    loss = AppliedLoss(
        Loss("cross_entropy" if classes else "mse"), on=net, inputs=["outputs", "targets"]
    )
    callbacks: list[Callback] = []
    if "val" in rows.available_splits:
        metrics = [EvalLossMetric(loss=loss)]
        callbacks = [
            Evaluation.from_split("val", split="val", metrics=metrics),
            EarlyStopping(monitor="val_loss", patience=patience, restore_best=True),
        ]
    experiment = Experiment.from_active_context("tabular-mlp")
    experiment.execution_plan.add_phase(
        TrainPhase.from_split(
            "train",
            split="train",
            sampler=SimpleSampler(batch_size=batch_size, shuffle=True),
            losses=[loss],
            n_epochs=n_epochs,
            callbacks=callbacks,
        )
    )
    return experiment


def _inputs(rows: FeatureSet) -> list[FeatureSetReference]:
    """Scale numbers and encode categories; return a reference to each kind of column."""
    specs = rows.collection.schema.columns.values()
    keys: dict[str, list[str]] = {"number": [], "category": []}
    for spec in specs:
        if spec.domain != "features":
            continue
        kind = "category" if spec.kind == "text" else spec.kind
        if kind not in keys:
            raise DataError(
                f"column {spec.key!r} of X has the kind {kind!r}, and tabular_mlp takes numbers, "
                "text and categories; convert it, or pass build="
            )
        keys[kind].append(spec.key)
    scalers = {
        "number": "StandardScaler",
        "category": OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1),
    }
    used = {kind: names for kind, names in keys.items() if names}
    for kind, names in used.items():
        rows.fit_transform(scalers[kind], domain="features", keys=names, fit_to_split="train")
    return [rows.reference(features=names) for names in used.values()]
