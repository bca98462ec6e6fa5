"""Fitted estimators in files: the same predictions in another process, and no wild index."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn import (
    cluster,
    ensemble,
    impute,
    linear_model,
    model_selection,
    naive_bayes,
    neighbors,
    neural_network,
    pipeline,
    preprocessing,
    svm,
    tree,
)
from sklearn.base import BaseEstimator
from sklearn.experimental import enable_halving_search_cv, enable_iterative_imputer  # noqa: F401

import modularml as mm
from modularml.config import decode, encode
from modularml.errors import ConfigError, MMLError
from modularml.io.estimators import learned, relearn
from modularml.models import ScikitModelWrapper
from modularml.models.sklearn_estimators import dense
from tests.io.zoo import (
    CATEGORIES,
    CLASSIFIERS,
    KERNEL,
    KIND,
    OTHERS,
    REGRESSORS,
    REST,
    REST_OF_CLASSIFIERS,
    X,
    Y,
    examples,
    fitted,
)

METHODS = ("predict_proba", "decision_function", "predict", "transform")


READ = """
import sys, warnings
import numpy as np
import modularml as mm
folder, *paths = sys.argv[1:]
rows, found = np.load(folder + "/rows.npy"), {}
for path in paths:
    made = mm.BaseModel.load(path).inner
    for method in ("predict_proba", "decision_function", "predict", "transform"):
        if hasattr(made, method):
            out = getattr(made, method)(rows)
            out = out.toarray() if hasattr(out, "toarray") else out
            found[f"{path}:{method}"] = np.asarray(out)
np.savez(folder + "/found.npz", **found)
"""


def wrapped(estimator: Any, y: Any) -> ScikitModelWrapper:
    """Return a node's model, fitted on the rows above."""
    with warnings.catch_warnings(action="ignore"):
        estimator.fit(CATEGORIES if "categorical" in repr(estimator) else X, y)
    made = ScikitModelWrapper(estimator)
    made.build((4,))
    return made


def test_every_estimator_predicts_the_same_in_another_process(tmp_path: Path) -> None:
    two = np.where(KIND == "low", 0, 1)
    groups = [(REGRESSORS, Y), (CLASSIFIERS, KIND), (OTHERS, KIND)]
    groups += [(REST, Y), (REST_OF_CLASSIFIERS, two)]
    models = [wrapped(e, y) for group, y in groups for e in group]
    np.save(tmp_path / "rows.npy", X[::-1])
    paths = [m.save(tmp_path / f"{i}-{m.shown_name}") for i, m in enumerate(models)]
    args = [sys.executable, "-c", READ, str(tmp_path), *map(str, paths)]
    subprocess.run(args, check=True)
    with np.load(tmp_path / "found.npz") as found:
        compared = 0
        for path, model in zip(paths, models, strict=True):
            for method in (m for m in METHODS if hasattr(model.inner, m)):
                out = getattr(model.inner, method)(X[::-1].copy())
                out = out.toarray() if hasattr(out, "toarray") else out
                np.testing.assert_array_equal(found[f"{path}:{method}"], out, str(path))
                compared += 1
    assert compared > len(models) >= 90
    for path, model in zip(paths, models, strict=True):
        again = mm.BaseModel.load(path).save(tmp_path / "again", overwrite=True)
        assert again.read_bytes() == path.read_bytes(), model.inner


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "estimator", examples(), ids=[f"{i}-{type(e).__name__}" for i, e in enumerate(examples())]
)
def test_every_example_takes_rows_and_is_stored(estimator: Any) -> None:
    made, rows, _ = fitted(estimator)
    again = type(made)(**made.get_params(deep=False))
    relearn(again, learned(made))
    answers = 0
    for method in (m for m in METHODS if hasattr(made, m)):
        try:
            right = dense(getattr(made, method)(rows[:9]))
        except (NotImplementedError, ValueError):  # it lacks the method with these arguments
            continue
        np.testing.assert_array_equal(dense(getattr(again, method)(rows[:9])), right)
        answers += 1
    assert answers > 0


def test_an_example_that_takes_no_rows_is_named() -> None:
    with pytest.raises(AssertionError, match=r"MLPRegressor.* takes no rows.*hidden_layer_sizes"):
        fitted(neural_network.MLPRegressor(hidden_layer_sizes=(0,)))


