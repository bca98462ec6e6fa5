"""Recorded steps that change the number of columns, take categories or look at targets.

Held against scikit-learn fitted by hand on the same rows.
"""

import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.feature_selection import SelectKBest, VarianceThreshold, f_classif, f_regression
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    LabelEncoder,
    OneHotEncoder,
    OrdinalEncoder,
    StandardScaler,
    TargetEncoder,
)

import modularml as mm
from modularml.errors import ScalerError, ShapeError

N = 60
RNG = np.random.default_rng(0)
SITE = RNG.choice(["north", "south", "west"], N)
CODE = RNG.choice([3, 5, 2**40 + 1], N)
GENES = RNG.normal(size=(N, 8)) * np.linspace(0.1, 3, 8)
AGE = np.where(np.arange(N) % 7 == 0, np.nan, RNG.normal(60, 9, N))
Y = (GENES[:, 3] > 0).astype(int)
FOLDS = StratifiedKFold(3, shuffle=True, random_state=3)


def rows():
    columns = {"site": SITE, "code": CODE, "genes": GENES, "age": AGE, "y": Y}
    columns["label"] = np.where(Y, "sick", "well")
    fs = mm.FeatureSet.from_dict("fs", columns, ["site", "code", "genes", "age"], ["y", "label"])
    fs.split_random({"train": 0.7, "test": 0.3}, seed=1)
    return fs


STEPS = [
    (OneHotEncoder(sparse_output=False), "site", None),
    (OneHotEncoder(drop="first"), "site", None),
    (OneHotEncoder(), "code", None),
    (OrdinalEncoder(), "site", None),
    (OrdinalEncoder(), "code", None),
    (TargetEncoder(cv=FOLDS), "site", "y"),
    (SelectKBest(f_classif, k=3), "genes", "y"),
    (SelectKBest(k=8), "genes", "label"),
    (VarianceThreshold(1.0), "genes", None),
    (PCA(2), "genes", None),
    (PCA(1), "genes", None),
    (SimpleImputer(add_indicator=True), "age", None),
    (SimpleImputer(), "age", None),
]


@pytest.mark.parametrize(("step", "key", "targets"), STEPS, ids=lambda v: str(v)[:40])
def test_a_step_is_what_scikit_learn_makes_undone_saved_and_applied(step, key, targets, tmp_path):
    fs = rows()
    before = fs.get_features(features=key)[key]
    fs.fit_transform(step, domain="features", keys=key, fit_to_split="train", targets=targets)
    train, test = fs["train"], fs["test"]
    by_hand = clone(step)
    x = {part: fs[part].get_features(features=key, rep="raw")[key] for part in ("train", "test")}
    x = {part: v.reshape(len(v), -1) for part, v in x.items()}
    y = () if targets is None else (train.get_targets()[targets],)
    fitted = np.asarray(_dense(by_hand.fit_transform(x["train"], *y)))
    expected = _dense(by_hand.transform(x["test"]))
    for view, values in ((train, fitted), (test, expected)):
        found = view.get_features(features=key)[key]
        np.testing.assert_allclose(found.reshape(len(view), -1), values, rtol=1e-9)
    assert fs.get_feature_shapes(False, False)[key] in ((), (values.shape[1],))

    raw = {key: fs["test"].get_features(features=key, rep="raw")[key]}
    new = fs.transform_new(raw)[key]
    np.testing.assert_allclose(new, test.get_features(features=key)[key])
    assert fs.transform_new({key: raw[key][:0]})[key].shape == (0, *new.shape[1:])

    fs.save(tmp_path / "rows")
    with mm.ExperimentContext().activate():
        loaded = mm.FeatureSet.load(tmp_path / "rows")
    np.testing.assert_array_equal(loaded.transform_new(raw)[key], new)
    for each in (fs, loaded):
        now = each.get_features(features=key)[key]
        if targets != "label":
            each.fit_transform("MinMaxScaler", domain="features", keys=key, fit_to_split="train")
            each.undo_last_transform("features", key)
        np.testing.assert_array_equal(each.get_features(features=key)[key], now)
        each.undo_all_transforms("features", key)
        np.testing.assert_array_equal(each.get_features(features=key)[key], before)
        assert each.collection.schema.reps("features", key) == ["raw"]


def _dense(values):
    return values.toarray() if hasattr(values, "toarray") else values


