"""Contexts: policies, scopes, threads and tasks, and every error."""

import asyncio
import threading
import warnings

import pytest

from modularml.context import (
    ExperimentContext,
    ExperimentNode,
    RegistrationPolicy,
    RegistrationWarning,
)
from modularml.data import FeatureSet
from modularml.errors import ConfigError, RegistrationError, UnknownNameError
from modularml.experiment import Experiment


def node(label="n", **kwargs):
    return ExperimentNode(label, **kwargs)


# -- labels and policies --------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["", "  ", None, 3])
def test_labels_that_are_none(fresh_context, label):
    with pytest.raises(ConfigError, match="label must be a non-empty string"):
        node(label)
    made = node("good")
    with pytest.raises(ConfigError, match="label must be a non-empty string"):
        made.label = label
    with pytest.raises(ConfigError, match="label must be a non-empty string"):
        fresh_context.update_node_label(made.node_id, label)
    assert made.label == "good"
    assert list(fresh_context.available_nodes.values()) == [made]


def test_error(fresh_context):
    first = node("n")
    with pytest.raises(RegistrationError, match=r"'n' is taken by a ExperimentNode.*remove_node"):
        node("n")
    with pytest.raises(ValueError, match="taken"):
        node("other", node_id=first.node_id)
    assert list(fresh_context.available_nodes.values()) == [first]


def test_overwrite(fresh_context):
    fresh_context.set_registration_policy("overwrite")
    first = node("n")
    second = node("n")
    assert list(fresh_context.available_nodes.values()) == [second]
    assert not fresh_context.has_node(node_id=first.node_id)
    other = node("m")
    third = node("n", node_id=other.node_id)  # the id of one, the label of another
    assert list(fresh_context.available_nodes.values()) == [third]


def test_overwrite_warn(fresh_context):
    fresh_context.set_registration_policy(RegistrationPolicy.OVERWRITE_WARN)
    node("n")
    with pytest.warns(RegistrationWarning, match="node 'n' replaces another"):
        second = node("n")
    assert fresh_context.get_node("n") is second
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh_context.register_experiment_node(second)


def test_error_is_also_called_raise(fresh_context):
    fresh_context.set_registration_policy("raise")
    node("n")
    with pytest.raises(RegistrationError):
        node("n")
    assert RegistrationPolicy.from_value("Raise") is RegistrationPolicy.RAISE
    assert "raise" not in [policy.value for policy in RegistrationPolicy]


def test_no_register(fresh_context):
    fresh_context.set_registration_policy("no_register")
    made = node("n")
    assert not fresh_context.available_nodes
    assert made.context is fresh_context


def test_default_policy(monkeypatch):
    monkeypatch.delenv("MODULARML_EXP_REGISTRATION_POLICY", raising=False)
    assert ExperimentContext().registration_policy is RegistrationPolicy.ERROR
    monkeypatch.setenv("MODULARML_EXP_REGISTRATION_POLICY", "OVERWRITE")
    assert ExperimentContext().registration_policy is RegistrationPolicy.OVERWRITE
    monkeypatch.setenv("MODULARML_EXP_REGISTRATION_POLICY", "overwrit")
    with pytest.raises(UnknownNameError, match="did you mean 'overwrite'"):
        ExperimentContext()


def test_collisions_may_be_left_unchecked(fresh_context):
    first, second = node("n"), node("n", register=False)
    fresh_context.register_experiment_node(second, check_label_collision=False)
    assert len(fresh_context.available_nodes) == 2
    fresh_context.update_node_label(node("m").node_id, "n", check_label_collision=False)
    assert fresh_context.get_node("n") is first


def test_what_is_no_node(fresh_context):
    with pytest.raises(TypeError, match="must be an ExperimentNode, got a str"):
        fresh_context.register_experiment_node("n")
    with pytest.raises(TypeError, match=r"modularml\.ModelGraph, got a .*test_context\.ModelGraph"):
        fresh_context.register_model_graph(type("ModelGraph", (), {"label": "fake"})())
    with pytest.raises(TypeError, match="got a builtins"):
        fresh_context.register_model_graph("graph")


# -- looking up -----------------------------------------------------------------------------------


