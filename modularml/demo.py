"""A demo of training and evaluation on two real data sets: digits and diabetes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from modularml._optional import require
from modularml.callbacks import EarlyStopping, EvalLossMetric, Evaluation
from modularml.data.featureset import FeatureSet
from modularml.experiment import EvalPhase, Experiment, TrainPhase
from modularml.graph import ConcatNode, ModelGraph, ModelNode
from modularml.models.torch.networks import SequentialCNN, SequentialMLP
from modularml.plotting import confusion_matrix, loss_curves, parity
from modularml.samplers import SimpleSampler
from modularml.training import AppliedLoss, Loss, Optimizer

SEED = 7


def load_diabetes() -> FeatureSet:
    """Create a FeatureSet of scikit-learn's 442 patients, split and scaled."""
    data = require("sklearn.datasets").load_diabetes(as_frame=True, scaled=False)
    frame = data.frame.rename(columns={"target": "progression"})
    frame["patient"] = np.arange(len(frame))
    fs = FeatureSet.from_pandas(
        "diabetes",
        frame,
        feature_cols=list(data.feature_names),
        target_cols="progression",
        tag_cols="patient",
    )
    fs.split_random({"train": 0.6, "val": 0.2, "test": 0.2}, seed=SEED)
    for domain in ("features", "targets"):
        fs.fit_transform("StandardScaler", domain=domain, fit_to_split="train")
    return fs


def run_diabetes(out: Path, *, show: bool) -> float:
    """Train, predict in the target's units and plot; return the test RMSE.

    Parameters
    ----------
    out : Path
        Folder for the figure.
    show : bool
        Whether progress bars are drawn.
    """
    require("torch", purpose="for the demo").manual_seed(SEED)
    experiment = Experiment("diabetes")
    fs = load_diabetes()
    model = SequentialMLP(n_layers=2, hidden_dim=16, dropout=0.3)
    node = ModelNode("regressor", model, fs.reference(tags=[]))
    optimizer = Optimizer("adamw", opt_kwargs={"lr": 3e-3, "weight_decay": 0.05}, backend="torch")
    ModelGraph([node], optimizer=optimizer)
    print(f"\n2. Diabetes\n{fs}\n")
    loss = AppliedLoss(Loss("mse"), on="regressor", inputs=["outputs", "targets"])
    stopping = EarlyStopping(patience=25, restore_best=True)
    train = _training(loss, stopping, batch_size=16, n_epochs=200)
    experiment.run_phase(train, show_training_progress=show)
    test = fs["test"]
    truth = test.get_targets("numpy", rep="raw")[:, 0]
    predicted = experiment.predict(test)[:, 0]
    # ridge regression on the same split and scaling
    x, x_test = (fs[name].get_features("numpy", rep="transformed") for name in ("train", "test"))
    baseline = require("sklearn.linear_model").RidgeCV(alphas=np.logspace(-3, 3, 25))
    baseline.fit(x, fs["train"].get_targets("numpy", rep="raw")[:, 0])
    ridge = baseline.predict(x_test)
    print(f"test RMSE, network:           {_rmse(truth, predicted):.2f}")
    print(f"test RMSE, ridge regression:  {_rmse(truth, ridge):.2f}")
    parity(
        truth,
        predicted,
        title="Diabetes: disease progression, test split",
        name="network",
        other={"ridge": ridge},
        path=out / "diabetes_parity.png",
    )
    return _rmse(truth, predicted)


def _training(
    loss: AppliedLoss, stopping: EarlyStopping, *, batch_size: int, n_epochs: int
) -> TrainPhase:
    """Return a training phase that is stopped by the validation loss."""
    return TrainPhase.from_split(
        "train",
        split="train",
        sampler=SimpleSampler(batch_size=batch_size, shuffle=True, seed=SEED),
        losses=[loss],
        n_epochs=n_epochs,
        callbacks=[
            Evaluation.from_split("val", split="val", metrics=[EvalLossMetric(loss=loss)]),
            stopping,
        ],
        result_recording="none",
    )


def _rmse(truth: Any, predicted: Any) -> float:
    return float(np.sqrt(np.mean((truth - predicted) ** 2)))


def load_digits() -> FeatureSet:
    """Create a FeatureSet of scikit-learn's 1,797 images, split and scaled.

    Returns
    -------
    FeatureSet
        Columns ``image`` (8, 8), ``rows`` (8,) and ``columns`` (8,), target ``digit``.
    """
    data = require("sklearn.datasets").load_digits()
    images = data.images.astype(np.float32)
    fs = FeatureSet.from_dict(
        "digits",
        {
            "image": images,
            "rows": images.mean(axis=2),
            "columns": images.mean(axis=1),
            "digit": data.target,
            "ink": images.sum(axis=(1, 2)),
            "source_row": np.arange(len(images)),
        },
        feature_keys=["image", "rows", "columns"],
        target_keys="digit",
        tag_keys=["ink", "source_row"],
    )
    fs.split_random({"train": 0.6, "val": 0.2, "test": 0.2}, stratify_by="digit", seed=SEED)
    fs.fit_transform(
        "MinMaxScaler",
        domain="features",
        keys="image",
        fit_to_split="train",
        merged_axes=(0, 1, 2, 3),
    )
    fs.fit_transform(
        "StandardScaler",
        domain="features",
        keys=["rows", "columns"],
        fit_to_split="train",
        merged_axes=(1, 2),
    )
    return fs


