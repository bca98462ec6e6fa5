"""
Mask padded sequences
=====================

Battery charges differ in length. ``pad=0.0`` pads them to one length and adds a mask of real
steps. Scalers, losses and scores then ignore the padding, and ``mask_as`` passes the mask to the
model. The data are synthetic.

**For your data:** ``group_by`` names the column that identifies a sequence, ``scalar_cols`` the
columns with one value per sequence. Guide: :doc:`/howto/21_sequences_and_masks`.
"""

# sphinx_gallery_alt = "Predicted over true capacity of the test charges, along the diagonal."
import numpy as np
import pandas as pd

import modularml as mml
from modularml.models.torch import SequentialTCN

rng = np.random.default_rng(0)
charge = np.repeat(np.arange(200), rng.integers(12, 31, 200))
current = rng.uniform(0.5, 2.0, 200)[charge] + 0.2 * rng.normal(size=len(charge))
frame = pd.DataFrame({"charge": charge, "current": current})
frame["capacity"] = frame.groupby("charge")["current"].transform("sum") / 20

experiment = mml.Experiment("charges", seed=0)
fs = mml.FeatureSet.from_pandas(
    "charges", frame, "current", "capacity", group_by="charge", pad=0.0, scalar_cols="capacity"
)
fs.split_random({"train": 0.7, "test": 0.3}, seed=0)
for domain in ("features", "targets"):
    fs.fit_transform("StandardScaler", domain=domain, fit_to_split="train")
net = mml.ModelNode("net", SequentialTCN(), fs, mask_as="mask")
mml.ModelGraph([net], mml.Optimizer("adam", opt_kwargs={"lr": 5e-3}))
loss = mml.AppliedLoss(mml.Loss("mse"), on="net", inputs=["outputs", "targets"])
sampler = mml.SimpleSampler(batch_size=20, shuffle=True)
experiment.run_phase(
    mml.TrainPhase.from_split("train", split="train", sampler=sampler, losses=[loss], n_epochs=15)
)
scores = experiment.evaluate("test", metrics=["rmse", "r2"])
print("lengths:", np.unique(np.bincount(charge))[[0, -1]], "padded to", fs.get_feature_shapes())
print(scores.round(2))
scores.plot(title="Capacity of test charges")
