"""Merging: training through it equals one module written by hand; padding; strategies; errors."""

import numpy as np
import pytest
import torch
from torch import nn

import modularml as mm
from modularml.errors import ConfigError, DataError, GraphError, ShapeError, UnknownNameError
from modularml.graph import MergeStrategy
from modularml.models.torch import SequentialMLP
from tests.worlds import (
    QUIET,
    arrays,
    assert_equal_weights,
    eval_phase,
    experiment,
    featureset,
    mlp,
    slices,
    train,
    train_phase,
    twin,
    weights,
)


class ByHand(nn.Module):
    """Two encoders, side by side, and a head."""

    def __init__(self, a, b, head):
        super().__init__()
        self.a, self.b, self.head = twin(a), twin(b), twin(head)

    def forward(self, x, z):
        return self.head(torch.cat([self.a(x), self.b(z)], dim=1))


def loop(module, x, z, y, *, lr=0.05, epochs=2, batch_size=16):
    optimizer = torch.optim.SGD(module.parameters(), lr=lr)
    x, z, y = map(torch.as_tensor, (x, z, y))
    for _ in range(epochs):
        for rows in slices(len(x), batch_size):
            optimizer.zero_grad()
            nn.functional.mse_loss(module(x[rows], z[rows]), y[rows]).backward()
            optimizer.step()


def nets(head=None):
    return mlp(d=4, out=3, seed=1), mlp(d=2, out=2, seed=2), head or mlp(d=5, seed=3)


def two_heads(first, second, a, b, head, **kwargs):
    nodes = [mm.ModelNode("a", a, first), mm.ModelNode("b", b, second)]
    merged = mm.ConcatNode("both", nodes, **kwargs)
    tail = mm.ModelNode("net", head, merged)
    opt = mm.Optimizer("sgd", opt_kwargs={"lr": 0.05})
    return mm.ModelGraph([*nodes, merged, tail], opt)


