"""
Cross-validation, out of fold
=============================

Each row is predicted by the fold that has not seen it, in the target's own units. Scalers are
fitted again in each fold, and cells stay whole. The data are synthetic: 24 cells.

**For your data:** name the column of groups; the folds do not use splits that are not in the
binding, such as ``test``. Guide: :doc:`/howto/13_cross_validation`.
"""

# sphinx_gallery_alt = "Predicted over true voltage of all rows, each predicted by its own fold."
import numpy as np

import modularml as mml
from modularml.models.torch import SequentialMLP

rng = np.random.default_rng(0)
cell = np.repeat(np.arange(24), 20)
x = rng.normal(size=(480, 3)).astype("float32")
voltage = 3.6 + 0.3 * np.tanh(x[:, 0]) + 0.1 * x[:, 1] + 0.05 * rng.normal(size=24)[cell]
columns = {"x": x, "voltage": voltage, "cell": cell}

experiment = mml.Experiment("voltage", seed=0)
fs = mml.FeatureSet.from_dict("cells", columns, "x", "voltage", "cell")
fs.split_random({"train": 0.8, "test": 0.2}, group_by="cell", seed=0)
for domain in ("features", "targets"):
    fs.fit_transform("StandardScaler", domain=domain, fit_to_split="train")
net = mml.ModelNode("net", SequentialMLP(), fs.reference(tags=[]))
mml.ModelGraph([net], mml.Optimizer("adam", opt_kwargs={"lr": 0.01}))
loss = mml.AppliedLoss(mml.Loss("mse"), on="net", inputs=["outputs", "targets"])
sampler = mml.SimpleSampler(batch_size=32, shuffle=True)
train = mml.TrainPhase.from_split(
    "train", split="train", sampler=sampler, losses=[loss], n_epochs=15
)

binding = mml.CVBinding(fs, ["train"], group_by="cell")
results = mml.CrossValidation(bindings=binding, phase=train, n_folds=5).run()
print(results.summary(metrics=["rmse", "r2"]).round(3))
print(len(results.out_of_fold("net")), "rows, each predicted out of fold")
results.plot(kind="parity", title="Out of fold")
