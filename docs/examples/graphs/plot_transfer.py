"""
Freeze and transfer an encoder
==============================

An encoder that has learned ten digits from many images helps to tell even from odd digits with
only twenty images. ``load_weights`` copies its weights, ``freeze`` keeps them. The data are the
digits of scikit-learn; the two tasks share no image.

**For your data:** load the first graph from a file,
``mml.ModelGraph.load(path).get_node("encoder")``. Guide: :doc:`/howto/08_transfer_learning`.
"""

# sphinx_gallery_alt = "Bars of accuracy: higher with the transferred encoder than from scratch."
import numpy as np
from sklearn.datasets import load_digits

import modularml as mml
from modularml.models.torch import SequentialMLP
from modularml.plotting import bars

digits = load_digits()
pixels = (digits.data / 16).astype("float32")
loss = mml.AppliedLoss(mml.Loss("cross_entropy"), on="head", inputs=["outputs", "targets"])


def study(rows, target, n_train, n_epochs, start=None):
    experiment = mml.Experiment("study", seed=0)
    fs = mml.FeatureSet.from_dict("images", {"x": pixels[rows], "y": target[rows]}, "x", "y")
    share = n_train / len(fs)
    fs.split_random({"train": share, "test": 1 - share}, stratify_by="y", seed=0)
    encoder = mml.ModelNode("encoder", SequentialMLP(output_shape=(32,), hidden_dim=64), fs)
    head = mml.ModelNode("head", SequentialMLP(output_shape=(target.max() + 1,)), encoder)
    mml.ModelGraph([encoder, head], mml.Optimizer("adam", opt_kwargs={"lr": 3e-3})).build()
    if start is not None:
        encoder.load_weights(start)
        encoder.freeze()
    sampler = mml.SimpleSampler(batch_size=20, shuffle=True)
    train = mml.TrainPhase.from_split(
        "train", split="train", sampler=sampler, losses=[loss], n_epochs=n_epochs
    )
    experiment.run_phase(train)
    return encoder, experiment.evaluate("test", metrics="accuracy")["accuracy"].tolist()


even = (digits.target % 2 == 0).astype(int)
encoder, _ = study(slice(0, 1200), digits.target, n_train=1000, n_epochs=10)
few = slice(1200, None)
_, scratch = study(few, even, n_train=20, n_epochs=40)
_, transferred = study(few, even, n_train=20, n_epochs=40, start=encoder)
print("from scratch", np.round(scratch, 3), "transferred", np.round(transferred, 3))
bars({"from scratch": scratch, "transferred": transferred}, x="accuracy on 577 test images")