class TestAgainstOneModule:
    def test_one_featureset(self):
        x, y = arrays(n=45)
        fs = featureset(x, y)
        first = fs.reference(features=["x0", "x1", "x2", "x3"], targets="y")
        second = fs.reference(features=["x4", "x5"], targets="y")
        a, b, head = nets()
        hand = ByHand(a, b, head)
        graph = two_heads(first, second, a, b, head, concat_axis_targets="first")
        train(graph, n_epochs=2)
        loop(hand, x[:, :4], x[:, 4:], y)
        for mine, theirs in ((a, hand.a), (b, hand.b), (head, hand.head)):
            assert_equal_weights(mine, theirs, atol=1e-5)

    def test_two_featuresets(self):
        x, y = arrays(n=45)
        one, two = featureset(x[:, :4], y, "one"), featureset(x[:, 4:], y, "two")
        a, b, head = nets()
        hand = ByHand(a, b, head)
        graph = two_heads(one, two, a, b, head, concat_axis_targets="first", align_on="position")
        train(graph, n_epochs=2)
        loop(hand, x[:, :4], x[:, 4:], y)
        for mine, theirs in ((a, hand.a), (b, hand.b), (head, hand.head)):
            assert_equal_weights(mine, theirs, atol=1e-5)

    def test_two_featuresets_shuffled_by_one_sampler_stay_aligned(self):
        x, y = arrays(n=45)
        one, two = featureset(x[:, :4], y, "one"), featureset(x[:, 4:], y, "two")
        graph = two_heads(one, two, *nets(), concat_axis_targets="first", align_on="position")
        results = train(graph, shuffle=True)
        for ctx in results.execution_contexts():
            rows = [ctx.indices(s)["default"] for s in ctx.sources("net") or ctx.layout.views]
            np.testing.assert_array_equal(rows[0], rows[1])

    def test_targets_of_one_input_alone_need_no_strategy(self):
        x, y = arrays(n=45)
        fs = featureset(x, y)
        first = fs.reference(features=["x0", "x1", "x2", "x3"], targets="y")
        second = fs.reference(features=["x4", "x5"], targets=[])
        a, b, head = nets()
        hand = ByHand(a, b, head)
        train(two_heads(first, second, a, b, head), n_epochs=2)
        loop(hand, x[:, :4], x[:, 4:], y)
        assert_equal_weights(head, hand.head, atol=1e-5)

    def test_own_models_find_their_shapes(self):
        x, y = arrays(n=40)
        fs = featureset(x, y)
        graph = two_heads(
            fs.reference(features=["x0", "x1"], targets="y"),
            fs.reference(features=["x4"], targets="y"),
            SequentialMLP(output_shape=(3,)),
            SequentialMLP(output_shape=(2,)),
            SequentialMLP(),
            concat_axis_targets="mean",
        )
        graph.build()
        assert graph.get_node("both").output_shape == (5,)
        assert graph.get_node("net").input_shape == (5,)
        assert graph.get_node("net").output_shape == (1,)

    def test_featuresets_side_by_side_without_encoders(self):
        x, y = arrays(n=45)
        fs = featureset(x, y)
        refs = [
            fs.reference(features=["x0", "x1", "x2", "x3"], targets="y"),
            fs.reference(features=["x4", "x5"], targets="y"),
        ]
        merged = mm.ConcatNode("both", refs, concat_axis_targets="first")
        mine = mlp()
        tail = mm.ModelNode("net", mine, merged)
        opt = mm.Optimizer("sgd", opt_kwargs={"lr": 0.05})
        graph = mm.ModelGraph([merged, tail], opt)
        hand = ByHand(nn.Identity(), nn.Identity(), mine)
        train(graph, n_epochs=2)
        loop(hand, x[:, :4], x[:, 4:], y)
        assert_equal_weights(mine, hand.head, atol=1e-5)

    def test_double_precision_behind_a_merge(self):
        x, y = arrays(n=20)
        fs = featureset(x, y)
        merged = mm.ConcatNode(
            "both",
            [fs.reference(features="x0", targets="y"), fs.reference(features="x1", targets="y")],
            concat_axis_targets="first",
        )
        tail = mm.ModelNode("net", mlp(d=2).double(), merged)
        graph = mm.ModelGraph([merged, tail], mm.Optimizer("sgd", opt_kwargs={"lr": 0.05}))
        assert train(graph).n_epochs == 1

    def test_targets_of_both_inputs(self):
        x, y = arrays(n=45)
        one, two = featureset(x[:, :4], y, "one"), featureset(x[:, 4:], 2 * y, "two")
        a, b, _ = nets()
        head = mlp(d=5, out=2, seed=3)
        hand = ByHand(a, b, head)
        train(two_heads(one, two, a, b, head, align_on="position"), n_epochs=2)
        loop(hand, x[:, :4], x[:, 4:], np.concatenate([y, 2 * y], axis=1))
        assert_equal_weights(head, hand.head, atol=1e-5)

    def test_a_tail_takes_the_shape_of_both_targets(self):
        x, y = arrays(n=20)
        one, two = featureset(x[:, :4], y, "one"), featureset(x[:, 4:], 2 * y, "two")
        a, b, _ = nets()
        graph = two_heads(one, two, a, b, SequentialMLP(), align_on="position")
        graph.build()
        assert graph.get_node("net").output_shape == (2,)
        train(graph)

    def test_unequal_lengths_are_refused_by_name(self):
        x, y = arrays(n=40)
        one, two = featureset(x[:, :4], y, "one"), featureset(x[:30, 4:], y[:30], "two")
        graph = two_heads(one, two, *nets(), concat_axis_targets="first", align_on="position")
        before = weights(graph.get_node("net").model)
        with pytest.raises(DataError, match=r"'one' \(40\) and 'two' \(30\)"):
            experiment().run_phase(eval_phase(graph))
        with pytest.raises(DataError, match=r"'one'.*position"):
            experiment("other").run_phase(train_phase(graph), **QUIET)
        assert_equal_weights(before, graph.get_node("net").model)


STRATEGIES = [
    ("first", lambda a, b: a),
    ("last", lambda a, b: b),
    (MergeStrategy.LAST, lambda a, b: b),
    ("mean", lambda a, b: (a + b) / 2),
    (-1, lambda a, b: np.concatenate([a, b], axis=1)),
    (0, lambda a, b: np.concatenate([a, b], axis=1)),
]


