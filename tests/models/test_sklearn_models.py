"""scikit-learn estimators as models: outputs, shapes, learning, state; against scikit-learn."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.cluster import DBSCAN, KMeans
from sklearn.compose import TransformedTargetRegressor
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import (
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
    StackingRegressor,
    VotingRegressor,
)
from sklearn.feature_selection import RFE, RFECV, SelectFromModel, SelectKBest
from sklearn.linear_model import Lasso, LinearRegression, LogisticRegression, Ridge, SGDClassifier
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import (
    OneHotEncoder,
    PolynomialFeatures,
    PowerTransformer,
    StandardScaler,
)
from sklearn.svm import SVC

from modularml import ScikitModelWrapper
from modularml.errors import ConfigError, DataError, NotFittedError, ShapeError
from modularml.models import wrap_model
from modularml.models.base import Place

rng = np.random.default_rng(0)
X = rng.normal(size=(60, 4)).astype(np.float32)
Y = (X @ [1.0, -2.0, 0.5, 0.0] + 0.1 * rng.normal(size=60)).astype(np.float32)
KIND = (Y > -0.5).astype(int) + (Y > 0.5)


def built(estimator, targets=Y[:, None], **kwargs):
    """Return a wrapper built for X and these targets, as a graph does it."""
    wrapped = ScikitModelWrapper(estimator, **kwargs)
    shape = None if targets is None else targets.shape[1:]
    wrapped.expect_targets(shape, lambda: np.unique(targets))
    wrapped.expect_place(Place())
    wrapped.build((4,))
    return wrapped


class TestOutputs:
    @pytest.mark.parametrize(
        ("estimator", "targets", "method"),
        [
            (LinearRegression(), Y, "predict"),
            (RandomForestRegressor(5, random_state=0), Y, "predict"),
            (LinearRegression(), np.stack([Y, -Y], axis=1), "predict"),
            (GridSearchCV(Ridge(), {"alpha": [0.1, 1.0]}, cv=3), Y, "predict"),
            (make_pipeline(StandardScaler(), Ridge()), Y, "predict"),
            (LogisticRegression(), KIND, "predict_proba"),
            (RandomForestClassifier(5, random_state=0), KIND, "predict_proba"),
            (make_pipeline(StandardScaler(), LogisticRegression()), KIND, "predict_proba"),
            (SVC(), KIND, "decision_function"),
            (SVC(), KIND > 0, "decision_function"),
            (SVC(decision_function_shape="ovo"), KIND, "decision_function"),
            (KMeans(3, n_init=1, random_state=0), None, "predict"),
            (StandardScaler(), None, "transform"),
            (PCA(2), None, "transform"),
            (PolynomialFeatures(2), None, "transform"),
            (SelectKBest(k=2), KIND, "transform"),
            (make_pipeline(StandardScaler(), PCA(2)), None, "transform"),
        ],
        ids=lambda value: type(value).__name__ if hasattr(value, "fit") else None,
    )
    def test_equal_scikit_learn(self, estimator, targets, method):
        theirs = clone(estimator)
        theirs = theirs.fit(X) if targets is None else theirs.fit(X, targets)
        expected = np.asarray(getattr(theirs, method)(X))
        columns = None if targets is None else targets.reshape(60, -1)
        wrapped = built(estimator, columns)
        assert wrapped.method == method
        known = expected.shape[1:] or (1,)
        by_a_fit_alone = (PolynomialFeatures, SelectKBest, Pipeline)
        waits = method == "transform" and isinstance(estimator, by_a_fit_alone)
        assert wrapped.output_shape == (None if waits else known)
        with pytest.raises(NotFittedError, match=type(estimator).__name__):
            wrapped(X)
        wrapped.fit(X, columns)
        out = wrapped(X.reshape(60, 2, 2))
        np.testing.assert_array_equal(out, expected.reshape(60, *known))
        assert out.dtype == expected.dtype
        assert wrapped.output_shape == known
        assert wrapped(X[:0]).shape == (0, *known)

    def test_one_that_is_chosen(self):
        labels = built(LogisticRegression(), KIND[:, None], output_method="predict")
        assert labels.output_shape == (1,)
        labels.fit(X, KIND[:, None])
        np.testing.assert_array_equal(labels(X)[:, 0], LogisticRegression().fit(X, KIND).predict(X))
        distances = built(KMeans(3, n_init=1), None, output_method="transform")
        distances.fit(X, None)
        assert distances(X).shape == (60, 3)

    def test_one_that_is_fitted_already(self):
        some = PCA(0.9).fit(X)  # how many components there are depends on the data
        assert built(some, None).output_shape == (some.n_components_,)
        with pytest.raises(ShapeError, match=r"PCA got 3 values"):
            ScikitModelWrapper(some).build((3,))

    def test_each_fit_has_a_shape_of_its_own(self):
        wrapped = built(PCA(0.5), None)
        assert wrapped.output_shape is None
        for rows, width in ((np.outer(Y, np.ones(4)), 1), (X, 2)):
            wrapped.fit(rows, None)
            assert wrapped(X).shape == (60, width)
            assert wrapped.output_shape == (width,)
        wrapped.reset_weights()
        assert wrapped.output_shape is None

    def test_nothing_is_called_on_rows_that_are_not_there(self):
        seen = []

        class Spy(SelectKBest):
            def fit(self, X, y=None):
                seen.append(len(X))
                return super().fit(X, y)

            def transform(self, X):
                seen.append(len(X))
                return super().transform(X)

        wrapped = built(Spy(k=2), KIND[:, None])
        assert seen == []
        wrapped.fit(X, KIND[:, None])
        wrapped(X)
        assert seen == [60, 60]

    @pytest.mark.parametrize(
        ("estimator", "alone", "before_others"),
        [
            (RFE(LogisticRegression()), "predict_proba", "transform"),
            (RFECV(Ridge(), cv=3), "predict", "transform"),
            (SelectFromModel(Ridge()), "transform", "transform"),
            (make_pipeline(StandardScaler(), RFE(Ridge())), "predict", "transform"),
            (GridSearchCV(RFE(Ridge()), {"step": [1]}, cv=3), "predict", "transform"),
            (LinearDiscriminantAnalysis(), "predict_proba", "transform"),
            (KMeans(3, n_init=1), "predict", "transform"),
            (StackingRegressor([("a", Ridge())]), "predict", "predict"),
            (VotingRegressor([("a", Ridge())]), "predict", "predict"),
            (make_pipeline(StackingRegressor([("a", Ridge())])), "predict", "predict"),
            (GridSearchCV(StackingRegressor([("a", Ridge())]), {}), "predict", "predict"),
            (StackingClassifier([("a", LogisticRegression())]), "predict_proba", "predict_proba"),
            (LogisticRegression(), "predict_proba", "predict_proba"),
            (Ridge(), "predict", "predict"),
        ],
    )
    def test_what_auto_means_depends_on_the_place(self, estimator, alone, before_others):
        assert ScikitModelWrapper(estimator).method == alone
        wrapped = ScikitModelWrapper(clone(estimator))
        for feeds, method in ((True, before_others), (False, alone)):
            wrapped.expect_place(Place(feeds=feeds))
            assert wrapped.method == method

    def test_methods_that_only_a_fit_gives(self):
        votes = StackingClassifier([("a", LogisticRegression())], final_estimator=SVC(), cv=3)
        wrapped = built(votes, KIND[:, None])
        wrapped.fit(X, KIND[:, None])  # an SVC has no probabilities
        np.testing.assert_array_equal(wrapped(X), votes.decision_function(X))
        assert wrapped.method == "decision_function"
        with pytest.raises(ConfigError, match="neither predict"):
            ScikitModelWrapper(GridSearchCV(Ridge(), {}, refit=False))

    def test_a_fitted_classifier_keeps_its_classes(self):
        theirs = LogisticRegression().fit(X, KIND)
        rows = KIND != 1
        wrapped = built(theirs, KIND[rows, None])
        assert wrapped.output_shape == (3,)
        np.testing.assert_array_equal(wrapped(X[rows]), theirs.predict_proba(X[rows]))

    def test_outputs_of_what_zeros_would_upset(self):
        for transformer in (PowerTransformer("box-cox"), OneHotEncoder(sparse_output=False)):
            rows = np.abs(X) + 1 if isinstance(transformer, PowerTransformer) else KIND[:, None]
            wrapped = ScikitModelWrapper(transformer.fit(rows))
            wrapped.build(rows.shape[1:])
            expected = transformer.transform(rows)
            assert wrapped.output_shape == expected.shape[1:]
            np.testing.assert_array_equal(wrapped(rows), expected)

    def test_a_class_that_training_lacks_has_probability_zero(self):
        wrapped = built(LogisticRegression(), KIND[:, None])
        rows = KIND != 1
        wrapped.fit(X[rows], KIND[rows, None])
        out = wrapped(X)
        expected = LogisticRegression().fit(X[rows], KIND[rows]).predict_proba(X)
        np.testing.assert_array_equal(out[:, [0, 2]], expected)
        assert not out[:, 1].any()

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: ScikitModelWrapper(Ridge), "estimator"),
            (lambda: ScikitModelWrapper(3), "got 3"),
            (lambda: ScikitModelWrapper(DBSCAN()), "neither predict nor transform"),
            (lambda: ScikitModelWrapper(Ridge(), output_method="transform"), r"\['predict'\]"),
            (lambda: ScikitModelWrapper(Ridge(), training_mode="partial_fit"), "no partial_fit"),
            (lambda: ScikitModelWrapper(Ridge(), training_mode="x"), "training_mode"),
            (lambda: built(Ridge(), None), "Ridge needs targets"),
            (lambda: ScikitModelWrapper(Ridge()).build(), "needs input_shape"),
            (lambda: built(Ridge()).build((3,)), r"\(4,\), got \(3,\)"),
            (lambda: built(LogisticRegression(), np.stack([KIND, KIND], 1)), "MultiOutputClass"),
            (lambda: built(RandomForestClassifier(), np.stack([KIND, KIND], 1)), "2 targets"),
            (lambda: ScikitModelWrapper(Ridge(), group_by="cell"), "takes no groups"),
            (
                lambda: built(GridSearchCV(Ridge(), {}, cv=GroupKFold(3))),
                r"cross-validates by groups.*group_by='\.\.\.'",
            ),
        ],
    )
    def test_what_cannot_be(self, make, message):
        with pytest.raises((ConfigError, ShapeError), match=message):
            make()


class TestLearning:
    def test_batch_by_batch(self):
        wrapped = built(SGDClassifier(random_state=0, loss="log_loss"), KIND[:, None])
        theirs = SGDClassifier(random_state=0, loss="log_loss")
        assert wrapped.learns_in_batches
        for part in (slice(0, 20), slice(20, 60)):
            wrapped.partial_fit(X[part], KIND[part, None])
            theirs.partial_fit(X[part], KIND[part], classes=[0, 1, 2])
        np.testing.assert_array_equal(wrapped(X), theirs.predict_proba(X))

    def test_modes(self):
        assert not ScikitModelWrapper(StandardScaler(), training_mode="fit").learns_in_batches
        assert not ScikitModelWrapper(Ridge()).learns_in_batches
        once = built(StandardScaler(), None, training_mode="partial_fit")
        once.fit(X[:30], None)
        once.fit(X[30:], None)
        np.testing.assert_allclose(once.inner.mean_, X.mean(axis=0), atol=1e-6)

    def test_arguments_of_partial_fit(self):
        wrapped = built(
            SGDClassifier(), KIND[:, None], partial_fit_kwargs={"classes": [0, 1, 2, 3]}
        )
        wrapped.partial_fit(X, KIND[:, None])
        assert wrapped.inner.classes_.tolist() == [0, 1, 2, 3]

    @pytest.mark.parametrize(
        ("estimator", "name"),
        [
            (Ridge(), "sample_weight"),
            (make_pipeline(StandardScaler(), Ridge()), "ridge__sample_weight"),
            (GridSearchCV(Ridge(), {"alpha": [1.0, 50.0]}, cv=3), "sample_weight"),
            (
                GridSearchCV(make_pipeline(Ridge()), {"ridge__alpha": [1.0, 9.0]}, cv=3),
                "ridge__sample_weight",
            ),
            (StackingRegressor([("a", Ridge()), ("b", Lasso(0.01))], cv=3), "sample_weight"),
            (VotingRegressor([("a", Ridge())]), "sample_weight"),
            (
                TransformedTargetRegressor(
                    Ridge(), func=np.sinh, inverse_func=np.arcsinh, check_inverse=False
                ),
                "sample_weight",
            ),
            (SelectFromModel(Ridge()), "sample_weight"),
        ],
        ids=lambda value: type(value).__name__ if hasattr(value, "fit") else value,
    )
    def test_weights_reach_the_fit(self, estimator, name):
        theirs, weights = clone(estimator), np.linspace(0, 9, 60)
        wrapped = built(estimator)
        wrapped.fit(X, Y[:, None], sample_weight=weights)
        theirs.fit(X, Y, **{name: weights})
        method = wrapped.method
        out = getattr(theirs, method)(X)
        np.testing.assert_array_equal(wrapped(X).ravel(), out.ravel())
        if method == "predict":
            assert not np.array_equal(out, clone(estimator).fit(X, Y).predict(X))

    def test_weights_that_would_be_lost_are_refused(self):
        for estimator in (
            KNeighborsRegressor(),
            make_pipeline(StandardScaler(), KNeighborsRegressor()),
            StackingRegressor([("a", Ridge()), ("b", KNeighborsRegressor())]),
            RFECV(Ridge()),
        ):
            wrapped = built(clone(estimator))
            with pytest.raises(ConfigError, match="takes no sample_weight"):
                wrapped.fit(X, Y[:, None], sample_weight=np.ones(60))
            assert not wrapped.is_fitted

    def test_rows_that_are_refused_are_those_of_an_estimator(self):
        model, strange = built(Ridge()), np.full_like(X, np.nan)
        for learn in (model, built(SGDClassifier(), KIND[:, None])):
            with pytest.raises(DataError, match=r"rejects these rows: Input X contains NaN"):
                (learn.partial_fit if learn.learns_in_batches else learn.fit)(strange, KIND)
        model.fit(X, Y)
        with pytest.raises(DataError, match="Ridge rejects these rows"):
            model(strange)
        half = built(LogisticRegression(), KIND[:, None])
        with pytest.raises(DataError, match="continuous"):
            half.fit(X, Y)
        with pytest.raises(NotFittedError):
            half(X)


class TestState:
    def test_there_and_back(self):
        forest = RandomForestRegressor(5, random_state=0)
        wrapped = built(forest)
        blank = wrapped.get_state()
        wrapped.fit(X, Y[:, None])
        state, out = wrapped.get_state(), wrapped(X)
        wrapped.fit(X, -Y[:, None])
        assert not np.array_equal(wrapped(X), out)
        for _ in range(2):  # a state can be gone back to many times
            wrapped.set_state(state)
            np.testing.assert_array_equal(wrapped(X), out)
            wrapped.fit(X, -Y[:, None])
        wrapped.set_state(blank)
        assert not wrapped.is_fitted
        assert wrapped.inner is forest

    def test_weights_by_name(self):
        a, b = built(Ridge()), built(Ridge())
        a.fit(X, Y[:, None])
        b.fit(X, -Y[:, None])
        assert not a.same_weights(b)
        b.set_weights(a.get_weights() | {"coef_": a.get_weights()["coef_"]})
        np.testing.assert_array_equal(a.get_weights()["coef_"], b.get_weights()["coef_"])
        with pytest.raises(ConfigError, match="lack"):
            a.set_weights({})

    def test_forgetting(self):
        wrapped = built(RandomForestRegressor(5))
        wrapped.fit(X, Y[:, None])
        wrapped.reset_weights(seed=7)
        assert not wrapped.is_fitted
        assert wrapped.inner.random_state == 7
        wrapped.fit(X, Y[:, None])
        wrapped.build((4,), force=True)
        assert not wrapped.is_fitted

    def test_config(self):
        wrapped = ScikitModelWrapper(
            make_pipeline(StandardScaler(), Ridge(alpha=2.0)), training_mode="fit"
        )
        assert wrapped.clone() == wrapped
        assert wrapped.clone().inner is not wrapped.inner
        assert wrapped != ScikitModelWrapper(Ridge())
        assert wrap_model(Ridge()) == ScikitModelWrapper(Ridge())
        assert wrap_model(Ridge).inner.alpha == 1.0

    def test_files(self, tmp_path):
        wrapped = built(make_pipeline(StandardScaler(), LogisticRegression()), KIND[:, None])
        wrapped.fit(X, KIND[:, None])
        again = ScikitModelWrapper.load(wrapped.save(tmp_path / "model"))
        np.testing.assert_array_equal(again(X), wrapped(X))
        assert again.output_shape == (3,)


def test_sparse_and_text():
    words = np.array([["a"], ["b"], ["a"]])
    wrapped = ScikitModelWrapper(OneHotEncoder().fit(words))
    np.testing.assert_array_equal(wrapped(words), [[1, 0], [0, 1], [1, 0]])
