"""Building, editing, states and configs of graphs."""

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn

import modularml as mm
from modularml.data import Batch, RoleData, SampleData
from modularml.errors import (
    ConfigError,
    GraphError,
    RegistrationError,
    ShapeError,
    UnknownNameError,
)
from modularml.models.torch import SequentialCNN, SequentialMLP, TorchModelWrapper
from tests.training.test_optimizer import assert_same_state
from tests.worlds import (
    QUIET,
    arrays,
    assert_equal_weights,
    bindings,
    by_hand,
    eval_phase,
    experiment,
    featureset,
    graph_of,
    mlp,
    mse,
    train,
    train_phase,
    twin,
    weights,
)


def adam(lr=0.01):
    return mm.Optimizer("adam", opt_kwargs={"lr": lr})


def chain(*, opt=None, n=40, width=5):
    """Return data -> enc -> net, built and trained for an epoch."""
    x, y = arrays(n=n)
    fs = featureset(x, y)
    enc = mm.ModelNode("enc", mlp(out=width, seed=1), fs)
    net = mm.ModelNode("net", mlp(d=width, seed=2), enc)
    return mm.ModelGraph([enc, net], opt or adam())


def wiring(graph):
    return {n.label: [r.node_label for r in n.upstream_refs] for n in graph.nodes.values()}


class TestStructure:
    def test_order_heads_and_tails(self):
        x, y = arrays(n=4)
        fs = featureset(x, y)
        a, b = mm.ModelNode("a", mlp(out=2), fs), mm.ModelNode("b", mlp(out=2), fs)
        merged = mm.ConcatNode("both", [a, b])
        c, d = mm.ModelNode("c", mlp(d=4), merged), mm.ModelNode("d", mlp(d=4), merged)
        graph = mm.ModelGraph([d, merged, c, b, a])
        order = [n.label for n in graph.nodes.values()]
        assert order.index("both") > max(order.index("a"), order.index("b"))
        assert order.index("both") < min(order.index("c"), order.index("d"))
        assert {n.label for n in graph.head_nodes.values()} == {"a", "b"}
        assert {n.label for n in graph.tail_nodes.values()} == {"c", "d"}
        assert graph.node_labels == {"a", "b", "both", "c", "d"}
        assert graph.get_node("a") is graph.get_node(a) is graph.get_node(a.node_id) is a

    def test_all_nodes_of_the_context(self):
        x, y = arrays(n=4)
        a = mm.ModelNode("a", mlp(), featureset(x, y))
        assert list(mm.ModelGraph(None).nodes.values()) == [a]

    def test_labels_in_place_of_nodes(self):
        x, y = arrays(n=4)
        featureset(x, y)
        mm.ModelNode("a", mlp(out=2), "data")
        mm.ModelNode("b", mlp(d=2), "a")
        assert wiring(mm.ModelGraph(["a", "b"])) == {"a": ["data"], "b": ["a"]}

    def test_unknown_node(self):
        graph = chain()
        with pytest.raises(UnknownNameError, match="'enc'"):
            graph.get_node("enk")
        with pytest.raises(UnknownNameError, match="'enc'"):
            graph.freeze(["enk"])

    def test_duplicates(self):
        x, y = arrays(n=4)
        fs = featureset(x, y)
        a = mm.ModelNode("a", mlp(), fs)
        with pytest.raises(RegistrationError, match="'a'"):
            mm.ModelNode("a", mlp(), fs)
        with pytest.raises(GraphError, match="twice"):
            mm.ModelGraph([a, a])
        with mm.ExperimentContext.dont_register():
            other = mm.ModelNode("a", mlp(), fs)
        with pytest.raises(GraphError, match="twice"):
            mm.ModelGraph([a, other])

    def test_a_node_that_is_not_there(self):
        x, y = arrays(n=4)
        a = mm.ModelNode("a", mlp(out=2), featureset(x, y))
        b = mm.ModelNode("b", mlp(d=2), a)
        with pytest.raises(GraphError, match=r"'b' reads from 'a'.*not in the graph"):
            mm.ModelGraph([b])
        with pytest.raises(UnknownNameError, match="nobody"):
            mm.ModelNode("c", mlp(), "nobody")

    def test_circles(self):
        x, y = arrays(n=4)
        a = mm.ModelNode("a", mlp(out=2), featureset(x, y))
        b = mm.ModelNode("b", mlp(d=2, out=2), a)
        a.set_upstream_refs([b])
        with pytest.raises(GraphError, match=r"cycle: (a -> b|b -> a)"):
            mm.ModelGraph([a, b])
        with pytest.raises(GraphError, match="itself"):
            a.set_upstream_refs([a])

    def test_what_cannot_be_read(self):
        x, y = arrays(n=8)
        fs = featureset(x, y)
        fs.split_random({"train": 0.5, "test": 0.5})
        with pytest.raises(GraphError, match="view"):
            mm.ModelNode("a", mlp(), fs["train"])
        with pytest.raises(GraphError, match="cannot read from a int"):
            mm.ModelNode("a", mlp(), 3)
        a, b = mm.ModelNode("a", mlp(), fs), mm.ModelNode("b", mlp(), fs)
        with pytest.raises(GraphError, match="ConcatNode"):
            a.set_upstream_refs([fs, b])

    def test_what_is_no_node_or_model(self):
        x, y = arrays(n=4)
        fs = featureset(x, y)
        with pytest.raises(TypeError, match="nodes"):
            mm.ModelGraph([fs])
        with pytest.raises(GraphError, match="at least one"):
            mm.ModelGraph([])
        with pytest.raises(ConfigError, match="model must be"):
            mm.ModelNode("a", "mlp", fs)
        with pytest.raises(ConfigError, match="Optimizer"):
            mm.ModelNode("a", mlp(), fs, "adam")


