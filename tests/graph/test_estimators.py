"""Estimators in a graph: what their place, their fit and their columns decide; by hand beside."""

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestRegressor
from sklearn.feature_selection import (
    RFE,
    RFECV,
    SelectFpr,
    SelectFromModel,
    SelectKBest,
    VarianceThreshold,
)
from sklearn.linear_model import Lasso, LogisticRegression, Ridge, SGDRegressor
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import modularml as mml
from modularml.errors import ConfigError, LossError, NotFittedError, ShapeError
from modularml.models.torch import SequentialMLP

RNG = np.random.default_rng(3)
X = RNG.normal(0, 2, size=(100, 12))
KIND = (RNG.random(100) < 0.4).astype(int)
X[:, :4] += 2 * KIND[:, None]
Y = X[:, 0] - X[:, 5] + RNG.normal(size=100) / 5
TRAIN, VAL = np.arange(70), np.arange(70, 100)
CELL = np.arange(100) % 7


@pytest.fixture
def rows():
    """Return 12 features, a class, a number, weights and a group, in two splits."""
    columns = {"x": X, "k": KIND, "y": Y, "w": CELL + 0.5, "cell": CELL}
    with mml.ExperimentContext().activate():
        fs = mml.FeatureSet.from_dict("rows", columns, ["x"], ["k", "y"], ["w", "cell"])
        fs.add_split(fs.take(TRAIN, label="train"))
        fs.add_split(fs.take(VAL, label="val"))
        yield fs


def graph_of(*nodes, **kwargs):
    mml.ModelGraph(list(nodes), **kwargs)
    return mml.Experiment.from_active_context("e", audit="off")


def fitted(experiment, *labels):
    for label in labels:
        experiment.run_phase(mml.FitPhase.from_split(label, split="train", active_nodes=[label]))


SELECTORS = [
    SelectKBest(k=3),
    SelectFpr(),
    VarianceThreshold(4.0),
    SelectFromModel(LogisticRegression()),
    RFE(LogisticRegression(), n_features_to_select=5),
    RFECV(LogisticRegression(), cv=3),
    make_pipeline(StandardScaler(), RFE(LogisticRegression(), n_features_to_select=5)),
    PCA(0.6),
    KMeans(4, n_init=1, random_state=0),
]


@pytest.mark.parametrize("selector", SELECTORS, ids=lambda s: type(s).__name__)
def test_a_selector_before_a_classifier_equals_a_pipeline(rows, selector):
    by_hand = make_pipeline(selector, LogisticRegression()).fit(X[TRAIN], KIND[TRAIN])
    sel = mml.ModelNode("sel", selector.__sklearn_clone__(), rows.reference(targets="k"))
    clf = mml.ModelNode("clf", LogisticRegression(), sel)
    experiment = graph_of(sel, clf)
    fitted(experiment, "sel", "clf")
    out = experiment.predict(rows["val"])
    np.testing.assert_allclose(out, by_hand.predict_proba(X[VAL]), rtol=1e-12)
    assert sel.output_shape == (by_hand[-1].n_features_in_,)


def test_both_in_one_phase_and_again_on_other_rows(rows):
    sel = mml.ModelNode("sel", SelectFpr(), rows.reference(targets="k"))
    clf = mml.ModelNode("clf", LogisticRegression(), sel)
    experiment = graph_of(sel, clf)
    for split, part in (("train", TRAIN), ("val", VAL)):
        experiment.model_graph.unfreeze()
        experiment.run_phase(mml.FitPhase.from_split(split, split=split))
        by_hand = make_pipeline(SelectFpr(), LogisticRegression()).fit(X[part], KIND[part])
        assert clf.model.inner.n_features_in_ == by_hand[-1].n_features_in_
        np.testing.assert_allclose(experiment.predict(rows), by_hand.predict_proba(X))


def test_each_fold_chooses_its_own_columns(rows):
    sel = mml.ModelNode("sel", SelectFpr(), rows.reference(targets="k"))
    graph_of(sel, mml.ModelNode("clf", LogisticRegression(), sel))
    steps = [
        mml.FitPhase.from_split(f"{n}_fit", split="train", active_nodes=[n]) for n in ("sel", "clf")
    ]
    results = mml.CrossValidation(
        bindings=mml.CVBinding(rows, ["train", "val"], stratify_by="k"),
        n_folds=4,
        phase=mml.PhaseGroup("p", [*steps, mml.EvalPhase.from_split("ev", split="val")]),
    ).run(show_fold_progress=False, show_training_progress=False)
    assert results.failed_folds == {} or list(results.failed_folds) == []
    assert len(results.out_of_fold("clf")) == 100


