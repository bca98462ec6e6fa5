"""
Checkpoint and resume
=====================

A run that writes checkpoints is stopped in its fifth epoch. The same script, run again with
``resume="auto"``, continues in the middle of the epoch and ends with the same weights, bit for
bit, as a run that was never stopped. The data are synthetic.

**For your data:** choose a folder that outlives the job, and set ``every_n`` to the number of
batches that you can afford to lose. Guide: :doc:`/howto/15_checkpoints_and_resume`.
"""

# sphinx_gallery_alt = "Training loss of the resumed run and of the whole run: one curve."
import tempfile
from contextlib import suppress

import numpy as np

import modularml as mml
from modularml.callbacks import Callback
from modularml.models.torch import SequentialMLP
from modularml.plotting import loss_curves

x = np.random.default_rng(0).normal(size=(600, 5)).astype("float32")
columns = {"x": x, "y": np.sin(x[:, 0]) + x[:, 1] * x[:, 2]}


class PowerCut(Callback):
    def on_batch_end(self, *, exec_ctx, **facts):
        if not resuming and exec_ctx.epoch_idx == 4:
            raise RuntimeError("the power is gone")


def script(folder, *callbacks):
    experiment = mml.Experiment("study", seed=0)
    experiment.set_checkpoint_dir(folder)
    fs = mml.FeatureSet.from_dict("rows", columns, "x", "y")
    fs.split_random({"train": 0.8, "test": 0.2}, seed=0)
    net = mml.ModelNode("net", SequentialMLP(dropout=0.2), fs)
    mml.ModelGraph([net], mml.Optimizer("adam", opt_kwargs={"lr": 0.01}))
    options = {
        "sampler": mml.SimpleSampler(batch_size=32, shuffle=True),
        "losses": [mml.AppliedLoss(mml.Loss("mse"), on="net", inputs=["outputs", "targets"])],
        "checkpointing": mml.Checkpointing(mode="disk", save_on="batch_end", every_n=5),
        "callbacks": list(callbacks),
    }
    train = mml.TrainPhase.from_split("train", split="train", n_epochs=8, **options)
    experiment.execution_plan.add_phase(train)
    results = experiment.run(resume="auto")
    return results["train"].to_pandas()["train_loss"], net.model.get_weights()


folder, resuming = tempfile.mkdtemp(), False
with suppress(RuntimeError):
    script(folder, PowerCut())
resuming = True
resumed, weights = script(folder, PowerCut())
whole, expected = script(tempfile.mkdtemp())
print("largest difference:", max(np.abs(weights[k] - expected[k]).max() for k in expected))
loss_curves({"never stopped": whole, "stopped and resumed": resumed})