class TestBuild:
    def test_shapes_name_both_nodes_and_both_shapes(self):
        x, y = arrays(n=8)
        enc = mm.ModelNode("enc", nn.Linear(6, 5), featureset(x, y))
        net = mm.ModelNode("net", nn.Linear(4, 1), enc)
        graph = mm.ModelGraph([enc, net], adam())
        with pytest.raises(ShapeError, match=r"(?s)'net'.*'enc' gives \(5,\).*4x1|'net'.*\(5,\)"):
            graph.build()
        assert not graph.is_built
        with pytest.raises(ShapeError, match=r"'net'.*'enc'"):
            train(graph)

    def test_explicit_input_shape(self):
        x, y = arrays(n=8)
        node = mm.ModelNode("net", SequentialMLP(input_shape=(4,)), featureset(x, y))
        with pytest.raises(ShapeError, match=r"'net'.*'data' gives \(6,\).*\(4,\)"):
            mm.ModelGraph([node]).build()

    def test_a_model_in_the_middle_needs_an_output_shape(self):
        x, y = arrays(n=8)
        enc = mm.ModelNode("enc", SequentialMLP(), featureset(x, y))
        net = mm.ModelNode("net", SequentialMLP(), enc)
        with pytest.raises(ShapeError, match=r"'enc'.*output_shape"):
            mm.ModelGraph([enc, net]).build()

    def test_columns_of_unlike_shape(self):
        rng = np.random.default_rng(0)
        fs = mm.FeatureSet.from_dict(
            "data", {"a": rng.normal(size=(4, 3)), "b": rng.normal(size=4)}, ["a", "b"], []
        )
        with pytest.raises(ShapeError, match=r"features.a.raw: \(3,\).*features.b.raw: \(\)"):
            graph_of(fs, mlp()).build()

    def test_text_columns(self):
        fs = mm.FeatureSet.from_dict("data", {"a": ["x", "y"]}, ["a"], [])
        with pytest.raises(ShapeError, match=r"features.a.raw.*numbers"):
            graph_of(fs, mlp()).build()

    def test_a_reference_without_features(self):
        x, y = arrays(n=4)
        ref = featureset(x, y).reference(features=[], targets="y")
        with pytest.raises(GraphError, match="no features"):
            graph_of(ref, mlp()).build()

    def test_a_model_that_returns_no_tensor(self):
        rng = np.random.default_rng(0)
        fs = mm.FeatureSet.from_dict("data", {"a": rng.normal(size=(4, 3))}, ["a"], [])
        with pytest.raises(ShapeError, match=r"'net'.*several outputs"):
            graph_of(fs, nn.LSTM(3, 2, batch_first=True)).build()

    def test_cnn_used_up(self):
        rng = np.random.default_rng(0)
        fs = mm.FeatureSet.from_dict("data", {"a": rng.normal(size=(4, 8))}, ["a"], [])
        with pytest.raises(ShapeError, match="shrink to size 0"):
            graph_of(fs, SequentialCNN(n_layers=5, pooling=2)).build()

    def test_lazy_layers(self):
        x, y = arrays(n=20)
        torch.manual_seed(0)
        net = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 1))
        assert train(graph_of(featureset(x, y), net)).n_epochs == 1

    def test_building_again_changes_nothing_unless_forced(self):
        x, y = arrays(n=8)
        graph = graph_of(featureset(x, y), SequentialMLP())
        graph.build()
        model = graph.get_node("net").model
        before = weights(model)
        graph.build()
        assert_equal_weights(before, model)
        graph.build(force=True)
        assert not torch.equal(before["layers.0.weight"], model.layers[0].weight)
        assert train(graph).n_epochs == 1
        assert not torch.equal(before["layers.0.weight"], model.layers[0].weight)

    def test_optimizer_parameters(self):
        graph = chain()
        graph.build()
        found = graph.get_optimizer_parameters()
        assert found["backend"] is mm.Backend.TORCH
        assert found["contributing_nodes"] == set(graph.nodes)
        assert len(found["parameters"]) == 8

    def test_a_class_is_made_with_its_shapes(self):
        class Net(nn.Module):
            def __init__(self, input_shape, output_shape, width=3):
                super().__init__()
                self.shapes = input_shape, output_shape
                self.net = nn.Sequential(
                    nn.Linear(input_shape[0], width), nn.Linear(width, output_shape[0])
                )

            def forward(self, x):
                return self.net(x)

        x, y = arrays(n=8)
        graph = graph_of(featureset(x, y), TorchModelWrapper(model_class=Net))
        graph.build()
        assert graph.get_node("net").model.inner.shapes == ((6,), (1,))
        assert train(graph).n_epochs == 1


