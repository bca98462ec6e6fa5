"""Graphs of torch and scikit-learn nodes, against the same work written by hand."""

import copy

import numpy as np
import pytest
import torch
from sklearn import metrics
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, SGDRegressor
from sklearn.preprocessing import StandardScaler
from torch import nn

import modularml as mm
from modularml.backends import Backend
from modularml.callbacks import Callback
from modularml.errors import ConfigError, GraphError, LossError, NotFittedError, ShapeError
from modularml.models.torch import SequentialMLP
from modularml.results.packed_results import packed_steps, unpacked_steps
from tests.worlds import (
    QUIET,
    arrays,
    assert_equal_weights,
    bindings,
    by_hand,
    eval_phase,
    experiment,
    featureset,
    mlp,
    mse,
    slices,
    train_phase,
    twin,
    weights,
)


def sgd(lr=0.05):
    return mm.Optimizer("sgd", opt_kwargs={"lr": lr})


def fit_phase(graph, **kwargs):
    return mm.FitPhase("fit", input_sources=bindings(graph), **kwargs)


def evaluated(module, x):
    module.eval()
    with torch.no_grad():
        return module(torch.as_tensor(x)).numpy()


class Count(Callback):
    """Counts the calls of a module."""

    def __init__(self, module):
        super().__init__()
        self.n = 0
        module.register_forward_hook(lambda *_: setattr(self, "n", self.n + 1))


class TestFitting:
    def test_before_between_and_after_torch(self):
        x, y = arrays(n=80)
        enc, head = mlp(out=3, seed=1), mlp(d=1, seed=2)
        scaler = mm.ModelNode("scaler", StandardScaler(), featureset(x, y))
        a = mm.ModelNode("enc", enc, scaler)
        ridge = mm.ModelNode("ridge", Ridge(alpha=0.1), a)
        b = mm.ModelNode("net", head, ridge)
        forest = mm.ModelNode("forest", RandomForestRegressor(5, random_state=0), b)
        graph = mm.ModelGraph([scaler, a, ridge, b, forest], sgd())
        results = experiment().run_phase(fit_phase(graph, losses=[mse("forest")]), **QUIET)
        scaled = StandardScaler().fit_transform(x)
        codes = evaluated(enc, scaled)
        level = Ridge(alpha=0.1).fit(codes, y[:, 0]).predict(codes)
        out = evaluated(head, level[:, None])
        by_sklearn = RandomForestRegressor(5, random_state=0).fit(out, y[:, 0]).predict(out)
        np.testing.assert_allclose(results.stacked_tensors("ridge", "outputs")[:, 0], level, 1e-5)
        found = results.stacked_tensors("forest", "outputs", fmt="numpy")
        np.testing.assert_allclose(found[:, 0], by_sklearn, rtol=1e-5)
        expected = metrics.mean_squared_error(y[:, 0], by_sklearn)
        assert results.aggregated_losses("forest")["mse_forest"] == pytest.approx(expected)
        assert set(graph.frozen_nodes) == {scaler.node_id, ridge.node_id, forest.node_id}
        np.testing.assert_allclose(graph.predict(x)[:, 0], by_sklearn, rtol=1e-5)
        assert scaler.model.inner.mean_.dtype == np.float64
        assert results.stacked_tensors("scaler", "outputs", fmt="numpy").dtype == np.float32

    def test_each_node_runs_once(self):
        x, y = arrays()
        enc = mlp(out=3)
        count = Count(enc)
        a = mm.ModelNode("enc", enc, featureset(x, y))
        graph = mm.ModelGraph([a, mm.ModelNode("ridge", Ridge(), a)])
        graph.build()
        count.n = 0
        experiment().run_phase(fit_phase(graph))
        assert count.n == 1

    def test_rows_come_in_order_and_targets_flat(self):
        seen = []

        class Spy(LinearRegression):
            def fit(self, X, y):
                seen.append((X, y))
                return super().fit(X, y)

        x, y = arrays()
        graph = mm.ModelGraph([mm.ModelNode("spy", Spy(), featureset(x, y))])
        experiment().run_phase(fit_phase(graph))
        np.testing.assert_array_equal(seen[0][0], x)
        np.testing.assert_array_equal(seen[0][1], y[:, 0])
        assert seen[0][1].ndim == 1
        assert seen[0][0].dtype == np.float32

    def test_labels_that_are_text(self):
        x, y = arrays(n=60)
        kinds = np.where(y[:, 0] > 0, "warm", "cold")
        fs = mm.FeatureSet.from_dict("data", {"x": x, "kind": kinds}, "x", "kind")
        graph = mm.ModelGraph([mm.ModelNode("kind", LogisticRegression(), fs)])
        experiment().run_phase(fit_phase(graph))
        expected = LogisticRegression().fit(x, kinds).predict_proba(x)
        np.testing.assert_allclose(graph.predict(fs), expected, rtol=1e-6)

    def test_merged_targets_and_inputs(self):
        x, y = arrays(n=40)
        fs = featureset(x, y)
        left = mm.ModelNode("left", PCA(2), fs.reference(features=["x0", "x1", "x2"], targets="y"))
        right = mm.ModelNode(
            "right", mlp(d=3, out=2), fs.reference(features=["x3", "x4", "x5"], targets="y")
        )
        both = mm.ConcatNode("both", [left, right], concat_axis_targets="first")
        graph = mm.ModelGraph([left, right, both, mm.ModelNode("ridge", Ridge(), both)])
        experiment().run_phase(fit_phase(graph))
        codes = np.hstack([PCA(2).fit_transform(x[:, :3]), evaluated(right.model.module, x[:, 3:])])
        expected = Ridge().fit(codes, y[:, 0]).predict(codes)
        np.testing.assert_allclose(graph.predict(fs)[:, 0], expected, rtol=1e-4)

    def test_only_some(self):
        x, y = arrays()
        fs = featureset(x, y)
        a, b = mm.ModelNode("a", Ridge(), fs), mm.ModelNode("b", Ridge(), fs)
        graph = mm.ModelGraph([a, b])
        sources = [s for s in bindings(graph) if s.node_id == a.node_id]
        phase = mm.FitPhase("fit", input_sources=sources, active_nodes=["a"])
        experiment().run_phase(phase)
        assert a.model.is_fitted
        assert not b.model.is_fitted
        with pytest.raises(NotFittedError, match="node 'b' has not been fitted"):
            graph.predict(x)
        np.testing.assert_array_equal(
            graph.predict(x, node="a")[:, 0], Ridge().fit(x, y[:, 0]).predict(x)
        )


