"""
Merge two encoders
==================

A CNN reads the image, a small network reads the mean of each row, and ``ConcatNode`` concatenates
their outputs. One loss trains the encoders and the head. The data are the digits of scikit-learn.

**For your data:** give each kind of input (images, curves, numbers) a node of its own. Guide:
:doc:`/howto/07_nodes_and_graphs`.
"""

# sphinx_gallery_alt = "The graph: two encoders, a merge node and a head, with shapes on the edges."
from sklearn.datasets import load_digits

import modularml as mml
from modularml.models.torch import SequentialCNN, SequentialMLP

digits = load_digits()
images = (digits.images / 16).astype("float32")
columns = {"image": images, "rows": images.mean(axis=2), "digit": digits.target}

experiment = mml.Experiment("digits", seed=0)
fs = mml.FeatureSet.from_dict("digits", columns, ["image", "rows"], "digit")
fs.split_random({"train": 0.7, "test": 0.3}, stratify_by="digit", seed=0)

cnn = mml.ModelNode(
    "cnn", SequentialCNN(output_shape=(32,), pooling=2), fs.reference(features="image")
)
mlp = mml.ModelNode("mlp", SequentialMLP(output_shape=(8,)), fs.reference(features="rows"))
both = mml.ConcatNode("both", [cnn, mlp], concat_axis_targets="first")
head = mml.ModelNode("head", SequentialMLP(output_shape=(10,)), both)
graph = mml.ModelGraph([cnn, mlp, both, head], mml.Optimizer("adam", opt_kwargs={"lr": 5e-3}))

loss = mml.AppliedLoss(mml.Loss("cross_entropy"), on="head", inputs=["outputs", "targets"])
sampler = mml.SimpleSampler(batch_size=64, shuffle=True)
experiment.run_phase(
    mml.TrainPhase.from_split("train", split="train", sampler=sampler, losses=[loss], n_epochs=8)
)
print(experiment.evaluate("test", metrics="accuracy").round(3))
graph.visualize()
