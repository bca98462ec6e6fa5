"""One fitted example of every kind of estimator that a file can hold."""

from __future__ import annotations

import warnings
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from sklearn import (
    calibration,
    cluster,
    compose,
    covariance,
    cross_decomposition,
    decomposition,
    discriminant_analysis,
    dummy,
    ensemble,
    feature_selection,
    gaussian_process,
    impute,
    kernel_approximation,
    linear_model,
    manifold,
    metrics,
    mixture,
    model_selection,
    multiclass,
    multioutput,
    naive_bayes,
    neighbors,
    neural_network,
    pipeline,
    preprocessing,
    random_projection,
    semi_supervised,
    svm,
    tree,
)
from sklearn.base import clone, is_classifier
from sklearn.experimental import enable_halving_search_cv, enable_iterative_imputer  # noqa: F401
from sklearn.gaussian_process import kernels

RNG = np.random.default_rng(4)
X = np.abs(RNG.normal(size=(80, 4)))
Y = X @ np.array([1.0, -2.0, 0.5, 0.0]) + RNG.normal(size=80) / 10
KIND = np.array(["low", "mid", "top"])[np.digitize(Y, np.quantile(Y, [0.3, 0.7]))]
CATEGORIES = np.c_[RNG.integers(0, 5, 80), X[:, 1:]].astype(float)


def bins(n: int, method: str, **arguments: Any) -> Any:
    """Return a KBinsDiscretizer; ``quantile_method`` is an argument since scikit-learn 1.7."""
    made = preprocessing.KBinsDiscretizer(n, **arguments)
    known = "quantile_method" in made.get_params()
    return made.set_params(quantile_method=method) if known else made


