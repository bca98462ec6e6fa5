"""
How much is luck? Ten seeds
===========================

Ten training runs differ only in the initial weights and the order of batches. A single score
hides their spread. The mean of their predictions is usually better than most of them. The data
are the diabetes patients of scikit-learn.

**For your data:** do not trust a difference between models that is smaller than this spread.
Guide: :doc:`/howto/19_folds_seeds_and_ensembles`.
"""

# sphinx_gallery_alt = "Test error of ten seeds, scattered around that of their mean."
import numpy as np
from sklearn.datasets import load_diabetes

import modularml as mml
from modularml.models.torch import SequentialMLP
from modularml.plotting import series

frame = load_diabetes(as_frame=True).frame
experiment = mml.Experiment("progression", seed=0)
fs = mml.FeatureSet.from_pandas("patients", frame, list(frame)[:-1], "target")
fs.split_random({"train": 0.7, "test": 0.3}, seed=0)
for domain in ("features", "targets"):
    fs.fit_transform("StandardScaler", domain=domain, fit_to_split="train")
net = mml.ModelNode("net", SequentialMLP(hidden_dim=16), fs)
mml.ModelGraph([net], mml.Optimizer("adam", opt_kwargs={"lr": 0.01}))
loss = mml.AppliedLoss(mml.Loss("mse"), on="net", inputs=["outputs", "targets"])
sampler = mml.SimpleSampler(batch_size=32, shuffle=True)
experiment.execution_plan.add_phase(
    mml.TrainPhase.from_split("train", split="train", sampler=sampler, losses=[loss], n_epochs=30)
)

seeds = mml.Ensemble(experiment, n=10, vary="seed").run()
alone = [m.evaluate("test", metrics="rmse")["rmse"].item() for m in seeds.members.values()]
together = seeds.evaluate("test", metrics="rmse")["rmse"].tolist()
print(f"one seed {np.mean(alone):.1f} ± {np.std(alone):.1f}, all ten together {together[0]:.1f}")
series({"each seed": alone, "all together": together * 10}, x="seed", y="rmse on the test split")
