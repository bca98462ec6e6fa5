"""
scikit-learn before torch
=========================

Any transformer of scikit-learn is a node. A ``FitPhase`` fits it on all training rows at once and
freezes it; a ``TrainPhase`` then trains the network behind it. The data are the digits of
scikit-learn.

**For your data:** put any transformer in place of ``PCA``, such as a feature selection. Guide:
:doc:`/howto/09_mixed_backends`.
"""

# sphinx_gallery_alt = "The graph: PCA, pale as it is frozen, then a network behind it."
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

import modularml as mml
from modularml.models.torch import SequentialMLP

digits = load_digits()
columns = {"pixels": digits.data.astype("float32"), "digit": digits.target}

experiment = mml.Experiment("digits", seed=0)
fs = mml.FeatureSet.from_dict("digits", columns, "pixels", "digit")
fs.split_random({"train": 0.7, "test": 0.3}, stratify_by="digit", seed=0)
pca = mml.ModelNode("pca", PCA(16, whiten=True), fs)
net = mml.ModelNode("net", SequentialMLP(output_shape=(10,)), pca)
graph = mml.ModelGraph([pca, net], mml.Optimizer("adam", opt_kwargs={"lr": 5e-3}))

loss = mml.AppliedLoss(mml.Loss("cross_entropy"), on="net", inputs=["outputs", "targets"])
sampler = mml.SimpleSampler(batch_size=64, shuffle=True)
experiment.run_phase(mml.FitPhase.from_split("fit", split="train", active_nodes=["pca"]))
experiment.run_phase(
    mml.TrainPhase.from_split("train", split="train", sampler=sampler, losses=[loss], n_epochs=20)
)
print(experiment.evaluate("test", metrics="accuracy").round(3))
graph.visualize()