REGRESSORS: list[Any] = [
    linear_model.LinearRegression(),
    linear_model.Ridge(),
    linear_model.RidgeCV(),
    linear_model.LassoCV(cv=3),
    linear_model.ElasticNet(0.01),
    linear_model.BayesianRidge(),
    linear_model.HuberRegressor(),
    linear_model.SGDRegressor("huber", random_state=0),
    compose.TransformedTargetRegressor(
        linear_model.PoissonRegressor(), func=np.square, inverse_func=np.sqrt
    ),
    svm.SVR(),
    svm.LinearSVR(random_state=0),
    neighbors.KNeighborsRegressor(3, weights="distance", algorithm="kd_tree", leaf_size=7),
    tree.DecisionTreeRegressor(max_leaf_nodes=9, random_state=0),
    ensemble.RandomForestRegressor(7, random_state=0),
    ensemble.ExtraTreesRegressor(7, bootstrap=True, oob_score=True, random_state=0),
    ensemble.GradientBoostingRegressor(loss="quantile", subsample=0.5, random_state=0),
    ensemble.HistGradientBoostingRegressor(max_iter=9, loss="absolute_error"),
    ensemble.AdaBoostRegressor(n_estimators=5, random_state=0),
    ensemble.BaggingRegressor(max_features=2, random_state=0),
    ensemble.IsolationForest(n_estimators=9, max_features=2, random_state=0),
    ensemble.VotingRegressor([("a", linear_model.Ridge()), ("b", svm.SVR())]),
    ensemble.StackingRegressor([("a", linear_model.Ridge()), ("b", svm.SVR())], cv=3),
    neural_network.MLPRegressor(
        hidden_layer_sizes=(5,), random_state=0, early_stopping=True, max_iter=30
    ),
    gaussian_process.GaussianProcessRegressor(
        1.0 * kernels.RBF([1.0] * 4) + kernels.WhiteKernel(), n_restarts_optimizer=1, random_state=0
    ),
    model_selection.GridSearchCV(
        pipeline.make_pipeline(preprocessing.StandardScaler(), linear_model.Ridge()),
        {"ridge__alpha": [0.1, 1.0]},
        cv=model_selection.KFold(3, shuffle=True, random_state=1),
        scoring=None,
    ),
    compose.TransformedTargetRegressor(
        tree.DecisionTreeRegressor(), transformer=preprocessing.PowerTransformer()
    ),
]
CLASSIFIERS: list[Any] = [
    linear_model.LogisticRegression(),
    linear_model.SGDClassifier("modified_huber", random_state=0, average=True),
    linear_model.Perceptron(random_state=0),
    svm.SVC(),
    svm.NuSVC(nu=0.1),
    svm.LinearSVC(random_state=0),
    neighbors.KNeighborsClassifier(metric="manhattan", algorithm="ball_tree"),
    neighbors.NearestCentroid(),
    tree.DecisionTreeClassifier(max_depth=4, random_state=0),
    tree.ExtraTreeClassifier(random_state=0),
    ensemble.RandomForestClassifier(7, random_state=0, class_weight="balanced"),
    ensemble.GradientBoostingClassifier(n_estimators=4, random_state=0),
    ensemble.HistGradientBoostingClassifier(max_iter=5, categorical_features=[0], max_bins=31),
    ensemble.AdaBoostClassifier(n_estimators=5, random_state=0),
    naive_bayes.GaussianNB(),
    naive_bayes.MultinomialNB(),
    discriminant_analysis.LinearDiscriminantAnalysis(),
    discriminant_analysis.QuadraticDiscriminantAnalysis(),
    neural_network.MLPClassifier(hidden_layer_sizes=(5, 4), random_state=0, max_iter=20),
    gaussian_process.GaussianProcessClassifier(kernels.Matern(nu=1.5), random_state=0),
    calibration.CalibratedClassifierCV(naive_bayes.GaussianNB(), method="isotonic", cv=3),
    model_selection.RandomizedSearchCV(
        svm.SVC(),
        {"C": [0.1, 1.0, 3.0]},
        n_iter=2,
        cv=3,
        random_state=0,
        scoring="balanced_accuracy",
    ),
]
OTHERS: list[Any] = [
    cluster.KMeans(3, n_init=2, random_state=0),
    cluster.MiniBatchKMeans(3, n_init=2, random_state=0),
    mixture.GaussianMixture(2, random_state=0),
    mixture.BayesianGaussianMixture(n_components=2, random_state=0),
    decomposition.PCA(2),
    decomposition.KernelPCA(2, kernel="rbf"),
    decomposition.FastICA(2, random_state=0),
    decomposition.NMF(2, random_state=0, max_iter=500),
    decomposition.TruncatedSVD(2, random_state=0),
    impute.KNNImputer(),
    impute.IterativeImputer(random_state=0),
    impute.SimpleImputer(strategy="median", add_indicator=True),
    feature_selection.SelectKBest(feature_selection.f_classif, k=2),
    preprocessing.SplineTransformer(),
    bins(4, "averaged_inverted_cdf"),
    preprocessing.FunctionTransformer(np.log1p),
    compose.ColumnTransformer(
        [
            ("s", preprocessing.StandardScaler(), [0, 1]),
            ("o", preprocessing.OneHotEncoder(handle_unknown="ignore"), [2]),
        ],
        remainder="passthrough",
    ),
    pipeline.FeatureUnion([("p", decomposition.PCA(1)), ("s", preprocessing.RobustScaler())]),
]
KERNEL = metrics.pairwise.rbf_kernel
REST: list[Any] = [  # of which none has anything of its own in the code
    cluster.Birch(n_clusters=3, threshold=0.2, branching_factor=5),
    cluster.AffinityPropagation(random_state=0),
    cluster.BisectingKMeans(3, random_state=0),
    cluster.MeanShift(),
    cross_decomposition.PLSRegression(2),
    covariance.EllipticEnvelope(random_state=0),
    decomposition.FactorAnalysis(2, random_state=0),
    decomposition.LatentDirichletAllocation(3, max_iter=2, random_state=0),
    dummy.DummyRegressor(strategy="median"),
    ensemble.RandomTreesEmbedding(5, random_state=0),
    kernel_approximation.Nystroem(n_components=5, random_state=0),
    linear_model.OrthogonalMatchingPursuit(),
    linear_model.RANSACRegressor(random_state=0),
    manifold.Isomap(n_components=2),
    model_selection.HalvingGridSearchCV(svm.LinearSVR(), {"C": [0.1, 1.0]}, cv=3, random_state=0),
    neighbors.LocalOutlierFactor(novelty=True),
    preprocessing.PolynomialFeatures(2),
    random_projection.SparseRandomProjection(2, random_state=0),
    svm.OneClassSVM(),
    svm.SVR(kernel=KERNEL),
]
REST_OF_CLASSIFIERS: list[Any] = [
    model_selection.TunedThresholdClassifierCV(linear_model.LogisticRegression(), cv=3),
    multiclass.OutputCodeClassifier(naive_bayes.GaussianNB(), random_state=0),
    semi_supervised.LabelSpreading(),
    svm.SVC(kernel=KERNEL),
]


