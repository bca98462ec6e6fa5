"""
Intervals with coverage
=======================

Folds hold out each row once. Their residuals give intervals that contain nine of ten true values,
without setting rows aside for calibration (CV+). The data are synthetic, with noise.

**For your data:** if the noise differs between groups, ``group_by`` computes the bounds of each
group from its own rows. Guide: :doc:`/howto/19_folds_seeds_and_ensembles`.
"""

# sphinx_gallery_alt = "Test rows, the predicted curve, and a band that holds nine of ten."
import matplotlib.pyplot as plt
import numpy as np

import modularml as mml
from modularml.models.torch import SequentialMLP

rng = np.random.default_rng(0)
x = rng.uniform(-3, 3, 500).astype("float32")
columns = {"x": x, "y": np.sin(x) + 0.2 * rng.normal(size=500)}

experiment = mml.Experiment("sine", seed=0)
fs = mml.FeatureSet.from_dict("rows", columns, "x", "y")
fs.split_random({"train": 0.6, "test": 0.4}, seed=0)
net = mml.ModelNode("net", SequentialMLP(hidden_dim=32), fs)
mml.ModelGraph([net], mml.Optimizer("adam", opt_kwargs={"lr": 0.01}))
loss = mml.AppliedLoss(mml.Loss("mse"), on="net", inputs=["outputs", "targets"])
sampler = mml.SimpleSampler(batch_size=32, shuffle=True)
experiment.execution_plan.add_phase(
    mml.TrainPhase.from_split("train", split="train", sampler=sampler, losses=[loss], n_epochs=40)
)

binding = mml.CVBinding(fs, ["train"])
folds = mml.Ensemble(experiment, n=5, vary="folds", bindings=binding).run()
band = folds.predict(fs["test"], interval=0.9)
true, at = fs["test"].get_targets()["y"], fs["test"].get_features()["x"]
inside = (band["y_low"] <= true) & (true <= band["y_high"])
print(f"{inside.mean():.0%} of {len(true)} test rows lie inside")
order = np.argsort(at)
plt.fill_between(at[order], band["y_low"].iloc[order], band["y_high"].iloc[order], alpha=0.3)
plt.plot(at[order], band["y"].iloc[order])
plt.plot(at, true, ".k", markersize=3)
