"""Scalers as functions of tensors, held against scikit-learn and our own scalers."""

from __future__ import annotations

import numpy as np
import pytest

from modularml.scalers.scaler import Scaler

torch = pytest.importorskip("torch")
from modularml.backends.torch_scalers import (  # noqa: E402
    NotExportableError,
    inverse_of,
    stacked,
    transform_of,
)

ROWS = np.random.default_rng(0).normal(1, 2, (60, 6)) + np.array([0, 1, 2, 3, 4, 0])
CODES = np.random.default_rng(1).integers(0, 4, (60, 2))
SCALERS = [
    ("StandardScaler", {}),
    ("StandardScaler", {"with_mean": False}),
    ("StandardScaler", {"with_std": False}),
    ("MinMaxScaler", {"feature_range": (-1, 3)}),
    ("MinMaxScaler", {"clip": True}),
    ("MaxAbsScaler", {}),
    ("RobustScaler", {}),
    ("RobustScaler", {"with_centering": False}),
    ("Normalizer", {"norm": "l1"}),
    ("Normalizer", {"norm": "l2"}),
    ("Normalizer", {"norm": "max"}),
    ("PowerTransformer", {}),
    ("PowerTransformer", {"standardize": False}),
    ("PerSampleMinMaxScaler", {"feature_range": (-1, 1)}),
    ("PerSampleZeroStart", {}),
    ("Absolute", {}),
    ("Negate", {}),
    ("SegmentedScaler", {"boundaries": [0, 2, 6], "scaler": "MinMaxScaler"}),
    ("SegmentedScaler", {"boundaries": [0, 3, 6], "scaler": "PerSampleZeroStart"}),
    ("PCA", {"n_components": 3}),
    ("PCA", {"n_components": 2, "whiten": True}),
    ("VarianceThreshold", {"threshold": 3.8}),
]
INVERTIBLE = (
    "MaxAbsScaler",
    "MinMaxScaler",
    "Negate",
    "PowerTransformer",
    "RobustScaler",
    "StandardScaler",
)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("name", "kwargs"), SCALERS, ids=str)
def test_transforms_as_the_scaler_does(name, kwargs, dtype):
    scaler = Scaler(name, kwargs).fit(ROWS[:40].astype(dtype))
    rows = ROWS[40:].astype(dtype)
    expected = scaler.transform(rows)
    values = transform_of(scaler.wrapped)(torch.as_tensor(rows)).numpy()
    tolerance = 1e-12 if dtype is np.float64 else 2e-5
    np.testing.assert_allclose(values, expected, rtol=tolerance, atol=tolerance)
    assert values.shape == expected.shape


@pytest.mark.parametrize(
    ("name", "kwargs"), [case for case in SCALERS if case[0] in INVERTIBLE], ids=str
)
def test_inverts_as_the_scaler_does(name, kwargs):
    scaler = Scaler(name, kwargs).fit(ROWS[:40])
    scaled = scaler.transform(ROWS[40:])
    values = inverse_of(scaler.wrapped)(torch.as_tensor(scaled)).numpy()
    np.testing.assert_allclose(values, scaler.inverse_transform(scaled), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("rows", [np.exp(ROWS), np.exp(ROWS / 20)])
def test_box_cox_there_and_back(rows):
    scaler = Scaler("PowerTransformer", {"method": "box-cox"}).fit(rows[:40])
    scaled = scaler.transform(rows[40:])
    tensor = transform_of(scaler.wrapped)(torch.as_tensor(rows[40:]))
    np.testing.assert_allclose(tensor.numpy(), scaled, rtol=1e-9)
    back = inverse_of(scaler.wrapped)(tensor).numpy()
    np.testing.assert_allclose(back, rows[40:], rtol=1e-7)


@pytest.mark.parametrize("power", [0.0, 2.0, 0.7, -1.3])
def test_yeo_johnson_at_its_limits(power):
    scaler = Scaler("PowerTransformer", {"standardize": False}).fit(ROWS[:, :1])
    scaler.wrapped.lambdas_ = np.array([power])
    expected = scaler.transform(ROWS[:, :1])
    tensor = transform_of(scaler.wrapped)(torch.as_tensor(ROWS[:, :1]))
    np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-12, atol=1e-12)
    back = inverse_of(scaler.wrapped)(tensor).numpy()
    np.testing.assert_allclose(back, ROWS[:, :1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("OneHotEncoder", {"sparse_output": False}),
        ("OneHotEncoder", {"handle_unknown": "ignore"}),
        ("OrdinalEncoder", {}),
        ("OrdinalEncoder", {"handle_unknown": "use_encoded_value", "unknown_value": -1}),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [np.int64, np.float32])
def test_encoders_of_numbers(name, kwargs, dtype):
    codes = CODES.astype(dtype)
    scaler = Scaler(name, kwargs).fit(codes)
    values = transform_of(scaler.wrapped)(torch.as_tensor(codes)).numpy()
    np.testing.assert_array_equal(values, scaler.transform(codes))


def test_categories_that_predict_refuses_become_missing_never_another_category():
    for name in ("OneHotEncoder", "OrdinalEncoder"):
        scaler = Scaler(name).fit(CODES)
        values = transform_of(scaler.wrapped)(torch.tensor([[9, 1]])).numpy()
        assert np.isnan(values).any()
    codes = torch.tensor([2.0, torch.nan])
    assert stacked([codes], dtype=torch.int64)[1, 0] == torch.iinfo(torch.int64).max


def test_missing_values_are_passed_over_as_in_the_scalers():
    rows = ROWS.copy()
    rows[2, 0] = rows[3, 4] = np.nan
    for name in ("PerSampleMinMaxScaler", "PerSampleZeroStart", "StandardScaler", "SimpleImputer"):
        scaler = Scaler(name).fit(ROWS)
        values = transform_of(scaler.wrapped)(torch.as_tensor(rows)).numpy()
        np.testing.assert_allclose(values, scaler.transform(rows), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "kwargs", "reason"),
    [
        ("QuantileTransformer", {"n_quantiles": 10}, "StandardScaler"),
        ("OneHotEncoder", {"drop": "first"}, "drop"),
        ("OneHotEncoder", {"max_categories": 2}, "max_categories"),
        ("SimpleImputer", {"add_indicator": True}, "add_indicator"),
    ],
)
def test_others_are_refused(name, kwargs, reason):
    scaler = Scaler(name, kwargs).fit(CODES.astype(float))
    with pytest.raises(NotExportableError, match=reason):
        transform_of(scaler.wrapped)


def test_text_categories_are_refused():
    scaler = Scaler("OrdinalEncoder").fit(np.array([["a"], ["b"]], dtype=object))
    with pytest.raises(NotExportableError, match="text"):
        transform_of(scaler.wrapped)


@pytest.mark.parametrize(
    "dtypes",
    [
        ("f4", "f8"),
        ("i8", "f4"),
        ("i2", "f4"),
        ("i1", "f2"),
        ("i2", "f2"),
        ("?", "f4"),
        ("u1", "i4"),
    ],
)
def test_common_dtype_is_that_of_numpy(dtypes):
    columns = [np.zeros(2, dtype) for dtype in dtypes]
    values = stacked([torch.as_tensor(column) for column in columns])
    assert values.numpy().dtype == np.stack(columns).dtype
