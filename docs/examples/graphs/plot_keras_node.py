"""
A Keras model as a node
=======================

You can pass a Keras model to a node. The graph then uses a Keras optimizer, and everything else
(losses, callbacks, scores) stays the same. The data are synthetic curves.

**For your data:** put your model in place of the ``Sequential``. A curve of 30 steps reaches it
as ``(1, 30)``, one channel. Guide: :doc:`/howto/09_mixed_backends`.
"""

# sphinx_gallery_alt = "Predicted over true wear, close to the diagonal."
import keras
import numpy as np

import modularml as mml

rng = np.random.default_rng(0)
pulse = rng.normal(size=(400, 30)).cumsum(axis=1).astype("float32")
wear = np.abs(pulse).mean(axis=1)

experiment = mml.Experiment("machines", seed=0)
fs = mml.FeatureSet.from_dict("machines", {"pulse": pulse, "wear": wear}, "pulse", "wear")
fs.split_random({"train": 0.7, "test": 0.3}, seed=0)
model = keras.Sequential(
    [
        keras.layers.Flatten(),
        keras.layers.Dense(32, "relu"),
        keras.layers.Dense(1),
    ]
)
net = mml.ModelNode("net", model, fs)
mml.ModelGraph([net], mml.Optimizer("adam", opt_kwargs={"learning_rate": 5e-3}))
loss = mml.AppliedLoss(mml.Loss("mse"), on="net", inputs=["outputs", "targets"])
sampler = mml.SimpleSampler(batch_size=32, shuffle=True)
experiment.run_phase(
    mml.TrainPhase.from_split("train", split="train", sampler=sampler, losses=[loss], n_epochs=20)
)
scores = experiment.evaluate("test", metrics=["rmse", "r2"])
print(scores.round(2))
scores.plot(title="Keras model, test split")
