"""`Scaler` over scikit-learn's scalers, ours and a user's."""

import copy
import json
import pickle

import numpy as np
import pytest
from sklearn import decomposition, pipeline, preprocessing

import modularml.scalers
from modularml.config import decode, encode
from modularml.errors import (
    ConfigError,
    NotFittedError,
    RegistrationError,
    ScalerError,
    ShapeError,
    UnknownNameError,
)
from modularml.scalers import Negate, NoInverseError, Scaler, affine, scaler_registry
from tests.contracts.scaler import ScalerContract

DATA = np.random.default_rng(1).normal(3, 5, size=(40, 4))


class Centre:
    """A user's class: it stores what it likes, works in place and has no inverse."""

    def __init__(self, factor=1, *, shift=0.0):
        self.factor, self.shift = factor, shift

    def fit(self, data):
        self.means = {"columns": data.mean(axis=0).tolist(), "all": data.mean()}
        data[:] = 0
        return self

    def transform(self, data):
        data -= np.array(self.means["columns"]) + self.shift
        data *= self.factor
        return data


class OwnState:
    """A user's class that says itself what it has learned."""

    def fit(self, data):
        self._model = lambda x: x + data[0, 0]
        self.first = float(data[0, 0])
        return self

    def transform(self, data):
        return data + self.first

    def inverse_transform(self, data):
        return data - self.first

    def get_state(self):
        return {"first": self.first}

    def set_state(self, state):
        self.first = state["first"]


class TestStandard(ScalerContract):
    def make(self):
        return "standardscaler"


class TestMinMax(ScalerContract):
    def make(self):
        return preprocessing.MinMaxScaler(feature_range=(-1, 1), copy=False)


class TestMaxAbs(ScalerContract):
    def make(self):
        return preprocessing.MaxAbsScaler


class TestRobust(ScalerContract):
    def make(self):
        return Scaler("RobustScaler", {"quantile_range": (10.0, 90.0)})


class TestPower(ScalerContract):
    tolerance = 1e-6

    def make(self):
        return preprocessing.PowerTransformer()


class TestQuantile(ScalerContract):
    tolerance = 1e-6

    def make(self):
        return preprocessing.QuantileTransformer(n_quantiles=40, output_distribution="normal")


class TestNormalizer(ScalerContract):
    has_inverse = False

    def make(self):
        return "Normalizer"


class TestPipeline(ScalerContract):
    def make(self):
        return pipeline.make_pipeline(preprocessing.RobustScaler(), decomposition.PCA(4))


class TestSomethingLearnedInside(ScalerContract):
    has_inverse = False
    keeps_float32 = False

    def make(self):
        return preprocessing.KBinsDiscretizer(4, quantile_method="averaged_inverted_cdf")

    def test_plain_inverse_is_right_or_refused(self):
        pytest.skip("its inverse gives the middle of each bin")

    def test_there_and_back(self):
        pytest.skip("its inverse gives the middle of each bin")


class TestUsersClass(ScalerContract):
    has_inverse = False

    def make(self):
        return Centre(2, shift=1.5)


class TestUsersState(ScalerContract):
    def make(self):
        return OwnState()


# --- what it takes


@pytest.mark.parametrize(
    "given",
    [
        "MinMaxScaler",
        "minmaxscaler",
        preprocessing.MinMaxScaler,
        preprocessing.MinMaxScaler(),
        Scaler("MinMaxScaler"),
        modularml.scalers.MinMaxScaler,
    ],
    ids=range(6),
)
def test_name_class_instance_and_scaler_are_one(given):
    scaler = Scaler(given)
    assert scaler == Scaler("MinMaxScaler")
    assert scaler.scaler_name == "MinMaxScaler"
    np.testing.assert_array_equal(
        scaler.fit_transform(DATA), preprocessing.MinMaxScaler().fit_transform(DATA)
    )


@pytest.mark.parametrize("name", affine.SKLEARN)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64])
@pytest.mark.filterwarnings("ignore:n_quantiles")
def test_results_are_scikit_learns(name, dtype):
    data = DATA.astype(dtype)
    theirs = getattr(preprocessing, name)().fit(data)
    ours = Scaler(name).fit(data)
    expected = theirs.transform(data)
    found = ours.transform(data)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype
    if hasattr(theirs, "inverse_transform"):
        np.testing.assert_array_equal(
            ours.inverse_transform(expected), theirs.inverse_transform(expected)
        )