def test_one_module_in_two_nodes():
    x, y = arrays(n=40)
    one, two = featureset(x, y, "one"), featureset(x[::-1].copy(), y[::-1].copy(), "two")
    net = mlp()
    hand = twin(net)
    nodes = [mm.ModelNode("a", net, one), mm.ModelNode("b", net, two)]
    graph = mm.ModelGraph(nodes, adam())
    train(graph, [mse("a"), mse("b")], batch_size=40)
    optimizer = torch.optim.Adam(hand.parameters(), lr=0.01)
    tx, ty = torch.tensor(x), torch.tensor(y)
    (nn.functional.mse_loss(hand(tx), ty) * 2).backward()
    optimizer.step()
    assert_equal_weights(net, hand, atol=1e-5)


class TestEdits:
    def trained(self):
        graph = chain()
        exp = experiment()
        exp.run_phase(train_phase(graph), **QUIET)
        return graph, exp

    def state(self, graph):
        return {n.label: n.get_state() for n in graph.nodes.values()}, graph.optimizer.get_state()

    def moments(self, graph, label):
        found = graph.optimizer.get_state()["moments"]
        return {k: v for k, v in found.items() if k.startswith(f"{label}.")}

    def check_kept(self, graph, before, labels):
        nodes, optimizer = before
        graph.build()
        for label in labels:
            assert_same_state(graph.get_node(label).get_state(), nodes[label])
            want = {k: v for k, v in optimizer["moments"].items() if k.startswith(f"{label}.")}
            assert want
            assert_same_state(self.moments(graph, label), want)

    def test_add(self):
        graph, exp = self.trained()
        before = self.state(graph)
        extra = mm.ModelNode("extra", mlp(d=5, seed=9), "enc")
        assert graph.add_node(extra) is graph
        self.check_kept(graph, before, ["enc", "net"])
        assert wiring(graph) == {"enc": ["data"], "net": ["enc"], "extra": ["enc"]}
        moved = weights(extra.model)
        phase = train_phase(graph, [mse(), mse("extra")], label="again")
        exp.run_phase(phase, **QUIET)
        assert not torch.equal(moved["inner.0.weight"], extra.model.inner[0].weight)
        assert self.moments(graph, "extra")["extra.0.weight"]["step"] == 3
        assert self.moments(graph, "net")["net.0.weight"]["step"] == 6

    def test_remove(self):
        graph, _ = self.trained()
        middle = mm.ModelNode("middle", nn.Linear(5, 5), "enc")
        graph.insert_node_between(middle, upstream="enc", downstream="net")
        graph.build()
        before = self.state(graph)
        graph.remove_node("middle")
        self.check_kept(graph, before, ["enc", "net"])
        assert wiring(graph) == {"enc": ["data"], "net": ["enc"]}
        graph.remove_node("net")
        assert wiring(graph) == {"enc": ["data"]}

    def test_a_removed_model_is_released(self):
        x, y = arrays(n=20)
        enc = mm.ModelNode("enc", mlp(out=5), featureset(x, y))
        tail = mm.ModelNode("tail", nn.Linear(5, 1), enc)
        graph = mm.ModelGraph([enc, tail])
        graph.build()
        graph.predict(graph.context.get_node("data"))
        graph.remove_node("tail")
        graph.context.remove_node(label="tail")
        module = weakref.ref(tail.model.module)
        del tail
        gc.collect()
        assert module() is None

    def test_an_input_read_twice_is_kept(self):
        x, y = arrays(n=20)
        fs = featureset(x, y)
        both = mm.ConcatNode("both", [fs, fs], concat_axis=0)
        net = mm.ModelNode("net", nn.Flatten(), both)
        graph = mm.ModelGraph([both, net])
        graph.insert_node_after(mm.ModelNode("tail", nn.Identity(), net), upstream="net")
        graph.remove_node("tail")
        assert wiring(graph) == {"both": ["data", "data"], "net": ["both"]}

    def test_replace(self):
        graph, exp = self.trained()
        before = self.state(graph)
        old = graph.get_node("enc")
        kept = weights(old.model)
        new = mm.ModelNode("enc2", mlp(out=5, seed=7), "data")
        graph.replace_node("enc", new)
        self.check_kept(graph, before, ["net"])
        assert wiring(graph) == {"enc2": ["data"], "net": ["enc2"]}
        assert_equal_weights(kept, old.model)
        exp.run_phase(train_phase(graph, label="again"), **QUIET)
        assert_equal_weights(kept, old.model)

    def test_replace_the_only_node(self):
        x, y = arrays(n=20)
        graph = graph_of(featureset(x, y), mlp(), "adam", lr=0.01)
        train(graph)
        new = mm.ModelNode("other", mlp(seed=5), "data")
        graph.replace_node("net", new)
        hand = twin(new.model.inner)
        experiment("second").run_phase(train_phase(graph, [mse("other")]), **QUIET)
        by_hand(hand, lambda p: torch.optim.Adam(p, lr=0.01), x, y, epochs=1)
        assert_equal_weights(new.model.inner, hand, atol=1e-5)

    def test_insert(self):
        graph, _ = self.trained()
        before = self.state(graph)
        graph.insert_node_before(mm.ModelNode("one", nn.Linear(6, 6), "data"), downstream="enc")
        graph.insert_node_after(mm.ModelNode("two", nn.Linear(5, 2), "data"), upstream="enc")
        graph.insert_node_between(
            mm.ModelNode("three", nn.Linear(5, 5), "data"), upstream="enc", downstream="net"
        )
        self.check_kept(graph, before, ["enc", "net"])
        assert wiring(graph) == {
            "one": ["data"],
            "enc": ["one"],
            "two": ["enc"],
            "three": ["enc"],
            "net": ["three"],
        }

    def test_frozen_survives_an_edit(self):
        graph, _ = self.trained()
        graph.freeze(["enc"])
        graph.add_node(mm.ModelNode("extra", mlp(d=5), "enc"))
        graph.build()
        assert graph.get_node("enc").is_frozen
        assert not any(p.requires_grad for p in graph.get_node("enc").model.parameters())

    def edits(self, graph):
        x, y = arrays(n=4)
        fs = graph.context.get_node("data")
        elsewhere = featureset(x, y, "elsewhere")
        loose = mm.ModelNode("loose", mlp(), elsewhere)
        stray = mm.ModelNode("stray", mlp(d=1), loose)
        merged = mm.ConcatNode("merged", [fs, elsewhere])
        return [
            (lambda: graph.add_node(stray), "not in the graph"),
            (lambda: graph.add_node(graph.get_node("enc")), "already"),
            (lambda: graph.add_node(fs), "graph node"),
            (lambda: graph.remove_node("nobody"), "nobody"),
            (lambda: graph.replace_node("nobody", loose), "nobody"),
            (lambda: graph.replace_node("enc", graph.get_node("net")), "already"),
            (lambda: graph.insert_node_after(graph.get_node("enc"), upstream="net"), "already"),
            (lambda: graph.insert_node_before(merged, downstream="net"), "at least 2"),
            (
                lambda: graph.insert_node_between(loose, upstream="net", downstream="enc"),
                "does not read from",
            ),
        ]

    def test_a_failed_edit_changes_nothing(self):
        graph, exp = self.trained()
        before, wired = self.state(graph), wiring(graph)
        for edit, message in self.edits(graph):
            with pytest.raises((GraphError, UnknownNameError, TypeError), match=message):
                edit()
            assert wiring(graph) == wired
            assert graph.is_built
        self.check_kept(graph, before, ["enc", "net"])
        assert [r.node_label for r in graph.context.get_node("loose").upstream_refs] == [
            "elsewhere"
        ]
        exp.run_phase(train_phase(graph, label="again"), **QUIET)

    def test_a_merge_that_would_lose_an_input_is_refused(self):
        x, y = arrays(n=8)
        fs = featureset(x, y)
        nodes = [mm.ModelNode(k, mlp(), fs) for k in "ab"]
        merged = mm.ConcatNode("both", nodes)
        graph = mm.ModelGraph([*nodes, merged])
        single = mm.ModelNode("single", mlp(), fs)
        wired = wiring(graph)
        with pytest.raises(GraphError, match=r"at least 2|takes 1"):
            graph.insert_node_before(single, downstream="both")
        assert wiring(graph) == wired

    def test_a_chosen_target_follows_a_replaced_node(self):
        x, y = arrays(n=20)
        one, two = featureset(x, y, "one"), featureset(x, 3 * y, "two")
        nodes = [mm.ModelNode("a", mlp(seed=1), one), mm.ModelNode("b", mlp(seed=2), two)]
        merged = mm.ConcatNode("both", nodes, concat_axis_targets=nodes[1], align_on="position")
        net = mm.ModelNode("net", mlp(d=2), merged)
        graph = mm.ModelGraph([*nodes, merged, net], adam())
        graph.replace_node("b", mm.ModelNode("c", mlp(seed=3), two))
        result = experiment().run_phase(eval_phase(graph))
        np.testing.assert_allclose(result.stacked_tensors("net", "targets", fmt="np"), 3 * y)

    def test_sharing_a_label_with_a_new_name(self):
        graph, exp = self.trained()
        graph.get_node("net").label = "tail"
        assert graph.get_node("tail")
        exp.run_phase(train_phase(graph, [mse("tail")], label="again"), **QUIET)