def test_several_text_columns_in_one_encoder():
    columns = {"a": SITE, "b": CODE.astype(str), "y": Y}
    fs = mm.FeatureSet.from_dict("fs", columns, ["a", "b"], "y")
    fs.fit_transform("OneHotEncoder", domain="features")
    expected = OneHotEncoder().fit_transform(np.stack([SITE, CODE.astype(str)], 1)).toarray()
    found = fs.get_features()
    np.testing.assert_array_equal(np.hstack([found["a"], found["b"]]), expected)
    fs.undo_last_transform("features", ["a", "b"])
    fs.fit_transform(OrdinalEncoder(), domain="features")
    expected = OrdinalEncoder().fit_transform(np.stack([SITE, CODE.astype(str)], 1))
    found = fs.get_features("numpy")
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected)


def test_unseen_categories_are_met_as_handle_unknown_says():
    fs = rows()
    fs.fit_transform(OneHotEncoder(), domain="features", keys="site", fit_to_split="train")
    with pytest.raises(ScalerError, match=r"\['site'\].*unknown categories \['east'\]"):
        fs.transform_new({"site": ["east"]})
    fs.undo_last_transform("features", "site")
    ignoring = OneHotEncoder(handle_unknown="ignore")
    fs.fit_transform(ignoring, domain="features", keys="site", fit_to_split="train")
    assert fs.transform_new({"site": ["east", "south"]})["site"].tolist() == [[0, 0, 0], [0, 1, 0]]


def test_what_cannot_be_done_is_refused_and_changes_nothing():
    fs = rows()
    cases = [
        (
            {"scaler": SelectKBest(k=2), "keys": "genes"},
            "SelectKBest looks at targets; pass targets=",
        ),
        ({"scaler": "TargetEncoder", "keys": "site"}, "looks at targets; pass targets="),
        ({"scaler": "StandardScaler", "keys": "site"}, r"'site' holds object.*OneHotEncoder"),
        ({"scaler": LabelEncoder(), "keys": ["site", "code"]}, "takes one column, got 2"),
        ({"scaler": PCA(1), "keys": ["code", "age"]}, "failed on data"),
        ({"scaler": PCA(1), "keys": ["code", "y"]}, "unknown column 'y' of features"),
    ]
    for kwargs, message in cases:
        with pytest.raises(mm.errors.ModularMLError, match=message):
            fs.fit_transform(**kwargs, domain="features", fit_to_split="train")
    assert not fs.scaler_records
    two = mm.FeatureSet.from_dict("both", {"a": Y, "b": Y**2 + 1, "y": Y}, ["a", "b"], "y")
    with pytest.raises(ScalerError, match="ambiguous which belong to which key"):
        two.fit_transform(PCA(1), domain="features")


def test_labels_as_targets_come_back():
    fs = rows()
    fs.fit_transform(LabelEncoder(), domain="targets", keys="label", fit_to_split="train")
    codes = fs.get_targets(targets="label")["label"]
    assert codes.tolist() == LabelEncoder().fit_transform(np.where(Y, "sick", "well")).tolist()
    back = fs.unscale_data_for_cols(data=codes, domain="targets", columns="label")
    assert back.tolist() == np.where(Y, "sick", "well").tolist()
    with pytest.raises(ScalerError, match=r"class numbers, got \d\.5"):
        fs.unscale_data_for_cols(data=codes + 0.5, domain="targets", columns="label")


def test_a_target_encoder_without_a_seed_is_the_same_when_it_is_made_again():
    fs, train = rows(), {"fit_to_split": "train"}
    train = {"fit_to_split": "train"}
    fs.fit_transform("TargetEncoder", domain="features", keys="site", targets="y", **train)
    now = fs.get_features(features="site")["site"]
    assert len(np.unique(now)) > 3  # rows of one site differ by the fold they are in
    fs.fit_transform("StandardScaler", domain="features", keys="site", **train)
    fs.undo_last_transform("features", "site")
    np.testing.assert_array_equal(fs.get_features(features="site")["site"], now)


def test_targets_that_a_step_looked_at_stay():
    fs, train = rows(), {"fit_to_split": "train"}
    fs.fit_transform("StandardScaler", domain="targets", keys="y", **train)
    fs.fit_transform("TargetEncoder", domain="features", keys="site", targets="y", **train)
    with pytest.raises(
        ScalerError, match=r"fitted with \['targets.y.transformed'\]; undo that scaler"
    ):
        fs.undo_all_transforms("targets")