class TestTraining:
    def test_torch_on_top_of_what_was_fitted_is_one_segment(self):
        x, y = arrays(n=60)
        scaler = mm.ModelNode("scaler", StandardScaler(), featureset(5 * x + 3, y))
        net = mlp()
        graph = mm.ModelGraph([scaler, mm.ModelNode("net", net, scaler)], sgd())
        exp = experiment()
        exp.run_phase(fit_phase(graph))
        theirs = twin(net)
        phase = train_phase(graph, n_epochs=2)
        (segment,) = phase.feed().plan.segments
        assert segment.adapter.backend is Backend.TORCH
        found = exp.run_phase(phase, **QUIET)
        scaled = StandardScaler().fit_transform(5 * x + 3)
        expected = by_hand(theirs, lambda p: torch.optim.SGD(p, lr=0.05), scaled, y)
        assert_equal_weights(net, theirs, atol=1e-6)
        np.testing.assert_allclose(
            found.metrics().where(name="train_loss", batch=None).values(), expected, rtol=1e-5
        )

    def test_batch_by_batch_beside_torch(self):
        x, y = arrays(n=60)
        fs = featureset(x, y)
        enc, net = mlp(out=3, seed=1), mlp(d=3, seed=2)
        a = mm.ModelNode("enc", enc, fs)
        nodes = [
            a,
            mm.ModelNode("net", net, a),
            mm.ModelNode("online", SGDRegressor(random_state=0), a),
        ]
        graph = mm.ModelGraph(nodes, sgd())
        theirs, online = nn.Sequential(twin(enc), twin(net)), SGDRegressor(random_state=0)
        optimizer = torch.optim.SGD(theirs.parameters(), lr=0.05)
        expected = []
        for part in [*slices(60, 16), *slices(60, 16)]:
            codes = theirs[0](torch.tensor(x[part]))
            loss = nn.functional.mse_loss(theirs[1](codes), torch.tensor(y[part]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            online.partial_fit(codes.detach().numpy(), y[part, 0])
            out = online.predict(codes.detach().numpy())
            expected.append([loss.item(), metrics.mean_squared_error(y[part, 0], out)])
        losses = [mse("net"), mse("online")]
        found = experiment().run_phase(train_phase(graph, losses, n_epochs=2), **QUIET)
        assert_equal_weights(nn.ModuleList([enc, net]), nn.ModuleList(theirs), atol=1e-6)
        np.testing.assert_allclose(nodes[2].model.inner.coef_, online.coef_, rtol=1e-5)
        assert not graph.frozen_nodes
        values = [[r.value for r in ctx.losses] for ctx in found.execution_contexts().values()]
        np.testing.assert_allclose(values, expected, rtol=1e-5)

    def test_a_loss_against_another_framework(self):
        """The net learns what a fitted forest says; nothing lineages back into the forest."""
        x, y = arrays(n=60)
        fs = featureset(x, y)
        forest = mm.ModelNode("forest", RandomForestRegressor(5, random_state=0), fs)
        net = mlp()
        graph = mm.ModelGraph([forest, mm.ModelNode("net", net, fs)], sgd())
        exp, theirs = experiment(), twin(net)
        exp.run_phase(fit_phase(graph, freeze_after_fit=False))
        loss = mm.AppliedLoss(mm.Loss("mse"), on="net", inputs=["outputs", "forest.outputs"])
        exp.run_phase(train_phase(graph, [loss]), **QUIET)
        says = RandomForestRegressor(5, random_state=0).fit(x, y[:, 0]).predict(x)
        says = says[:, None].astype(np.float32)
        by_hand(theirs, lambda p: torch.optim.SGD(p, lr=0.05), x, says, epochs=1)
        assert_equal_weights(net, theirs, atol=1e-6)

    def test_frozen_torch_below_an_online_estimator(self):
        x, y = arrays(n=60)
        a = mm.ModelNode("enc", mlp(out=3), featureset(x, y))
        online = mm.ModelNode("online", SGDRegressor(random_state=0), a)
        graph = mm.ModelGraph([a, online], sgd())
        graph.freeze(["enc"])
        phase = train_phase(graph, [mse("online")])
        experiment().run_phase(phase, **QUIET)
        codes, theirs = evaluated(a.model.module, x), SGDRegressor(random_state=0)
        for part in slices(60, 16):
            theirs.partial_fit(codes[part], y[part, 0])
        np.testing.assert_allclose(online.model.inner.coef_, theirs.coef_, rtol=1e-5)

    def test_who_does_not_learn_is_said(self):
        x, y = arrays()
        a = mm.ModelNode("enc", mlp(out=3), featureset(x, y))
        online = mm.ModelNode("online", SGDRegressor(), a)
        graph = mm.ModelGraph([a, online], sgd())
        before = weights(a.model.module)
        with pytest.warns(UserWarning, match=r"\['enc'\] do not learn.*'enc' and 'online'"):
            experiment().run_phase(train_phase(graph, [mse("online")]), **QUIET)
        assert_equal_weights(before, weights(a.model.module))

    def test_nobody_learns(self):
        x, y = arrays()
        a = mm.ModelNode("enc", mlp(out=3), featureset(x, y))
        graph = mm.ModelGraph([a, mm.ModelNode("ridge", Ridge(), a)], sgd())
        exp = experiment()
        with pytest.raises(NotFittedError, match="'ridge' has not been fitted"):
            exp.run_phase(train_phase(graph, [mse("ridge")]), **QUIET)
        exp.run_phase(fit_phase(graph))
        with pytest.raises(LossError, match=r"depends on a trainable node.*\['enc'\]"):
            exp.run_phase(train_phase(graph, [mse("ridge")]), **QUIET)


class TestWiring:
    def test_an_edge_beside_a_crossing_is_cut_too(self):
        """enc -> ridge -> net, and enc -> net: no order lets gradients reach enc."""
        x, y = arrays(n=40)
        a = mm.ModelNode("enc", mlp(out=3), featureset(x, y))
        ridge = mm.ModelNode("ridge", Ridge(), a)
        both = mm.ConcatNode("both", [a, ridge], concat_axis_targets="first")
        net = mlp(d=4)
        graph = mm.ModelGraph([a, ridge, both, mm.ModelNode("net", net, both)], sgd())
        exp = experiment()
        exp.run_phase(fit_phase(graph))
        before, theirs = weights(a.model.module), twin(net)
        with pytest.warns(UserWarning, match=r"\['enc'\] do not learn"):
            exp.run_phase(train_phase(graph), **QUIET)
        assert_equal_weights(before, weights(a.model.module))
        codes = evaluated(a.model.module, x)
        codes = np.hstack([codes, ridge.model.inner.predict(codes)[:, None]]).astype(np.float32)
        by_hand(theirs, lambda p: torch.optim.SGD(p, lr=0.05), codes, y, epochs=1)
        assert_equal_weights(net, theirs, atol=1e-5)

    def test_optimizers(self):
        x, y = arrays()
        fs = featureset(x, y)
        with pytest.raises(ConfigError, match="node 'r' holds a scikit model"):
            mm.ModelNode("r", Ridge(), fs, sgd())
        ridge = mm.ModelNode("ridge", Ridge(), fs)
        net = mm.ModelNode("net", mlp(d=1), ridge)
        graph = mm.ModelGraph([ridge, net], sgd())
        graph.build()
        found = graph.get_optimizer_parameters()
        assert found["backend"] is Backend.TORCH
        assert found["contributing_nodes"] == {net.node_id}

    def test_a_regressor_without_targets(self):
        x, y = arrays()
        ref = featureset(x, y).reference(features="x*", targets=[])
        graph = mm.ModelGraph([mm.ModelNode("ridge", Ridge(), ref)])
        with pytest.raises(ShapeError, match=r"'ridge'.*needs targets"):
            graph.build()

    def test_calling_a_node_on_samples(self):
        x, y = arrays()
        ridge = mm.ModelNode("ridge", Ridge().fit(x, y[:, 0]), featureset(x, y))
        for features in (x, torch.tensor(x)):
            out = ridge(mm.data.SampleData(features=features)).outputs
            np.testing.assert_array_equal(out[:, 0], ridge.model.inner.predict(x))

    def test_by_hand(self):
        x, y = arrays()
        a = mm.ModelNode("enc", mlp(out=3), featureset(x, y))
        ridge = mm.ModelNode("ridge", Ridge(), a)
        graph = mm.ModelGraph([a, ridge])
        experiment()
        (ctx,) = fit_phase(graph).iter_execution()
        ridge.fit_step(ctx)
        assert not ridge.is_frozen
        codes = evaluated(a.model.module, x)
        expected = Ridge().fit(codes, y[:, 0]).predict(codes)
        np.testing.assert_allclose(ctx.output(ridge.node_id)[:, 0], expected, rtol=1e-5)
        graph.fit_step(ctx)
        assert ridge.is_frozen
        with pytest.raises(GraphError, match="frozen"):
            graph.fit_step(ctx)
        with pytest.raises(GraphError, match="'ridge' is frozen"):
            ridge.fit_step(ctx)
        outputs = graph.forward(ctx.inputs)
        np.testing.assert_allclose(outputs[ridge.node_id].outputs[:, 0], expected, 1e-5)
        for loss in (
            mse("ridge"),
            mm.AppliedLoss(
                mm.Loss(metrics.mean_squared_error),
                "ridge",
                {"y_true": "targets", "y_pred": "outputs"},
            ),
        ):
            (ctx,) = eval_phase(graph, [loss]).iter_execution()
            graph.eval_step(ctx, [loss])
            assert ctx.losses[0].value == pytest.approx(np.mean((expected - y[:, 0]) ** 2))


class TestState:
    def chain(self, estimator=None):
        x, y = arrays(n=40)
        a = mm.ModelNode("enc", SequentialMLP(output_shape=(3,)), featureset(x, y))
        ridge = mm.ModelNode("ridge", Ridge() if estimator is None else estimator, a)
        return x, mm.ModelGraph([a, ridge, mm.ModelNode("net", SequentialMLP(), ridge)], sgd())

    def test_a_preview_leaves_no_trace(self):
        _, graph = self.chain(RandomForestRegressor(3))
        experiment().preview_phase(fit_phase(graph))
        assert not graph.get_node("ridge").model.is_fitted

    def test_there_and_back(self):
        x, graph = self.chain(RandomForestRegressor(3, random_state=0))
        exp = experiment()
        exp.run_phase(fit_phase(graph, freeze_after_fit=False))
        state, out = graph.get_state(), graph.predict(x)
        graph.get_node("ridge").model.fit(np.zeros((4, 3)), np.ones((4, 1)))
        assert not np.array_equal(graph.predict(x), out)
        graph.set_state(copy.copy(state))
        np.testing.assert_array_equal(graph.predict(x), out)

    def test_files(self, tmp_path):
        x, graph = self.chain()
        exp = experiment()
        exp.run_phase(fit_phase(graph, losses=[mse("ridge")]))
        path = exp.save(tmp_path / "exp")
        with mm.ExperimentContext().activate():
            again = mm.Experiment.load(path)
            np.testing.assert_array_equal(again.predict(x), graph.predict(x))
            (step,) = again.history[0].results.get_fit_result("fit").execution_contexts().values()
            assert isinstance(step.output(again.model_graph.get_node("enc").node_id), torch.Tensor)
            assert isinstance(step.output(again.model_graph.get_node("ridge").node_id), np.ndarray)


@pytest.mark.parametrize(
    "estimator", [PCA(1), KMeans(2, n_init=1, random_state=0)], ids=["component", "cluster"]
)
def test_what_is_no_target_is_not_unscaled(estimator):
    """A component or a cluster number has the size of the target, and nothing of its units."""
    x, y = arrays(n=40)
    fs = featureset(x, 100 + 10 * y)
    fs.fit_transform("StandardScaler", domain="targets")
    node = mm.ModelNode("node", estimator, fs)
    graph = mm.ModelGraph([node])
    experiment().run_phase(fit_phase(graph), **QUIET)
    method = "transform" if isinstance(estimator, PCA) else "predict"
    by_itself = getattr(clone(estimator).fit(x), method)(x).reshape(-1)
    np.testing.assert_allclose(graph.predict(fs).reshape(-1), by_itself, atol=1e-4)
    results = experiment("again").run_phase(eval_phase(graph, []), **QUIET)
    stored = type(results)("stored", unpacked_steps(packed_steps(results._execution)))
    for table in (results, stored):
        found = table.stacked_tensors("node", "outputs", unscale=True, fmt="numpy")
        np.testing.assert_allclose(found.reshape(-1), by_itself, atol=1e-4)
        np.testing.assert_allclose(table.to_pandas()["prediction"], by_itself, atol=1e-4)
        np.testing.assert_allclose(table.to_pandas()["target"], 100 + 10 * y[:, 0], rtol=1e-5)
    want = metrics.r2_score(100 + 10 * y, by_itself)
    (score,) = results.scores(["r2"], outputs="values")["value"]
    assert score == pytest.approx(want, rel=1e-4)


def test_frameworks_that_share_an_optimizer_are_named_in_the_given_order():
    keras = pytest.importorskip("keras")
    x, y = arrays(n=20)
    below = mm.ModelNode("below", keras.Sequential([keras.layers.Dense(2)]), featureset(x, y))
    above = mm.ModelNode("above", nn.LazyLinear(1), below)
    with pytest.raises(GraphError, match="optimizer \\(above: torch, below: tensorflow\\)"):
        mm.ModelGraph([above, below], optimizer=sgd())
