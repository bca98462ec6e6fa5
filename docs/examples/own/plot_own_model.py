"""
Your own model
==============

You can pass any ``torch.nn.Module`` to a node. A ``TorchBaseModel`` also gets the shapes of its
data when the graph is built, and its arguments are its config. So you can save it, use it in
sweeps, and draw new weights in each fold. The data are synthetic.

**For your data:** define the class in an importable module, so that a saved file finds it again.
Guide: :doc:`/howto/16_custom_classes`.
"""

# sphinx_gallery_alt = "Predicted over true values of the test rows, close to the diagonal."
import numpy as np
import torch

import modularml as mml
from modularml.models.torch import TorchBaseModel


class Waves(TorchBaseModel):
    """A linear layer on sines of the input."""

    def __init__(self, n_waves=4, input_shape=None, output_shape=None):
        super().__init__(n_waves=n_waves, input_shape=input_shape, output_shape=output_shape)
        self.n_waves = n_waves

    def make_layers(self, input_shape, output_shape):
        self.linear = torch.nn.Linear(input_shape[0] * self.n_waves, output_shape[0])

    def forward(self, x):
        return self.linear(torch.cat([torch.sin(k * x) for k in range(1, self.n_waves + 1)], 1))


x = np.random.default_rng(0).uniform(-3, 3, size=(600, 2)).astype("float32")
columns = {"a": x[:, 0], "b": x[:, 1], "y": np.sin(3 * x[:, 0]) + np.sign(x[:, 1])}
experiment = mml.Experiment("waves", seed=0)
fs = mml.FeatureSet.from_dict("rows", columns, ["a", "b"], "y")
fs.split_random({"train": 0.7, "test": 0.3}, seed=0)
net = mml.ModelNode("net", Waves(n_waves=5), fs)
mml.ModelGraph([net], mml.Optimizer("adam", opt_kwargs={"lr": 0.02}))
loss = mml.AppliedLoss(mml.Loss("mse"), on="net", inputs=["outputs", "targets"])
sampler = mml.SimpleSampler(batch_size=32, shuffle=True)
experiment.run_phase(
    mml.TrainPhase.from_split("train", split="train", sampler=sampler, losses=[loss], n_epochs=20)
)
scores = experiment.evaluate("test", metrics=["rmse", "r2"])
print(scores.round(3))
scores.plot(title="Waves, test split")