class TestState:
    def test_there_and_back(self):
        graph, exp = chain(), experiment()
        exp.run_phase(train_phase(graph), **QUIET)
        graph.freeze(["enc"])
        state = graph.get_state()
        graph.unfreeze()
        exp.run_phase(train_phase(graph, label="more"), **QUIET)
        graph.set_state(state)
        assert_same_state(graph.get_state(), state)
        assert graph.get_node("enc").is_frozen

    def test_into_another_graph(self):
        graph = chain()
        experiment().run_phase(train_phase(graph), **QUIET)
        state = graph.get_state()
        with mm.ExperimentContext().activate():
            other = chain()
            other.set_state(state)
            assert_same_state(other.get_state(), state)

    def test_a_state_that_does_not_fit_changes_nothing(self):
        graph = chain()
        experiment().run_phase(train_phase(graph), **QUIET)
        before = graph.get_state()
        with mm.ExperimentContext().activate():
            other = chain(width=7)
            other.build()
            wrong = other.get_state()
        half = {**wrong, "nodes": {"enc": before["nodes"]["enc"], "net": wrong["nodes"]["net"]}}
        half["nodes"]["enc"] = {**half["nodes"]["enc"], "frozen": True}
        for state in (wrong, half, {**wrong, "nodes": {"nobody": {}}}):
            with pytest.raises((ShapeError, UnknownNameError)):
                graph.set_state(state)
            assert_same_state(graph.get_state(), before)

    def test_state_is_a_copy(self):
        graph, exp = chain(), experiment()
        exp.run_phase(train_phase(graph), **QUIET)
        state = graph.get_state()
        kept = state["nodes"]["net"]["model"]["weights"]["inner.0.weight"].copy()
        exp.run_phase(train_phase(graph, label="more"), **QUIET)
        np.testing.assert_array_equal(
            kept, state["nodes"]["net"]["model"]["weights"]["inner.0.weight"]
        )

    def test_read_only_weights_are_taken(self):
        graph = chain()
        graph.build()
        state = graph.get_state()
        for node in state["nodes"].values():
            for value in node["model"]["weights"].values():
                value.flags.writeable = False
        graph.set_state(state)