def test_look_up(fresh_context):
    fs = FeatureSet.from_dict("fs", {"x": [1]}, "x", [])
    made = node("n")
    for found in (
        fresh_context.get_node("fs"),
        fresh_context.get_node(fs.node_id),
        fresh_context.get_node(node_id=fs.node_id),
        fresh_context.get_node(label="fs", enforce_type="FeatureSet"),
        fresh_context.available_featuresets[fs.node_id],
    ):
        assert found is fs
    assert fresh_context.available_nodes == {fs.node_id: fs, made.node_id: made}
    assert fresh_context.available_computenodes == {}
    assert fresh_context.has_node(label="n")
    assert fresh_context.has_node(node_id=made.node_id)
    assert not fresh_context.has_node(label="x")
    assert not fresh_context.has_node()
    assert not fresh_context.has_node(node_id="n")


def test_ids_go_before_labels(fresh_context):
    first = node("a")
    node(first.node_id)
    assert fresh_context.get_node(first.node_id) is first


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        (("fss",), {}, UnknownNameError, "unknown node 'fss'; did you mean 'fs'"),
        (("",), {}, UnknownNameError, "unknown node ''"),
        ((), {"label": "x"}, KeyError, "unknown node 'x'"),
        ((), {"node_id": "fs"}, UnknownNameError, "unknown node 'fs'"),
        ((), {}, ConfigError, "exactly one"),
        (("fs",), {"label": "fs"}, ConfigError, "exactly one"),
        (
            ("fs",),
            {"enforce_type": "FeatureSet"},
            TypeError,
            "'fs' is a ExperimentNode, not a FeatureSet",
        ),
    ],
)
def test_look_up_errors(fresh_context, args, kwargs, error, message):
    node("fs")
    with pytest.raises(error, match=message):
        fresh_context.get_node(*args, **kwargs)


def test_remove(fresh_context):
    a, b = node("a"), node("b")
    assert fresh_context.remove_node(label="a") is a
    assert fresh_context.remove_node(node_id=b.node_id) is b
    assert not fresh_context.available_nodes
    assert fresh_context.remove_node(label="a", error_if_missing=False) is None
    for kwargs in ({"label": "a"}, {"node_id": "x"}):
        with pytest.raises(KeyError, match="unknown node"):
            fresh_context.remove_node(**kwargs)
    for kwargs in ({}, {"label": "a", "node_id": "x"}):
        with pytest.raises(ValueError, match="exactly one"):
            fresh_context.remove_node(**kwargs)


def test_an_id_is_never_set(fresh_context):
    made = node("a")
    with pytest.raises(AttributeError, match="node_id"):
        made.node_id = "other"
    assert fresh_context.get_node(node_id=made.node_id) is made


def test_relabel(fresh_context):
    a, b = node("a"), node("b")
    a.label = "c"
    assert fresh_context.get_node("c") is a
    with pytest.raises(RegistrationError, match="'b' is taken"):
        a.label = "b"
    assert a.label == "c"
    with pytest.raises(KeyError, match="unknown node"):
        fresh_context.update_node_label("nope", "d")
    free = node("free", register=False)
    free.label = "b"
    assert (free.label, fresh_context.get_node("b")) == ("b", b)


# -- scopes ---------------------------------------------------------------------------------------


def test_activate_and_make_active(fresh_context):
    other = ExperimentContext()
    with other.activate() as active:
        assert active is other is ExperimentContext.get_active()
        inside = node("n")
    assert ExperimentContext.get_active() is fresh_context
    outside = node("n")
    assert (inside.context, outside.context) == (other, fresh_context)
    with pytest.raises(RuntimeError), other.activate():
        raise RuntimeError
    assert ExperimentContext.get_active() is fresh_context
    with fresh_context.activate():
        other.make_active()
        assert ExperimentContext.get_active() is other
    assert ExperimentContext.get_active() is fresh_context


def test_two_contexts_side_by_side():
    one, two = ExperimentContext(), ExperimentContext()
    for ctx in (one, two, one):
        with ctx.activate():
            node(f"n{len(ctx.available_nodes)}")
    assert [n.label for n in one.available_nodes.values()] == ["n0", "n1"]
    assert [n.label for n in two.available_nodes.values()] == ["n0"]
    (made,) = two.available_nodes.values()
    made.label = "n1"
    assert one.has_node(label="n1")
    assert not two.has_node(label="n0")


