"""
Average the weights (EMA)
=========================

``EMA`` keeps a moving average of the weights after each update. Evaluations, early stopping and
the trained graph use the average, which is steadier than the weights of the last batch. The data
are synthetic, with noise.

**For your data:** a decay of 0.99 averages about a hundred updates; use a smaller decay if
training is short. Guide: :doc:`/howto/33_schedules_and_averages`.
"""

# sphinx_gallery_alt = "Validation loss over epochs: jagged without an average, smooth with EMA."
import numpy as np

import modularml as mml
from modularml.callbacks import EMA
from modularml.models.torch import SequentialMLP
from modularml.plotting import loss_curves

rng = np.random.default_rng(0)
x = rng.normal(size=(600, 4)).astype("float32")
columns = {"x": x, "y": np.sin(2 * x[:, 0]) + x[:, 1] + 0.5 * rng.normal(size=600)}


def curve(*callbacks):
    experiment = mml.Experiment("noisy", seed=0)
    fs = mml.FeatureSet.from_dict("rows", columns, "x", "y")
    fs.split_random({"train": 0.5, "val": 0.5}, seed=0)
    net = mml.ModelNode("net", SequentialMLP(hidden_dim=32), fs)
    mml.ModelGraph([net], mml.Optimizer("adam", opt_kwargs={"lr": 0.02}))
    loss = mml.AppliedLoss(mml.Loss("mse"), on="net", inputs=["outputs", "targets"])
    metrics = [mml.EvalLossMetric(loss=loss)]
    train = mml.TrainPhase.from_split(
        "train",
        split="train",
        sampler=mml.SimpleSampler(batch_size=16, shuffle=True),
        losses=[loss],
        n_epochs=20,
        callbacks=[mml.Evaluation.from_split("val", split="val", metrics=metrics), *callbacks],
    )
    return experiment.run_phase(train).to_pandas()["val_loss"]


curves = {"last weights": curve(), "EMA": curve(EMA(0.98))}
print({name: f"{c[10:].mean():.3f} ± {c[10:].std():.3f}" for name, c in curves.items()})
loss_curves(curves, title="Validation loss")
