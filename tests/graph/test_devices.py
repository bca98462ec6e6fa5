"""Nodes on several devices: what is moved, and how often. No GPU is needed."""

import numpy as np
import pytest
import torch

import modularml as mm
from modularml.backends import adapter_for
from modularml.errors import ConfigError, DeviceError
from tests.worlds import (
    QUIET,
    arrays,
    assert_equal_weights,
    experiment,
    featureset,
    graph_of,
    mlp,
    mse,
    train_phase,
    twin,
)

META = torch.device("meta")


@pytest.fixture
def moves(monkeypatch):
    """Count moves between devices; what comes from ``meta`` is zeros."""
    seen = []

    def to_device(self, tensor, device):
        seen.append(str(device))
        return torch.zeros(tensor.shape) if tensor.is_meta else tensor.to(device)

    monkeypatch.setattr(type(adapter_for("torch")), "to_device", to_device)
    return seen


def test_values_are_moved_once_where_devices_meet(moves):
    x, y = arrays(n=20)
    fs = featureset(x, y)
    a = mm.ModelNode("a", mlp(out=4), fs)
    b = mm.ModelNode("b", mlp(d=4, out=4), a)
    c = mm.ModelNode("c", mlp(d=4, out=4), b)
    both = mm.SumNode("both", [b, c])
    graph = mm.ModelGraph([a, b, c, both, mm.ModelNode("net", mlp(d=4), both)])
    graph.build()
    for node in (b, c):
        node.move_to(META)
    plan, step = graph.plan([mse()], training=False)
    assert {slot.device for slot in plan.slots} == {torch.device("cpu")}
    out = step([torch.as_tensor(x), torch.as_tensor(y)])[1]
    assert moves == ["meta", "cpu", "cpu"]  # a to b; b and c to the sum
    devices = dict(
        zip([n for n, _ in plan.layout.outputs], [t.device.type for t in out], strict=True)
    )
    assert [devices[n.node_id] for n in (a, b, c, both)] == ["cpu", "meta", "meta", "cpu"]


def test_a_loss_on_a_node_elsewhere_is_computed_with_its_targets(moves):
    x, y = arrays(n=20)
    a = mm.ModelNode("a", mlp(), featureset(x, y))
    b = mm.ModelNode("net", mlp(d=1), a)
    graph = mm.ModelGraph([a, b])
    graph.build()
    b.move_to(META)
    step = graph.plan([mse()], training=False)[1]
    (loss,), _ = step([torch.as_tensor(x), torch.as_tensor(y)])
    assert moves == ["meta", "cpu"]
    assert loss.item() == pytest.approx(float((y**2).mean()), rel=1e-5)


def test_nothing_is_moved_on_one_device(moves):
    x, y = arrays(n=20)
    graph = graph_of(featureset(x, y), mlp())
    experiment().run_phase(train_phase(graph), **QUIET)
    assert moves == []


def test_columns_lie_where_the_weights_do():
    x, y = arrays(n=20)
    fs = featureset(x, y)
    graph = graph_of(fs, mlp())
    graph.build()
    graph.get_node("net").move_to(META)
    graph._plans.clear()
    feed = train_phase(graph).feed()
    assert {column.device.type for column in feed._parts[0][1]} == {"meta"}


def test_a_node_with_its_own_accelerator_stays(monkeypatch):
    x, y = arrays(n=20)
    model = mm.models.torch.SequentialMLP()
    node = mm.ModelNode("net", model, featureset(x, y), accelerator="cpu")
    graph = mm.ModelGraph([node], mm.Optimizer("sgd"))
    monkeypatch.setattr(type(adapter_for("torch")), "check_device", lambda _, d: torch.device(d))
    graph.move_to("meta")
    assert next(node.model.parameters()).device.type == "cpu"
    assert node.get_config()["accelerator"]["params"]["device"] == "cpu"
    monkeypatch.undo()
    gone = mm.ModelNode("gone", mlp(), featureset(x, y, "b"), accelerator="cuda:7")
    with pytest.raises(DeviceError, match="cuda:7"):
        gone.build_model((6,))


class TestPinnedMemory:
    def test_only_for_cuda(self):
        assert mm.Accelerator("cuda:1", pin_memory=True).pin_memory
        for device in ("cpu", "mps"):
            with pytest.raises(ConfigError, match="pin_memory"):
                mm.Accelerator(device, pin_memory=True)

    def test_chunks_are_uploaded_and_rows_stay_the_same(self, monkeypatch):
        uploaded = []

        def upload(self, tensor, device):
            uploaded.append(len(tensor))
            return tensor.clone()

        monkeypatch.setattr(type(adapter_for("torch")), "upload", upload)
        monkeypatch.setattr(mm.Accelerator, "name", "cpu")
        x, y = arrays(n=50)
        mine, other = mlp(), mlp()
        hand = twin(mine)
        graph = graph_of(featureset(x, y), mine, "adam", lr=0.01)
        where = mm.Accelerator("cuda", pin_memory=True)
        exp = experiment()
        phase = train_phase(graph, n_epochs=2, shuffle=True, accelerator=where)
        exp.run_phase(phase, **QUIET)
        assert uploaded == [50] * 4  # features and targets, in each epoch
        with mm.ExperimentContext().activate():
            plain = graph_of(featureset(x, y), other, "adam", lr=0.01)
            experiment("b").run_phase(train_phase(plain, n_epochs=2, shuffle=True), **QUIET)
        assert_equal_weights(mine, other)
        assert not np.array_equal(mine[0].weight.detach(), hand[0].weight.detach())