def test_as_scalers(tmp_path: Path) -> None:
    for i, made in enumerate([*OTHERS[4:9], neighbors.KNeighborsTransformer(n_neighbors=2)]):
        scaler = mm.Scaler(made).fit(X)
        again = mm.Scaler.load(scaler.save(tmp_path / str(i)))
        np.testing.assert_array_equal(again.transform(X), scaler.transform(X))


@pytest.mark.parametrize("values", [list("aaabbc") * 3, [0, 0, 0, 1, 1, 2] * 3, [True, False] * 9])
@pytest.mark.parametrize(
    "encoder",
    [
        preprocessing.OneHotEncoder(sparse_output=False),
        preprocessing.OneHotEncoder(sparse_output=False, drop="first", min_frequency=4),
        preprocessing.OneHotEncoder(sparse_output=False, handle_unknown="ignore"),
        preprocessing.OrdinalEncoder(),
        preprocessing.OrdinalEncoder(min_frequency=4),
        preprocessing.OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1),
        preprocessing.LabelEncoder(),
        preprocessing.TargetEncoder(),
    ],
    ids=repr,
)
def test_encoders_of_any_column_in_the_file_of_its_set(tmp_path, encoder, values):
    y = np.random.default_rng(0).normal(size=18)
    columns = {"kind": np.array(values), "y": y}
    fs = mm.FeatureSet.from_dict("rows", columns, "kind", "y")
    about = {"targets": ["y"]} if isinstance(encoder, preprocessing.TargetEncoder) else {}
    fs.fit_transform(encoder, domain="features", keys="kind", **about)
    path = fs.save(tmp_path / "rows")
    with mm.ExperimentContext().activate():
        again = mm.FeatureSet.load(path)
    new = {"kind": columns["kind"][::-1]}
    np.testing.assert_array_equal(again.transform_new(new)["kind"], fs.transform_new(new)["kind"])


def test_learning_goes_on_as_before(tmp_path: Path) -> None:
    for i, estimator in enumerate(
        [
            neural_network.MLPRegressor(hidden_layer_sizes=(3,), random_state=0, max_iter=5),
            linear_model.SGDRegressor(random_state=np.random.RandomState(3)),
        ]
    ):
        if i:
            estimator.random_state = 3
        model = wrapped(estimator, Y)
        again: Any = mm.BaseModel.load(model.save(tmp_path / str(i)))
        for each in (model, again):
            each.partial_fit(X, Y[:, None])
        np.testing.assert_array_equal(again(X), model(X))


def test_sparse_rows_and_large_forests(tmp_path: Path) -> None:
    machine = svm.SVC().fit(csr_matrix(X), KIND)
    other = svm.SVC()
    relearn(other, learned(machine))
    np.testing.assert_array_equal(other.predict(csr_matrix(X)), machine.predict(csr_matrix(X)))
    many = wrapped(ensemble.RandomForestClassifier(600, max_depth=2, random_state=0), KIND)
    path = many.save(tmp_path / "many")
    assert sum("tensors" in m for m in mm.io.inspect(path)["members"]) > 1  # one header has an end
    np.testing.assert_array_equal(mm.BaseModel.load(path)(X), many(X))


class Secretive(BaseEstimator):
    """Keeps an object that is no data."""

    def fit(self, X: Any, y: Any = None) -> Secretive:
        self.secret_ = iter([1])
        return self

    def predict(self, X: Any) -> Any:
        return np.zeros(len(X))


def test_what_cannot_be_stored_says_so(tmp_path: Path) -> None:
    model = wrapped(Secretive(), None)
    with pytest.raises(MMLError, match=r"MML-112 .*Secretive.* fit it again after loading"):
        model.save(tmp_path / "secret")
    assert list(tmp_path.iterdir()) == []


def test_birch_grows_on(tmp_path: Path) -> None:
    made = cluster.Birch(n_clusters=None, threshold=0.3, branching_factor=3).fit(X[:60])
    again = cluster.Birch(**made.get_params())
    relearn(again, learned(made))
    for each in (made, again):
        each.partial_fit(X[60:])
    assert len(made.subcluster_centers_) > 9
    np.testing.assert_array_equal(again.subcluster_centers_, made.subcluster_centers_)


def test_kernels_that_are_given_as_rows() -> None:
    made = svm.SVC(kernel="precomputed").fit(KERNEL(X, X), KIND)
    again = svm.SVC(kernel="precomputed")
    state = learned(made)
    relearn(again, state)
    rows = KERNEL(X[:9], X)
    np.testing.assert_array_equal(again.predict(rows), made.predict(rows))
    state["support_"][0] = 80
    with pytest.raises(ConfigError):
        relearn(again, state)


