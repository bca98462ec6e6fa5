"""
Your own callback
=================

Override the hooks that you need; their arguments are passed by keyword. If a hook returns a
``MetricResult``, it is logged: it is in the results and in plots, and early stopping can monitor
it. The data are synthetic.

**For your data:** the hooks get the experiment, the phase and, as ``exec_ctx``, the position in
the loop. Attributes whose names end with ``_`` are state, which checkpoints store. Guide:
:doc:`/howto/11_callbacks_and_metrics`.
"""

# sphinx_gallery_alt = "Training loss and norm of the first weight matrix over the epochs."
import numpy as np

import modularml as mml
from modularml.callbacks import Callback, MetricResult
from modularml.models.torch import SequentialMLP
from modularml.plotting import panels


class WeightNorm(Callback):
    """Log the norm of the first weight matrix of a node."""

    def __init__(self, node):
        super().__init__()
        self.node = node

    def on_epoch_end(self, *, phase, **facts):
        weights = phase.graph().get_node(self.node).model.get_weights()
        return MetricResult("weight_norm", float(np.linalg.norm(next(iter(weights.values())))))


rng = np.random.default_rng(0)
x = rng.normal(size=(500, 4)).astype("float32")
columns = {"x": x, "y": np.sin(2 * x[:, 0]) + 0.2 * rng.normal(size=500)}
experiment = mml.Experiment("norms", seed=0)
fs = mml.FeatureSet.from_dict("rows", columns, "x", "y")
fs.split_random({"train": 0.8, "test": 0.2}, seed=0)
net = mml.ModelNode("net", SequentialMLP(), fs)
mml.ModelGraph([net], mml.Optimizer("adam", opt_kwargs={"lr": 0.02}))
loss = mml.AppliedLoss(mml.Loss("mse"), on="net", inputs=["outputs", "targets"])
train = mml.TrainPhase.from_split(
    "train",
    split="train",
    sampler=mml.SimpleSampler(batch_size=32, shuffle=True),
    losses=[loss],
    n_epochs=25,
    callbacks=[WeightNorm("net")],
)
frame = experiment.run_phase(train).to_pandas()
print(frame["weight_norm"].iloc[[0, -1]].round(2).to_dict())
panels({name: frame[[name]] for name in ("train_loss", "weight_norm")}, x="epoch")