class TestStrategies:
    @pytest.mark.parametrize(("how", "want"), STRATEGIES)
    def test_targets_and_tags(self, how, want):
        x, y = arrays(n=12)
        one = featureset(x[:, :4], y, "one", t=y[:, 0] + 1)
        two = featureset(x[:, 4:], 3 * y, "two", t=y[:, 0] - 1)
        a, b, head = nets(mlp(d=5, out=2, seed=3))
        graph = two_heads(
            one, two, a, b, head, concat_axis_targets=how, concat_axis_tags=how, align_on="position"
        )
        result = experiment().run_phase(eval_phase(graph, [], batch_size=5))
        targets = result.stacked_tensors("net", "targets", fmt="np")
        np.testing.assert_allclose(targets, want(y, 3 * y), rtol=1e-6)
        tags = result.stacked_tensors("net", "tags", fmt="np")
        np.testing.assert_allclose(tags, want(y + 1, y - 1), rtol=1e-6)

    @pytest.mark.parametrize("form", ["node", "reference"])
    def test_one_upstream_by_reference(self, form):
        x, y = arrays(n=12)
        one, two = featureset(x[:, :4], y, "one"), featureset(x[:, 4:], 3 * y, "two")
        a, b, head = nets()
        nodes = [mm.ModelNode("a", a, one), mm.ModelNode("b", b, two)]
        which = nodes[1] if form == "node" else nodes[1].reference()
        merged = mm.ConcatNode("both", nodes, concat_axis_targets=which, align_on="position")
        graph = mm.ModelGraph([*nodes, merged, mm.ModelNode("net", head, merged)])
        result = experiment().run_phase(eval_phase(graph))
        np.testing.assert_allclose(result.stacked_tensors("net", "targets", fmt="np"), 3 * y)

    def test_a_reference_to_no_upstream_is_refused(self):
        x, y = arrays(n=12)
        fs = featureset(x, y)
        nodes = [mm.ModelNode(k, mlp(), fs) for k in "abc"]
        with pytest.raises(UnknownNameError, match="upstream"):
            mm.ConcatNode("both", nodes[:2], concat_axis_targets=nodes[2])
        with pytest.raises(UnknownNameError, match="first"):
            mm.ConcatNode("other", nodes[:2], concat_axis_targets="frist")
        with pytest.raises(ConfigError, match="axis"):
            mm.ConcatNode("third", nodes[:2], concat_axis_targets=1.5)

    def test_axes_are_told(self):
        x, y = arrays(n=12)
        fs = featureset(x, y)
        nodes = [mm.ModelNode(k, mlp(), fs) for k in "ab"]
        one = mm.ConcatNode("one", nodes, concat_axis_targets=1, concat_axis_tags="first")
        assert one.target_axis == 1
        assert one.target_strategy == 1
        assert one.tags_strategy is MergeStrategy.FIRST
        with pytest.raises(TypeError, match="first"):
            _ = one.tags_axis


def node_of(**kwargs):
    x, y = arrays(n=4)
    fs = featureset(x, y)
    return mm.ConcatNode("both", [mm.ModelNode(k, mlp(), fs) for k in "ab"], **kwargs)


def both(values):
    return [values, [torch.as_tensor(v) for v in values]]