def test_an_instance_gives_its_parameters_and_stays_as_it_was():
    theirs = preprocessing.StandardScaler(with_mean=False).fit(DATA)
    scaler = Scaler(theirs)
    assert scaler.scaler_kwargs == {"with_mean": False}
    assert not scaler.is_fit
    scaler.fit(DATA * 2)
    np.testing.assert_array_equal(theirs.scale_ * 2, scaler.wrapped.scale_)


def test_arguments_go_before_those_of_an_instance():
    scaler = Scaler(preprocessing.StandardScaler(with_mean=False), {"with_mean": True})
    np.testing.assert_array_equal(scaler.fit(DATA).wrapped.mean_, DATA.mean(axis=0))


def test_estimators_among_the_parameters_are_not_shared():
    inner = preprocessing.StandardScaler()
    whole = pipeline.make_pipeline(inner)
    Scaler(whole).fit(DATA)
    assert not hasattr(inner, "mean_")


def test_supported_scalers():
    names = [
        "Absolute", "MaxAbsScaler", "MinMaxScaler", "Negate", "Normalizer",
        "PerSampleMinMaxScaler", "PerSampleZeroStart", "PowerTransformer",
        "QuantileTransformer", "RobustScaler", "SegmentedScaler", "StandardScaler",
    ]  # fmt: skip
    others = [
        "KBinsDiscretizer", "KNNImputer", "LabelEncoder", "OneHotEncoder", "OrdinalEncoder", "PCA",
        "PolynomialFeatures", "SelectKBest", "SimpleImputer", "TargetEncoder", "VarianceThreshold",
    ]  # fmt: skip
    assert list(Scaler.get_supported_scalers()) == sorted([*names, *others])
    assert Scaler.supported_scalers["negate"] is Negate
    assert modularml.scalers.StandardScaler is preprocessing.StandardScaler
    assert set(names) <= set(dir(modularml.scalers))
    with pytest.raises(AttributeError, match="SplineTransformer"):
        _ = modularml.scalers.SplineTransformer


def test_a_registered_class_is_known_by_its_name():
    scaler_registry.register("Centre", Centre, overwrite=True)
    try:
        scaler = Scaler("centre", {"factor": 2})
        assert scaler.get_config() == {"scaler": "Centre", "scaler_kwargs": {"factor": 2}}
        data = DATA.copy()
        scaler.fit_transform(data)
        np.testing.assert_array_equal(data, DATA)
        with pytest.raises(RegistrationError, match="taken"):
            scaler_registry.register("centre", Negate)
    finally:
        del scaler_registry._entries["Centre"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("StandrdScaler",), UnknownNameError, "did you mean 'StandardScaler'"),
        (("StandardScaler", {"with_men": 1}), UnknownNameError, "did you mean 'with_mean'"),
        ((3,), ConfigError, "lacks fit and transform. Names: Absolute"),
        ((object,), ConfigError, "lacks fit and transform"),
        (("SegmentedScaler",), ConfigError, "missing 2 required"),
        (("SegmentedScaler", {"boundaries": [1], "scaler": "Negate"}), ConfigError, "start at 0"),
    ],
    ids=range(6),
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        Scaler(*arguments)
    assert isinstance(caught.value, ValueError)


class Hides:
    def __init__(self, factor):
        self._factor = factor

    def fit(self, data):
        return self

    def transform(self, data):
        return data


def test_an_instance_that_hides_its_arguments_is_refused():
    with pytest.raises(ConfigError, match=r"does not store its argument 'factor'.*Scaler\(Hides"):
        Scaler(Hides(3))
    assert Scaler(Hides, {"factor": 3}).scaler_kwargs == {"factor": 3}


# --- errors at use


def test_bad_values_of_scikit_learn_become_ours():
    with pytest.raises(ScalerError, match=r"MinMaxScaler.fit failed on data of shape \(40, 4\)"):
        Scaler("MinMaxScaler", {"feature_range": (1, 0)}).fit(DATA)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (DATA[0], ShapeError, "two dimensions"),
        (DATA[None], ShapeError, "merged_axes"),
        (DATA[:, :0], ShapeError, "two dimensions"),
        (DATA[:0], ScalerError, "0 rows"),
        (DATA.astype(str), ScalerError, "real numbers, got <U"),
        (DATA.astype(complex), ScalerError, "real numbers, got complex"),
        (np.array([[None, 1]]), ScalerError, "real numbers, got object"),
    ],
    ids=range(7),
)
def test_bad_data(data, error, message):
    with pytest.raises(error, match=message):
        Scaler("StandardScaler").fit(data)


