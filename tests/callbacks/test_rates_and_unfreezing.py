"""Learning rates that are logged, and nodes that learn later."""

import numpy as np
import pytest
import torch
from torch import nn

import modularml as mm
from modularml.callbacks import LearningRateMonitor, ProgressiveUnfreezing
from modularml.errors import ConfigError, ShapeError, UnknownNameError
from tests.worlds import (
    arrays,
    assert_equal_weights,
    by_hand,
    featureset,
    graph_of,
    mlp,
    train,
    twin,
    weights,
)


def halves(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)


def chain(x, y, *, own=False, **kwargs):
    """Return encoder -> head, with one optimizer or one each."""
    opts = [mm.Optimizer("sgd", opt_kwargs={"lr": 0.05}, **kwargs) for _ in range(2)]
    enc = mm.ModelNode("enc", mlp(out=4, seed=1), featureset(x, y), opts[0] if own else None)
    net = mm.ModelNode("net", mlp(d=4, seed=2), enc, opts[1] if own else None)
    return mm.ModelGraph([enc, net], None if own else opts[0])


class TestLearningRateMonitor:
    @pytest.mark.parametrize("every", ["epoch", "batch"])
    def test_one_rate(self, every):
        x, y = arrays(n=32)
        how = mm.LRSchedule(halves, every=every)
        results = train(
            chain(x, y, schedule=how), n_epochs=2, callbacks=[LearningRateMonitor(every=every)]
        )
        found = results.metrics().where(name="lr").values()
        want = [0.05, 0.025] if every == "epoch" else [0.05, 0.025, 0.0125, 0.00625]
        assert list(found) == pytest.approx(want)

    def test_names_of_groups_and_nodes(self):
        x, y = arrays(n=32)
        groups = {"enc": {"lr": 0.01}}
        results = train(chain(x, y, groups=groups), callbacks=[LearningRateMonitor()])
        assert {"lr_default", "lr_enc"} <= set(results.metric_names())
        with mm.ExperimentContext().activate():
            results = train(chain(x, y, own=True), callbacks=[LearningRateMonitor()])
        assert {"lr_enc", "lr_net"} <= set(results.metric_names())

    def test_arguments(self):
        with pytest.raises(ConfigError, match="every"):
            LearningRateMonitor(every="step")
        assert (
            LearningRateMonitor.from_config(LearningRateMonitor(every="batch").get_config()).every
            == "batch"
        )


class TestProgressiveUnfreezing:
    @pytest.mark.parametrize("own", [False, True])
    def test_equals_a_loop_that_unfreezes(self, own):
        x, y = arrays(n=48)
        graph = chain(x, y, own=own)
        if own:  # a loss on the tail alone: gradients reach the encoder
            assert graph.optimizer is None
        enc, net = (graph.get_node(k).model.module for k in ("enc", "net"))
        hand = nn.Sequential(twin(enc), twin(net))
        before = weights(enc)
        seen = []

        class Watch(mm.callbacks.Callback):
            def on_epoch_end(self, **facts):
                seen.append(torch.equal(enc[0].weight, before["0.weight"]))

        plan = ProgressiveUnfreezing({0: "net", 2: graph.get_node("enc")})
        train(graph, n_epochs=4, callbacks=[plan, Watch()])
        assert seen == [True, True, False, False]
        hand[0].requires_grad_(False)
        by_hand(hand, lambda p: torch.optim.SGD(p, lr=0.05), x, y, epochs=2)
        hand[0].requires_grad_(True)
        by_hand(hand, lambda p: torch.optim.SGD(p, lr=0.05), x, y, epochs=2)
        assert_equal_weights(enc, hand[0], atol=1e-6)
        assert_equal_weights(net, hand[1], atol=1e-6)

    def test_errors(self):
        x, y = arrays(n=20)
        for bad in ({}, {-1: "enc"}, {0: "enc", 1: ["enc"]}):
            with pytest.raises(ConfigError):
                ProgressiveUnfreezing(bad)
        with pytest.raises(ConfigError, match="at maps epochs to nodes, as in"):
            ProgressiveUnfreezing({"enc": 2})
        graph = chain(x, y)
        with pytest.raises(UnknownNameError, match="enc"):
            train(graph, callbacks=[ProgressiveUnfreezing({1: ["net", "encc"]})])
        assert not graph.frozen_nodes

    def test_config(self):
        made = ProgressiveUnfreezing({2: "enc"})
        assert ProgressiveUnfreezing.from_config(made.get_config()).at == {2: ["enc"]}


class TestLoadingWeights:
    def test_from_a_node_of_another_graph(self):
        x, y = arrays(n=40)
        old = graph_of(featureset(x, y), mm.models.torch.SequentialMLP(output_shape=(3,)))
        old.build()
        with mm.ExperimentContext().activate():
            node = mm.ModelNode(
                "enc", mm.models.torch.SequentialMLP(output_shape=(3,)), featureset(x, y)
            )
            node.load_weights(old.get_node("net"))
            assert node.model.same_weights(old.get_node("net").model)
            mm.ModelGraph([node]).build()
            assert node.model.same_weights(old.get_node("net").model)

    @pytest.mark.parametrize("shift", [0, 1])
    def test_sequences_by_their_layers(self, shift):
        x, y = arrays(n=40)
        old = graph_of(featureset(x, y), mm.models.torch.SequentialMLP(n_layers=3, dropout=0.5))
        old.build()
        model = old.get_node("net").model
        theirs = {}
        for name, array in reversed(model.get_weights().items()):
            _, number, kind = name.split(".")
            theirs[f"fc.{int(number) * 4 + shift}.{kind}"] = array
        assert "fc.24.weight" in theirs or shift
        with mm.ExperimentContext().activate():
            own = mm.models.torch.SequentialMLP(n_layers=3)
            node = mm.ModelNode("enc", own, featureset(x, y))
            node.build_model((6,), (1,))
            node.load_weights(theirs)
            for a, b in zip(own.get_weights().values(), model.get_weights().values(), strict=True):
                np.testing.assert_array_equal(a, b)
            before = weights(own)
            for name in ("head.weight", "other.0.weight"):
                with pytest.raises(ConfigError, match="lack"):
                    node.load_weights({**theirs, name: theirs[f"fc.{shift}.weight"]})
            wide = {**theirs, f"fc.{shift}.weight": np.zeros((9, 6), dtype=np.float32)}
            with pytest.raises(ShapeError, match=r"layers\.0\.weight"):
                node.load_weights(wide)
            assert_equal_weights(before, own)

    def test_errors(self):
        x, y = arrays(n=40)
        node = mm.ModelNode("enc", mlp(out=2), featureset(x, y))
        node.build_model((6,))
        before = weights(node.model)
        with pytest.raises(TypeError, match="source"):
            node.load_weights("net")
        with pytest.raises(ConfigError, match="lack"):
            node.load_weights({})
        assert_equal_weights(before, node.model)
