"""
Warm-up and cosine decay
========================

The learning rate rises over the first tenth of all updates, then falls along a cosine. The
schedule takes its length from the phase, so you can change ``n_epochs`` without changing the
schedule. The data are the digits of scikit-learn.

**For your data:** change ``lr`` (the highest rate), ``warmup`` (a share, or a number of updates),
or the schedule's name. Guide: :doc:`/howto/33_schedules_and_averages`.
"""

# sphinx_gallery_alt = "The learning rate over updates: a short rise, then a fall along a cosine."
from sklearn.datasets import load_digits

import modularml as mml
from modularml.callbacks import LearningRateMonitor
from modularml.models.torch import SequentialMLP
from modularml.plotting import series

digits = load_digits()
columns = {"x": (digits.data / 16).astype("float32"), "digit": digits.target}
experiment = mml.Experiment("digits", seed=0)
fs = mml.FeatureSet.from_dict("digits", columns, "x", "digit")
fs.split_random({"train": 0.7, "test": 0.3}, stratify_by="digit", seed=0)
net = mml.ModelNode("net", SequentialMLP(output_shape=(10,), hidden_dim=64), fs)

schedule = mml.LRSchedule("cosine", warmup=0.1, every="batch")
mml.ModelGraph([net], mml.Optimizer("adam", opt_kwargs={"lr": 0.01}, schedule=schedule))
loss = mml.AppliedLoss(mml.Loss("cross_entropy"), on="net", inputs=["outputs", "targets"])
train = mml.TrainPhase.from_split(
    "train",
    split="train",
    sampler=mml.SimpleSampler(batch_size=64, shuffle=True),
    losses=[loss],
    n_epochs=12,
    callbacks=[LearningRateMonitor(every="batch")],
)
rates = experiment.run_phase(train).metrics().where(name="lr").values()
print(f"{len(rates)} updates, highest rate {max(rates):.4f}, last {rates[-1]:.6f}")
print(experiment.evaluate("test", metrics="accuracy").round(3))
series({"lr": list(rates)}, x="update", y="learning rate")
