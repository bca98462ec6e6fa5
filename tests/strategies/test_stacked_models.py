"""Models of sequences, categories and distributions, trained as one and one after another."""

import numpy as np
import pytest
import torch
from sklearn.preprocessing import OrdinalEncoder

import modularml as mml
from modularml.models import torch as models
from tests.worlds import QUIET, experiment, mse

N, T = 320, 6


def plan_of(fs, nodes, losses=None):
    """An experiment that trains on rows of ``train`` for three epochs."""
    fs.split_random({"train": 0.8, "val": 0.2})
    mml.ModelGraph(nodes, mml.Optimizer("sgd", opt_kwargs={"lr": 0.05}))
    own = experiment(audit="off")
    own.model_graph.build()
    sampler = mml.SimpleSampler(batch_size=32, shuffle=True)
    own.execution_plan.add_phase(
        mml.TrainPhase.from_split(
            "train", split="train", losses=losses or [mse()], n_epochs=3, sampler=sampler
        )
    )
    return own


def trained(own, stacked):
    """Return the weights of three members of an ensemble."""
    ensemble = mml.Ensemble(own, n=3, vary="seed", stacked=stacked)
    members = ensemble.run(show_progress=False, **QUIET).members.values()
    return [
        node.model.get_weights() for member in members for node in member.model_graph.nodes.values()
    ]


def assert_close(own, atol):
    for one, other in zip(trained(own, True), trained(own, False), strict=True):
        for name, values in one.items():
            np.testing.assert_allclose(values, other[name], atol=atol, err_msg=name)


@pytest.fixture
def stacks(monkeypatch):
    """Record each stack that is made, or None where none can be."""
    from modularml.engine.stacked import SideBySide

    made, original = [], SideBySide._made
    monkeypatch.setattr(
        SideBySide, "_made", lambda self, *a: made.append(original(self, *a)) or made[-1]
    )
    return made


def sequences(model):
    rng = np.random.default_rng(0)
    mask = np.arange(T) < rng.integers(1, T + 1, size=N)[:, None]
    data = {
        "x": np.where(mask[..., None], rng.normal(size=(N, T, 2)), 9.0).astype("f4"),
        "y": rng.normal(size=N).astype("f4"),
        "mask": mask,
    }
    fs = mml.FeatureSet.from_dict("s", data, "x", "y", "mask", mask="mask")
    node = mml.ModelNode("net", model, fs.reference(features="x"), mask_as="mask")
    return plan_of(fs, [node])


def tabular():
    rng = np.random.default_rng(0)
    kind, x = rng.choice(list("abcd"), N), rng.normal(size=N).astype("f4")
    data = {"kind": kind, "x": x, "y": (kind == "a") + x}
    fs = mml.FeatureSet.from_dict("t", data, ["kind", "x"], "y")
    fs.fit_transform(OrdinalEncoder(), domain="features", keys="kind")
    inputs = [fs.reference(features="kind"), fs.reference(features="x")]
    node = mml.ModelNode("net", models.TabularMLP(hidden_dim=8, dropout=0.2), inputs)
    return plan_of(fs, [node])


def distribution():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 5)).astype("f4")
    fs = mml.FeatureSet.from_dict("d", {"x": x, "y": x.sum(axis=1)}, "x", "y")
    trunk = mml.ModelNode("trunk", models.SequentialMLP(output_shape=(8,)), fs)
    head = mml.ModelNode("head", models.GaussianHead(), trunk)
    loss = mml.AppliedLoss(mml.Loss("gaussian_nll"), on="head", inputs=["outputs", "targets"])
    return plan_of(fs, [trunk, head], losses=[loss])


CASES = {
    "tcn": lambda: sequences(models.SequentialTCN(hidden_dim=8, dropout=0.2)),
    "transformer": lambda: sequences(models.SequentialTransformer(hidden_dim=8, dropout=0.2)),
    "gru": lambda: sequences(models.SequentialRNN(hidden_dim=8, n_layers=2, dropout=0.2)),
    "tabular": tabular,
    "gaussian": distribution,
}


@pytest.mark.parametrize("name", CASES)
def test_they_are_trained_as_one(name, stacks, caplog):
    assert_close(CASES[name](), atol=1e-4)
    assert "not all runs are trained as one" not in caplog.text
    assert stacks
    assert None not in stacks


def test_lstm_is_trained_one_after_another_with_a_note(stacks, caplog):
    assert_close(sequences(models.SequentialRNN(cell="lstm", hidden_dim=8)), atol=0.0)
    assert stacks
    assert not any(stacks)
    assert "not all runs are trained as one: torch cannot vectorize LSTM layers" in caplog.text


class Doubled(torch.nn.Module):
    """Multiplies by ones that were changed in place, and adds a shared row."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        self.row = torch.nn.Parameter(torch.ones(1, 3))

    def reset_parameters(self):
        torch.nn.init.uniform_(self.row)

    def forward(self, x):
        ones = torch.ones_like(x)
        kept = x * ones
        return self.layer(torch.relu(kept * ones.mul_(2.0)) + self.row)


def test_factors_and_sums_that_could_be_simplified_wrongly(stacks):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 3)).astype("f4")
    fs = mml.FeatureSet.from_dict("s", {"x": x, "y": x.sum(1)}, "x", "y")
    assert_close(plan_of(fs, [mml.ModelNode("net", Doubled(), fs.reference(features="x"))]), 1e-5)
    assert stacks[0] is not None