class TestApplyMerge:
    def test_axes(self):
        a, b = np.ones((5, 1, 16), "f4"), np.zeros((5, 2, 16), "f4")
        for values in both([a, b]):
            assert node_of_cached("axis0").apply_merge(values).shape == (5, 3, 16)
        a, b = np.ones((5, 1, 16), "f4"), np.zeros((5, 1, 8), "f4")
        for values in both([a, b]):
            for axis in (1, -1):
                node = node_of_cached(f"axis{axis}", concat_axis=axis)
                assert node.apply_merge(values).shape == (5, 1, 24)
        single = node_of_cached("axis0").apply_merge([a[0], a[0]], includes_batch_dim=False)
        assert single.shape == (2, 16)
        with pytest.raises(KeyError, match="nothing"):
            node_of_cached("axis0").apply_merge([a, a], domain="nothing")

    @pytest.mark.parametrize(
        ("mode", "numpy_mode"),
        [("reflect", "reflect"), ("replicate", "edge"), ("circular", "wrap"), ("constant", None)],
    )
    def test_padding_as_numpy_does(self, mode, numpy_mode):
        rng = np.random.default_rng(0)
        a, b = rng.normal(size=(3, 2, 6)), rng.normal(size=(3, 4, 4))
        node = node_of(pad_inputs=True, pad_mode=mode, pad_value=7.0)
        widths = [(0, 0), (0, 0), (0, 2)]
        if numpy_mode is None:
            padded = np.pad(b, widths, constant_values=7.0)
        else:
            padded = np.pad(b, widths, mode=numpy_mode)
        want = np.concatenate([a, padded], axis=1)
        for values in both([a, b]):
            np.testing.assert_array_equal(np.asarray(node.apply_merge(values)), want)

    @pytest.mark.parametrize("mode", ["reflect", "replicate", "circular", "constant"])
    def test_gradients_pass_through_padding(self, mode):
        a = torch.randn(3, 2, 6, requires_grad=True)
        b = torch.randn(3, 4, 4, requires_grad=True)
        node_of(pad_inputs=True, pad_mode=mode).apply_merge([a, b]).sum().backward()
        assert a.grad is not None
        assert (b.grad != 0).all()

    def test_what_does_not_fit(self):
        node = node_of()
        with pytest.raises(ShapeError, match=r"\(2, 6\).*\(4, 4\).*pad_inputs"):
            node.apply_merge([np.ones((3, 2, 6)), np.ones((3, 4, 4))])
        with pytest.raises(ShapeError, match="axes"):
            node.apply_merge([np.ones((3, 2, 6)), np.ones((3, 2))])
        far = node_of_cached("far", concat_axis=3)
        with pytest.raises(ShapeError, match="axis 3"):
            far.apply_merge([np.ones((3, 2)), np.ones((3, 2))])


def node_of_cached(label, **kwargs):
    ctx = mm.ExperimentContext.get_active()
    if not ctx.has_node(label="data"):
        x, y = arrays(n=4)
        fs = featureset(x, y)
        for k in "ab":
            mm.ModelNode(k, mlp(), fs)
    if ctx.has_node(label=label):
        return ctx.get_node(label=label)
    return mm.ConcatNode(label, ["a", "b"], **kwargs)


class TestErrors:
    def test_one_input(self):
        x, y = arrays(n=4)
        node = mm.ModelNode("a", mlp(), featureset(x, y))
        with pytest.raises(GraphError, match="at least 2"):
            mm.ConcatNode("both", [node])

    def test_modes(self):
        with pytest.raises(UnknownNameError, match="reflect"):
            node_of(pad_inputs=True, pad_mode="reflct")
        with pytest.raises(ConfigError, match="concat_axis"):
            node_of_cached("other", concat_axis="0")

    def test_shapes_at_build_name_nodes_and_shapes(self):
        x, y = arrays(n=12)
        fs = featureset(x, y)
        a, b = nn.Linear(6, 4), nn.Sequential(nn.Linear(6, 4), nn.Unflatten(1, (2, 2)))
        graph = two_heads(fs, fs, a, b, mlp(d=4), concat_axis_targets="first")
        with pytest.raises(ShapeError, match=r"'both'.*a: \(4,\).*b: \(2, 2\)"):
            graph.build()

    def test_duplicate_targets_say_what_to_do(self):
        x, y = arrays(n=12)
        fs = featureset(x, y)
        graph = two_heads(fs, fs, mlp(out=2), mlp(out=2), mlp(d=4))
        with pytest.raises(ShapeError, match="first"):
            train(graph)


def test_config_round_trip():
    node = node_of(concat_axis=-1, concat_axis_targets="mean", pad_inputs=True, pad_mode="reflect")
    with mm.ExperimentContext.dont_register():
        again = mm.ConcatNode.from_config(node.get_config(), register=False)
    assert again.get_config() == node.get_config()
    assert again.pad_mode is node.pad_mode
    assert [r.node_label for r in again.upstream_refs] == ["a", "b"]
