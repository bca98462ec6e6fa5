"""Two FeatureSets whose rows belong together by a key, wherever a graph reads them."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression
from torch import nn

import modularml as mm
from modularml.errors import ConfigError, DataError, UnknownNameError
from tests.worlds import QUIET

N_MACHINES, PER_MACHINE = 20, 3


def one(weight: float = 1.0) -> nn.Linear:
    """Return a layer that multiplies by a number."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, weight)
    return layer


def sets(many: bool = True, keys: str = "text", n: int = N_MACHINES, **kinds):
    """Return windows and facts in unlike order: y = x + f of the same machine."""
    rng = np.random.default_rng(0)
    names = {
        "text": np.array([f"M{i:02}" for i in range(n)]),
        "numbers": 7 * np.arange(n) + 3,
    }[keys]
    of = rng.permutation(np.repeat(np.arange(n), PER_MACHINE if many else 1))
    x, f = rng.normal(size=len(of)), rng.normal(size=n)
    order = rng.permutation(n)
    columns = {"x": x, "y": x + f[of], "machine": names[of]}
    windows = mm.FeatureSet.from_dict("W", columns, "x", "y", "machine")
    facts = mm.FeatureSet.from_dict(
        "F", {"f": f[order], "machine": names[order]}, "f", [], "machine"
    )
    for fs in (windows, facts):
        parts = {"train": names[: n // 2], "val": names[n // 2 :]}
        fs.split_by_condition({k: {"machine": list(v)} for k, v in parts.items()})
    return windows, facts


def wired(windows, facts, order: str = "WF", merge=mm.SumNode, **how):
    """Return a graph that adds both inputs: its loss is 0 where rows are paired as they belong."""
    a, b = mm.ModelNode("a", one(), windows), mm.ModelNode("b", one(), facts)
    both = merge("both", [a, b], **how)
    head = mm.ModelNode("h", one(), both)
    nodes = [a, b] if order == "WF" else [b, a]
    return mm.ModelGraph([*nodes, both, head], mm.Optimizer("sgd", opt_kwargs={"lr": 0.0}))


def losses():
    return [mm.AppliedLoss(mm.Loss("mse"), "h", ["outputs", "targets"])]


def shuffled(**kwargs):
    return mm.SimpleSampler(batch_size=7, shuffle=True, seed=0, **kwargs)


def train_phase(**kwargs):
    return mm.TrainPhase.from_split("t", split="train", losses=losses(), **kwargs)


def eval_loss(exp, split="val", phase=None):
    phase = phase or mm.EvalPhase.from_split("e", split=split, losses=losses(), batch_size=5)
    return exp.run_phase(phase, **QUIET).aggregated_losses("h")["mse_h"]


@pytest.fixture(params=["reference", "references of unlike names", "merge", "sampler"])
def related(request):
    """Return how to relate two sets: (graph, sampler) of windows, facts and order."""

    def build(windows, facts, order):
        if request.param == "sampler":
            return wired(windows, facts, order), shuffled(align_on="machine")
        if request.param == "merge":
            return wired(windows, facts, order, align_on="machine"), shuffled()
        refs = windows.reference(on="machine"), facts.reference(on="machine")
        if request.param == "reference":
            refs = windows, refs[1]
        return wired(*refs, order), shuffled()

    return build


@pytest.mark.parametrize("order", ["WF", "FW"])
@pytest.mark.parametrize(("many", "keys"), [(True, "text"), (False, "numbers")])
def test_every_phase_pairs_rows_by_the_key(related, order, many, keys):
    windows, facts = sets(many, keys)
    _, sampler = related(windows, facts, order)
    exp = mm.Experiment.from_active_context("e", audit="off")
    phase = train_phase(sampler=sampler, n_epochs=2)
    phase.add_callback(mm.Evaluation.from_split("v", split="val", losses=losses(), metrics=["mse"]))
    results = exp.run_phase(phase, **QUIET).to_pandas()
    assert results.to_numpy().max() < 1e-10
    assert eval_loss(exp) < 1e-10
    seen = exp.run_phase(mm.EvalPhase.from_split("rows", split="train"), **QUIET).to_pandas("h")
    assert len(seen) == len(windows["train"])
    np.testing.assert_allclose(seen["prediction"], seen["target"], atol=1e-5)


def test_rows_are_paired_after_save_load_and_copy(related, tmp_path):
    windows, facts = sets()
    _, sampler = related(windows, facts, "FW")
    exp = mm.Experiment.from_active_context("e", audit="off")
    exp.execution_plan.add_phase(train_phase(sampler=sampler))
    exp.run(**QUIET)
    path = exp.save(tmp_path / "e")
    mark = exp.model_graph.save_checkpoint(tmp_path / "c")
    with mm.ExperimentContext().activate():
        again = mm.Experiment.load(path)
        assert eval_loss(again) < 1e-10
        assert eval_loss(again, "train") < 1e-10
        results = again.run_phase(again.execution_plan.get_phase("t"), **QUIET)
        assert results.to_pandas()["train_loss"].max() < 1e-10
        again.model_graph.restore_checkpoint(mark)
        samplers = {b.sampler for b in again.execution_plan.get_phase("t").input_sources}
        assert len({id(s) for s in samplers}) == 1


def fitted(windows, facts, order="WF", **how):
    """Return a plan that fits y = x + f in one graph, exactly."""
    inputs = [windows, facts] if order == "WF" else [facts, windows]
    which = {f"concat_axis_{d}": "first" if order == "WF" else "last" for d in ("targets", "tags")}
    both = mm.ConcatNode("both", inputs, **which, **how)
    mm.ModelGraph([both, mm.ModelNode("h", LinearRegression(), both)])
    exp = mm.Experiment.from_active_context("e", audit="off")
    return exp, mm.FitPhase.from_split("fit", split="train")


def check_held_out(folds, windows, n=N_MACHINES * PER_MACHINE):
    held = folds.out_of_fold("h")
    assert sorted(held.index) == sorted(windows.get_sample_uuids())
    assert len(held) == n
    np.testing.assert_allclose(held["prediction"], held["target"], atol=1e-5)
    return held


@pytest.mark.parametrize("order", ["WF", "FW"])
@pytest.mark.parametrize("bound", ["both", "windows"])
@pytest.mark.parametrize("group_by", ["machine", None])
def test_folds_pair_rows_by_the_key(order, bound, group_by):
    windows, facts = sets()
    _, phase = fitted(windows, facts.reference(on="machine"), order)
    chosen = [windows, facts] if bound == "both" else [windows]
    bindings = [mm.CVBinding(s, ["train", "val"], group_by=group_by) for s in chosen]
    cv = mm.CrossValidation(bindings=bindings, phase=phase, n_folds=2)
    held = check_held_out(cv.run(show_fold_progress=False, **QUIET), windows)
    assert ("group" in held) is (group_by is not None)


def test_facts_without_a_binding_are_scaled_by_those_of_the_fold():
    windows, facts = sets()
    facts.fit_transform("StandardScaler", domain="features", fit_to_split="train")
    _, phase = fitted(windows, facts, align_on="machine")
    bound = mm.CVBinding(windows, ["train", "val"], group_by="machine")
    cv = mm.CrossValidation(bindings=bound, phase=phase, n_folds=2)
    folds = cv.run(show_fold_progress=False, **QUIET)
    check_held_out(folds, windows)
    for i in range(2):
        ctx = folds.get_experiment(i).ctx
        mine, theirs = (ctx.get_node(label=name)["train"].get_tags()["machine"] for name in "FW")
        assert set(mine) == set(theirs)
        scaled = ctx.get_node(label="F")["train"].get_features(rep="transformed")["f"]
        assert scaled.mean() == pytest.approx(0, abs=1e-9)


@pytest.mark.slow
def test_folds_in_workers_pair_rows_by_the_key():
    windows, facts = sets()
    _, phase = fitted(windows, facts.reference(on="machine"), "FW")
    bound = [mm.CVBinding(windows, ["train", "val"], group_by="machine")]
    cv = mm.CrossValidation(bindings=bound, phase=phase, n_folds=2, n_jobs=2)
    check_held_out(cv.run(show_fold_progress=False, **QUIET), windows)


def test_frozen_inputs_of_two_sets_are_computed_of_their_own_rows():
    windows, facts = sets()
    columns = {"x": facts.get_features("dict_numpy")["f"], "machine": facts.get_tags()["machine"]}
    alike = mm.FeatureSet.from_dict("G", columns, "x", [], "machine")  # the same column name
    alike.split_by_condition(
        {"train": {"machine": list(set(windows["train"].get_tags()["machine"]))}}
    )
    graph = wired(windows, alike.reference(on="machine"))
    graph.freeze(["a", "b"])
    exp = mm.Experiment.from_active_context("e", audit="off")
    results = exp.run_phase(train_phase(sampler=shuffled(), n_epochs=2), **QUIET)
    assert results.to_pandas()["train_loss"].max() < 1e-10


def test_fit_phase_fits_pairs_that_belong_together():
    exp, phase = fitted(*sets(), "FW", align_on="machine")
    exp.run_phase(phase, **QUIET)
    assert eval_loss(exp) < 1e-10


def test_sets_without_a_key_are_refused_unless_they_are_the_same_samples():
    windows, facts = sets(many=False)
    wired(windows, facts)
    exp = mm.Experiment.from_active_context("e", audit="off")
    for phase in (train_phase(sampler=shuffled()), mm.EvalPhase.from_split("v", split="val")):
        with pytest.raises(DataError, match=r"node 'both' .*'W' .*'F' .*on='machine'"):
            exp.run_phase(phase, **QUIET)
    assert exp.model_graph.get_node("a").upstream_ref.on is None


def test_the_same_samples_meet_by_id_in_any_order_and_by_position_on_request():
    windows, _ = sets(many=False)
    order = np.random.default_rng(1).permutation(len(windows))
    zero = {"x": 0.0 * np.arange(len(windows)), "y": windows.get_targets()["y"]}
    same = windows.take(order).to_featureset("S")
    assert zero
    graph = wired(windows, same, merge=mm.MeanNode)
    exp = mm.Experiment.from_active_context("e", audit="off")
    for fs in (windows, same):
        fs.clear_splits()
        fs.add_split(
            fs.filter(conditions={"machine": sorted(windows.get_tags()["machine"])[:9]}, label="s")
        )
    phase = mm.EvalPhase.from_split("e", split="s")
    found = exp.run_phase(phase, **QUIET).stacked_tensors("h", "outputs").numpy().ravel()
    np.testing.assert_allclose(found, windows["s"].get_features()["x"], atol=1e-6)
    mixed = wired_again(graph, windows, same, "position")
    found = exp.run_phase(mm.EvalPhase.from_split("p", split="s"), **QUIET)
    mean = (windows["s"].get_features()["x"] + same["s"].get_features()["x"]) / 2
    np.testing.assert_allclose(
        found.stacked_tensors("h", "outputs").numpy().ravel(), mean, atol=1e-6
    )
    assert mixed is exp.model_graph


def wired_again(graph, windows, same, on):
    with mm.ExperimentContext.get_active().activate():
        both = mm.MeanNode("by_place", ["a", "b"], align_on=on)
        return graph.replace_node("both", both)


def test_rows_without_a_partner_are_counted_or_refused():
    windows, facts = sets()
    facts.clear_splits()
    facts.split_by_condition(
        {"train": {"machine": ["M00", "M01", "M15"]}, "val": {"machine": ["M16"]}}
    )
    wired(windows, facts.reference(on="machine"))
    exp = mm.Experiment.from_active_context("e", audit="off")
    with pytest.warns(UserWarning, match=r"24 of 30 rows of 'W' have no match by 'machine'"):
        results = exp.run_phase(train_phase(sampler=shuffled()), **QUIET)
    assert results.to_pandas()["train_loss"].max() < 1e-10
    exp.model_graph.get_node("b").set_upstream_refs([facts.reference(on="machine", strict=True)])
    with pytest.raises(DataError, match=r"24 of 30 rows of 'W'.*strict"):
        exp.run_phase(
            train_phase(
                sampler=shuffled(),
            ),
            **QUIET,
        )


def test_a_key_that_repeats_on_both_sides_is_refused():
    windows, _ = sets()
    twice = {"f": np.arange(4.0), "machine": ["M00", "M00", "M01", "M02"]}
    facts = mm.FeatureSet.from_dict("T", twice, "f", [], "machine")
    for fs in (windows, facts):
        fs.clear_splits()
        fs.split_random({"train": 1.0})
    wired(windows, facts.reference(on="machine"))
    exp = mm.Experiment.from_active_context("e", audit="off")
    with pytest.raises(DataError, match="repeat in 'W' and in 'T'"):
        exp.run_phase(train_phase(sampler=shuffled()), **QUIET)


def test_keys_of_several_columns_and_of_several_sets():
    rng = np.random.default_rng(0)
    machine, day = np.tile(["a", "b", "c"], 4), np.repeat(np.arange(4), 3)
    recipe = rng.integers(0, 3, 12)
    x, d, r = rng.normal(size=12), rng.normal(size=12), rng.normal(size=3)
    order = rng.permutation(12)
    base = {"x": x, "y": x + d + r[recipe], "machine": machine, "day": day, "recipe": recipe}
    windows = mm.FeatureSet.from_dict("W", base, "x", "y", ["machine", "day", "recipe"])
    daily = mm.FeatureSet.from_dict(
        "D",
        {"d": d[order], "machine": machine[order], "day": day[order]},
        "d",
        [],
        ["machine", "day"],
    )
    recipes = mm.FeatureSet.from_dict("R", {"r": r[::-1], "recipe": [2, 1, 0]}, "r", [], "recipe")
    refs = [
        recipes.reference(on="recipe"),
        daily.reference(on=["machine", "day"]),
        windows.reference(),
    ]
    nodes = [mm.ModelNode(n, one(), ref) for n, ref in zip("rdw", refs, strict=True)]
    both = mm.SumNode("both", nodes)
    mm.ModelGraph([*nodes, both, mm.ModelNode("h", one(), both)])
    for fs in (windows, daily, recipes):
        fs.split_random({"all": 1.0})
    exp = mm.Experiment.from_active_context("e", audit="off")
    assert eval_loss(exp, "all") < 1e-10


@pytest.mark.parametrize(
    ("a", "b", "fits"),
    [
        (np.arange(3, dtype=np.int32), np.arange(3, dtype=np.uint64), True),
        (np.arange(3.0), np.arange(3), True),
        (np.array([0, 1, np.nan]), np.arange(3), True),
        (np.array([0.5, 1, 2]), np.arange(3), False),
        (np.array(["0", "1", "2"]), np.arange(3), False),
        (
            pd.to_datetime(["2020-01-01", "2020-01-02", "2020-01-03"]).to_numpy("M8[s]"),
            pd.to_datetime(["2020-01-01", "2020-01-02", "2020-01-03"]).to_numpy("M8[ns]"),
            True,
        ),
    ],
)
def test_keys_of_unlike_types_meet_by_value_or_are_refused(a, b, fits):
    one_set = mm.FeatureSet.from_dict("A", {"x": [1.0, 2.0, 3.0], "k": a}, "x", [], "k")
    two = mm.FeatureSet.from_dict("B", {"x": [1.0, 2.0, 3.0], "k": b}, "x", [], "k")
    sampler = mm.SimpleSampler(batch_size=3, sources=[one_set, two.take([2, 1, 0])], align_on="k")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "1 of 3 rows")
        if not fits:
            with pytest.raises(DataError, match="cast one of them"):
                list(sampler)
            return
        (batch,) = sampler
    rows = [batch[name].materialize().features for name in "AB"]
    assert len(rows[0]) == (2 if a.dtype.kind == "f" and np.isnan(a).any() else 3)
    np.testing.assert_array_equal(*rows)


def test_times_as_keys_meet_as_instants_and_never_without_a_zone():
    days = pd.date_range("2024-03-30", periods=4, freq="12h")
    zoned = days.tz_localize("UTC")
    shifted = zoned.tz_convert("Europe/Berlin")

    def fitted(left, right):
        columns = {"x": [0.0, 1, 2, 3], "y": [10.0, 12, 14, 16], "at": left}
        windows = mm.FeatureSet.from_dict("W", columns, "x", "y", "at")
        facts = mm.FeatureSet.from_dict("F", {"f": [13.0, 12, 11, 10], "at": right}, "f", [], "at")
        for fs in (windows, facts):
            fs.split_random({"all": 1.0})
        both = mm.ConcatNode(
            "c", [windows.reference(on="at"), facts.reference()], concat_axis_targets="first"
        )
        mm.ModelGraph([both, mm.ModelNode("h", LinearRegression(), both)])
        exp = mm.Experiment.from_active_context("e", audit="off")
        exp.run_phase(mm.FitPhase.from_split("f", split="all"))
        return exp

    exp = fitted(zoned, shifted[::-1])  # y is x + f of the same instant
    windows = pd.DataFrame({"x": [1.0, 3.0], "at": shifted[[1, 3]]})
    facts = {"f": [10.0, 11, 12, 13], "at": zoned}
    np.testing.assert_allclose(exp.predict({"W": windows, "F": facts}).ravel(), [12, 16])
    for at in (days, days.to_numpy(), list(days)):
        with pytest.raises(DataError, match=r"'W' have the time zone Europe/Berlin.*'F' None"):
            exp.predict({"W": windows, "F": {**facts, "at": at}})
    with (
        mm.ExperimentContext().activate(),
        pytest.raises(DataError, match=r"'W' have the time zone UTC.*'F' None.*tz_localize"),
    ):
        fitted(zoned, days)
    with (
        mm.ExperimentContext().activate(),
        pytest.raises(DataError, match=r"'W' have the time zone UTC.*'F' None"),
    ):
        fitted(zoned, days.to_numpy("M8[D]"))


def test_a_key_that_is_not_there_is_refused_where_it_is_named():
    windows, facts = sets()
    with pytest.raises(UnknownNameError, match="machin"):
        facts.reference(on="machin")
    with pytest.raises(UnknownNameError, match="machin"):
        facts.column_reference("f", on="machin")
    graph = wired(windows, facts)
    with pytest.raises(UnknownNameError, match="machin"):
        train_phase(sampler=shuffled(align_on="machin"))
    assert graph.get_node("a").upstream_ref.on is None


def test_inputs_that_meet_are_read_through_one_sampler():
    windows, facts = sets(many=False)
    graph = wired(windows, facts, align_on="machine")
    bind = mm.InputBinding.for_training
    a = bind(node="a", upstream=windows, split="train", sampler=shuffled())
    b = bind(node="b", upstream=facts, split="train", sampler=mm.SimpleSampler(batch_size=7))
    exp = mm.Experiment.from_active_context("e", audit="off")
    with pytest.raises(ConfigError, match="two samplers"):
        exp.run_phase(mm.TrainPhase("t", input_sources=[a, b], losses=losses()), **QUIET)
    again = bind(node="b", upstream=facts, split="train", sampler=shuffled())
    phase = mm.TrainPhase("t", input_sources=[a, again], losses=losses())
    assert exp.run_phase(phase, **QUIET).to_pandas()["train_loss"].max() < 1e-10
    assert graph is exp.model_graph


def test_two_ways_to_meet_that_contradict_each_other_are_refused():
    windows, facts = sets(many=False)
    wired(windows.reference(on="machine"), facts, align_on="position")
    exp = mm.Experiment.from_active_context("e", audit="off")
    with pytest.raises(DataError, match="contradict"):
        exp.run_phase(train_phase(sampler=shuffled(align_on="machine")), **QUIET)


class TestPredict:
    def world(self, order="FW"):
        windows, facts = sets()
        facts.fit_transform("StandardScaler", domain="features", fit_to_split="train")
        graph = wired(windows, facts.reference(on="machine", rep="raw"), order)
        graph.build()
        columns = ["x", "y", "machine"]
        frame = pd.DataFrame(
            windows.get_data(columns=columns, include_domain_prefix=False, include_rep_suffix=False)
        )
        told = pd.DataFrame(
            {"f": facts.get_features(rep="raw")["f"], "machine": facts.get_tags()["machine"]}
        )
        return graph, windows, facts, frame.set_axis([f"w{i}" for i in range(len(frame))]), told

    @pytest.mark.parametrize("order", ["WF", "FW"])
    def test_rows_of_several_sets_are_joined_by_the_key(self, order):
        graph, windows, facts, frame, told = self.world(order)
        want = frame["y"].to_numpy()
        some, its = windows["val"], windows["val"].get_targets()["y"]
        for data, y in (
            ({"W": frame, "F": told}, want),
            ({"F": told.sample(frac=1, random_state=0), "W": frame}, want),
            ({"W": windows, "F": facts}, want),
            ({"W": frame}, want),
            ({"W": {k: frame[k].to_numpy() for k in frame}, "F": facts.to_view()}, want),
            ({"W": some, "F": told}, its),
            (some, its),
            (windows, want),
        ):
            np.testing.assert_allclose(graph.predict(data).ravel(), y, atol=1e-5)

    def test_rows_without_a_partner_are_counted_and_keep_their_index(self):
        graph, _, _, frame, told = self.world()
        rows = {"W": frame, "F": told[told["machine"] != "M03"]}
        with pytest.warns(UserWarning, match="3 of 60 rows of 'W'"):
            found = graph.predict(rows, fmt="pandas")
        kept = frame[frame["machine"] != "M03"]
        assert list(found.columns) == ["y"]
        np.testing.assert_allclose(found["y"], kept["y"].loc[found.index], atol=1e-5)
        assert list(found.index) == list(kept.index)

    def test_facts_alone_are_refused(self):
        graph, windows, facts, *_ = self.world()
        graph.get_node("b").set_upstream_refs([facts.reference(rep="raw")])
        with pytest.raises(DataError, match=r"\['W'\] alone.*on='machine'.*predict\("):
            graph.predict(windows["val"])