def test_what_belongs_to_the_machine_is_not_taken_from_a_file(tmp_path: Path) -> None:
    made = pipeline.make_pipeline(
        preprocessing.StandardScaler(),
        neighbors.KNeighborsRegressor(n_jobs=2),
        memory=str(tmp_path / "cache"),
    )
    model = wrapped(made, Y)
    again: Any = mm.BaseModel.load(model.save(tmp_path / "pipe"))
    assert again.inner.memory is None
    assert again.inner[-1].n_jobs is None
    np.testing.assert_array_equal(again(X), model(X))
    state = learned(KMEANS)
    assert "_n_threads" not in state
    fresh = cluster.KMeans(3, n_init=1)
    relearn(fresh, {**state, "_n_threads": -1})
    assert fresh._n_threads > 0


def test_arguments_of_another_version() -> None:
    tree = encode(linear_model.LogisticRegression(C=2.0))
    assert "tol" in tree["defaults"]
    assert "C" not in tree["defaults"]
    tree["params"]["gone"] = "auto"
    older = {**tree, "defaults": [*tree["defaults"], "gone"], "version": "scikit-learn 1.2.3"}
    assert decode(older).C == 2.0
    with pytest.raises(
        ConfigError, match=r"scikit-learn \d.* no argument 'gone'.*scikit-learn 1.2.3"
    ):
        decode({**older, "defaults": []})
    tree["params"]["gone"] = "deprecated"
    assert decode({"$estimator": tree["$estimator"], "params": tree["params"]}).C == 2.0


RULED = pytest.mark.private("scikit-learn's rules for arguments are not public")


@pytest.mark.parametrize("value", [None, "deprecated", "warn", pytest.param(-1.0, marks=RULED)])
def test_a_default_of_another_version_that_stands_for_another(value: Any) -> None:
    tree = encode(linear_model.LogisticRegression(C=2.0))
    tree["params"]["tol"] = value
    assert decode(tree).tol == linear_model.LogisticRegression().tol
    tree["defaults"].remove("tol")
    assert decode(tree).tol == value


def test_an_imputer_of_an_older_version() -> None:
    made, again = impute.SimpleImputer().fit(X), impute.SimpleImputer()
    state = learned(made)
    state.pop("_fill_dtype", None)  # scikit-learn 1.6 has none
    relearn(again, state)
    rows = np.where(X > 1, np.nan, X)
    np.testing.assert_array_equal(again.transform(rows), made.transform(rows))


# ------------------------------------------------------------------------------ wild states


def bent(estimator: Any, *way: Any) -> Any:
    """Return a function that changes an array of a state and reads it."""
    state: Any = learned(estimator)
    holder = state
    for step in way:
        holder = holder[step]

    def read(change: Any) -> Any:
        change(holder)
        fresh = type(estimator)(**estimator.get_params(deep=False))
        relearn(fresh, state)
        return fresh

    return read


def columns(kind: str, at: tuple[int, int], value: int) -> Any:
    def change(record: Any) -> None:
        record["columns"][kind][at] = value

    return change


TREE = tree.DecisionTreeRegressor(random_state=0).fit(X, Y)
FOREST = ensemble.RandomForestRegressor(2, random_state=0).fit(X, Y)
SVC = svm.SVC().fit(X, KIND)
HIST = ensemble.HistGradientBoostingClassifier(max_iter=2, categorical_features=[0])
HIST.fit(CATEGORIES, Y > 0)
KNN = neighbors.KNeighborsRegressor().fit(X, Y)
KMEANS = cluster.KMeans(3, n_init=1, random_state=0).fit(X)
BOOSTING = ensemble.GradientBoostingClassifier(n_estimators=2).fit(X, KIND)
MLP = neural_network.MLPRegressor(hidden_layer_sizes=(3,), random_state=0, max_iter=2)
with warnings.catch_warnings(action="ignore"):
    MLP.fit(X, Y)
