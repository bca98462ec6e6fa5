"""One scaler for each group, held against a loop over groups by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA
from sklearn.impute import SimpleImputer
from sklearn.linear_model import Ridge
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, QuantileTransformer, StandardScaler

import modularml as mm
from modularml.errors import ConfigError, DataError, ScalerError
from modularml.io import inspect

N = 60
RNG = np.random.default_rng(5)
CELL = np.array(["a", "b", "c", "d"])[np.arange(N) % 4]
SITE = np.arange(N) % 3
V = RNG.normal(size=N) * (1 + np.arange(N) % 4) + 10 * (np.arange(N) % 4)
CURVE = (RNG.normal(size=(N, 5)) * (1 + SITE[:, None])).astype(np.float32)
Y = 3 * V + 50 + RNG.normal(size=N)


def rows(label="fs", **more):
    columns = {"v": V, "w": V**2, "curve": CURVE, "cell": CELL, "site": SITE, "y": Y, **more}
    features = ["v", "w", "curve", *more]
    fs = mm.FeatureSet.from_dict(label, columns, features, "y", ["cell", "site"], register=False)
    fs.add_split(fs.take(sorted([*range(0, 48, 2), 1, 3, 5, 7]), label="train"))
    return fs


def by_hand(scaler, values, groups, fit_rows, flat=None):
    out = np.empty(values.shape, dtype=values.dtype)
    train = np.isin(np.arange(len(values)), fit_rows)
    for group in np.unique(groups):
        here = groups == group
        part, whole = values[here & train], values[here]
        shape = (-1, values.shape[1]) if flat is None else flat
        scaler.fit(part.reshape(shape))
        out[here] = scaler.transform(whole.reshape(shape)).reshape(whole.shape)
    return out


@pytest.mark.parametrize(
    "scaler", [StandardScaler(), MinMaxScaler(), QuantileTransformer(n_quantiles=2)]
)
def test_equals_a_loop_over_groups(scaler):
    fs = rows()
    fs.fit_transform(scaler, domain="features", keys=["v", "w"], fit_to_split="train", per="cell")
    new = fs.get_features(features=["v", "w"])
    expected = by_hand(scaler, np.column_stack([V, V**2]), CELL, fs["train"].indices)
    np.testing.assert_allclose(np.column_stack(list(new.values())), expected, rtol=1e-12)


def test_by_several_columns_and_steps():
    fs = rows()
    fs.clear_splits()
    fs.fit_transform(
        "StandardScaler", domain="features", keys="curve", per="site", merged_axes=(0, 2)
    )
    fs.fit_transform("MinMaxScaler", domain="features", keys="curve", per=["cell", "site"])
    first = by_hand(StandardScaler(), CURVE, SITE, np.arange(N), flat=(-1, 1))
    both = np.char.add(CELL, SITE.astype(str))
    expected = by_hand(MinMaxScaler(), first, both, np.arange(N))
    np.testing.assert_allclose(fs.get_features()["curve"], expected, rtol=1e-4, atol=1e-6)
    assert fs.get_feature_dtypes(False, False)["curve"] == np.float32


def test_undone_bit_for_bit_and_inverted(tmp_path):
    fs = rows()
    fs.fit_transform("StandardScaler", domain="targets", fit_to_split="train", per="cell")
    scaled = fs.get_targets()["y"]
    some = fs.take([5, 2, 41])
    back = fs.unscale_data_for_cols(
        data=some.get_targets()["y"], domain="targets", columns="y",
        sample_uuids=some.get_sample_uuids(),
    )  # fmt: skip
    np.testing.assert_allclose(back, Y[[5, 2, 41]])
    back = fs.unscale_data_for_cols(
        data=scaled[:3], domain="targets", columns="y", groups={"cell": CELL[:3]}
    )
    np.testing.assert_allclose(back, Y[:3])
    with pytest.raises(DataError, match=r"fitted per 'cell', and the data lacks \['cell'\]"):
        fs.unscale_data_for_cols(data=scaled, domain="targets", columns="y")
    loaded = mm.FeatureSet.load(fs.save(tmp_path / "fs"))
    assert loaded.scaler_records[0].groups == (("a",), ("b",), ("c",), ("d",))
    new = {"y": Y[:4] + 1, "cell": CELL[:4]}
    new_scaled = fs.transform_new(new)["y"]
    for each in (loaded, fs, fs.copy(restore_splits=True, restore_scalers=True)):
        assert np.array_equal(each.get_targets()["y"], scaled)
        assert np.array_equal(each.transform_new(new)["y"], new_scaled)
        each.fit_transform("MinMaxScaler", domain="targets", fit_to_split="train")
        each.undo_last_transform("targets")
        assert np.array_equal(each.get_targets()["y"], scaled)
    fs.undo_all_transforms()
    assert np.array_equal(fs.get_targets()["y"], Y)
    assert "StandardScaler on targets y, per cell, fitted on train" in str(
        inspect(tmp_path / "fs.fs.mml")
    )


def test_groups_that_were_not_seen():
    fs = rows()
    fs.add_split(fs.filter(conditions={"cell": ["a", "b"]}, label="ab"))
    arguments = {"domain": "features", "keys": "v", "fit_to_split": "ab", "per": "cell"}
    with pytest.raises(
        ScalerError, match=r"30 rows have values of 'cell'.*'c', 'd'.*unseen='global'"
    ):
        fs.fit_transform("StandardScaler", **arguments)
    assert not fs.scaler_records
    fs.fit_transform("StandardScaler", **arguments, unseen="global")
    known = fs["ab"].indices
    expected = by_hand(StandardScaler(), V[:, None], CELL[:], np.arange(N))[:, 0]
    other = np.setdiff1d(np.arange(N), known)
    expected[other] = StandardScaler().fit(V[known, None]).transform(V[other, None])[:, 0]
    assert np.array_equal(fs.get_features()["v"], expected)
    made = fs.transform_new({"v": V[:3], "cell": ["a", "z", "b"]})["v"]
    assert np.array_equal(made[[0]], expected[[0]])


def test_imputer_by_group():
    missing = np.where(np.arange(N) % 5 == 0, np.nan, V)
    fs = rows(m=missing)
    fs.clear_splits()
    fs.fit_transform(SimpleImputer(), domain="features", keys="m", per="cell")
    frame = pd.DataFrame({"m": missing, "cell": CELL})
    expected = frame["m"].fillna(frame.groupby("cell")["m"].transform("mean"))
    np.testing.assert_allclose(fs.get_features()["m"], expected)
    empty = rows(m=np.where(CELL == "b", np.nan, V))
    with (
        pytest.raises(ScalerError, match="rows with 'cell'='b': SimpleImputer leaves no column"),
        pytest.warns(UserWarning, match="without any observed"),
    ):
        empty.fit_transform(SimpleImputer(), domain="features", keys="m", per="cell")


def world(per="cell", unseen="error"):
    own = mm.Experiment("e", audit="off")
    columns = {"v": V, "cell": CELL, "y": Y}
    fs = mm.FeatureSet.from_dict("fs", columns, "v", "y", "cell")
    fs.add_split(fs.take(range(N), label="train"))
    for domain in ("features", "targets"):
        fs.fit_transform(
            "StandardScaler", domain=domain, fit_to_split="train", per=per, unseen=unseen
        )
    graph = mm.ModelGraph([mm.ModelNode("ridge", Ridge(alpha=0.1), fs)])
    return own, fs, graph, mm.FitPhase.from_split("fit", split="train")


def expected_predictions(train, rows_):
    """Fit scalers by group and a ridge by hand; predict rows in own units."""
    out = np.empty(len(rows_))
    scalers = {
        g: (
            StandardScaler().fit(V[train][CELL[train] == g, None]),
            StandardScaler().fit(Y[train][CELL[train] == g, None]),
        )
        for g in np.unique(CELL[train])
    }

    def scaled(values, which, rows):
        return np.concatenate(
            [scalers[CELL[i]][which].transform(values[i : i + 1, None]) for i in rows]
        )

    model = Ridge(alpha=0.1).fit(scaled(V, 0, train), scaled(Y, 1, train)[:, 0])
    for at, i in enumerate(rows_):
        z = model.predict(scalers[CELL[i]][0].transform(V[i : i + 1, None]))
        out[at] = scalers[CELL[i]][1].inverse_transform(z[:, None])[0, 0]
    return out


def test_predictions_of_new_rows_and_of_folds():
    own, fs, graph, phase = world()
    own.run_phase(phase)
    expected = expected_predictions(np.arange(N), np.arange(8))
    frame = pd.DataFrame({"v": V[:8], "cell": CELL[:8]})
    np.testing.assert_allclose(graph.predict(frame).ravel(), expected)
    np.testing.assert_allclose(graph.predict(fs.take(range(8))).ravel(), expected)
    with pytest.raises(DataError, match="data lacks the column 'cell'"):
        graph.predict(frame[["v"]])
    with pytest.raises(ScalerError, match="'z'"):
        graph.predict(frame.assign(cell="z"))
    cv = mm.CrossValidation(
        bindings=mm.CVBinding(fs, ["train"], stratify_by="cell"), phase=phase, n_folds=3
    )
    found = cv.run(show_training_progress=False).out_of_fold("ridge").loc[fs.get_sample_uuids()]
    for fold in cv.folds:
        sides = fold.sides["fs"]
        expected = expected_predictions(sides.train, sides.val)
        np.testing.assert_allclose(found["prediction"].to_numpy()[sides.val], expected)
    np.testing.assert_allclose(found["target"], Y)


def test_folds_of_whole_groups_need_the_global_scaler():
    _, fs, _, phase = world()
    binding = mm.CVBinding(fs, ["train"], group_by="cell")
    cv = mm.CrossValidation(bindings=binding, phase=phase, n_folds=2)
    with pytest.raises(mm.errors.ModularMLError, match="was not fitted on"):
        cv.run(show_training_progress=False)
    _, fs, _, phase = world(unseen="global")
    binding = mm.CVBinding(fs, ["train"], group_by="cell")
    cv = mm.CrossValidation(bindings=binding, phase=phase, n_folds=2)
    found = cv.run(show_training_progress=False).out_of_fold("ridge")
    assert np.isfinite(found["prediction"]).all()


def test_what_is_refused():
    fs = rows(bad=np.where(np.arange(N) == 7, np.nan, SITE))
    kept = {"domain": "features", "keys": "v"}
    with pytest.raises(ConfigError, match="unseen must be one of"):
        fs.fit_transform("StandardScaler", **kept, per="cell", unseen="skip")
    with pytest.raises(ScalerError, match="OneHotEncoder cannot be fitted per 'site'"):
        fs.fit_transform(OneHotEncoder(), domain="tags", keys="cell", per="site")
    with pytest.raises(ScalerError, match="PerSampleZeroStart cannot be fitted per"):
        fs.fit_transform("PerSampleZeroStart", domain="features", keys="curve", per="site")
    with pytest.raises(DataError, match="per must name columns of one number or text"):
        fs.fit_transform("StandardScaler", **kept, per="curve")
    with pytest.raises(DataError, match="1 rows have no value of 'bad', the first is row 7"):
        fs.fit_transform("StandardScaler", **kept, per="bad")
    with pytest.raises(mm.errors.UnknownNameError, match="cel"):
        fs.fit_transform("StandardScaler", **kept, per="cel")
    with pytest.raises(ScalerError, match="makes other columns of the rows"):
        fs.fit_transform(PCA(0.7), domain="features", keys="curve", per="cell")
    assert not fs.scaler_records