@pytest.mark.parametrize(
    ("steps", "key"),
    [
        ([(SelectKBest(k=2), "y"), (StandardScaler(), None)], "genes"),
        ([(StandardScaler(), None), (PCA(2), None)], "genes"),
        ([(TargetEncoder(cv=FOLDS), "y")], "site"),
        ([(OneHotEncoder(handle_unknown="ignore"), None)], "site"),
        ([(OneHotEncoder(), None)], "code"),
    ],
    ids=str,
)
def test_each_fold_fits_its_own_as_a_pipeline_does(steps, key):
    columns = {"site": SITE, "code": CODE, "genes": GENES, "y": Y}
    mm.Experiment("e", audit="off")
    fs = mm.FeatureSet.from_dict("fs", columns, [key], "y")
    fs.add_split(fs.take(range(N), label="train"))
    for step, targets in steps:
        fs.fit_transform(step, domain="features", fit_to_split="train", targets=targets)
    mm.ModelGraph([mm.ModelNode("net", LogisticRegression(), fs)])
    phase = mm.FitPhase.from_split("fit", split="train")
    binding = mm.CVBinding(fs, ["train"], val_split_name="val")
    cv = mm.CrossValidation(bindings=binding, phase=phase, n_folds=4)
    found = cv.run(show_training_progress=False).out_of_fold("net").loc[fs.get_sample_uuids()]
    splits = [(fold.sides["fs"].train, fold.sides["fs"].val) for fold in cv.folds]
    pipeline = make_pipeline(*(step for step, _ in steps), LogisticRegression())
    x = fs.get_features("numpy", rep="raw").reshape(N, -1)
    expected = cross_val_predict(pipeline, x, Y, cv=splits, method="predict_proba")
    np.testing.assert_allclose(found[["prediction_0", "prediction_1"]], expected, rtol=1e-6)


# -- what is known of a column --------------------------------------------------------------------


def test_names_of_elements_are_carried_through_selections(tmp_path):
    names = [f"gene{i}" for i in range(8)]
    columns = {"genes": GENES, "site": SITE, "y": Y}
    kept = {"element_names": {"genes": names}, "unit": {"genes": "counts"}}
    fs = mm.FeatureSet.from_dict("fs", columns, ["genes", "site"], "y", **kept)
    fs.split_random({"train": 0.7, "test": 0.3}, seed=1)
    train = {"domain": "features", "fit_to_split": "train"}
    assert fs.get_element_names("genes") == names
    fs.fit_transform("StandardScaler", keys="genes", **train)
    assert fs.get_element_names("genes") == names
    fs.fit_transform(SelectKBest(k=3), keys="genes", targets="y", **train)
    by_hand = SelectKBest(k=3).fit(GENES[fs["train"].indices], Y[fs["train"].indices])
    chosen = by_hand.get_feature_names_out(names).tolist()
    assert fs.get_element_names("genes") == chosen
    fs.fit_transform(OneHotEncoder(), keys="site", **train)
    assert fs.get_element_names("site") == ["site_north", "site_south", "site_west"]
    fs.save(tmp_path / "rows")
    with mm.ExperimentContext().activate():
        loaded = mm.FeatureSet.load(tmp_path / "rows")
    copied = fs.copy(restore_splits=True, restore_scalers=True)
    for each in (fs["test"], fs.take([2, 1]), loaded, copied, fs["test"].to_featureset("new")):
        assert each.get_element_names("genes") == chosen
        assert each.get_element_names("genes", rep="raw") == names
        assert each.collection.schema["features.genes.raw"].unit == "counts"


def test_kinds_of_columns():
    columns = {"code": CODE, "site": SITE, "age": AGE, "y": Y}
    kinds = {"code": "category"}
    fs = mm.FeatureSet.from_dict("fs", columns, ["code", "site", "age"], "y", kind=kinds)
    specs = fs.collection.schema.columns.values()
    assert [spec.kind for spec in specs] == ["category", "text", "number", "number"]
    fs.fit_transform("OrdinalEncoder", domain="features", keys="site")
    assert fs.collection.schema["features.site.transformed"].kind == "category"
    for wrong, message in [
        ({"kind": {"age": "category"}}, "'age' of float64 cannot have kind 'category'"),
        ({"kind": {"age": "colour"}}, "kinds are number, category"),
        ({"kind": {"agee": "number"}}, "did you mean 'age'"),
        ({"element_names": {"code": ["a"]}}, "one per element, got 1"),
    ]:
        with pytest.raises(mm.errors.ModularMLError, match=message):
            mm.FeatureSet.from_dict("new", columns, ["code", "site", "age"], "y", **wrong)


