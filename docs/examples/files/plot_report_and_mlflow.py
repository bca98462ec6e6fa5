"""
Log to MLflow, write a report
=============================

A tracker is a callback of the experiment: it logs settings, metrics and files of each run.
``report`` writes an HTML page that works offline: rows, audit, graph, curves, scores, versions.
The data are the diabetes patients of scikit-learn.

**For your data:** give ``MLflowTracker`` the address of your server in place of a folder. Guides:
:doc:`/howto/33_trackers` and :doc:`/howto/32_reports`.
"""

# sphinx_gallery_alt = "The training loss over epochs, as it was logged."
import tempfile
from pathlib import Path

import mlflow
from sklearn.datasets import load_diabetes

import modularml as mml
from modularml.models.torch import SequentialMLP
from modularml.plotting import loss_curves
from modularml.tracking import MLflowTracker

folder = Path(tempfile.mkdtemp())
tracker = MLflowTracker(folder, timeout=120)  # a new database may take its time
experiment = mml.Experiment("diabetes", seed=0, callbacks=[tracker])
frame = load_diabetes(as_frame=True).frame
fs = mml.FeatureSet.from_pandas("patients", frame, list(frame)[:-1], "target")
fs.split_random({"train": 0.7, "test": 0.3}, seed=0)
for domain in ("features", "targets"):
    fs.fit_transform("StandardScaler", domain=domain, fit_to_split="train")
mml.ModelGraph([mml.ModelNode("net", SequentialMLP(), fs)], mml.Optimizer("adam"))
loss = mml.AppliedLoss(mml.Loss("mse"), on="net", inputs=["outputs", "targets"])
sampler = mml.SimpleSampler(batch_size=32, shuffle=True)
train = mml.TrainPhase.from_split(
    "train", split="train", sampler=sampler, losses=[loss], n_epochs=10
)
test = mml.EvalPhase.from_split("test", split="test", losses=[loss], metrics=["rmse", "r2"])
experiment.execution_plan.add_items([train, test])
experiment.run()

page = experiment.report(folder / "diabetes.html")
client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
logged = client.get_run(tracker.run_id_)
print({name: round(value, 2) for name, value in logged.data.metrics.items()})
print(f"{page.name}, {page.stat().st_size / 1000:.0f} kB")
history = client.get_metric_history(tracker.run_id_, "train/train_loss")
loss_curves({"train/train_loss": [entry.value for entry in history]}, title="Logged in MLflow")
