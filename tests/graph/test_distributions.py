"""Heads of means and variances, and of quantiles, in own units."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import mean_pinball_loss
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, QuantileTransformer
from sklearn.preprocessing import StandardScaler as Standard

import modularml as mml
from modularml.errors import ConfigError, LossError, ScalerError, ShapeError
from tests.worlds import QUIET, eval_phase, experiment, train, train_phase

torch = pytest.importorskip("torch")
N = 40
backends = pytest.mark.parametrize("backend", ["torch", "tensorflow"])
LEVELS = [0.1, 0.5, 0.9]


def featureset(n_targets=1, scaler=None, label="rows"):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 3)).astype("f4")
    targets = {f"y{i}": 100.0 * (i + 1) + 7.0 * x[:, i] + rng.normal(size=N) for i in range(2)}
    targets = dict(list(targets.items())[:n_targets])
    data = {**{f"x{i}": x[:, i] for i in range(3)}, **targets}
    fs = mml.FeatureSet.from_dict(label, data, ["x0", "x1", "x2"], list(targets))
    for key in targets if scaler is not None else ():
        fs.fit_transform(scaler(), domain="targets", keys=key)
    fs.add_split(fs.take(range(N), label="all"))
    return fs


def head_of(backend, kind, n_targets=1):
    pytest.importorskip(backend)
    models = __import__(f"modularml.models.{backend}", fromlist=["GaussianHead"])
    if kind == "gaussian_nll":
        return models.GaussianHead(), mml.Loss("gaussian_nll")
    width = (len(LEVELS) * n_targets,)
    loss = mml.Loss("pinball", loss_kwargs={"quantiles": LEVELS})
    return models.SequentialMLP(n_layers=1, output_shape=width), loss


def graph_of(backend, kind, fs, n_targets=1):
    model, loss = head_of(backend, kind, n_targets)
    node = mml.ModelNode("net", model, fs)
    graph = mml.ModelGraph([node], optimizer=mml.Optimizer("adam"))
    applied = mml.AppliedLoss(loss, on="net", inputs=["outputs", "targets"])
    return graph, model, applied


def losses_by_hand(kind, outputs, targets):
    k = targets.shape[1]
    if kind == "gaussian_nll":
        mean, var = outputs[:, :k], outputs[:, k:]
        return -(stats.norm.logpdf(targets, mean, np.sqrt(var)) + 0.5 * np.log(2 * np.pi)).mean()
    blocks = [outputs[:, i * k : (i + 1) * k] for i in range(len(LEVELS))]
    return np.mean(
        [mean_pinball_loss(targets, b, alpha=q) for q, b in zip(LEVELS, blocks, strict=True)]
    )


@backends
@pytest.mark.parametrize("kind", ["gaussian_nll", "pinball"])
@pytest.mark.parametrize("n_targets", [1, 2])
def test_losses_and_predictions_in_own_units(backend, kind, n_targets, tmp_path):
    fs = featureset(n_targets, Standard)
    graph, _, loss = graph_of(backend, kind, fs, n_targets)
    train(graph, [loss], batch_size=10, n_epochs=2)
    phase = eval_phase(graph, [loss], batch_size=7)
    results = experiment("second").run_phase(phase)
    scaled = np.asarray(results.stacked_tensors("net", "outputs"))
    targets = np.column_stack([fs.get_data(columns=f"targets.y{i}.transformed", fmt="numpy")
                               .reshape(-1) for i in range(n_targets)])  # fmt: skip
    want_loss = losses_by_hand(kind, scaled, targets)
    (logged,) = results.aggregated_losses("net").values()
    assert logged == pytest.approx(want_loss, rel=1e-4)
    scalers = [record.scaler.wrapped for record in fs.scaler_records]
    scale = np.array([s.scale_[0] for s in scalers])
    center = np.array([s.mean_[0] for s in scalers])
    labels = ["mean", "variance"] if kind == "gaussian_nll" else ["q0.1", "q0.5", "q0.9"]
    want = {}
    for i, label in enumerate(labels):
        block = scaled[:, i * n_targets : (i + 1) * n_targets]
        own = block * scale**2 if label == "variance" else block * scale + center
        want |= {f"y{j}_{label}": own[:, j] for j in range(n_targets)}
    found = graph.predict(fs, fmt="pandas")
    assert list(found) == list(want)
    np.testing.assert_allclose(found, pd.DataFrame(want), rtol=1e-4)
    unscaled = results.stacked_tensors("net", "outputs", unscale=True)
    np.testing.assert_allclose(unscaled, found, rtol=1e-4)
    path = experiment("saved").save(tmp_path / "e")
    with mml.ExperimentContext().activate():
        again = mml.Experiment.load(path).ctx.model_graph.predict(
            {f"x{i}": np.zeros(2, "f4") for i in range(3)}, fmt="pandas"
        )
    assert list(again) == list(want)


def test_gradients_are_those_of_torch():
    loss = mml.Loss("gaussian_nll", backend="torch")
    loss.build()
    out = torch.rand(6, 2, requires_grad=True)
    target = torch.rand(6, 1)
    loss(out, target).mean().backward()
    again = out.detach().clone().requires_grad_()
    theirs = torch.nn.GaussianNLLLoss()(again[:, :1], target, again[:, 1:])
    theirs.backward()
    torch.testing.assert_close(out.grad, again.grad)


@backends
def test_a_given_variance_is_read_as_before(backend):
    pytest.importorskip(backend)
    loss = mml.Loss("gaussian_nll", backend=backend, loss_kwargs={"full": True})
    loss.build()
    values = np.random.default_rng(0).uniform(0.1, 1, size=(3, 5, 1)).astype("f4")
    if backend == "torch":
        found = loss(*map(torch.from_numpy, values)).numpy()
    else:
        import tensorflow as tf

        found = loss(*map(tf.constant, values)).numpy()
    mean, target, var = values
    np.testing.assert_allclose(found, -stats.norm.logpdf(target, mean, np.sqrt(var)), rtol=1e-4)


@pytest.mark.parametrize("scaler", [Standard, MinMaxScaler])
def test_a_head_learns_the_noise(scaler):
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, size=600).astype("f4")
    y = 50.0 + 10.0 * x + rng.normal(size=600) * 3.0
    fs = mml.FeatureSet.from_dict("rows", {"x": x, "y": y}, "x", "y")
    fs.fit_transform(scaler(), domain="targets", keys="y")
    model, loss = head_of("torch", "gaussian_nll")
    adam = mml.Optimizer("adam", opt_kwargs={"lr": 0.02})
    graph = mml.ModelGraph([mml.ModelNode("net", model, fs)], optimizer=adam)
    applied = mml.AppliedLoss(loss, on="net", inputs=["outputs", "targets"])
    train(graph, [applied], batch_size=50, n_epochs=60)
    found = graph.predict(fs, fmt="pandas")
    assert np.abs(found["y_mean"] - (50.0 + 10.0 * x)).max() < 1.0
    assert np.sqrt(found["y_variance"].mean()) == pytest.approx(3.0, rel=0.1)


def test_scalers_that_have_no_inverse_for_a_variance_are_refused():
    fs = featureset(1, lambda: QuantileTransformer(n_quantiles=10))
    graph, _, loss = graph_of("torch", "gaussian_nll", fs)
    train(graph, [loss], batch_size=10, n_epochs=1)
    with pytest.raises(ScalerError, match="a variance cannot be unscaled"):
        graph.predict(fs)
    assert graph.predict(fs, unscale=False).shape == (N, 2)


def test_scalers_that_reverse_the_order_are_refused_for_quantiles():
    def negative():
        return FunctionTransformer(np.negative, np.negative)

    fs = featureset(1, negative)
    graph, _, loss = graph_of("torch", "pinball", fs)
    train(graph, [loss], batch_size=10, n_epochs=1)
    with pytest.raises(ScalerError, match=r"quantile 'q0\.1' cannot be unscaled"):
        graph.predict(fs)


def test_quantiles_follow_scalers_that_are_not_linear():
    fs = featureset(1, lambda: FunctionTransformer(np.log, np.exp))
    graph, _, loss = graph_of("torch", "pinball", fs)
    train(graph, [loss], batch_size=10, n_epochs=1)
    scaled = graph.predict(fs, unscale=False)
    np.testing.assert_allclose(graph.predict(fs), np.exp(scaled.astype("f8")), rtol=1e-5)


def test_folds():
    fs = featureset(1, Standard)
    _, _, loss = graph_of("torch", "gaussian_nll", fs)
    exp = experiment("folds", audit="off")
    sampler = mml.SimpleSampler(batch_size=10)
    exp.execution_plan.add_phase(
        mml.TrainPhase.from_split("train", split="all", sampler=sampler, losses=[loss], n_epochs=2)
    )
    binding = mml.CVBinding(fs, ["all"], train_split_name="all")
    cv = mml.CrossValidation(bindings=binding, n_folds=2, experiment=exp)
    found = cv.run(show_fold_progress=False, **QUIET).out_of_fold("net")
    assert np.isfinite(found[["prediction_mean", "prediction_variance"]]).all(axis=None)


def test_bad_input():
    fs = featureset()
    for kind, wants in (
        ("gaussian_nll", r"2 outputs for each target \(mean, variance\)"),
        ("pinball", r"3 outputs for each target \(q0\.1, q0\.5, q0\.9\)"),
    ):
        _, loss = head_of("torch", kind)
        with mml.ExperimentContext().activate():
            fs = featureset()
            graph = mml.ModelGraph(
                [mml.ModelNode("net", torch.nn.Linear(3, 4), fs)], optimizer=mml.Optimizer("adam")
            )
            applied = mml.AppliedLoss(loss, on="net", inputs=["outputs", "targets"])
            with pytest.raises(ShapeError, match=wants):
                train(graph, [applied], n_epochs=1)
    for quantiles in ([0.5, 0.1], [0.0, 0.5], [], ["a"], 1.5):
        with pytest.raises(LossError, match="quantiles must be increasing numbers"):
            mml.Loss("pinball", backend="torch", loss_kwargs={"quantiles": quantiles}).build()
    from modularml.models.torch import GaussianHead

    with pytest.raises(ConfigError, match="min_variance must be at least 0"):
        GaussianHead(min_variance=-1.0)
    with pytest.raises(ShapeError, match="needs target_shape"):
        GaussianHead().build((3,))


def test_negative_variances_are_no_number():
    loss = mml.Loss("gaussian_nll", backend="torch")
    loss.build()
    values = loss(torch.tensor([[0.0, -1.0], [0.0, 1.0]]), torch.zeros(2, 1))
    assert values.isnan().flatten().tolist() == [True, False]


def test_tables_and_plots_name_the_blocks():
    fs = featureset(1, Standard)
    graph, _, loss = graph_of("torch", "pinball", fs)
    experiment("first").run_phase(train_phase(graph, [loss], n_epochs=1), **QUIET)
    results = experiment("second").run_phase(eval_phase(graph, [loss], batch_size=7))
    table = results.to_pandas()
    names = ["prediction_q0.1", "prediction_q0.5", "prediction_q0.9", "target"]
    assert list(table) == names
    lines = [line.get_xydata() for line in results.plot().axes[0].lines]
    drawn = next(points for points in lines if len(points) == N)
    found = drawn[np.argsort(drawn[:, 0])]
    want = table.sort_values("target")[["target", "prediction_q0.5"]]
    np.testing.assert_allclose(found, want, rtol=1e-6)


def test_intervals_and_scores_of_heads_are_refused():
    fs = featureset(1, Standard)
    fs.clear_splits()
    fs.undo_last_transform(domain="targets")
    fs.add_split(fs.take(range(20), label="all"))
    fs.add_split(fs.take(range(20, 40), label="held"))
    fs.fit_transform(Standard(), domain="targets", keys="y0", fit_to_split="all")
    graph, _, loss = graph_of("torch", "gaussian_nll", fs)
    exp = experiment("first")
    exp.run_phase(train_phase(graph, [loss], split="all", n_epochs=1), **QUIET)
    with pytest.raises(ConfigError, match=r"predicts \['mean', 'variance'\]; omit interval"):
        exp.predict(fs, interval=0.5, calibration="held", fmt="pandas")
    results = exp.run_phase(eval_phase(graph, [loss], split="held"))
    with pytest.raises(ConfigError, match="cannot be computed from targets"):
        results.scores(["rmse"])