def test_categories_reach_a_network_as_integers():
    torch = pytest.importorskip("torch")

    class Sees(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.out = torch.nn.Linear(1, 1)

        def forward(self, x):
            self.seen = x
            return self.out((x % 7).float().reshape(len(x), -1))

    columns = {"code": CODE, "y": Y.astype("f4")}
    fs = mm.FeatureSet.from_dict("fs", columns, "code", "y", kind={"code": "category"})
    graph = mm.ModelGraph([mm.ModelNode("net", model := Sees(), fs)])
    graph.build()
    graph.predict(fs)
    assert model.seen[:, 0].tolist() == CODE.tolist()


def test_a_loss_that_is_nan_names_the_column_until_it_is_filled():
    torch = pytest.importorskip("torch")
    columns = {"age": AGE.astype("f4"), "dose": Y.astype("f4"), "y": Y.astype("f4")}
    experiment = mm.Experiment("e", audit="off")
    fs = mm.FeatureSet.from_dict("fs", columns, ["age", "dose"], "y")
    fs.split_random({"train": 0.7, "test": 0.3}, seed=1)
    net = torch.nn.Linear(2, 1)
    mm.ModelGraph([mm.ModelNode("net", net, fs)], mm.Optimizer("sgd", opt_kwargs={"lr": 1e-5}))
    loss = mm.AppliedLoss(mm.Loss("mse"), on="net", inputs=["outputs", "targets"])
    how = {"sampler": mm.SimpleSampler(batch_size=60), "losses": [loss], "n_epochs": 1}
    phase = mm.TrainPhase.from_split("train", split="train", **how)
    with pytest.raises(mm.errors.NonFiniteLossError, match=r"'features.age.raw'\] hold NaN"):
        experiment.run_phase(phase)
    assert [f.columns for f in fs.audit() if f.kind == "not_finite"] == [("features.age.raw",)]
    fs.fit_transform("SimpleImputer", domain="features", keys="age", fit_to_split="train")
    assert not [f for f in fs.audit() if f.kind == "not_finite"]
    experiment.run_phase(phase)
    assert np.isfinite(net.weight.detach().numpy()).all()


class TestMessySteps:
    FRAME = pd.DataFrame(np.random.default_rng(0).normal(size=(30, 4)), columns=list("abcy"))

    def made(self, frame=FRAME, features=("w",)):
        stacked = {"w": ["a", "b", "c"]} if "w" in features else None
        fs = mm.FeatureSet.from_pandas(
            "rows", frame, list(features), "y", stack=stacked, register=False
        )
        fs.split_random({"train": 1.0})
        return fs

    def refused(self, fs, step, error, match, **options):
        before = fs.column_names
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of scikit-learn
            with pytest.raises(error, match=match):
                fs.fit_transform(step, domain="features", fit_to_split="train", **options)
        assert fs.column_names == before

    def test_selection_by_undefined_scores_is_refused(self):
        match = r"no score of any column, as f_classif is undefined for the targets \['y'\]"
        self.refused(self.made(), SelectKBest(k=2), ScalerError, match, keys="w", targets="y")
        fs = self.made()
        kind = {"domain": "features", "keys": "w", "targets": "y", "fit_to_split": "train"}
        fs.fit_transform(SelectKBest(f_regression, k=2), **kind)
        x, y = self.FRAME[list("abc")].to_numpy(), self.FRAME["y"]
        want = SelectKBest(f_regression, k=2).fit_transform(x, y)
        np.testing.assert_array_equal(fs.get_features()["w"], want)

    def test_missing_targets_of_steps_are_counted(self):
        frame = self.FRAME.assign(y=self.FRAME["y"].where(self.FRAME.index > 2))
        for step in (SelectKBest(f_regression, k=2), "TargetEncoder"):
            self.refused(
                self.made(frame), step, ScalerError, r"3 of the 30 rows.*\['y'\].*drop",
                keys="w", targets="y",
            )  # fmt: skip

    def test_a_step_that_leaves_nothing_is_refused(self):
        fs = self.made(self.FRAME.assign(a=np.nan), ["a"])
        self.refused(fs, "SimpleImputer", ScalerError, r"leaves no column of \['a'\].*keep_empty")

    def test_columns_of_different_shapes_are_named(self):
        fs = mm.FeatureSet.from_pandas(
            "rows", self.FRAME, ["a", "w"], "y", stack={"w": ["b", "c"]}, register=False
        )
        fs.split_random({"train": 1.0})
        self.refused(fs, "StandardScaler", ShapeError, r"'a': \(\), 'w': \(2,\).*for each shape")

    def test_errors_of_many_categories_are_short(self):
        frame = self.FRAME.assign(a=[f"category {i}" for i in range(30)])
        fs = mm.FeatureSet.from_pandas("rows", frame, "a", "y", register=False)
        fs.split_by_condition({"train": {"a": "category 3"}})
        with pytest.raises(ScalerError, match="unknown categories") as caught:
            fs.fit_transform("OneHotEncoder", domain="features", fit_to_split="train")
        assert len(str(caught.value)) < 400
