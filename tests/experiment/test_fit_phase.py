"""Nodes that learn from all rows at once, held against scikit-learn's closed form."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from torch import nn

import modularml as mml
from modularml.errors import GraphError
from modularml.models.torch import SequentialMLP


class ClosedFormRidge(mml.TorchBaseModel):
    """Linear regression by the normal equations."""

    def __init__(self, *, alpha: float = 1.0, output_shape: tuple[int, ...] | None = None) -> None:
        super().__init__(alpha=alpha, output_shape=output_shape)
        self.alpha = alpha

    def make_layers(self, input_shape, output_shape) -> None:
        self.linear = nn.Linear(input_shape[0], output_shape[0])

    def forward(self, x):
        return self.linear(x)

    def fit(self, features, targets) -> None:
        x, y = (np.asarray(a, dtype=np.float64) for a in (features, targets))
        centre, level = x.mean(axis=0), y.mean(axis=0)
        x = x - centre
        weights = np.linalg.solve(x.T @ x + self.alpha * np.eye(x.shape[1]), x.T @ (y - level))
        self.set_weights({"linear.weight": weights.T, "linear.bias": level - centre @ weights})


def keras_ridge():
    """Return the same as a Keras model."""
    base = pytest.importorskip("modularml.models.tensorflow").TensorflowBaseModel
    layers = pytest.importorskip("tests.keras_worlds").layers

    class KerasRidge(base):
        def make_model(self, input_shape, output_shape):
            return layers.Dense(output_shape[0])

        def fit(self, features, targets) -> None:
            line = Ridge(alpha=2.0).fit(np.asarray(features), np.asarray(targets))
            self.set_weights(
                {"dense.kernel": line.coef_.reshape(-1, 1), "dense.bias": line.intercept_}
            )

    return KerasRidge()


@pytest.fixture
def rows() -> mml.FeatureSet:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(300, 5)).astype(np.float32)
    y = x @ np.array([1.0, -2.0, 0.5, 0.0, 3.0]) + 1.5 + 0.1 * rng.normal(size=300)
    fs = mml.FeatureSet.from_dict("rows", {"x": x, "y": y.astype(np.float32)}, "x", "y")
    fs.split_random({"train": 0.7, "test": 0.3})
    return fs


def ridge_graph(fs: mml.FeatureSet) -> mml.ModelGraph:
    flat = mml.ModelNode("flat", nn.Flatten(), fs)
    return mml.ModelGraph([flat, mml.ModelNode("ridge", ClosedFormRidge(alpha=2.0), flat)])


@pytest.mark.parametrize("make", [lambda: ClosedFormRidge(alpha=2.0), keras_ridge])
def test_a_fitted_node_equals_scikit_learn(rows: mml.FeatureSet, make) -> None:
    flat = mml.ModelNode("flat", nn.Flatten(), rows)
    graph = mml.ModelGraph([flat, mml.ModelNode("ridge", make(), flat)])
    experiment = mml.Experiment.from_active_context("fit")
    loss = mml.AppliedLoss(mml.Loss("mse"), on="ridge", inputs=["outputs", "targets"])
    results = experiment.run_phase(mml.FitPhase.from_split("fit", split="train", losses=[loss]))
    x, y = (
        rows["train"].get_features("numpy", features="x")[:, 0],
        rows["train"].get_targets("numpy")[:, 0],
    )
    theirs = Ridge(alpha=2.0).fit(x, y)
    found = results.stacked_tensors("ridge", "outputs", fmt="numpy")[:, 0]
    np.testing.assert_allclose(found, theirs.predict(x), atol=1e-4)
    mse = float(np.mean((theirs.predict(x) - y) ** 2))
    assert results.aggregated_losses("ridge")["mse_ridge"] == pytest.approx(mse, rel=1e-3)
    assert len(results.source_view("ridge")) == len(rows["train"])
    test = rows["test"]
    np.testing.assert_allclose(
        experiment.predict(test)[:, 0],
        theirs.predict(test.get_features("numpy")[:, 0]),
        atol=1e-4,
    )
    assert graph.get_node("ridge").is_frozen


def test_freezing_is_asked_for(rows: mml.FeatureSet) -> None:
    graph = ridge_graph(rows)
    made = mml.FitPhase.from_split("fit", split="train")
    group = mml.PhaseGroup("g")
    group.add_fit("fit", input_sources=made.input_sources, freeze_after_fit=False)
    mml.Experiment.from_active_context("fit").run_phase(group.get_fit_phase("fit"))
    assert not graph.get_node("ridge").is_frozen


def test_a_fitted_node_feeds_a_trained_one(rows: mml.FeatureSet) -> None:
    flat = mml.ModelNode("flat", nn.Flatten(), rows)
    ridge = mml.ModelNode("ridge", ClosedFormRidge(output_shape=(1,)), flat)
    head = mml.ModelNode("head", SequentialMLP(n_layers=1), ridge)
    adam = mml.Optimizer("adam", opt_kwargs={"lr": 5e-2})
    mml.ModelGraph([flat, ridge, head], optimizer=adam)
    experiment = mml.Experiment.from_active_context("chain")
    experiment.run_phase(mml.FitPhase.from_split("fit", split="train", active_nodes=["ridge"]))
    fitted = ridge.model.get_weights()
    loss = mml.AppliedLoss(mml.Loss("mse"), on="head", inputs=["outputs", "targets"])
    train = mml.TrainPhase.from_split(
        "train",
        split="train",
        sampler=mml.SimpleSampler(batch_size=32, shuffle=True, seed=0),
        losses=[loss],
        n_epochs=30,
    )
    trained = experiment.run_phase(train, show_training_progress=False)
    assert all(np.array_equal(fitted[k], v) for k, v in ridge.model.get_weights().items())
    # a line on the fitted values can do as well as they do, and no better
    y = rows["train"].get_targets("numpy")[:, 0]
    x = rows["train"].get_features("numpy")[:, 0]
    best = float(np.mean((Ridge(alpha=1.0).fit(x, y).predict(x) - y) ** 2))
    assert trained.to_pandas()["train_loss"].iloc[-1] == pytest.approx(best, rel=0.2)


def test_preview_leaves_no_trace(rows: mml.FeatureSet) -> None:
    graph = ridge_graph(rows)
    graph.build()
    before = graph.get_node("ridge").model.get_weights()
    experiment = mml.Experiment.from_active_context("fit")
    experiment.preview_phase(mml.FitPhase.from_split("fit", split="train"))
    after = graph.get_node("ridge").model.get_weights()
    assert all(np.array_equal(before[k], after[k]) for k in before)
    assert not graph.get_node("ridge").is_frozen
    assert experiment.history == []


def test_by_hand(rows: mml.FeatureSet) -> None:
    graph = ridge_graph(rows)
    mml.Experiment.from_active_context("fit")
    (ctx,) = mml.FitPhase.from_split("fit", split="train").iter_execution()
    graph.get_node("ridge").fit_step(ctx)
    assert ctx.output(graph.get_node("ridge").node_id).shape == (len(rows["train"]), 1)
    graph.freeze(["ridge"])
    with pytest.raises(GraphError, match="frozen"):
        graph.get_node("ridge").fit_step(ctx)


def test_what_cannot_be_fitted_says_so(rows: mml.FeatureSet) -> None:
    mml.ModelGraph([mml.ModelNode("net", SequentialMLP(), rows)])
    with pytest.raises(GraphError, match=r"fit\(features, targets\)"):
        mml.FitPhase.from_split("fit", split="train")


def test_arguments_of_the_wrong_kind_say_so(rows: mml.FeatureSet) -> None:
    graph = mml.ModelGraph([mml.ModelNode("ridge", nn.Flatten(), rows)], mml.Optimizer("sgd"))
    with pytest.raises(TypeError, match="ctx must be an ExperimentContext"):
        mml.Experiment("x", ctx=5)
    with pytest.raises(TypeError, match="checkpointing must be a Checkpointing"):
        mml.Experiment("x", checkpointing=5)
    loss = mml.AppliedLoss(mml.Loss("mse"), on="ridge", inputs=["outputs", "targets"])
    asked = {"split": "train", "losses": [loss]}
    sampler = mml.SimpleSampler()
    with pytest.raises(TypeError, match="checkpointing must be a Checkpointing"):
        mml.TrainPhase.from_split("t", sampler=sampler, checkpointing=5, **asked)
    with pytest.raises(TypeError, match="EvaluationMetric"):
        mml.Evaluation.from_split("v", split="test", metrics=[5])
    with pytest.raises(mml.errors.ConfigError, match="active_nodes must be a list"):
        mml.TrainPhase.from_split("t", sampler=sampler, active_nodes="ridge", **asked)
    with pytest.raises(mml.errors.ConfigError, match="sampler must be a sampler"):
        mml.TrainPhase.from_split("t", sampler=None, **asked)
    graph.build()
    with pytest.raises(mml.errors.ConfigError, match="batch_size must be"):
        graph.predict(rows, batch_size=0)
    with pytest.raises(mml.errors.ConfigError, match="write Optimizer"):
        mml.ModelGraph(list(graph.nodes.values()), optimizer="adam", register=False)