BIRCH = cluster.Birch(n_clusters=None, threshold=0.2, branching_factor=5).fit(X)
GRID = model_selection.GridSearchCV(
    pipeline.make_pipeline(preprocessing.StandardScaler(), linear_model.Ridge()),
    {"ridge__alpha": [0.1, 1.0]},
    cv=3,
).fit(X, Y)
ROOT = ("root_", "$birch")
NODES = ("tree_", "$tree", "nodes")
SVR = svm.SVR().fit(X, Y)
NEAR = neighbors.KNeighborsClassifier().fit(X, KIND)
BAYES = naive_bayes.MultinomialNB().fit(X, KIND)
SGD = linear_model.SGDClassifier(random_state=0).fit(X, KIND)
ONE_HOT = preprocessing.OneHotEncoder().fit(CATEGORIES[:, :1])
RARE = preprocessing.OneHotEncoder(drop="first", min_frequency=17).fit(CATEGORIES[:, :1])
POWERS = preprocessing.PolynomialFeatures(2).fit(X)
FORESTS = ensemble.RandomForestClassifier(2, random_state=0).fit(X, KIND)


def no_numbers(n: int = 3_000_000) -> dict[str, Any]:
    """Return the state of a machine of sparse vectors that says more than it holds."""

    def sparse(rows: int, width: int) -> dict[str, Any]:
        parts = [np.zeros(0), np.zeros(0, "<i4"), np.zeros(rows + 1, "<i4")]
        return {"$sparse": "csr", "shape": [rows, width], "parts": parts}

    found = {"_sparse": True, "support_": np.zeros(n, "<i4"), "support_vectors_": sparse(n, 4)}
    found |= {"_dual_coef_": sparse(1, n), "dual_coef_": sparse(1, n)}
    return {**found, "shape_fit_": {"$tuple": [n, 4]}, "_n_support": np.array([n, n], "<i4")}


