"""What a graph says of itself: a table and a picture."""

from sklearn.linear_model import Ridge
from torch import nn

import modularml as mm
from tests.worlds import arrays, featureset, mlp, mse


def graph(**kwargs):
    fs = featureset(*arrays(n=20))
    a = mm.ModelNode("a", nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), fs)
    b = mm.ModelNode("b", mlp(out=4), fs)
    gate = mm.FunctionNode("gate", [a, b], "multiply")
    net = mm.ModelNode("net", mm.models.torch.SequentialMLP(), gate)
    return mm.ModelGraph([a, b, gate, net], **kwargs)


class TestSummary:
    def test_counts_and_shapes(self):
        made = graph(optimizer=mm.Optimizer("adam"))
        before = {row.node: row.parameters for row in made.summary().nodes}
        assert before == {"a": 36, "b": 92, "gate": 0, "net": None}  # its layers are still to come
        assert "parameters not known before build()" in repr(made.summary())
        made.build()
        made.get_node("a").model.module[0].bias.requires_grad_(False)
        made.freeze(["b"])
        found = made.summary()
        rows = {row.node: row for row in found.nodes}
        assert (rows["a"].parameters, rows["a"].trainable) == (6 * 4 + 4 + 8, 6 * 4 + 8)
        assert (rows["b"].parameters, rows["b"].trainable, rows["b"].frozen) == (92, 0, True)
        assert (rows["gate"].type, rows["gate"].input_shape) == ("FunctionNode", "4 + 4")
        assert (rows["net"].output_shape, rows["net"].optimizer) == ("1", "adam")
        assert "4 nodes, " in repr(found)
        assert f"{32 + rows['net'].trainable:,} trainable" in repr(found)

    def test_forms(self):
        made = graph(label="two & one")
        made.build()
        found = made.summary()
        frame = found.to_pandas()
        assert list(frame["node"]) == ["a", "b", "gate", "net"]
        assert "Sequential" in repr(found)
        assert f"{frame['parameters'].sum():,} parameters" in repr(found)
        assert "two &amp; one" in found._repr_html_()
        assert "<table" in found._repr_html_()


class TestPicture:
    def test_shapes_kinds_and_frozen(self):
        made = graph()
        made.build()
        made.freeze(["b"])
        picture = made.visualize()
        kinds = {box.title: (box.kind, box.dimmed) for box in picture.nodes}
        assert kinds["gate"] == ("function", False)
        assert kinds["b"] == ("torch", True)
        assert {edge.label for edge in picture.edges} == {"6", "4"}
        assert not any(edge.marker for edge in picture.edges)

    def test_gradients_stop_behind_a_loss_where_nodes_train_alone(self):
        made = graph()
        made.build()
        marked = [e.source for e in made.visualize(losses=[mse("a")]).edges if e.marker]
        assert marked == [made.get_node("a").node_id]
        with mm.ExperimentContext().activate():
            together = graph(optimizer=mm.Optimizer("adam"))
            assert not any(e.marker for e in together.visualize(losses=[mse("a")]).edges)

    def test_gradients_stop_where_frameworks_meet(self):
        fs = featureset(*arrays(n=20))
        nodes = [mm.ModelNode(k, mlp(out=4), fs) for k in "ab"]
        both = mm.ConcatNode("both", nodes, concat_axis_targets="first")
        made = mm.ModelGraph([*nodes, both, mm.ModelNode("ridge", Ridge(), both)])
        made.build()
        marked = [e.source for e in made.visualize().edges if e.marker]
        assert marked == [both.node_id]
        assert {row.node: row.backend for row in made.summary().nodes}["ridge"] == "scikit"