def variants() -> list[Any]:
    """Return estimators with arguments that give them other attributes."""
    ridge, logistic = linear_model.Ridge(), linear_model.LogisticRegression()
    return [
        svm.SVC(probability=True),
        svm.NuSVC(nu=0.1, probability=True),
        svm.SVC(kernel="precomputed"),
        svm.SVC(kernel="linear"),
        svm.SVR(kernel="linear"),
        linear_model.SGDClassifier(average=True, early_stopping=True, random_state=0),
        linear_model.SGDRegressor(average=True, early_stopping=True, random_state=0),
        linear_model.SGDOneClassSVM(average=True, random_state=0),
        *(
            getattr(linear_model, name)(average=True, random_state=0)
            for name in ("PassiveAggressiveClassifier",)
            if hasattr(linear_model, name)  # until scikit-learn 1.9
        ),
        linear_model.LogisticRegression(solver="saga", warm_start=True, max_iter=50),
        linear_model.LogisticRegression(class_weight="balanced"),
        linear_model.LogisticRegressionCV(cv=3),
        linear_model.RidgeCV(store_cv_results=True, alphas=[0.1, 1.0]),
        linear_model.MultiTaskLasso(),
        neural_network.MLPRegressor(
            hidden_layer_sizes=(3,), solver="lbfgs", max_iter=5, random_state=0
        ),
        neural_network.MLPClassifier((3,), solver="sgd", max_iter=5, random_state=0),
        neural_network.MLPClassifier((3,), early_stopping=True, max_iter=5, random_state=0),
        neural_network.MLPRegressor(
            hidden_layer_sizes=(3,), solver="sgd", max_iter=5, random_state=0
        ),
        neural_network.MLPRegressor(hidden_layer_sizes=(3,), max_iter=5, random_state=0),
        *(
            neighbors.KNeighborsClassifier(algorithm=a, weights=w)
            for a in ("brute", "kd_tree", "ball_tree")
            for w in ("uniform", "distance")
        ),
        *(neighbors.KNeighborsRegressor(algorithm=a) for a in ("brute", "kd_tree", "ball_tree")),
        neighbors.RadiusNeighborsClassifier(9.0, outlier_label="most_frequent"),
        neighbors.RadiusNeighborsRegressor(9.0),
        ensemble.RandomForestClassifier(3, oob_score=True, bootstrap=True, random_state=0),
        ensemble.RandomForestRegressor(3, max_samples=0.5, monotonic_cst=[1, 0, 0, 0]),
        ensemble.GradientBoostingRegressor(n_estimators=3, n_iter_no_change=2),
        ensemble.GradientBoostingClassifier(n_estimators=3, init=logistic),
        ensemble.GradientBoostingClassifier(n_estimators=3, init="zero", loss="exponential"),
        *(
            ensemble.GradientBoostingRegressor(n_estimators=3, loss=loss)
            for loss in ("squared_error", "absolute_error", "huber", "quantile")
        ),
        *(
            ensemble.HistGradientBoostingRegressor(max_iter=3, loss=loss, quantile=q)
            for loss, q in [
                ("squared_error", None),
                ("absolute_error", None),
                ("gamma", None),
                ("poisson", None),
                ("quantile", 0.5),
            ]
        ),
        ensemble.HistGradientBoostingClassifier(max_iter=3, early_stopping=True, warm_start=True),
        ensemble.HistGradientBoostingRegressor(max_iter=3, monotonic_cst=[1, 0, 0, 0]),
        ensemble.BaggingClassifier(logistic, 3, oob_score=True),
        ensemble.BaggingRegressor(ridge, 3, oob_score=True),
        ensemble.AdaBoostClassifier(logistic, n_estimators=3),
        ensemble.VotingClassifier(
            [("a", logistic), ("b", naive_bayes.GaussianNB())], voting="soft"
        ),
        ensemble.StackingClassifier([("a", logistic), ("b", svm.SVC())], cv=3),
        ensemble.StackingRegressor([("a", ridge), ("b", "drop")], cv=3, passthrough=True),
        multiclass.OneVsRestClassifier(logistic),
        multiclass.OneVsOneClassifier(logistic),
        multioutput.MultiOutputClassifier(logistic),
        multioutput.MultiOutputRegressor(ridge),
        multioutput.ClassifierChain(logistic),
        multioutput.RegressorChain(ridge),
        semi_supervised.SelfTrainingClassifier(logistic),
        semi_supervised.LabelPropagation("knn"),
        calibration.CalibratedClassifierCV(logistic, cv=3, ensemble=False),
        calibration.CalibratedClassifierCV(svm.LinearSVC(), cv=3),
        *(
            feature_selection.SelectFromModel(e)
            for e in (ridge, logistic, ensemble.RandomForestClassifier(3, random_state=0))
        ),
        *(feature_selection.RFE(e, n_features_to_select=2) for e in (ridge, logistic)),
        *(feature_selection.RFECV(e, cv=3) for e in (ridge, logistic)),
        feature_selection.SequentialFeatureSelector(ridge, n_features_to_select=2, cv=3),
        preprocessing.OneHotEncoder(drop="if_binary", min_frequency=3),
        preprocessing.OneHotEncoder(max_categories=2, handle_unknown="infrequent_if_exist"),
        preprocessing.OneHotEncoder(drop="first", sparse_output=False),
        preprocessing.OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1),
        preprocessing.OrdinalEncoder(max_categories=2),
        preprocessing.OrdinalEncoder(min_frequency=3),
        bins(3, "linear", encode="ordinal"),
        preprocessing.KBinsDiscretizer(3, strategy="uniform"),
        preprocessing.PolynomialFeatures((2, 3), interaction_only=True, include_bias=False),
        preprocessing.SplineTransformer(extrapolation="periodic", include_bias=False),
        preprocessing.SplineTransformer(knots="quantile", sparse_output=True),
        preprocessing.PowerTransformer("box-cox", standardize=False),
        impute.SimpleImputer(strategy="constant", fill_value=0.0, add_indicator=True),
        impute.SimpleImputer(strategy="most_frequent"),
        impute.KNNImputer(add_indicator=True),
        impute.IterativeImputer(linear_model.BayesianRidge(), sample_posterior=True),
        *(decomposition.PCA(n) for n in (None, 0.9, "mle")),
        decomposition.PCA(2, svd_solver="randomized", random_state=0),
        decomposition.KernelPCA(2, fit_inverse_transform=True),
        cluster.KMeans(2, n_init=1, algorithm="elkan"),
        cluster.BisectingKMeans(3, bisecting_strategy="largest_cluster", random_state=0),
        cluster.Birch(n_clusters=cluster.AgglomerativeClustering(2), threshold=0.2),
        cluster.Birch(n_clusters=None, threshold=0.2),
        *(
            mixture.GaussianMixture(2, covariance_type=c, random_state=0)
            for c in ("full", "tied", "diag", "spherical")
        ),
        *(
            mixture.BayesianGaussianMixture(n_components=2, covariance_type=c, random_state=0)
            for c in ("full", "tied", "diag", "spherical")
        ),
        discriminant_analysis.LinearDiscriminantAnalysis("lsqr", shrinkage="auto"),
        discriminant_analysis.LinearDiscriminantAnalysis("eigen", store_covariance=True),
        dummy.DummyClassifier(strategy="stratified", random_state=0),
        dummy.DummyRegressor(strategy="quantile", quantile=0.3),
        compose.TransformedTargetRegressor(ridge, transformer=preprocessing.StandardScaler()),
        compose.ColumnTransformer([("s", preprocessing.StandardScaler(), ["a", "b"])]),
        compose.ColumnTransformer(
            [("s", preprocessing.StandardScaler(), slice(0, 2)), ("d", "drop", [2])],
            remainder=preprocessing.MinMaxScaler(),
        ),
        compose.ColumnTransformer(
            [("n", "passthrough", compose.make_column_selector(dtype_include=float))]
        ),
        pipeline.Pipeline([("a", "passthrough"), ("b", ridge)]),
        pipeline.FeatureUnion([("p", decomposition.PCA(1)), ("s", "passthrough")]),
        *(
            model_selection.GridSearchCV(e, {k: [0.1, 1.0]}, cv=3, scoring=s, refit=r)
            for e, k, s, r in [
                (logistic, "C", ["accuracy", "f1_macro"], "accuracy"),
                (ridge, "alpha", "r2", True),
                (svm.SVC(), "C", None, True),
                (neighbors.KNeighborsClassifier(), "leaf_size", "accuracy", True),
            ][:3]
        ),
        kernel_approximation.RBFSampler(n_components=3, random_state=0),
        tree.DecisionTreeClassifier(class_weight="balanced", monotonic_cst=[1, 0, 0, 0]),
        gaussian_process.GaussianProcessRegressor(normalize_y=True),
        gaussian_process.GaussianProcessClassifier(multi_class="one_vs_one"),
    ]