class TestConfig:
    def plan(self):
        x, y = arrays(n=8)
        fs = featureset(x, y)
        ref = fs.reference(features=["x0", "x1"], targets="y")
        a = mm.ModelNode("a", SequentialMLP(output_shape=(3,), dropout=0.1), ref)
        b = mm.ModelNode("b", SequentialMLP(output_shape=(2,)), fs, adam())
        both = mm.ConcatNode("both", [a, b], concat_axis_targets="first")
        c = mm.ModelNode("c", SequentialMLP(hidden_dim=7), both)
        graph = mm.ModelGraph([a, b, both, c], adam(0.5), "plan")
        graph.freeze(["b"])
        return graph

    def test_round_trip_in_another_context(self):
        graph = self.plan()
        config = graph.get_config()
        with mm.ExperimentContext(registration_policy="error").activate() as ctx:
            x, y = arrays(n=8)
            featureset(x, y)
            again = mm.ModelGraph.from_config(config)
            assert ctx.model_graph is again
            assert wiring(again) == wiring(graph)
            assert again.label == "plan"
            assert again.optimizer == graph.optimizer
            assert again.get_node("b").is_frozen
            assert again.get_node("b").optimizer == graph.get_node("b").optimizer
            again.build()
            assert again.get_node("c").model.hidden_dim == 7
            assert again.get_node("both").output_shape == (5,)
            again.set_state(_built_state(graph))
            assert_same_state(again.get_state(), graph.get_state())

    def test_nodes(self):
        graph = self.plan()
        for node in graph.nodes.values():
            with mm.ExperimentContext.dont_register():
                again = type(node).from_config(node.get_config(), register=False)
            assert again.get_config() == node.get_config()
            assert again.node_id != node.node_id


