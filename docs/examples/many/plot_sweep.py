"""
Sweep over settings
===================

You name settings by their paths in the experiment. Optuna proposes values, each trial trains the
experiment with them, and you get the best trained experiment. The data are synthetic.

**For your data:** with ``storage="sweep.db"`` you can resume a sweep later; test on rows that
were not used to choose settings. Guide: :doc:`/howto/17_sweeps`.
"""

# sphinx_gallery_alt = "Validation loss of each trial, and the best so far."
import numpy as np

import modularml as mml
from modularml.models.torch import SequentialMLP

x = np.random.default_rng(0).normal(size=(500, 4)).astype("float32")
columns = {"x": x, "y": np.tanh(x[:, 0] * x[:, 1]) + 0.3 * x[:, 2]}

experiment = mml.Experiment("study", seed=0)
fs = mml.FeatureSet.from_dict("rows", columns, "x", "y")
fs.split_random({"train": 0.6, "val": 0.2, "test": 0.2}, seed=0)
net = mml.ModelNode("net", SequentialMLP(), fs)
mml.ModelGraph([net], mml.Optimizer("adam", opt_kwargs={"lr": 1e-3}))
loss = mml.AppliedLoss(mml.Loss("mse"), on="net", inputs=["outputs", "targets"])
validate = mml.Evaluation.from_split("val", split="val", metrics=[mml.EvalLossMetric(loss=loss)])
train = mml.TrainPhase.from_split(
    "train",
    split="train",
    sampler=mml.SimpleSampler(batch_size=32, shuffle=True),
    losses=[loss],
    n_epochs=10,
    callbacks=[validate],
)
experiment.execution_plan.add_phase(train)

space = {
    "graph.optimizer.lr": mml.space.log_float(1e-4, 1e-1),
    "nodes.net.hidden_dim": [8, 16, 32],
}
results = mml.Sweep(experiment, space, objective="val_loss", n_trials=12, seed=0).run()
print(results.best)
print(results.best_experiment().evaluate("test", metrics="r2").round(3))
results.plot("history")
