"""One use of each extra with nothing but the core beside it: ``python -m tests.extras NAME``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import Ridge

import modularml as mml

QUIET = {"show_training_progress": False}


def ridge(model: Any = None, **kwargs: Any) -> mml.Experiment:
    """An experiment that fits an estimator and scores it."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 3))
    data = {"x": x, "y": x.sum(axis=1) + 0.1 * rng.normal(size=80)}
    with mml.ExperimentContext().activate():
        fs = mml.FeatureSet.from_dict("rows", data, "x", "y")
        fs.split_random({"train": 0.8, "test": 0.2}, seed=0)
        mml.ModelGraph([mml.ModelNode("net", model or Ridge(), fs)])
        exp = mml.Experiment.from_active_context("extras", **kwargs)
        exp.execution_plan.add_phase(mml.FitPhase.from_split("fit", split="train"))
        exp.execution_plan.add_phase(
            mml.EvalPhase.from_split("test", split="test", metrics=["rmse"])
        )
    return exp


def rows_of(exp: mml.Experiment) -> mml.FeatureSet:
    """The only FeatureSet of an experiment."""
    (fs,) = exp.ctx.available_featuresets.values()
    return fs


def network(node: Any) -> mml.Experiment:
    """An experiment that trains a network for two epochs; `node` makes it from a FeatureSet."""
    exp = ridge()
    fs = rows_of(exp)
    with mml.ExperimentContext().activate():
        fs = fs.copy(label="rows", register=True, restore_splits=True)
        mml.ModelGraph([mml.ModelNode("net", node, fs)], mml.Optimizer("adam"))
        loss = mml.AppliedLoss(mml.Loss("mse"), on="net", inputs=["outputs", "targets"])
        phase = mml.TrainPhase.from_split(
            "train",
            split="train",
            sampler=mml.SimpleSampler(batch_size=16),
            losses=[loss],
            n_epochs=2,
        )
        exp = mml.Experiment.from_active_context("extras")
        exp.execution_plan.add_phase(phase)
    exp.run(**QUIET)
    return exp


def torch(folder: Path) -> None:
    """Train a torch model and save it."""
    from modularml.models.torch import SequentialMLP

    exp = network(SequentialMLP(hidden_dim=4))
    exp.save(folder / "torch.exp.mml")


def tensorflow(folder: Path) -> None:
    """Train a Keras model and save it."""
    from modularml.models.tensorflow import SequentialMLP

    network(SequentialMLP(hidden_dim=4)).save(folder / "keras.exp.mml")


def plot(folder: Path) -> None:
    """Draw residuals."""
    exp = ridge()
    exp.run(**QUIET)
    table = exp.evaluate(rows_of(exp)["test"], metrics=["rmse"])
    table.plot(kind="residuals").figure.savefig(folder / "residuals.png")


def report(folder: Path) -> None:
    """Write a report."""
    exp = ridge()
    exp.run(**QUIET)
    assert "rmse" in exp.report(folder / "report.html").read_text()


def sweep(folder: Path) -> None:
    """Search a regularization."""

    def build(trial: Any) -> mml.Experiment:
        return ridge(Ridge(trial.suggest_float("alpha", 0.1, 9.0)))

    results = mml.Sweep(build, objective="rmse", n_trials=3).run(show_progress=False)
    assert len(results.to_pandas()) == 3


def track(folder: Path) -> None:
    """Log a run to each tracker, offline."""
    from modularml.tracking import MLflowTracker, TensorBoardTracker, WandbTracker

    trackers = [
        MLflowTracker(folder / "mlflow"),
        TensorBoardTracker(folder / "tensorboard"),
        WandbTracker(mode="offline", folder=folder),
    ]
    ridge(callbacks=trackers).run(**QUIET)
    assert list(folder.glob("tensorboard/**/events*"))


def cluster(folder: Path) -> None:
    """Train folds on a Dask cluster of one worker, and on Ray."""
    import joblib
    from dask.distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as own,
        Client(own),
        joblib.parallel_config("dask"),
    ):
        folds(n_jobs=2)
    import ray
    from ray.util.joblib import register_ray

    register_ray()
    ray.init(num_cpus=2, include_dashboard=False)
    with joblib.parallel_config("ray"):
        folds(n_jobs=2)
    ray.shutdown()


def folds(**kwargs: Any) -> None:
    """Cross-validate an estimator."""
    exp = ridge()
    binding = mml.CVBinding(rows_of(exp), ["train"])
    cv = mml.CrossValidation(bindings=binding, n_folds=2, experiment=exp, **kwargs)
    assert len(cv.run(show_fold_progress=False, **QUIET).to_pandas()) >= 2


def export(folder: Path) -> None:
    """Export a graph to ONNX."""
    from modularml.models.torch import SequentialMLP

    exp = network(SequentialMLP(hidden_dim=4))
    exp.model_graph.export(folder / "graph.onnx", format="onnx")
    assert (folder / "graph.onnx").stat().st_size


def boost(folder: Path) -> None:
    """Fit and save boosted trees of both libraries."""
    from lightgbm import LGBMRegressor
    from xgboost import XGBRegressor

    for model in (LGBMRegressor(n_estimators=3, verbose=-1), XGBRegressor(n_estimators=3)):
        exp = ridge(model)
        exp.run(**QUIET)
        exp.save(folder / f"{type(model).__name__}.exp.mml")


def polars(folder: Path) -> None:
    """Read and return polars frames."""
    import polars as pl

    frame = pl.DataFrame({"x": [1.0, 2.0], "y": [0.5, None]})
    with mml.ExperimentContext().activate():
        fs = mml.FeatureSet.from_df("rows", frame, "x", "y")
        assert isinstance(fs.get_features("polars"), pl.DataFrame)


def metrics(folder: Path) -> None:
    """Score with a metric of torchmetrics."""
    exp = ridge()
    exp.run(**QUIET)
    rows = rows_of(exp)["test"]
    assert len(exp.evaluate(rows, metrics=["MeanAbsoluteError"])) == 1


def main(name: str) -> None:
    """Use an extra in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        globals()[name](Path(folder))


if __name__ == "__main__":
    main(sys.argv[1])