def test_not_fitted_is_a_runtime_error():
    for use in ("transform", "inverse_transform", "row_facts"):
        with pytest.raises(RuntimeError, match="StandardScaler is not fitted") as caught:
            getattr(Scaler("StandardScaler"), use)(DATA)
        assert isinstance(caught.value, NotFittedError)


def test_no_inverse_is_not_implemented():
    with pytest.raises(NotImplementedError, match="Normalizer has no inverse"):
        Scaler("Normalizer").fit(DATA).inverse_transform(DATA)


def test_an_inverse_that_would_change_nothing_is_refused():
    scaler = Scaler(preprocessing.FunctionTransformer(np.exp)).fit(DATA)
    with pytest.raises(NoInverseError):
        scaler.inverse_transform(DATA)
    both = preprocessing.FunctionTransformer(np.exp, inverse_func=np.log)
    scaler = Scaler(both).fit(DATA)
    np.testing.assert_allclose(scaler.inverse_transform(scaler.transform(DATA)), DATA)


def test_inverse_of_other_columns_is_refused():
    with pytest.raises(ShapeError, match="4 columns, got 2"):
        Scaler("StandardScaler").fit(DATA).inverse_transform(DATA[:, :2])


def test_output_of_another_number_of_rows_is_refused():
    class Half:
        def fit(self, data):
            return self

        def transform(self, data):
            return data[::2]

    with pytest.raises(ScalerError, match="must return 40 rows"):
        Scaler(Half).fit_transform(DATA)


# --- config and state


def test_config_is_plain_and_short():
    scaler = Scaler(preprocessing.MinMaxScaler((0, 2))).fit(DATA)
    config = scaler.get_config()
    assert config == {
        "scaler": "MinMaxScaler",
        "scaler_kwargs": {"feature_range": {"$tuple": [0, 2]}},
    }
    assert Scaler.from_config(json.loads(json.dumps(config))) == scaler
    assert repr(scaler) == "Scaler('MinMaxScaler', {'feature_range': (0, 2)})"


def test_a_users_class_is_found_by_its_module():
    scaler = Scaler(Centre(3))
    assert scaler.get_config()["scaler"] == {"$code": f"{__name__}:Centre"}
    assert decode(encode(scaler)) == scaler


def test_state_tells_what_was_learned():
    scaler = Scaler("StandardScaler")
    assert scaler.get_state() == {"is_fit": False}
    state = scaler.fit(DATA).get_state()
    np.testing.assert_array_equal(state["mean_"], DATA.mean(axis=0))
    assert state["n_features_in_"] == 4
    scaler.set_state({"is_fit": False})
    assert not scaler.is_fit


@pytest.mark.parametrize("state", [{}, {"mean_": 3}, {"is_fit": True}])
def test_what_is_no_state_is_refused(state):
    scaler = Scaler("StandardScaler").fit(DATA)
    with pytest.raises(ScalerError, match="no state of a scaler"):
        scaler.set_state(state)
    assert scaler.is_fit


def test_a_state_cannot_name_any_code():
    state = Scaler("PowerTransformer").fit(DATA).get_state()
    state["_scaler"]["$fitted"] = "os:system"
    with pytest.raises(ConfigError, match="'os:system' is not an estimator"):
        Scaler("PowerTransformer").set_state(state)


def test_what_cannot_be_stored_is_named():
    scaler = Scaler(preprocessing.FunctionTransformer(np.abs)).fit(DATA)
    scaler.wrapped.note_ = object()
    with pytest.raises(ConfigError, match=r"FunctionTransformer has no fitted attribute 'note_'"):
        scaler.get_state()


@pytest.mark.parametrize("how", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copies_are_fitted_too(how):
    scaler = Scaler("PowerTransformer").fit(DATA)
    np.testing.assert_array_equal(how(scaler).transform(DATA), scaler.transform(DATA))


def test_refitting_forgets():
    scaler = Scaler("StandardScaler").fit(DATA).fit(DATA[:, :2] + 1)
    np.testing.assert_array_equal(scaler.wrapped.mean_, (DATA[:, :2] + 1).mean(axis=0))
