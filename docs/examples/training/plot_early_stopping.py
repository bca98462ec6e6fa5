"""
Stop early, keep the best epoch
===============================

``Evaluation`` scores the validation rows after each epoch. ``EarlyStopping`` ends the phase after
ten epochs without improvement, and restores the weights of the best epoch. The data are the
diabetes patients of scikit-learn.

**For your data:** monitor what you care about, such as ``val_rmse``; test on a split that was not
used to stop or choose. Guide: :doc:`/howto/11_callbacks_and_metrics`.
"""

# sphinx_gallery_alt = "Losses over epochs, with the best epoch of the validation loss marked."
from sklearn.datasets import load_diabetes

import modularml as mml
from modularml.models.torch import SequentialMLP

frame = load_diabetes(as_frame=True).frame
experiment = mml.Experiment("diabetes", seed=0)
fs = mml.FeatureSet.from_pandas("patients", frame, list(frame)[:-1], "target")
fs.split_random({"train": 0.6, "val": 0.2, "test": 0.2}, seed=0)
for domain in ("features", "targets"):
    fs.fit_transform("StandardScaler", domain=domain, fit_to_split="train")
net = mml.ModelNode("net", SequentialMLP(n_layers=3, hidden_dim=64), fs)
mml.ModelGraph([net], mml.Optimizer("adam", opt_kwargs={"lr": 1e-3}))

loss = mml.AppliedLoss(mml.Loss("mse"), on="net", inputs=["outputs", "targets"])
validate = mml.Evaluation.from_split("val", split="val", metrics=[mml.EvalLossMetric(loss=loss)])
stop = mml.EarlyStopping(monitor="val_loss", patience=10, restore_best=True)
train = mml.TrainPhase.from_split(
    "train",
    split="train",
    sampler=mml.SimpleSampler(batch_size=32, shuffle=True),
    losses=[loss],
    n_epochs=100,
    callbacks=[validate, stop],
)
trained = experiment.run_phase(train)
print(f"best epoch {stop.best_epoch}, {trained.n_epochs} of 100 were run")
print(experiment.evaluate("test", metrics=["rmse", "r2"]).round(2))
trained.plot()
