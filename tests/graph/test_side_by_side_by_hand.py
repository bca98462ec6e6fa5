"""Rows of several FeatureSets that are given by hand: those that belong together, or an error."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression

import modularml as mm
from modularml.context import ExperimentContext
from modularml.data.batch import BatchView
from modularml.data.execution_context import ExecutionContext
from modularml.errors import DataError
from tests.scenarios.test_relations import losses, sets, shuffled, train_phase, wired
from tests.worlds import QUIET


def related(many=True):
    windows, facts = sets(many)
    return windows, facts, wired(windows.reference(on="machine"), facts.reference(on="machine"))


def keys(graph):
    """Return what inputs of both head nodes are keyed by."""
    return [(graph.get_node(n).node_id, graph.get_node(n).feature_refs[0]) for n in "ab"]


def partners(windows, facts, rows):
    """Return the row of the facts of each row of the windows."""
    names = list(facts.get_tags("numpy")[:, 0])
    return np.array([names.index(m) for m in windows.get_tags("numpy")[rows, 0]])


KINDS = {
    "views of batches": lambda view: view,
    "batches": lambda view: view.materialize(),
    "samples": lambda view: view.materialize("torch").role_data["default"],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", ["forward", "eval", "train"])
def test_rows_by_hand_are_those_of_the_key_or_refused(kind, step):
    windows, facts, graph = related()
    rows = np.array([5, 0, 9, 20])
    wrong = np.arange(4)

    def run(of_facts):
        views = [BatchView(fs.to_view(), {"default": own}) for fs, own in of_facts]
        inputs = dict(zip(keys(graph), map(KINDS[kind], views), strict=True))
        if step == "forward":
            return graph.forward(inputs)[graph.get_node("h").node_id].outputs
        ctx = ExecutionContext("hand", inputs=inputs)
        getattr(graph, f"{step}_step")(ctx, losses())
        return ctx.outputs[graph.get_node("h").node_id].outputs

    out = run([(windows, rows), (facts, partners(windows, facts, rows))])
    x = windows.get_features("numpy")[rows, 0]
    f = facts.get_features("numpy")[partners(windows, facts, rows), 0]
    np.testing.assert_allclose(np.asarray(out.detach())[:, 0], x + f, rtol=1e-5)
    for of_facts in (wrong, np.roll(partners(windows, facts, rows), 1), wrong[:3]):
        with pytest.raises(
            DataError, match=r"'W' \(4\) and 'F'.*by 'machine'; the first mismatch is row \d"
        ):
            run([(windows, rows), (facts, of_facts)])


def test_rows_by_hand_without_a_key_are_the_same_samples_or_refused():
    windows, facts = sets(many=False)
    graph = wired(windows, facts)
    rows = {"default": np.arange(5)}
    inputs = dict(
        zip(keys(graph), [BatchView(s.to_view(), rows) for s in (windows, facts)], strict=True)
    )
    with pytest.raises(DataError, match="align_on='position' pairs them row by row"):
        graph.forward(inputs)
    with ExperimentContext().activate():
        other = wired(*sets(many=False), align_on="position")
        pairs = [BatchView(r.resolve().to_view(), rows) for _, r in keys(other)]
        out = other.forward(dict(zip(keys(other), pairs, strict=True)))
        both = [r.resolve().get_features("numpy")[:5] for _, r in keys(other)]
        got = out[other.get_node("h").node_id].outputs
        np.testing.assert_allclose(got, both[0] + both[1], rtol=1e-5)


def test_two_inputs_of_one_set_are_the_same_rows_or_refused():
    windows, _ = sets(many=False)
    graph = wired(windows, windows.reference())
    views = [
        BatchView(windows.to_view(), {"default": rows})
        for rows in (np.arange(4), np.arange(4)[::-1])
    ]
    with pytest.raises(DataError, match="the first mismatch is row 0"):
        graph.forward(dict(zip(keys(graph), views, strict=True)))
    graph.forward(dict(zip(keys(graph), views[:1] * 2, strict=True)))


def test_contexts_of_a_phase_run_by_hand_also_after_their_plan_is_gone():
    related()
    exp = mm.Experiment.from_active_context("e", audit="off")
    graph = exp.model_graph
    for ctx in train_phase(sampler=shuffled()).iter_execution(**QUIET):
        graph.train_step(ctx, losses())
        again = ExecutionContext("again", inputs=ctx.inputs)
        graph.eval_step(again, losses())
        assert again.losses[0].value == pytest.approx(0, abs=1e-10)


def test_fit_step_by_hand_refuses_rows_of_other_machines():
    windows, facts = sets()
    refs = windows.reference(on="machine"), facts.reference(on="machine")
    both = mm.ConcatNode("both", list(refs), concat_axis=0, concat_axis_targets="first")
    graph = mm.ModelGraph([both, mm.ModelNode("h", LinearRegression(), both)])
    node = graph.get_node("both")
    rows = np.arange(40)
    for of_facts, fits in ((partners(windows, facts, rows), True), (rows % 20, False)):
        inputs = {
            (node.node_id, ref): BatchView(ref.resolve().to_view(), {"default": own})
            for ref, own in zip(node.feature_refs, (rows, of_facts), strict=True)
        }
        ctx = ExecutionContext("hand", inputs=inputs)
        if fits:
            graph.fit_step(ctx, freeze_after_fit=False)
            np.testing.assert_allclose(graph.get_node("h").model.inner.coef_, [1, 1], rtol=1e-5)
            continue
        with pytest.raises(DataError, match="do not match by 'machine'"):
            graph.fit_step(ctx, freeze_after_fit=False)


def test_a_merge_node_called_by_hand_holds_rows_against_its_key():
    windows, facts = sets()
    graph = wired(windows, facts, align_on="machine")
    rows = np.array([3, 30, 7])
    both, a, b = (graph.get_node(n) for n in ("both", "a", "b"))
    graph.build()

    def samples(fs, own):
        return BatchView(fs.to_view(), {"default": own}).materialize("torch").role_data["default"]

    parts = a(samples(windows, rows)), b(samples(facts, partners(windows, facts, rows)))
    with torch.no_grad():
        out = both(list(parts)).outputs
    x = windows.get_features("numpy")[rows, 0]
    f = facts.get_features("numpy")[partners(windows, facts, rows), 0]
    np.testing.assert_allclose(out.detach()[:, 0], x + f, rtol=1e-5)
    with pytest.raises(DataError, match="do not match by 'machine'"):
        both([parts[0], b(samples(facts, np.arange(3)))])