def examples() -> list[Any]:
    """Return every estimator of this file."""
    with warnings.catch_warnings(action="ignore"):  # of classes that scikit-learn will remove
        more = variants()
    return [*REGRESSORS, *CLASSIFIERS, *OTHERS, *REST, *REST_OF_CLASSIFIERS, *more]


def fitted(estimator: Any) -> tuple[Any, Any, Any]:
    """Return a copy that is fitted, and the rows and targets that it took.

    Raises
    ------
    AssertionError
        If there are no rows that it takes, with the reason for each.
    """
    two = np.where(KIND == "low", 0, 1)
    rows: list[Any] = [CATEGORIES if "categorical" in repr(estimator) else X]
    if getattr(estimator, "kernel", None) == "precomputed":
        rows = [KERNEL(X, X)]
    rows.append(pd.DataFrame(X, columns=list("abcd")))
    targets = [KIND, two, np.c_[two, 1 - two]]
    if not is_classifier(estimator):
        targets = [Y, np.exp(Y), np.c_[Y, Y**2], *targets]
    reasons = []
    for x, y in product(rows, targets):
        try:
            with warnings.catch_warnings(action="ignore"):
                return clone(estimator).fit(x, y), x, y
        except Exception as error:
            reasons.append(repr(error)[:90])
    raise AssertionError(f"{estimator!r} takes no rows: {reasons}")
