"""What is frozen stays as it is; an evaluation changes nothing."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import modularml as mm
from modularml.audit import AuditWarning
from modularml.callbacks import Callback
from modularml.errors import GraphError, LossError, OptimizerNotSetError
from tests.worlds import (
    QUIET,
    arrays,
    assert_equal_weights,
    by_hand,
    eval_phase,
    experiment,
    featureset,
    graph_of,
    mlp,
    mse,
    slices,
    train,
    train_phase,
    twin,
    weights,
)


def encoder(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.4), nn.ReLU())


def chain(x, y, enc=None, head=None, **kwargs):
    """Return encoder -> head."""
    fs = featureset(x, y)
    first = mm.ModelNode("enc", enc or encoder(), fs, kwargs.pop("enc_opt", None))
    second = mm.ModelNode("net", head or mlp(d=5), first, kwargs.pop("head_opt", None))
    opt = kwargs.pop("opt", mm.Optimizer("sgd", opt_kwargs={"lr": 0.05}))
    return mm.ModelGraph([first, second], opt)


def flags(module):
    return [m.training for m in module.modules()], [p.requires_grad for p in module.parameters()]


class TestFrozen:
    @pytest.mark.parametrize("cached", [True, False])
    def test_stays_bit_for_bit(self, cached):
        x, y = arrays(n=40)
        enc, head = encoder(), mlp(d=5)
        if not cached:  # noise makes the outputs differ each time

            class Noisy(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.inner = enc

                def forward(self, x):
                    return self.inner(x) + torch.randn(len(x), 5)

            wrapped = Noisy()
        else:
            wrapped = enc
        graph = chain(x, y, wrapped, head)
        graph.freeze(["enc"])
        before = weights(enc)
        moved = weights(head)
        train(graph, n_epochs=2)
        assert_equal_weights(before, enc)
        assert any(
            not torch.equal(a, b)
            for a, b in zip(moved.values(), weights(head).values(), strict=True)
        )
        assert list(graph.frozen_nodes.values()) == [graph.get_node("enc")]

    def test_equals_training_the_head_alone(self):
        x, y = arrays(n=43)
        enc, head = encoder(), mlp(d=5)
        hand = twin(head)
        graph = chain(x, y, enc, head)
        graph.freeze(["enc"])
        train(graph, n_epochs=2)
        with torch.no_grad():
            z = twin(enc).eval()(torch.tensor(x))
        by_hand(hand, lambda p: torch.optim.SGD(p, lr=0.05), z, y)
        assert_equal_weights(head, hand, atol=1e-5)

    def test_precomputed_equals_computed_for_each_batch(self, monkeypatch):
        x, y = arrays(n=43)
        found = []
        for cached in (True, False):
            if not cached:
                monkeypatch.setattr("modularml.graph.input_tensors._repeatable", lambda *a: False)
            with mm.ExperimentContext().activate():
                enc, head = encoder(), mlp(d=5)
                graph = chain(x, y, enc, head)
                graph.freeze(["enc"])
                calls = []
                enc.register_forward_hook(lambda *a, calls=calls: calls.append(len(a[1][0])))
                graph.build()
                calls.clear()
                train(graph, n_epochs=2, shuffle=True)
                found.append((weights(head), calls))
        assert_equal_weights(found[0][0], found[1][0], atol=1e-5)
        assert found[1][1] == [16, 16, 11] * 2
        assert sum(found[0][1]) <= 4 * 43

    def test_what_draws_at_random_is_not_cached(self):
        x, y = arrays(n=40)

        class Noise(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = nn.Linear(6, 5)
                self.calls = []

            def forward(self, x):
                self.calls.append(len(x))
                return self.inner(x) + torch.randn(len(x), 5)

        noise = Noise()
        graph = chain(x, y, noise)
        graph.freeze(["enc"])
        graph.build()
        noise.calls.clear()
        results = train(graph, n_epochs=3)
        assert noise.calls[-9:] == [16, 16, 8] * 3
        series = results.tensors("enc", "outputs")
        assert not torch.equal(series[0, 0], series[1, 0])

    def test_gradients_pass_through_a_frozen_node(self):
        x, y = arrays(n=40)
        enc, head = mlp(out=5), mlp(d=5)
        hand_enc, hand_head = twin(enc), twin(head)
        graph = chain(x, y, enc, head)
        graph.freeze(["net"])
        before = weights(head)
        train(graph, n_epochs=2)
        assert_equal_weights(before, head)
        opt = torch.optim.SGD(hand_enc.parameters(), lr=0.05)
        tx, ty = torch.tensor(x), torch.tensor(y)
        for _ in range(2):
            for rows in slices(40, 16):
                opt.zero_grad()
                F.mse_loss(hand_head(hand_enc(tx[rows])), ty[rows]).backward()
                opt.step()
        assert_equal_weights(enc, hand_enc, atol=1e-5)

    def test_freeze_and_unfreeze_keep_what_the_user_switched_off(self):
        x, y = arrays(n=40)
        enc = mlp(out=5)
        enc[0].bias.requires_grad_(False)
        graph = chain(x, y, enc)
        node = graph.get_node("enc")
        for frozen_first in (True, False):
            if frozen_first:
                graph.build()
            node.freeze()
            node.freeze()
            assert not any(p.requires_grad for p in enc.parameters())
            node.unfreeze()
            node.unfreeze()
            assert [p.requires_grad for p in enc.parameters()] == [True, False, True, True]

    def test_frozen_before_build(self):
        x, y = arrays(n=40)
        graph = chain(x, y)
        graph.freeze(["enc"])
        graph.build()
        enc = graph.get_node("enc").model.inner
        assert not any(p.requires_grad for p in enc.parameters())
        graph.unfreeze()
        assert all(p.requires_grad for p in enc.parameters())
        before = weights(enc)
        train(graph)
        assert not torch.equal(before["0.weight"], enc[0].weight)

    def test_unfreeze_after_a_forced_rebuild(self):
        from modularml.models.torch import SequentialMLP

        x, y = arrays(n=20)
        node = mm.ModelNode("net", SequentialMLP(), featureset(x, y))
        graph = mm.ModelGraph([node], mm.Optimizer("sgd", opt_kwargs={"lr": 0.1}))
        graph.build()
        node.freeze()
        graph.build(force=True)
        assert not any(p.requires_grad for p in node.model.parameters())
        node.unfreeze()
        assert all(p.requires_grad for p in node.model.parameters())
        before = weights(node.model)
        train(graph)
        assert not torch.equal(before["layers.0.weight"], node.model.layers[0].weight)

    def test_stages_frozen_and_unfrozen_between_phases(self):
        x, y = arrays(n=40)
        enc, head = mlp(out=5), mlp(d=5)
        graph = chain(x, y, enc, head, opt=mm.Optimizer("adam", opt_kwargs={"lr": 0.01}))
        exp = experiment()
        phase = train_phase(graph)
        exp.run_phase(phase, **QUIET)
        kept = weights(enc)
        graph.freeze(["enc"])
        exp.run_phase(phase, **QUIET)
        assert_equal_weights(kept, enc)
        graph.unfreeze(["enc"])
        exp.run_phase(phase, **QUIET)
        assert not torch.equal(kept["0.weight"], enc[0].weight)

    def test_freezing_in_a_callback_counts_from_the_next_epoch(self):
        x, y = arrays(n=40)
        enc, head = encoder(), mlp(d=5)
        graph = chain(x, y, enc, head)
        seen = []

        class Freeze(Callback):
            def on_epoch_start(self, *, exec_ctx, **facts):
                if exec_ctx.epoch_idx == 1:
                    graph.freeze(["enc"])
                if exec_ctx.epoch_idx == 2:
                    graph.unfreeze(["enc"])

            def on_epoch_end(self, **facts):
                seen.append(weights(enc))

        train(graph, n_epochs=3, callbacks=[Freeze()])
        assert_equal_weights(seen[0], seen[1])
        assert not torch.equal(seen[1]["0.weight"], seen[2]["0.weight"])
        assert not torch.equal(seen[1]["1.running_mean"], seen[2]["1.running_mean"])

    def test_two_encoders_merged_and_frozen(self):
        x, y = arrays(n=43)
        fs = featureset(x, y)
        a, b, head = mlp(out=3, seed=1), mlp(out=2, seed=2), mlp(d=5, seed=3)
        hand = twin(head)
        nodes = [mm.ModelNode("a", a, fs), mm.ModelNode("b", b, fs)]
        merged = mm.ConcatNode("both", nodes, concat_axis_targets="first")
        graph = mm.ModelGraph(
            [*nodes, merged, mm.ModelNode("net", head, merged)],
            mm.Optimizer("sgd", opt_kwargs={"lr": 0.05}),
        )
        graph.freeze(["a", "b"])
        results = train(graph, n_epochs=2)
        with torch.no_grad():
            z = torch.cat([a(torch.tensor(x)), b(torch.tensor(x))], dim=1)
        by_hand(hand, lambda p: torch.optim.SGD(p, lr=0.05), z, y)
        assert_equal_weights(head, hand, atol=1e-5)
        outputs = results.tensors("both", "outputs").where(epoch=0).values()
        torch.testing.assert_close(torch.cat(outputs), z)

    def test_frozen_loss_node_beside_one_that_learns(self):
        x, y = arrays(n=40)
        fs = featureset(x, y)
        nodes = [mm.ModelNode("a", mlp(seed=1), fs), mm.ModelNode("b", mlp(seed=2), fs)]
        graph = mm.ModelGraph(nodes, mm.Optimizer("sgd", opt_kwargs={"lr": 0.05}))
        graph.freeze(["a"])
        teacher = mm.AppliedLoss(mm.Loss("mse"), on="b", inputs=["outputs", "a.outputs"])
        hand = twin(nodes[1].model.inner)
        train(graph, [teacher, mse("a")], n_epochs=2)
        with torch.no_grad():
            z = nodes[0].model.inner(torch.tensor(x))
        by_hand(hand, lambda p: torch.optim.SGD(p, lr=0.05), x, z)
        assert_equal_weights(nodes[1].model.inner, hand, atol=1e-5)


class TestNothingToTrain:
    def test_everything_frozen(self):
        x, y = arrays(n=20)
        graph = chain(x, y)
        graph.freeze()
        with pytest.raises(GraphError, match="frozen"):
            train(graph)

    def test_no_weights(self):
        x, y = arrays(n=20)
        graph = graph_of(featureset(x, y), nn.Sequential(nn.ReLU()))
        with pytest.raises(GraphError, match="no weights"):
            train(graph)

    def test_no_loss_on_what_learns(self):
        x, y = arrays(n=20)
        fs = featureset(x, y)
        nodes = [mm.ModelNode("a", mlp(), fs), mm.ModelNode("b", mlp(), fs)]
        graph = mm.ModelGraph(nodes, mm.Optimizer("sgd", opt_kwargs={"lr": 0.05}))
        graph.freeze(["a"])
        with pytest.raises(LossError, match=r"mse_a.*'b'"):
            train(graph, [mse("a")])

    def test_no_loss(self):
        x, y = arrays(n=20)
        graph = graph_of(featureset(x, y), mlp())
        with pytest.raises(LossError, match="loss"):
            mm.TrainPhase("t", input_sources=[], losses=[])

        ctx = next(iter(train_phase(graph).iter_execution(**QUIET)))
        with pytest.raises(LossError, match="loss"):
            graph.train_step(ctx, [])

    def test_no_optimizer(self):
        x, y = arrays(n=20)
        with pytest.raises(OptimizerNotSetError, match="'net'"):
            train(graph_of(featureset(x, y), mlp(), None))


class TestStages:
    def test_own_optimizers_equal_stages_by_hand(self):
        x, y = arrays(n=43)
        enc, head = mlp(out=1, seed=1), mlp(d=1, seed=2)
        first, second = twin(enc), twin(head)
        graph = chain(
            x,
            y,
            enc,
            head,
            opt=None,
            enc_opt=mm.Optimizer("sgd", opt_kwargs={"lr": 0.05}),
            head_opt=mm.Optimizer("adam", opt_kwargs={"lr": 0.01}),
        )
        results = train(graph, [mse("enc"), mse("net")], n_epochs=2)
        opt1 = torch.optim.SGD(first.parameters(), lr=0.05)
        opt2 = torch.optim.Adam(second.parameters(), lr=0.01)
        tx, ty = torch.tensor(x), torch.tensor(y)
        for _ in range(2):
            for rows in slices(43, 16):
                out = first(tx[rows])
                opt1.zero_grad()
                F.mse_loss(out, ty[rows]).backward()
                opt2.zero_grad()
                F.mse_loss(second(out.detach()), ty[rows]).backward()
                opt1.step()
                opt2.step()
        assert_equal_weights(enc, first, atol=1e-5)
        assert_equal_weights(head, second, atol=1e-5)
        assert len(results.losses("enc")) == len(results.losses("net")) == 6

    def test_a_node_without_a_loss_learns_from_the_next(self):
        x, y = arrays(n=43)
        enc, head = mlp(out=5, seed=1), mlp(d=5, seed=2)
        hand = nn.Sequential(twin(enc), twin(head))
        graph = chain(
            x,
            y,
            enc,
            head,
            opt=None,
            enc_opt=mm.Optimizer("sgd", opt_kwargs={"lr": 0.05}),
            head_opt=mm.Optimizer("sgd", opt_kwargs={"lr": 0.05}),
        )
        train(graph, n_epochs=2)
        by_hand(hand, lambda p: torch.optim.SGD(p, lr=0.05), x, y)
        assert_equal_weights(enc, hand[0], atol=1e-5)
        assert_equal_weights(head, hand[1], atol=1e-5)

    def test_a_frozen_node_needs_no_optimizer(self):
        x, y = arrays(n=20)
        graph = chain(x, y, opt=None, head_opt=mm.Optimizer("sgd", opt_kwargs={"lr": 0.1}))
        with pytest.raises(OptimizerNotSetError, match="'enc'"):
            train(graph)
        graph.freeze(["enc"])
        phase = train_phase(graph)
        assert experiment("again").run_phase(phase, **QUIET).n_epochs == 1

    def test_part_of_a_graph(self):
        x, y = arrays(n=20)
        enc, head = mlp(seed=1), mlp(d=1, seed=2)
        graph = chain(x, y, enc, head)
        before = weights(head)
        results = train(graph, [mse("enc")], active_nodes=["enc"])
        assert_equal_weights(before, head)
        assert [
            label for _, label in results.execution_contexts().first().layout.labels.items()
        ] == ["enc"]


class TestEvaluation:
    def test_changes_no_node(self):
        x, y = arrays(n=40)
        enc, head = encoder(), mlp(d=5)
        enc[0].bias.requires_grad_(False)
        graph = chain(x, y, enc, head, opt=mm.Optimizer("adam"))
        exp = experiment()
        exp.run_phase(train_phase(graph), **QUIET)
        for freeze in (False, True):
            if freeze:
                graph.freeze(["enc"])
            enc.train()
            head.eval()
            before = weights(enc), weights(head), flags(enc), flags(head)
            random = torch.get_rng_state()
            state = graph.get_state()
            exp.run_phase(eval_phase(graph, batch_size=7))
            assert_equal_weights(before[0], enc)
            assert_equal_weights(before[1], head)
            assert flags(enc) == before[2]
            assert flags(head) == before[3]
            assert torch.equal(random, torch.get_rng_state())
            assert graph.get_node("enc").is_frozen is freeze
            after = graph.get_state()["optimizer"]["moments"]
            for name, moments in state["optimizer"]["moments"].items():
                for key, value in moments.items():
                    np.testing.assert_array_equal(value, after[name][key])

    def test_runs_in_evaluation_mode(self):
        x, y = arrays(n=40)
        enc, head = encoder(), mlp(d=5)
        graph = chain(x, y, enc, head)
        results = experiment().run_phase(eval_phase(graph))
        with torch.no_grad():
            want = twin(head)(twin(enc).eval()(torch.tensor(x)))
        torch.testing.assert_close(results.stacked_tensors("net", "outputs"), want)
        assert not results.stacked_tensors("net", "outputs").requires_grad

    def test_training_restores_the_flags_it_found(self):
        x, y = arrays(n=40)
        enc = encoder()
        enc[1].eval()
        graph = chain(x, y, enc)
        before = flags(enc)
        train(graph)
        assert flags(enc) == before

    def test_a_failing_phase_restores_flags(self):
        x, y = arrays(n=40)
        x[20] = np.nan
        enc = encoder().eval()
        graph = chain(x, y, enc)
        with pytest.warns(AuditWarning), pytest.raises(mm.errors.NonFiniteLossError):
            train(graph)
        assert not any(flags(enc)[0])
