"""
Categories as embeddings
========================

A maker is not a number: maker 7 is not more than maker 3. An encoder turns names into codes, and
``TabularMLP`` learns a vector for each code. A maker that no training row has gets a separate
code. The data are synthetic.

**For your data:** give such columns the pandas dtype ``category``; if there are few categories,
you can use one-hot columns instead. Guide: :doc:`/howto/22_categories`.
"""

# sphinx_gallery_alt = "Bars of importance: the maker matters more than the load."
import numpy as np
import pandas as pd
from sklearn.preprocessing import OrdinalEncoder

import modularml as mml
from modularml.models.torch import TabularMLP

rng = np.random.default_rng(0)
maker, load = rng.integers(0, 12, 600), rng.uniform(size=600)
hours = 200 - 40 * load + rng.normal(0, 40, 12)[maker] + rng.normal(0, 5, 600)
frame = pd.DataFrame({"maker": [f"maker {i:02}" for i in maker], "load": load, "hours": hours})
frame["maker"] = frame["maker"].astype("category")

experiment = mml.Experiment("machines", seed=0)
fs = mml.FeatureSet.from_pandas("machines", frame, ["maker", "load"], "hours")
fs.split_random({"train": 0.7, "test": 0.3}, seed=0)
encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
fs.fit_transform(encoder, domain="features", keys="maker", fit_to_split="train")
fs.fit_transform("StandardScaler", domain="targets", fit_to_split="train")
inputs = [fs.reference(features="maker"), fs.reference(features="load")]
net = mml.ModelNode("net", TabularMLP(), inputs, targets="hours")
mml.ModelGraph([net], mml.Optimizer("adam", opt_kwargs={"lr": 0.01}))
loss = mml.AppliedLoss(mml.Loss("mse"), on="net", inputs=["outputs", "targets"])
sampler = mml.SimpleSampler(batch_size=40, shuffle=True)
experiment.run_phase(
    mml.TrainPhase.from_split("train", split="train", sampler=sampler, losses=[loss], n_epochs=20)
)

new = pd.DataFrame({"maker": ["maker 03", "maker 99"], "load": 0.5})
print(experiment.evaluate("test", metrics="r2").round(2))
print(experiment.predict(new, fmt="pandas").round(1))  # the second maker is unknown
experiment.importances("test", "rmse").plot()
