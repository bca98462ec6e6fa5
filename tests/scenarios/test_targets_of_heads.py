"""Which target a head predicts, and in whose units its outputs come back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestRegressor
from sklearn.preprocessing import KBinsDiscretizer
from torch import nn

import modularml as mm
from modularml.errors import LossError, ScalerError, UnknownNameError
from tests.worlds import QUIET


def rows(scaled="rul"):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)).astype("f4")
    rul = (1000 + 300 * x[:, 0]).astype("f4")
    state = (x[:, 1] > 0).astype("i8")
    fs = mm.FeatureSet.from_dict("m", {"x": x, "state": state, "rul": rul}, "x", ["state", "rul"])
    fs.split_random({"train": 0.5, "test": 0.5}, seed=0)
    fs.fit_transform("StandardScaler", domain="targets", keys=scaled, fit_to_split="train")
    return fs, x, rul, state


def two_heads(fs, n_classes=2, **declared):
    trunk = mm.ModelNode("trunk", nn.Sequential(nn.Flatten(), nn.Linear(3, 8)), fs)
    cls = mm.ModelNode("cls", nn.Linear(8, n_classes), trunk)
    reg = mm.ModelNode("reg", nn.Linear(8, 1), trunk, **declared)
    graph = mm.ModelGraph([trunk, cls, reg], mm.Optimizer("adam", opt_kwargs={"lr": 1e-2}))
    graph.build()
    return graph, mm.Experiment.from_active_context("e", audit="off")


def losses(rul="rul", state="state"):
    return [
        mm.AppliedLoss(mm.Loss("cross_entropy"), "cls", ["outputs", state]),
        mm.AppliedLoss(mm.Loss("mse"), "reg", ["outputs", rul]),
    ]


def own(rul, fs):
    """Return the mean and deviation that the scaler learned."""
    train = rul[fs["train"].indices]
    return train.mean(), train.std()


def check(graph, exp, fs, rul, state, n_classes=2):
    scaled = graph.predict(fs["test"], node="reg", unscale=False)
    mean, std = own(rul, fs)
    np.testing.assert_allclose(
        graph.predict(fs["test"], node="reg"), scaled * std + mean, rtol=1e-4
    )
    logits = graph.predict(fs["test"], node="cls")
    assert logits.shape == (30, n_classes)
    np.testing.assert_array_equal(logits, graph.predict(fs["test"], node="cls", unscale=False))
    result = exp.run_phase(mm.EvalPhase.from_split("v", split="test"), **QUIET)
    frame = result.to_pandas("reg")
    np.testing.assert_allclose(frame["target"], rul[fs["test"].indices], rtol=1e-5)
    np.testing.assert_allclose(frame["prediction"], (scaled * std + mean).ravel(), rtol=1e-4)
    mae = result.scores(["mae"], "reg")["value"][0]
    assert mae == pytest.approx(abs(frame["target"] - frame["prediction"]).mean(), rel=1e-4)
    accuracy = result.scores(["accuracy"], "cls")["value"][0]
    assert accuracy == pytest.approx((logits.argmax(1) == state[fs["test"].indices]).mean())


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("how", ["rul", "targets.rul", "m.targets.rul", "declared", "reference"])
def test_each_head_has_its_own_target_and_units(how, n_classes, tmp_path):
    fs, _, rul, state = rows()
    declared = {"targets": "rul"} if how == "declared" else {}
    graph, exp = two_heads(fs, n_classes, **declared)
    asked = {"declared": "targets", "reference": fs.column_reference(target="rul")}.get(how, how)
    phase = mm.TrainPhase.from_split(
        "t", split="train", sampler=mm.SimpleSampler(batch_size=8), losses=losses(asked)
    )
    exp.run_phase(phase, **QUIET)
    check(graph, exp, fs, rul, state, n_classes)
    path = exp.save(tmp_path / "e")
    with mm.ExperimentContext().activate():
        again = mm.Experiment.load(path)
        sets = again.ctx.get_node(label="m")
        check(again.model_graph, again, sets, rul, state, n_classes)


def test_folds_give_each_head_its_own_target():
    fs, _, rul, _ = rows()
    two_heads(fs)
    phase = mm.TrainPhase.from_split(
        "t", split="train", sampler=mm.SimpleSampler(batch_size=8), losses=losses()
    )
    cv = mm.CrossValidation(bindings=mm.CVBinding(fs, ["train", "test"]), phase=phase, n_folds=2)
    held = cv.run(show_fold_progress=False, **QUIET).out_of_fold("reg")
    assert {"prediction", "target"} <= set(held)
    want = dict(zip(fs.get_sample_uuids(), rul, strict=True))
    np.testing.assert_allclose(held["target"], [want[i] for i in held.index], rtol=1e-5)


def pinball(q, y):
    d, t = y.reshape(-1, 1) - q, torch.tensor([0.1, 0.5, 0.9])
    return torch.maximum(t * d, (t - 1) * d)


@pytest.mark.parametrize("declared", [True, False])
def test_several_outputs_of_one_target_are_each_unscaled_or_refused(declared):
    fs, _, rul, _ = rows()
    net = nn.Sequential(nn.Flatten(), nn.Linear(3, 3))
    node = mm.ModelNode("net", net, fs, **({"targets": "rul"} if declared else {}))
    graph = mm.ModelGraph([node], mm.Optimizer("adam"))
    exp = mm.Experiment.from_active_context("e", audit="off")
    loss = mm.AppliedLoss(mm.Loss(pinball), "net", ["outputs", "rul"])
    phase = mm.EvalPhase.from_split("v", split="test", losses=[loss])
    result = exp.run_phase(phase, **QUIET)
    scaled = graph.predict(fs["test"], unscale=False)
    mean, std = own(rul, fs)
    if declared:
        np.testing.assert_allclose(graph.predict(fs["test"]), scaled * std + mean, rtol=1e-5)
        frame = result.to_pandas()
        np.testing.assert_allclose(frame["prediction_2"], scaled[:, 2] * std + mean, rtol=1e-5)
        np.testing.assert_allclose(frame["target"], rul[fs["test"].indices], rtol=1e-5)
        return
    for call in (lambda: graph.predict(fs["test"]), result.to_pandas):
        with pytest.raises(ScalerError, match=r"'net'.*targets='rul'.*unscale=False"):
            call()


@pytest.mark.parametrize(
    "loss",
    [
        "bce_with_logits",
        nn.BCEWithLogitsLoss(),
        nn.functional.binary_cross_entropy_with_logits,
        "soft_margin",
        nn.HingeEmbeddingLoss(),
    ],
)
def test_scores_of_classes_have_no_units_however_their_loss_is_given(loss):
    x = np.random.default_rng(0).normal(size=(40, 3)).astype("f4")
    fs = mm.FeatureSet.from_dict("m", {"x": x, "y": 1 + 2.0 * (x[:, 0] > 0)}, "x", "y")
    fs.fit_transform("MinMaxScaler", domain="targets", keys="y")
    node = mm.ModelNode("net", nn.Sequential(nn.Flatten(), nn.Linear(3, 1)), fs)
    graph = mm.ModelGraph([node], mm.Optimizer("adam"))
    exp = mm.Experiment.from_active_context("e", audit="off")
    losses = [mm.AppliedLoss(mm.Loss(loss), "net", ["outputs", "y"])]
    inputs = [mm.InputBinding.for_evaluation(node=node, upstream=fs)]
    exp.run_phase(mm.EvalPhase("v", input_sources=inputs, losses=losses), **QUIET)
    wanted = node.model.module(torch.tensor(x)).detach()
    np.testing.assert_allclose(graph.predict(fs), wanted, rtol=1e-5)


@pytest.mark.parametrize("whole", [True, False])
def test_large_targets_keep_their_digits(whole):
    x = np.random.default_rng(0).normal(size=(40, 3)).astype("f4")
    when = 1_700_000_000 + 20.0 * x[:, 0].astype("f8")
    fs = mm.FeatureSet.from_dict(
        "m", {"x": x, "y": when.round().astype("i8") if whole else when}, "x", "y"
    )
    fs.fit_transform("StandardScaler", domain="targets", keys="y")
    node = mm.ModelNode("net", nn.Sequential(nn.Flatten(), nn.Linear(3, 1)), fs)
    graph = mm.ModelGraph([node], mm.Optimizer("adam"))
    graph.build()
    exp = mm.Experiment.from_active_context("e", audit="off")
    y = fs.collection.numpy("targets.y.raw").astype("f8")
    wanted = graph.predict(fs, unscale=False).astype("f8") * y.std() + y.mean()
    np.testing.assert_allclose(graph.predict(fs) - y.mean(), wanted - y.mean(), atol=1e-4)
    inputs = [mm.InputBinding.for_evaluation(node=node, upstream=fs)]
    scores = exp.run_phase(mm.EvalPhase("v", input_sources=inputs), **QUIET).scores(["mae"])
    assert scores["value"][0] == pytest.approx(abs(wanted[:, 0] - y).mean(), abs=1e-4)


def test_targets_are_compared_as_they_came_not_by_an_inverse_that_loses_some():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3)).astype("f4")
    y = np.exp(x[:, 0].astype("f8"))
    fs = mm.FeatureSet.from_dict("m", {"x": x, "y": y}, "x", "y")
    fs.split_random({"train": 0.5, "test": 0.5}, seed=0)
    bins = KBinsDiscretizer(4, encode="ordinal", quantile_method="averaged_inverted_cdf")
    fs.fit_transform(bins, domain="targets", keys="y", fit_to_split="train")
    node = mm.ModelNode("net", nn.Sequential(nn.Flatten(), nn.Linear(3, 1)), fs)
    graph = mm.ModelGraph([node], mm.Optimizer("adam"))
    exp = mm.Experiment.from_active_context("e", audit="off")
    results = exp.run_phase(mm.EvalPhase.from_split("v", split="test"), **QUIET)
    truth = y[fs["test"].indices]
    frame = results.to_pandas()
    np.testing.assert_array_equal(frame["target"], truth)
    wanted = abs(graph.predict(fs["test"])[:, 0] - truth).mean()
    assert results.scores(["mae"])["value"][0] == pytest.approx(wanted)


def test_an_encoder_is_in_no_units_even_where_its_size_is_that_of_the_target():
    fs, *_ = rows()
    enc = mm.ModelNode(
        "enc", nn.Sequential(nn.Flatten(), nn.Linear(3, 1)), fs.reference(targets="rul")
    )
    reg = mm.ModelNode("reg", nn.Linear(1, 1), enc)
    graph = mm.ModelGraph([enc, reg], mm.Optimizer("adam"))
    graph.build()
    plain = graph.predict(fs, node="enc", unscale=False)
    np.testing.assert_array_equal(graph.predict(fs, node="enc"), plain)
    assert graph.predict(fs, node="reg").mean() > 100


def test_a_tail_of_two_targets_that_no_loss_has_paired_is_refused():
    fs, *_ = rows()
    graph, _ = two_heads(fs)
    with pytest.raises(ScalerError, match="ambiguous"):
        graph.predict(fs, node="cls")
    assert graph.predict(fs, node="cls", unscale=False).shape == (60, 2)


def test_an_estimator_is_fitted_on_the_target_that_its_node_names():
    fs, x, rul, _ = rows()
    forest = RandomForestRegressor(n_estimators=3, random_state=0)
    node = mm.ModelNode("f", forest, fs, targets="rul.raw")
    graph = mm.ModelGraph([node])
    exp = mm.Experiment.from_active_context("e", audit="off")
    exp.run_phase(mm.FitPhase.from_split("fit", split="train"), **QUIET)
    again = RandomForestRegressor(n_estimators=3, random_state=0)
    train, test = fs["train"].indices, fs["test"].indices
    want = again.fit(x[train], rul[train]).predict(x[test])
    np.testing.assert_allclose(graph.predict(fs["test"]).ravel(), want, rtol=1e-5)


def test_targets_and_selectors_that_are_not_there_are_named():
    fs, *_ = rows()
    node = mm.ModelNode("net", nn.Linear(3, 1), fs, targets="rull")
    with pytest.raises(UnknownNameError, match=r"rull.*rul"):
        mm.ModelGraph([node], mm.Optimizer("adam")).build()
    with mm.ExperimentContext().activate():
        fs, *_ = rows()
        two_heads(fs)
        with pytest.raises(
            LossError, match=r"'targets.stat', which is neither a role.*'default'.*nor a column"
        ):
            mm.EvalPhase.from_split("v", split="test", losses=losses(state="targets.stat"))


@pytest.mark.parametrize("width", [1, 2, 3])
def test_outputs_of_any_width_that_nothing_pairs_with_a_target_are_refused(width):
    rng = np.random.default_rng(0)
    data = {
        "x": rng.normal(size=(20, 4)),
        "a": 1000 + rng.normal(size=20),
        "b": rng.normal(size=20),
    }
    fs = mm.FeatureSet.from_dict("rows", data, "x", ["a", "b"])
    fs.split_random({"train": 0.5, "test": 0.5})
    fs.fit_transform("StandardScaler", domain="targets", keys=["a"], fit_to_split="train")
    layers = nn.Sequential(nn.Flatten(), nn.Linear(4, width))
    graph = mm.ModelGraph([mm.ModelNode("head", layers, fs.reference(features="x"))])
    graph.build()
    with pytest.raises(ScalerError, match="targets='a'"):
        graph.predict(fs)
    assert graph.predict(fs, unscale=False).shape == (20, width)