LEFT, RIGHT, FEATURE = 0, 1, 2  # places among the int64 columns
WILD: dict[str, tuple[Any, tuple[Any, ...], Any]] = {
    "child beyond": (TREE, NODES, columns("<i8", (0, LEFT), 10**6)),
    "child negative": (TREE, NODES, columns("<i8", (0, LEFT), -7)),
    "child is its parent": (TREE, NODES, columns("<i8", (3, RIGHT), 3)),
    "child of two": (TREE, NODES, columns("<i8", (0, RIGHT), 1)),
    "feature beyond": (TREE, NODES, columns("<i8", (0, FEATURE), 4)),
    "feature negative": (TREE, NODES, columns("<i8", (0, FEATURE), -3)),
    "depth": (TREE, ("tree_", "$tree"), lambda t: t.update(max_depth=1)),
    "width": (TREE, ("tree_", "$tree"), lambda t: t.update(n_features=9)),
    "classes": (TREE, ("tree_", "$tree"), lambda t: t.update(n_classes=np.array([10**9]))),
    "values": (TREE, ("tree_", "$tree"), lambda t: t.update(values=t["values"][:-1])),
    "no nodes": (TREE, ("tree_", "$tree"), lambda t: t["nodes"].update(columns={})),
    "row size": (TREE, NODES, lambda n: n.update(size=10**9)),
    "outputs": (TREE, (), lambda s: s.update(n_outputs_=2)),
    "forest of other trees": (FOREST, (), lambda s: s.update(n_features_in_=2)),
    "forest of no trees": (FOREST, (), lambda s: s.update(estimators_=[])),
    "boosting columns": (BOOSTING, (), lambda s: s.update(n_trees_per_iteration_=1)),
    "boosting start": (
        BOOSTING,
        ("init_", "state"),
        lambda s: s.update(class_prior_=s["class_prior_"][:1]),
    ),
    "vectors": (SVC, (), lambda s: s.update(support_vectors_=s["support_vectors_"][:3])),
    "counts": (SVC, ("_n_support",), lambda c: c.__setitem__(0, 10**6)),
    "counts of a regressor": (SVR, (), lambda s: s.update(_n_support=s["_n_support"][:1])),
    "intercepts": (SVC, (), lambda s: s.update(_intercept_=s["_intercept_"][:1])),
    "coefficients": (SVC, (), lambda s: s.update(_dual_coef_=np.zeros((9, 1)))),
    "neighbours": (KNN, (), lambda s: s.update(_fit_X=s["_fit_X"][:, :2])),
    "centres": (KMEANS, (), lambda s: s.update(cluster_centers_=np.zeros((3, 99)))),
    "histogram children": (
        HIST,
        ("_predictors", 0, 0, "state", "nodes"),
        lambda n: n["columns"]["<u4"].fill(2**31),
    ),
    "histogram features": (
        HIST,
        ("_predictors", 0, 0, "state", "nodes"),
        lambda n: n["columns"]["<i8"].fill(99),
    ),
    "histogram categories": (
        HIST,
        ("_predictors", 0, 0, "state", "nodes"),
        lambda n: n["columns"]["|u1"].__setitem__((0, slice(3, 4)), 1),
    ),
    "offset of a column": (TREE, (*NODES, "$record", 5), lambda c: c.__setitem__(2, 2**31 - 1)),
    "generator of zeros": (MLP, ("_random_state", "$random", "$tuple", 1), lambda k: k.fill(0)),
    "an estimator in another's place": (
        GRID,
        ("estimator", "state", "steps", 1, "$tuple"),
        lambda t: t.pop(),
    ),
    "a number for classes": (BAYES, (), lambda s: s.update(classes_=7)),
    "a text for texts": (BAYES, (), lambda s: s.update(classes_="x")),
    "generator": (MLP, ("_random_state", "$random", "$tuple"), lambda t: t.__setitem__(2, 10**9)),
    "birch child": (BIRCH, (*ROOT, "children"), lambda c: c.__setitem__(1, c[0])),
    "birch in a circle": (BIRCH, (*ROOT, "children"), lambda c: c.__setitem__(0, 0)),
    "birch leaves": (BIRCH, (*ROOT, "chain"), lambda c: c.__setitem__(0, c[1])),
    "birch sizes": (BIRCH, (*ROOT, "sizes"), lambda c: c.__setitem__(0, 99)),
    "birch room": (BIRCH, (*ROOT, "branching_factor"), lambda c: c.fill(2**40)),
    "an attribute of its own": (KNN, (), lambda s: s.update(other_=1)),
    "another kind of value": (KNN, (), lambda s: s.update(n_samples_fit_="x")),
    "another dtype": (KNN, (), lambda s: s.update(_fit_X=s["_fit_X"].astype(str))),
    "sparse vectors without numbers": (SVR, (), lambda s: s.update(no_numbers())),
    "labels beyond the classes": (NEAR, ("_y",), lambda y: y.fill(10**6)),
    "weights of another width": (SGD, (), lambda s: s.update(_standard_coef=np.zeros((3, 99)))),
    "norms": (BIRCH, (), lambda s: s.update(_subcluster_norms=np.zeros(1))),
    "columns of categories": (ONE_HOT, (), lambda s: s.update(_n_features_outs=[1])),
    "rare categories": (
        RARE,
        ("_default_to_infrequent_mappings",),
        lambda m: m.__setitem__(0, None),
    ),
    "places of rare categories": (
        RARE,
        ("_default_to_infrequent_mappings", 0),
        lambda m: m.fill(4),
    ),
    "a category to drop": (
        RARE,
        ("_drop_idx_after_grouping", "$objects"),
        lambda d: d.__setitem__(0, -7),
    ),
    "classes in a table": (
        BAYES,
        (),
        lambda s: s.update(classes_=np.zeros((3, 2))),
    ),
    "powers": (POWERS, (), lambda s: s.update(n_output_features_=2**40)),
    "powers without end": (POWERS, (), lambda s: s.update(_max_degree=2**31 - 1)),
    "no rows of neighbours": (
        KNN,
        (),
        lambda s: s.update(_fit_X=np.zeros((0, 4)), n_samples_fit_=0),
    ),
    "number of classes": (FORESTS, (), lambda s: s.update(n_classes_=2**40)),
    "a method": (KNN, (), lambda s: s.update(predict=1)),
    "a class": (KNN, (), lambda s: s.update(__class__=1)),
}


@pytest.mark.parametrize("name", WILD)
def test_wild_states_are_refused(name: str) -> None:
    estimator, way, change = WILD[name]
    read = bent(estimator, *way)
    read(lambda holder: None)
    with pytest.raises((ConfigError, ValueError, KeyError, StopIteration)):
        read(change)


def test_only_listed_classes_are_made() -> None:
    fresh = neighbors.KNeighborsRegressor()
    for value in (
        {"$part": "os:environ", "state": {}},
        {"$part": "sklearn.tree._tree:Tree", "state": {}},
        {"$made": "sklearn.utils:Bunch", "args": []},
        {"$neighbours": "NearestNeighbors", "data": np.zeros((2, 2)), "metric": "l2", "kwargs": {}},
        {"$random": {"bit_generator": "os"}},
        {"$fitted": "os:system", "params": {}, "state": {}},
    ):
        with pytest.raises((ConfigError, ValueError)):
            relearn(fresh, {"_tree": value})
