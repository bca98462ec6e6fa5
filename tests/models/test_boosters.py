"""xgboost and lightgbm as nodes: numbers, files, copies and folds; against the libraries."""

import copy
import subprocess
import sys

import lightgbm
import numpy as np
import pytest
import xgboost

import modularml as mml
from modularml.errors import ConfigError
from modularml.io.boosters import booster_from, booster_text
from modularml.io.estimators import learned, relearn

RNG = np.random.default_rng(0)
X = RNG.normal(size=(90, 4)).astype(np.float32)
Y = (X[:, 0] ** 2 + X[:, 1]).astype(np.float32)
KIND = (Y > 0).astype(int) + (Y > 1)
XGB = {"n_estimators": 5, "n_jobs": 1, "max_depth": 3}
LGBM = {"n_estimators": 5, "n_jobs": 1, "verbose": -1, "min_child_samples": 5}
BOOSTERS = [
    (xgboost.XGBRegressor(**XGB), Y),
    (xgboost.XGBRegressor(booster="dart", rate_drop=0.5, **XGB), Y),
    (xgboost.XGBRegressor(booster="gblinear", n_estimators=5, n_jobs=1), Y),
    (xgboost.XGBClassifier(**XGB), KIND),
    (xgboost.XGBClassifier(**XGB), KIND > 0),
    (lightgbm.LGBMRegressor(**LGBM), Y),
    (lightgbm.LGBMClassifier(**LGBM), KIND),
    (lightgbm.LGBMClassifier(**LGBM), KIND > 0),
]
READ = """
import sys, numpy as np, modularml as mml
out = [mml.BaseModel.load(path)(np.load(sys.argv[1])) for path in sys.argv[2:]]
np.savez(sys.argv[1] + ".out.npz", *out)
"""


def test_files_are_read_elsewhere_to_the_same_numbers(tmp_path):
    models, paths = [], []
    for i, (estimator, y) in enumerate(BOOSTERS):
        model = mml.ScikitModelWrapper(copy.deepcopy(estimator).fit(X, y))
        model.build((4,))
        models.append(model)
        paths.append(model.save(tmp_path / f"m{i}"))
    np.save(tmp_path / "rows.npy", X)
    args = [sys.executable, "-c", READ, str(tmp_path / "rows.npy"), *map(str, paths)]
    subprocess.run(args, check=True)
    with np.load(tmp_path / "rows.npy.out.npz") as found:
        for model, name in zip(models, found.files, strict=True):
            np.testing.assert_array_equal(found[name], model(X))
    for model in models:
        again = copy.deepcopy(model)
        np.testing.assert_array_equal(again(X), model(X))


def test_the_best_round_is_kept():
    options = {**LGBM, "n_estimators": 60, "learning_rate": 0.5}
    stop = lightgbm.early_stopping(2, verbose=False)
    made = lightgbm.LGBMRegressor(**options)
    made.fit(X[:60], Y[:60], eval_X=X[60:], eval_y=Y[60:], callbacks=[stop])
    again = lightgbm.LGBMRegressor(**options)
    relearn(again, learned(made))
    assert made.best_iteration_ < 60
    np.testing.assert_array_equal(again.predict(X), made.predict(X))


@pytest.mark.parametrize("estimator", [BOOSTERS[0][0], BOOSTERS[5][0]], ids=["xgboost", "lightgbm"])
def test_folds_in_workers_and_checkpoints(estimator, tmp_path):
    with mml.ExperimentContext().activate():
        fs = mml.FeatureSet.from_dict("rows", {"x": X, "y": Y}, "x", "y")
        fs.split_random({"train": 0.7, "val": 0.3}, seed=0)
        mml.ModelGraph([mml.ModelNode("m", copy.deepcopy(estimator), fs)])
        experiment = mml.Experiment.from_active_context("e", audit="off")
        fit = mml.FitPhase.from_split("f", split="train")
        runs = [
            mml.CrossValidation(
                bindings=mml.CVBinding(fs, ["train", "val"]),
                n_folds=3,
                phase=mml.PhaseGroup("p", [fit, mml.EvalPhase.from_split("v", split="val")]),
                n_jobs=n,
            ).run(show_fold_progress=False, show_training_progress=False)
            for n in (1, 2)
        ]
        one, two = (np.asarray(run.out_of_fold("m"), dtype=object) for run in runs)
        assert str(one) == str(two)
        experiment.run_phase(mml.FitPhase.from_split("g", split="train"))
        out = experiment.predict(fs)
        path = experiment.model_graph.save_checkpoint(tmp_path / "c")
        experiment.model_graph.get_node("m").reset_weights()
        experiment.model_graph.restore_checkpoint(path)
        np.testing.assert_array_equal(experiment.predict(fs), out)


def wild(text, *changes):
    found = bytes(text["text"]).decode()
    for old, new in changes:
        assert old in found, found[:900]
        found = found.replace(old, new, 1)
    return {**text, "text": np.frombuffer(found.encode(), np.uint8)}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"left_children":[1', '"left_children":[99999999'),
        ('"left_children":[1', '"left_children":[0'),
        ('"split_indices":[', '"split_indices":[70000,'),
        ('"num_feature":"4"', '"num_feature":"2"'),
        ('"tree_info":[0', '"tree_info":[-5'),
        ('"num_nodes":"', '"num_nodes":"9'),
        ('"base_weights":[', '"base_weights":[0.5,'),
        ("{", "["),
    ],
)
def test_wild_trees_of_xgboost_are_refused(old, new):
    text = booster_text(xgboost.XGBRegressor(**XGB).fit(X, Y).get_booster())
    booster_from(text)
    with pytest.raises(ConfigError, match="do not fit together"):
        booster_from(wild(text, (old, new)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("left_child=", "left_child=888 "),
        ("\nleft_child=", "\nleft_child=0 #"),
        ("split_feature=", "split_feature=77 "),
        ("num_leaves=", "num_leaves=9"),
        ("max_feature_idx=3", "max_feature_idx=1"),
        ("num_tree_per_iteration=1", "num_tree_per_iteration=7"),
        ("num_cat=0", "num_cat=5"),
        ("\nleaf_value=", "\nleaf_value=1 "),
        ("is_linear=0", "is_linear=1"),
    ],
)
def test_wild_trees_of_lightgbm_are_refused(old, new):
    text = booster_text(lightgbm.LGBMRegressor(**LGBM).fit(X, Y).booster_)
    booster_from(text)
    with pytest.raises(ConfigError, match="do not fit together"):
        booster_from(wild(text, (old, new)))