def test_torch_is_built_once_the_selector_is_fitted(rows, tmp_path):
    sel = mml.ModelNode("sel", SelectFpr(), rows.reference(targets="k"))
    net = mml.ModelNode("net", SequentialMLP(output_shape=(1, 1), n_layers=1, hidden_dim=4), sel)
    experiment = graph_of(sel, net, optimizer=mml.Optimizer("sgd", opt_kwargs={"lr": 0.01}))
    graph = experiment.model_graph
    graph.build()
    assert not graph.is_built
    assert not net.is_built
    table = graph.summary().to_pandas().set_index("node")
    assert table.loc["sel", "output_shape"] == ""
    assert graph.visualize() is not None
    loss = mml.AppliedLoss(mml.Loss("mse"), on="net", inputs=["outputs", "targets"])
    train = mml.TrainPhase.from_split(
        "t",
        split="train",
        sampler=mml.SimpleSampler(batch_size=10, seed=0),
        losses=[loss],
        active_nodes=["net"],
    )
    with pytest.raises(NotFittedError, match="'net' cannot be built before 'sel'"):
        experiment.run_phase(train)
    experiment.run_phase(mml.FitPhase.from_split("f", split="train"))
    width = SelectFpr().fit(X[TRAIN], KIND[TRAIN]).get_support().sum()
    assert graph.is_built
    assert net.input_shape == (width,)
    before = net.model.get_weights()
    experiment.run_phase(train, show_training_progress=False)
    assert not np.array_equal(
        next(iter(before.values())), next(iter(net.model.get_weights().values()))
    )
    out = experiment.predict(rows["val"])
    path = graph.save_checkpoint(tmp_path / "c")
    with mml.ExperimentContext().activate():  # a fresh process: nothing is fitted or built
        fs = rows.copy(label="rows", register=True, restore_splits=True)
        again_sel = mml.ModelNode("sel", SelectFpr(), fs.reference(targets="k"))
        mlp = SequentialMLP(output_shape=(1, 1), n_layers=1, hidden_dim=4)
        again = graph_of(
            again_sel,
            mml.ModelNode("net", mlp, again_sel),
            optimizer=mml.Optimizer("sgd", opt_kwargs={"lr": 0.01}),
        )
        again.model_graph.restore_checkpoint(path)
        np.testing.assert_array_equal(again.predict(fs["val"]), out)


@pytest.mark.slow
def test_keras_is_built_once_the_selector_is_fitted(rows):
    keras = pytest.importorskip("keras")
    sel = mml.ModelNode("sel", SelectFpr(), rows.reference(targets="k"))
    dense = keras.Sequential([keras.layers.Dense(1)])
    net = mml.ModelNode("net", dense, sel)
    experiment = graph_of(sel, net, optimizer=mml.Optimizer("sgd", opt_kwargs={"lr": 0.01}))
    experiment.run_phase(mml.FitPhase.from_split("f", split="train"))
    kept = SelectFpr().fit(X[TRAIN], KIND[TRAIN])
    assert net.input_shape == (kept.get_support().sum(),)
    out = experiment.predict(rows["val"])
    weights, bias = dense.get_weights()
    np.testing.assert_allclose(out, kept.transform(X[VAL]) @ weights + bias, rtol=1e-4, atol=1e-5)


def test_weights_of_a_loss_reach_the_fit(rows):
    loss = mml.AppliedLoss(
        mml.Loss("mse"), on="m", inputs=["outputs", "targets"], sample_weight="w"
    )
    weights = CELL[TRAIN] + 0.5
    experiment = graph_of(mml.ModelNode("m", Ridge(), rows.reference(targets="y")))
    experiment.run_phase(mml.FitPhase.from_split("f", split="train", losses=[loss]))
    by_hand = Ridge().fit(X[TRAIN], Y[TRAIN], weights)
    np.testing.assert_allclose(experiment.predict(rows)[:, 0], by_hand.predict(X))


def test_weights_of_a_loss_reach_every_batch(rows):
    weights = CELL[TRAIN] + 0.5
    node = mml.ModelNode("sgd", SGDRegressor(random_state=0), rows.reference(targets="y"))
    experiment = graph_of(node)
    loss = mml.AppliedLoss(
        mml.Loss("mse"), on="sgd", inputs=["outputs", "targets"], sample_weight="w"
    )
    sampler = mml.SimpleSampler(batch_size=35)
    experiment.run_phase(
        mml.TrainPhase.from_split("t", split="train", sampler=sampler, losses=[loss], n_epochs=2),
        show_training_progress=False,
    )
    by_hand = SGDRegressor(random_state=0)
    for part in (TRAIN[:35], TRAIN[35:]) * 2:
        by_hand.partial_fit(X[part], Y[part], weights[part])
    np.testing.assert_allclose(node.model.inner.coef_, by_hand.coef_)


