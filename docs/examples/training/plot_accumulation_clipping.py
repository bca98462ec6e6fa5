"""
Gradient accumulation and clipping
==================================

``accumulate=4`` combines the gradients of four batches of 16 before each update, which equals
batches of 64 in less memory. ``clip_norm`` scales down gradients whose norm is too large, here
because of a few outliers among the targets. The data are synthetic.

**For your data:** look at ``grad_norm`` first; a limit a little above its usual values clips
outliers only. Guide: :doc:`/howto/33_schedules_and_averages`.
"""

# sphinx_gallery_alt = "Norm of the gradient over updates, before clipping, with a few high peaks."
import numpy as np

import modularml as mml
from modularml.callbacks import GradientNorms
from modularml.models.torch import SequentialMLP
from modularml.plotting import series

rng = np.random.default_rng(0)
x = rng.normal(size=(800, 4)).astype("float32")
y = np.sin(x[:, 0]) + x[:, 1] * x[:, 2]
y[rng.choice(800, 8, replace=False)] += 40

experiment = mml.Experiment("outliers", seed=0)
fs = mml.FeatureSet.from_dict("rows", {"x": x, "y": y}, "x", "y")
fs.split_random({"train": 0.8, "test": 0.2}, seed=0)
net = mml.ModelNode("net", SequentialMLP(hidden_dim=32), fs)
mml.ModelGraph([net], mml.Optimizer("sgd", opt_kwargs={"lr": 0.05}, clip_norm=5.0))
loss = mml.AppliedLoss(mml.Loss("mse"), on="net", inputs=["outputs", "targets"])
train = mml.TrainPhase.from_split(
    "train",
    split="train",
    sampler=mml.SimpleSampler(batch_size=16, shuffle=True),
    losses=[loss],
    n_epochs=8,
    accumulate=4,
    callbacks=[GradientNorms(every="batch")],
)
norms = np.array(experiment.run_phase(train).metrics().where(name="grad_norm").values())
print(f"{len(norms)} updates of 4 batches, {(norms > 5).sum()} of them clipped to norm 5")
series({"before clipping": norms, "limit": np.full(len(norms), 5.0)}, x="update", y="norm")
