"""Kinds of leaks and of sound sets, a few of each family; `benchmarks.leaks` has them all."""

import numpy as np
import pytest

from benchmarks.leaks import CLEAN, LEAKS, measure
from modularml.audit import CHECKS
from modularml.data import FeatureSet
from modularml.errors import ConfigError

FOUND = [
    "copies_with_small_noise",
    "rare_class_oversampled",
    "group_in_a_compound_id",
    "target_in_bins",
    "class_as_flags",
    "target_of_the_row_before",
    "target_encoder_of_all_rows",
    "ranges_of_all_rows",
    "holes_filled_with_means_of_all_rows",
    "scores_of_components_of_all_rows",
    "days_cut_in_two",
    "splits_that_meet",
    "class_in_the_name_of_the_row",
    "product_of_two_features",
]
SOUND = [
    "counts",
    "groups_kept_whole_in_folds",
    "honest_dates",
    "tight_clusters",
    "coded_design",
    "people",
    "many_zeros",
    "few_rows",
    "strong_predictor",
    "sorted_by_target",
    "iris",
    "wine",
    "diabetes",
    "linnerud",
]


@pytest.mark.parametrize("name", FOUND)
def test_planted_leaks_are_found(name):
    assert name in LEAKS
    assert measure(name, seeds=1)[0] == 1


@pytest.mark.parametrize("name", SOUND)
def test_sound_sets_are_left_alone(name):
    assert name in CLEAN
    hits, said, _ = measure(name, seeds=1)
    assert not hits, said


@pytest.mark.slow
def test_nearly_all_kinds_at_draws_that_nobody_looked_at():
    found = sum(measure(name, seeds=1, salt=5)[0] for name in LEAKS)
    alarms = sum(measure(name, seeds=1, salt=5)[0] for name in CLEAN)
    assert found >= 0.95 * len(LEAKS)
    assert alarms <= 0.04 * len(CLEAN)


def test_what_is_fine_is_kept_with_the_set_and_its_file(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.normal(size=200)
    data = {"x": rng.normal(size=200), "twin": y * 2, "y": y}
    fs = FeatureSet.from_dict("rows", data, ["x", "twin"], "y", register=False)
    fs.split_random({"train": 0.7, "test": 0.3})
    assert [f.allow for f in fs.audit()] == ["target_copy:twin"]
    report = fs.audit(allow=["target_copy:twin"])
    assert report.ok
    assert "allowed: target_copy:twin" in repr(report)
    assert fs.audit().ok
    again = FeatureSet.load(fs.save(tmp_path / "rows"))
    assert again.audit_allowed == ("target_copy:twin",)
    assert again.audit().allowed == ("target_copy:twin",)
    with pytest.raises(ConfigError, match="allow must be a list of kinds"):
        fs.audit(allow="target_copy")


def test_each_check_says_what_it_measures():
    assert all(check.measures and check.look.__doc__ for check in CHECKS)