def build_graph(fs: FeatureSet) -> ModelGraph:
    """Build a graph of two branches and a head with ten outputs."""
    image = ModelNode(
        "image_cnn",
        SequentialCNN(output_shape=(64,), n_layers=2, hidden_dim=48, pooling=2, dropout=0.3),
        fs.reference(features="image"),
    )
    profile = ModelNode(
        "profile_mlp",
        SequentialMLP(output_shape=(16,), n_layers=2, hidden_dim=32, dropout=0.3),
        fs.reference(features=["rows", "columns"]),
    )
    both = ConcatNode("both", [image, profile], concat_axis=0, concat_axis_targets="first")
    head = ModelNode(
        "head", SequentialMLP(output_shape=(10,), n_layers=2, hidden_dim=64, dropout=0.3), both
    )
    optimizer = Optimizer("adam", opt_kwargs={"lr": 2e-3}, backend="torch")
    return ModelGraph([image, profile, both, head], optimizer=optimizer, label="digits-graph")


def run_digits(out: Path, *, show: bool) -> float:
    """Train, evaluate and plot; return the test accuracy.

    Parameters
    ----------
    out : Path
        Folder for the figures.
    show : bool
        Whether progress bars are drawn.
    """
    require("torch", purpose="for the demo").manual_seed(SEED)
    experiment = Experiment("digits")
    fs = load_digits()
    graph = build_graph(fs)
    print(f"1. Digits\n{fs}\n")
    loss = AppliedLoss(Loss("cross_entropy"), on="head", inputs=["outputs", "targets"])
    stopping = EarlyStopping(patience=10, restore_best=True)
    train = _training(loss, stopping, batch_size=32, n_epochs=60)
    train_results = experiment.run_phase(train, show_training_progress=show)
    test_results = experiment.run_phase(EvalPhase.from_split("test", split="test", losses=[loss]))

    truth = test_results.stacked_tensors("head", "targets", fmt="numpy")[:, 0]
    predicted = test_results.stacked_tensors("head", "outputs", fmt="numpy").argmax(axis=1)
    accuracy = float((truth == predicted).mean())
    print(f"best epoch {stopping.best_epoch} (counted from 0), {train_results.n_epochs} were run")
    print(f"test accuracy, two branches and a head:  {accuracy:.4f}")
    # logistic regression on the same pixels
    x, x_test = (
        fs[name].get_features("numpy", features="image", rep="transformed").reshape(-1, 64)
        for name in ("train", "test")
    )
    baseline = require("sklearn.linear_model").LogisticRegression(max_iter=2000)
    baseline.fit(x, fs["train"].get_targets("numpy", rep="raw")[:, 0])
    score = baseline.score(x_test, fs["test"].get_targets("numpy", rep="raw")[:, 0])
    print(f"test accuracy, logistic regression:      {score:.4f}")
    print("\n" + require("sklearn.metrics").classification_report(truth, predicted, digits=3))
    frame = train_results.to_pandas()
    loss_curves(
        {"train": frame["train_loss"], "validation": frame["val_loss"]},
        title="Digits: cross-entropy",
        best_epoch=stopping.best_epoch,
        path=out / "digits_loss.png",
    )
    confusion_matrix(
        truth,
        predicted,
        title=f"Digits: test split, accuracy {accuracy:.3f}",
        path=out / "digits_confusion.png",
    )
    graph.visualize(show_features=True, show_targets=True, show_splits=True).save(
        out / "digits_graph.svg"
    )
    return accuracy


def run_demo(out: Path, *, quiet: bool = False) -> None:
    """Run both examples and write their figures.

    Parameters
    ----------
    out : Path
        Folder for the figures; created if needed.
    quiet : bool
        Whether to hide progress bars.
    """
    out.mkdir(parents=True, exist_ok=True)
    # threads slow down models as small as these
    require("torch", purpose="for the demo").set_num_threads(1)
    start = time.perf_counter()
    run_digits(out, show=not quiet)
    run_diabetes(out, show=not quiet)
    figures = "\n  ".join(str(path) for path in sorted(out.iterdir()))
    print(f"\nDone in {time.perf_counter() - start:.0f} s. The figures:\n  {figures}")
