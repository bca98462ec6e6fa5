"""
Class weights
=============

One patient in twenty is ill, so a network does well by predicting "healthy" for nearly all rows.
``class_weight="balanced"`` makes both classes count the same in the loss. The data are synthetic.

**For your data:** if errors have different costs, pass a dict of weights by label. More ill
patients are found, but more healthy ones are predicted to be ill: look at both. Guide:
:doc:`/howto/33_schedules_and_averages`.
"""

# sphinx_gallery_alt = "Bars of recall: far more ill rows are found with balanced weights."
from sklearn.datasets import make_classification

import modularml as mml
from modularml.models.torch import SequentialMLP
from modularml.plotting import bars

x, y = make_classification(2000, 8, weights=[0.95], flip_y=0.02, class_sep=0.5, random_state=0)
columns = {"x": x.astype("float32"), "ill": y}


def recalls(class_weight):
    experiment = mml.Experiment("ill", seed=0)
    fs = mml.FeatureSet.from_dict("rows", columns, "x", "ill")
    fs.split_random({"train": 0.7, "test": 0.3}, stratify_by="ill", seed=0)
    net = mml.ModelNode("net", SequentialMLP(output_shape=(2,)), fs)
    mml.ModelGraph([net], mml.Optimizer("adam", opt_kwargs={"lr": 5e-3}))
    loss = mml.AppliedLoss(
        mml.Loss("cross_entropy"), "net", ["outputs", "targets"], class_weight=class_weight
    )
    sampler = mml.SimpleSampler(batch_size=50, shuffle=True)
    train = mml.TrainPhase.from_split(
        "train", split="train", sampler=sampler, losses=[loss], n_epochs=10
    )
    experiment.run_phase(train)
    found, true = experiment.predict(fs["test"]).argmax(axis=1), fs["test"].get_targets()["ill"]
    return {name: (found[true == i] == i).mean() for i, name in enumerate(("healthy", "ill"))}


equal, balanced = recalls(None), recalls("balanced")
shares = {}
for name in equal:
    shares[f"{name}, equal weights"] = [equal[name]]
    shares[f"{name}, balanced"] = [balanced[name]]
print({name: round(float(share), 2) for name, (share,) in shares.items()})
bars(shares, x="share of the class that is found")