def _built_state(graph):
    graph.build()
    return graph.get_state()


class TestByHand:
    def test_forward(self):
        graph = chain(n=10)
        graph.build()
        phase = eval_phase(graph)
        view = phase.input_sources[0].materialize_batches(show_progress=False)[0]
        head = graph.get_node("enc")
        want = graph.get_node("net").model.inner(head.model.inner(torch.tensor(arrays(n=10)[0])))
        key = (head.node_id, head.feature_refs[0])
        for given in (view, view.materialize(), view.materialize().role_data["default"]):
            out = graph.forward({key: given})
            assert set(out) == set(graph.nodes)
            torch.testing.assert_close(out[graph.get_node("net").node_id].outputs, want.detach())

    def test_steps_on_rows_by_number(self):
        from modularml.data import ExecutionContext

        graph = chain(n=20)
        graph.build()
        hand = nn.Sequential(*(twin(graph.get_node(k).model.inner) for k in ("enc", "net")))
        x, y = arrays(n=20)
        head = graph.get_node("enc")
        for node in graph.head_nodes.values():
            binding = mm.InputBinding.for_training(
                node=node, sampler=mm.SimpleSampler(batch_size=16), upstream=None
            )
        loss = mse()
        for i, view in enumerate(binding.materialize_batches(show_progress=False)):
            ctx = ExecutionContext("by hand", 0, i, {(head.node_id, head.feature_refs[0]): view})
            graph.train_step(ctx, [loss])
            assert ctx.losses[0].trainable > 0
            batch = ctx.outputs[graph.get_node("net").node_id]
            np.testing.assert_array_equal(batch.targets, y[:16] if i == 0 else y[16:])
            np.testing.assert_array_equal(batch.sample_uuids, view.view().get_sample_uuids())
        by_hand(hand, lambda p: torch.optim.Adam(p, lr=0.01), x, y, epochs=1)
        assert_equal_weights(graph.get_node("net").model.inner, hand[1], atol=1e-5)

    @pytest.mark.parametrize("weights", [None, [1.0, 2.0, 3.0, 9.0]])
    def test_padding_among_rows_by_number_counts_for_nothing(self, weights):
        from modularml.data import BatchView, ExecutionContext

        x, y = arrays(n=20)
        fs, net = featureset(x, y), mlp()
        graph = graph_of(fs, net)
        graph.build()
        node = graph.get_node("net")
        key = (node.node_id, node.feature_refs[0])
        own = {} if weights is None else {"default": np.array(weights)}
        view = BatchView(fs.to_view(), {"default": np.array([3, 0, 7, -1])}, own)
        ctx = ExecutionContext("by hand", 0, 0, {key: view})
        graph.eval_step(ctx, [mse()])
        with torch.no_grad():
            out = net(torch.as_tensor(x[[3, 0, 7]], dtype=torch.float32)).numpy()
        errors = ((out - y[[3, 0, 7]]) ** 2).mean(axis=1)
        expected = np.average(errors, weights=None if weights is None else weights[:3])
        assert ctx.losses[0].auxiliary == pytest.approx(expected, rel=1e-5)

    def test_other_losses_than_the_phase_has_are_honoured(self):
        x, y = arrays(n=20)
        mine = mlp()
        hand = twin(mine)
        graph = graph_of(featureset(x, y), mine)
        other = mm.AppliedLoss(mm.Loss("l1"), on="net", inputs=["outputs", "targets"])
        for ctx in train_phase(graph).iter_execution(**QUIET):
            graph.train_step(ctx, [other])
            assert [r.label for r in ctx.losses] == ["l1_net"]
        by_hand(hand, lambda p: torch.optim.SGD(p, lr=0.05), x, y, loss=nn.L1Loss(), epochs=1)
        assert_equal_weights(mine, hand, atol=1e-5)

    def test_evaluating_a_training_step(self):
        graph = chain(n=20)
        graph.freeze(["enc"])
        graph.build()
        before = weights(graph.get_node("net").model)
        loss = mse()
        for ctx in train_phase(graph, [loss]).iter_execution(**QUIET):
            graph.eval_step(ctx, [loss])
            assert ctx.losses[0].trainable == 0
            assert ctx.losses[0].auxiliary > 0
            assert set(ctx.outputs) == set(graph.nodes)
        assert_equal_weights(before, graph.get_node("net").model)

    def test_missing_input(self):
        graph = chain(n=20)
        with pytest.raises(GraphError, match=r"'enc'.*'data'"):
            graph.forward({})

    def test_node_steps(self):
        x, y = arrays(n=20)
        fs = featureset(x, y)
        enc = mm.ModelNode("enc", mlp(out=5), fs, adam())
        net = mm.ModelNode("net", mlp(d=5), enc, adam())
        graph = mm.ModelGraph([enc, net])
        graph.build()
        ctx = next(iter(train_phase(graph).iter_execution(**QUIET)))
        before = weights(enc.model), weights(net.model)
        net.train_step(ctx, [mse()])
        assert_equal_weights(before[0], enc.model)
        assert not torch.equal(before[1]["inner.0.weight"], net.model.inner[0].weight)
        with pytest.raises(GraphError, match="not frozen"):
            net.eval_step(ctx)
        net.freeze()
        with pytest.raises(GraphError, match="frozen"):
            net.train_step(ctx, [mse()])
        ctx = next(iter(eval_phase(graph).iter_execution()))
        net.eval_step(ctx, [mse()])
        assert ctx.losses[0].value > 0

    def test_a_node_is_callable(self):
        x, y = arrays(n=5)
        node = mm.ModelNode("net", mlp(), featureset(x, y))
        mm.ModelGraph([node]).build()
        want = node.model.inner(torch.tensor(x))
        samples = SampleData(features=x, targets=y)
        out = node(samples)
        torch.testing.assert_close(out.outputs, want)
        assert out.outputs.requires_grad
        assert out.targets is y
        roles = node(RoleData({"anchor": samples, "pair": samples}))
        torch.testing.assert_close(roles["pair"].outputs, want)
        batch = node(Batch(RoleData({"default": SampleData(features=torch.tensor(x))})))
        torch.testing.assert_close(batch.outputs, want)
        torch.testing.assert_close(node(x), want)


def test_bindings_helper_covers_each_edge():
    graph = chain()
    assert len(bindings(graph)) == 1
