"""The package `modularml` of PyPI, used through its published reference."""

import sys

from benchmarks.cases import LEARNING_RATE
from benchmarks.opponents.contest import Fit, contest

if "--free-tensorflow" in sys.argv:
    sys.modules["tensorflow"] = None  # a failed import of it then costs nothing

from modularml import (
    AppliedLoss,
    Experiment,
    FeatureSet,
    InputBinding,
    Loss,
    ModelGraph,
    ModelNode,
    Optimizer,
    TrainPhase,
)
from modularml.models.torch import SequentialMLP
from modularml.samplers import SimpleSampler


def start(x, y, batch_size: int) -> Fit:
    experiment = Experiment("bench", registration_policy="overwrite")
    # One array column: several times faster there than sixteen scalar ones.
    columns = {"x": list(x), "y": y[:, 0]}
    fs = FeatureSet.from_dict("rows", columns, feature_keys=["x"], target_keys=["y"])
    model = SequentialMLP(output_shape=(1, 1), n_layers=3, hidden_dim=64)
    head = ModelNode("head", model, fs.reference(features=["x"], targets=["y"]))
    adam = Optimizer("adam", opt_kwargs={"lr": LEARNING_RATE}, backend="torch")
    ModelGraph([head], optimizer=adam).build()
    loss = AppliedLoss(Loss("mse", backend="torch"), on="head", inputs=["outputs", "targets"])
    sampler = SimpleSampler(batch_size=batch_size, shuffle=True, seed=0)
    source = InputBinding.for_training(node=head, sampler=sampler, upstream=fs)

    def fit(epochs: int) -> None:
        phase = TrainPhase("train", input_sources=[source], losses=[loss], n_epochs=epochs)
        experiment.run_phase(phase, show_sampler_progress=False, show_training_progress=False)

    return fit


if __name__ == "__main__":
    contest("other_modularml", "modularml", start)