def test_temporary(fresh_context):
    kept = node("kept")
    experiment = object()
    fresh_context.set_experiment(experiment)

    def change_everything():
        with fresh_context.temporary() as ctx:
            assert ctx is fresh_context
            ctx.set_registration_policy("overwrite")
            replaced = node("kept")
            node("new")
            ctx.remove_node(label="new")
            replaced.label = "other"
            kept.label = "elsewhere"
            ctx.set_experiment(object(), reset_registries=True)
            assert not ctx.available_nodes
            raise RuntimeError

    with pytest.raises(RuntimeError):
        change_everything()
    assert fresh_context.available_nodes == {kept.node_id: kept}
    assert kept.label == "kept"
    assert fresh_context.registration_policy is RegistrationPolicy.ERROR
    assert fresh_context.get_experiment() is experiment


def test_temporary_from_outside(fresh_context):
    other = ExperimentContext()
    with other.temporary():
        node("n")
        assert other.has_node(label="n")
    assert not other.available_nodes
    assert ExperimentContext.get_active() is fresh_context


def test_dont_register(fresh_context):
    with ExperimentContext.dont_register():
        hidden = node("n")
        with ExperimentContext().activate() as other:
            node("n")
            assert not other.available_nodes
    assert not fresh_context.available_nodes
    assert hidden.context is fresh_context
    seen = node("n")
    assert fresh_context.available_nodes == {seen.node_id: seen}


def test_state_goes_there_and_back(fresh_context):
    a = node("a")
    state = fresh_context.get_state()
    a.label = "b"
    node("c")
    fresh_context.set_registration_policy("overwrite")
    fresh_context.set_state(state)
    assert fresh_context.available_nodes == {a.node_id: a}
    assert (a.label, fresh_context.registration_policy.value) == ("a", "error")
    node("c")
    fresh_context.set_state(state)
    assert not fresh_context.has_node(label="c")


def test_repr(fresh_context):
    node("a")
    assert repr(fresh_context) == "ExperimentContext(nodes=['a'], policy='error')"


# -- threads and tasks ----------------------------------------------------------------------------


def test_a_thread_has_a_context_of_its_own(fresh_context):
    node("n")
    found = []

    def work():
        node("n")
        found.append(ExperimentContext.get_active())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(ctx) for ctx in [*found, fresh_context]}) == 5
    assert all(len(ctx.available_nodes) == 1 for ctx in found)


def test_one_context_in_many_threads(fresh_context):
    def work(i):
        with fresh_context.activate():
            for k in range(50):
                node(f"{i}-{k}")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fresh_context.available_nodes) == 200


def test_tasks_do_not_see_what_others_activate(fresh_context):
    async def work(label):
        ctx = ExperimentContext()
        with ctx.activate():
            await asyncio.sleep(0)
            node("n")
            await asyncio.sleep(0)
            assert ExperimentContext.get_active() is ctx
        return ctx

    async def main():
        return await asyncio.gather(*(work(i) for i in range(5)))

    for ctx in asyncio.run(main()):
        assert len(ctx.available_nodes) == 1
    assert not fresh_context.available_nodes


def test_a_task_starts_with_the_context_around_it(fresh_context):
    async def work():
        found = ExperimentContext.get_active()
        ExperimentContext().make_active()
        return found

    async def main():
        return await asyncio.create_task(work())

    assert asyncio.run(main()) is fresh_context
    assert ExperimentContext.get_active() is fresh_context


def test_classes_are_known_by_what_they_are_not_by_their_names():
    class ModelGraph:
        label = "not one of ours"

    class FeatureSet(ExperimentNode):
        pass

    ctx = ExperimentContext()
    with pytest.raises(TypeError, match="graph must be a modularml"):
        ctx.register_model_graph(ModelGraph())
    with ctx.activate():
        FeatureSet("rows")
    assert ctx.available_featuresets == {}
    with pytest.raises(TypeError, match="not a FeatureSet"):
        ctx.get_node("rows", enforce_type="FeatureSet")


def test_a_node_of_another_context_is_named_as_such():
    fs = FeatureSet.from_dict("rows", {"x": [1.0, 2.0], "y": [1.0, 2.0]}, "x", "y")
    Experiment("late")
    with pytest.raises(UnknownNameError, match=r"'rows' belongs to another context.*from_active"):
        ExperimentContext.get_active().get_node("rows")
    assert ExperimentContext.get_active() is not fs.context
