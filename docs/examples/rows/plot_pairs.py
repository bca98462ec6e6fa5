"""
Learn from pairs
================

Each cell has an offset that no feature explains. Two rows of one cell share it, so it cancels in
the difference, and a loss on differences within pairs ignores it. ``PairedSampler`` finds the
pairs, and the loss reads both roles. The data are synthetic.

**For your data:** name the columns in which two rows must match, and how close numbers must be
(``tolerance=``). Guide: :doc:`/howto/05_samplers`.
"""

# sphinx_gallery_alt = "The loss on differences falls over the epochs."
import numpy as np

import modularml as mml
from modularml.models.torch import SequentialMLP
from modularml.plotting import loss_curves


def loss_of_difference(a, b, true_a, true_b):
    return ((a - b) - (true_a - true_b)) ** 2


rng = np.random.default_rng(0)
cell, x = np.repeat(np.arange(40), 15), rng.normal(size=600).astype("float32")
columns = {"x": x, "y": np.tanh(x) + 3 * rng.normal(size=40)[cell], "cell": cell}

experiment = mml.Experiment("pairs", seed=0)
fs = mml.FeatureSet.from_dict("cells", columns, "x", "y", "cell")
fs.split_random({"train": 0.7, "test": 0.3}, group_by="cell", seed=0)
mml.ModelGraph(
    [mml.ModelNode("net", SequentialMLP(), fs)], mml.Optimizer("adam", opt_kwargs={"lr": 0.01})
)
sampler = mml.PairedSampler({"cell": mml.SimilarityCondition()}, batch_size=50, shuffle=True)
roles = ["outputs.anchor", "outputs.pair", "targets.anchor", "targets.pair"]
loss = mml.AppliedLoss(mml.Loss(loss_of_difference), on="net", inputs=roles)
trained = experiment.run_phase(
    mml.TrainPhase.from_split("train", split="train", sampler=sampler, losses=[loss], n_epochs=8)
)

grid = np.array([-1.0, 1.0], dtype="float32")
low, high = experiment.predict({"x": grid}).ravel()
print(f"from x = -1 to 1: {high - low:.2f}, in truth {np.ptp(np.tanh(grid)):.2f}")
loss_curves(trained.to_pandas(), title="Squared error of differences")
