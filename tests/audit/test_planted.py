"""Kinds of leaks and of sound sets, a few of each family; `benchmarks.leaks` has them all."""

import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.leaks import CLEAN, LEAKS, measure
from benchmarks.leaks_of_labs import LAB_CLEAN, LAB_LEAKS
from modularml.audit import CHECKS, KINDS
from modularml.data import FeatureSet
from modularml.errors import ConfigError, UnknownNameError

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
    "stations_by_coordinates",
    "machines_as_flags",
    "pairs_the_other_way_round",
    "images_brighter_and_moved",
    "series_resampled_to_finer_steps",
    "stay_between_two_dates",
    "class_by_how_much_is_missing",
    "calendar_in_three_columns",
    "quantiles_of_all_rows",
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
    "patients_seen_once",
    "replicate_spectra_kept_together",
    "hours_and_seasons_forward",
    "thirty_kinds_as_flags",
    "features_in_several_forms",
    "samples_on_a_map",
    "stains_of_few_kinds",
]


@pytest.mark.parametrize("name", FOUND)
def test_planted_leaks_are_found(name):
    assert name in LEAKS | LAB_LEAKS
    assert measure(name, seeds=1)[0] == 1


@pytest.mark.parametrize("name", SOUND)
def test_sound_sets_are_left_alone(name):
    assert name in CLEAN | LAB_CLEAN
    hits, said, _ = measure(name, seeds=1)
    assert not hits, said


@pytest.mark.slow
def test_nearly_all_kinds_at_draws_that_nobody_looked_at():
    leaks, sound = LEAKS | LAB_LEAKS, CLEAN | LAB_CLEAN
    found = sum(measure(name, seeds=1, salt=5)[0] for name in leaks)
    alarms = sum(measure(name, seeds=1, salt=5)[0] for name in sound)
    assert found >= 0.95 * len(leaks)
    assert alarms <= 0.03 * len(sound)


def test_images_that_moved_are_found_in_colour_and_upwards():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(200, 14, 14, 3)).cumsum(axis=1).cumsum(axis=2)
    moved = np.roll(image[:30], -2, axis=1) * 1.2 + 3
    both = np.clip(128 + 4 * np.concatenate([image, moved]), 0, 255).astype(np.uint8)
    fs = FeatureSet.from_dict(
        "rows", {"photo": both, "y": rng.normal(size=230)}, "photo", "y", register=False
    )
    fs.add_split(fs.take(np.arange(200), label="train"))
    fs.add_split(fs.take(np.arange(200, 230), label="test"))
    (found,) = [f for f in fs.audit() if f.severity != "info"]
    assert (found.kind, found.count) == ("similar_sequences", 30)


@pytest.mark.parametrize("how", ["sorted by a column", "sorted by a class", "grouped", "named"])
def test_the_order_of_the_table_is_no_sign_by_itself(how):
    rng = np.random.default_rng(0)
    unit = np.repeat(np.arange(60), 8)
    x = rng.normal(size=(60, 5))[unit] + 0.3 * rng.normal(size=(480, 5))
    if how == "sorted by a column":
        x = rng.normal(size=(480, 5))
        x[:, 1:] += x[:, :1]
        x = x[np.argsort(x[:, 0])]
    elif how == "sorted by a class":
        x = rng.normal(size=(480, 5)) + np.repeat([0, 4, 8], 160)[:, None]
    data = {f"x{i}": v for i, v in enumerate(x.T)} | {"y": rng.normal(size=480), "unit": unit}
    fs = FeatureSet.from_dict("rows", data, list(data)[:5], "y", "unit", register=False)
    fs.split_random({"train": 0.7, "test": 0.3}, group_by="unit" if how == "grouped" else None)
    named = {"groups": "unit"} if how == "named" else {}
    assert not [f for f in fs.audit(**named) if f.kind == "row_order"]
    if how == "named":
        assert {f.kind for f in fs.audit()} == {"shared_groups"}  # which says it better
        data.pop("unit")
        bare = FeatureSet.from_dict("bare", data, list(data)[:5], "y", register=False)
        bare.split_random({"train": 0.7, "test": 0.3})
        (found,) = bare.audit()
        assert (found.kind, found.count) == ("row_order", 144)


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


@pytest.mark.parametrize("entry", ["target_copi", "shared_groups:nothing", "", "plan_*:x:y"])
def test_what_no_finding_can_be_is_not_allowed(entry):
    fs = FeatureSet.from_dict("rows", {"x": [1.0], "y": [0]}, "x", "y", register=False)
    with pytest.raises(UnknownNameError, match="allow="):
        fs.audit(allow=["constant:x", entry])
    assert fs.audit_allowed == ()
    fs.audit(allow=["target_*", "plan_trains_on_test", "constant:x"])


def test_the_kinds_are_those_that_the_docs_list():
    page = Path(__file__).parents[2] / "docs/explanation/leaks.md"
    rows = [line for line in page.read_text("utf-8").splitlines() if line.startswith("| `")]
    assert set(KINDS) == set(re.findall(r"`(\w+)`", "".join(r.split(" | ")[0] for r in rows)))
