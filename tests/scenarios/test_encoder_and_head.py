"""Every combination of encoder and head over the frameworks trains or fits, and predicts."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression

import modularml as mm
from tests.worlds import QUIET

BACKENDS = ["torch", "tensorflow", "scikit"]


def mlp(backend, **kwargs):
    """Return a linear model of a framework with gradients."""
    if backend == "tensorflow":
        pytest.importorskip("tests.keras_worlds")  # which keeps TensorFlow to one thread
    module = pytest.importorskip(f"modularml.models.{backend}")
    return module.SequentialMLP(n_layers=1, **kwargs)


def encoder(backend):
    """Return a model that makes 4 numbers of 6."""
    return PCA(4, random_state=0) if backend == "scikit" else mlp(backend, output_shape=(4,))


def head(backend):
    """Return a model that makes the target of 4 numbers."""
    return LinearRegression() if backend == "scikit" else mlp(backend)


def rows():
    """Return a linear target in noise; 4 directions of the features hold nearly everything."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4)) @ rng.normal(size=(4, 6)) + 0.01 * rng.normal(size=(300, 6))
    y = x @ rng.normal(size=6) + 0.1 * rng.normal(size=300)
    data = {"x": x.astype(np.float32), "y": y.astype(np.float32)}
    fs = mm.FeatureSet.from_dict("rows", data, "x", "y")
    fs.split_random({"train": 0.7, "test": 0.3}, seed=0)
    return fs


def adam():
    return mm.Optimizer("adam", opt_kwargs={"lr": 0.03})


@pytest.mark.parametrize("above", BACKENDS)
@pytest.mark.parametrize("below", BACKENDS)
def test_trains_or_fits_and_predicts(below, above):
    fs = rows()
    learns = {b: b != "scikit" for b in (below, above)}
    enc = mm.ModelNode("enc", encoder(below), fs, adam() if learns[below] else None)
    net = mm.ModelNode("net", head(above), enc, adam() if learns[above] else None)
    nodes = [enc, net]
    losses = [mm.AppliedLoss(mm.Loss("mse"), on="net", inputs=["outputs", "targets"])]
    if learns[below] and below != above:  # gradients stop at the head, so the encoder has a probe
        probe = mm.ModelNode("probe", head(below), enc, adam())
        nodes.append(probe)
        losses.append(mm.AppliedLoss(mm.Loss("mse"), on="probe", inputs=["outputs", "targets"]))
    graph = mm.ModelGraph(nodes)
    exp = mm.Experiment.from_active_context("combination")

    def fit(label):
        exp.run_phase(mm.FitPhase.from_split("fit", split="train", active_nodes=[label]), **QUIET)

    def train(losses, active):
        phase = mm.TrainPhase.from_split(
            "train",
            split="train",
            sampler=mm.SimpleSampler(batch_size=32, shuffle=True, seed=0),
            losses=losses,
            n_epochs=60,
            active_nodes=active,
        )
        exp.run_phase(phase, **QUIET)

    if not learns[below]:
        fit("enc")
    if learns[below] and below != above:
        train(losses[1:], ["probe"])
    if learns[above]:
        if below != above:
            graph.freeze(["enc"])
        train(losses[:1], ["net"])
    else:
        fit("net")
    results = exp.run_phase(mm.EvalPhase.from_split("test", split="test", losses=losses[:1]))
    error = results.aggregated_losses("net")["mse_net"]
    train_view, test = fs["train"], fs["test"]
    x, y = (train_view.get_features("numpy")[:, 0], train_view.get_targets("numpy")[:, 0])
    truth = test.get_targets("numpy")[:, 0]
    best = LinearRegression().fit(x, y).predict(test.get_features("numpy")[:, 0])
    assert error < 0.02 * np.var(truth) + 2 * np.mean((best - truth) ** 2)
    out = graph.predict(test, node="net")
    assert np.mean((out[:, 0] - truth) ** 2) == pytest.approx(error, rel=1e-4)