def test_weights_that_nobody_takes_are_refused_when_the_phase_is_made(rows):
    graph_of(mml.ModelNode("m", KNeighborsRegressor(), rows.reference(targets="y")))
    mse = mml.Loss("mse")
    loss = mml.AppliedLoss(mse, on="m", inputs=["outputs", "targets"], sample_weight="w")
    other = mml.AppliedLoss(mse, on="m", inputs=["outputs", "targets"], label="plain")
    with pytest.raises(ConfigError, match=r"'m': fit of KNeighbors.* takes no sample_weight.*'w'"):
        mml.FitPhase.from_split("f", split="train", losses=[loss])
    mml.EvalPhase.from_split("v", split="val", losses=[loss])
    with pytest.raises(LossError, match="same sample_weight"):
        mml.FitPhase.from_split("f", split="train", losses=[loss, other])


def test_groups_reach_a_search(rows):
    search = GridSearchCV(Lasso(), {"alpha": [0.01, 0.1, 0.5]}, cv=GroupKFold(3))
    model = mml.ScikitModelWrapper(search, group_by="cell")
    experiment = graph_of(mml.ModelNode("m", model, rows.reference(targets="y")))
    fitted(experiment, "m")
    by_hand = search.__sklearn_clone__().fit(X[TRAIN], Y[TRAIN], groups=CELL[TRAIN])
    found = model.inner.cv_results_["mean_test_score"]
    np.testing.assert_allclose(found, by_hand.cv_results_["mean_test_score"])


def test_columns_by_name():
    columns = {"a": X[:, 0], "b": X[:, 1], "curve": X[:, 2:5], "y": Y}
    pick = ColumnTransformer([("s", StandardScaler(), ["b", "curve_2"])])
    experiment = mml.Experiment("e", audit="off")
    fs = mml.FeatureSet.from_dict("f", columns, ["a", "b", "curve"], "y")
    fs.add_split(fs.take(TRAIN, label="train"))
    graph_of(mml.ModelNode("m", make_pipeline(pick, Ridge()), fs))
    experiment = mml.Experiment.from_active_context("n", audit="off")
    fitted(experiment, "m")
    by_hand = make_pipeline(StandardScaler(), Ridge()).fit(X[TRAIN][:, [1, 4]], Y[TRAIN])
    np.testing.assert_allclose(experiment.predict(fs)[:, 0], by_hand.predict(X[:, [1, 4]]))
    one = mml.ModelNode("one", StandardScaler(), fs)
    two = mml.ModelNode("two", make_pipeline(pick, Ridge()), one)
    with pytest.raises(ConfigError, match="outputs have no names"):
        mml.ModelGraph([one, two], register=False).build()


def test_columns_of_unlike_shape():
    columns = {"curve": X[:, :9].reshape(100, 3, 3), "mass": X[:, 9], "y": Y}
    whole = X[:, :10]
    mml.Experiment("e", audit="off")
    fs = mml.FeatureSet.from_dict("f", columns, ["curve", "mass"], "y")
    fs.add_split(fs.take(TRAIN, label="train"))
    graph_of(mml.ModelNode("m", RandomForestRegressor(5, random_state=0), fs))
    experiment = mml.Experiment.from_active_context("n", audit="off")
    fitted(experiment, "m")
    by_hand = RandomForestRegressor(5, random_state=0).fit(whole[TRAIN], Y[TRAIN])
    np.testing.assert_array_equal(experiment.predict(fs)[:, 0], by_hand.predict(whole))
    refs = [fs.reference(features="curve"), fs.reference(features="mass")]
    flat = mml.FlattenNode("flat", fs)
    beside = mml.ConcatNode("beside", refs, flatten=True, concat_axis_targets="first")
    for node in (flat, beside):
        linear = nn.Linear(10, 1)
        net = mml.ModelNode(f"{node.label}_net", linear, node)
        graph = mml.ModelGraph([node, net], register=False)
        graph.build()
        assert node.output_shape == (10,)
        weight, bias = (p.detach().numpy() for p in linear.parameters())
        np.testing.assert_allclose(graph.predict(fs), whole @ weight.T + bias, rtol=1e-4, atol=1e-5)
        again = mml.ConcatNode.from_config if node is beside else mml.FlattenNode.from_config
        assert again(node.get_config(), register=False).reads_flat
    with pytest.raises(ShapeError, match="put a FlattenNode before it"):
        mml.ModelGraph([mml.ModelNode("net", nn.Linear(10, 1), fs)], register=False).build()
    with pytest.raises(ConfigError, match="flatten=True"):
        mml.ConcatNode("c", refs, flatten=True, pad_inputs=True)
