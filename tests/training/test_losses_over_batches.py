"""Losses of a batch as a whole: Cox, ranking, contrastive; and shapes that must not broadcast."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import modularml as mm
from modularml.errors import ConfigError, LossError, NonFiniteLossError, ShapeError
from tests import worlds
from tests.worlds import QUIET, arrays, eval_phase, experiment, featureset, graph_of, mlp, slices

N = 60


def survival(n=N, events=0.6, label="patients"):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 6)).astype(np.float32)
    return mm.FeatureSet.from_dict(
        label,
        {
            "x": x,
            "time": rng.exponential(np.exp(-x[:, 0])).astype(np.float32),
            "event": (rng.random(n) < events).astype(np.float32),
        },
        ["x"],
        ["time", "event"],
    )


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 1))


def cox(out, time, event):
    risk, time, event = out[:, 0], time.reshape(-1), event.reshape(-1)
    at_risk = torch.where(time[None] >= time[:, None], risk[None], torch.tensor(-1e30))
    return ((at_risk.logsumexp(1) - risk) * event).sum() / event.sum()


def ranking(out, time, event):
    pairs = (time.reshape(-1, 1) < time.reshape(1, -1)) & (event.reshape(-1, 1) == 1)
    return F.softplus(out[:, 0][None] - out[:, 0][:, None])[pairs]


def applied(fn, inputs=("outputs", "time", "event"), **kwargs):
    label = kwargs.pop("label", None)
    return mm.AppliedLoss(mm.Loss(fn, **kwargs), on="net", inputs=list(inputs), label=label)


def columns(fs):
    return [torch.tensor(fs.collection.numpy(f"targets.{k}.raw")) for k in ("time", "event")]


def train_phase(graph, losses, batch_size=16, **kwargs):
    return worlds.train_phase(graph, losses, batch_size=batch_size, **kwargs)


class TestDeclared:
    @pytest.mark.parametrize("fn", [cox, ranking])
    @pytest.mark.parametrize("batch_size", [None, 7, 16, 1])
    def test_evaluated_on_the_whole_split_in_one_go(self, fn, batch_size):
        fs, module = survival(), net()
        graph = graph_of(fs, module)
        graph.build()
        seen = []
        module[1].register_forward_hook(lambda layer, given, out: seen.append(len(out)))
        phase = eval_phase(graph, [applied(fn, over="batch")], batch_size=batch_size)
        results = experiment().run_phase(phase)
        x = torch.tensor(fs.collection.numpy("features.x.raw"))
        wanted = fn(module(x), *columns(fs)).mean().item()
        assert results.aggregated_losses("net")[f"{fn.__name__}_net"] == pytest.approx(wanted)
        assert max(seen[:-1]) <= (batch_size or N)
        assert len(results.stacked_tensors("net", "outputs")) == N

    def test_an_epoch_weighs_batches_by_what_they_average_over(self):
        fs, module = survival(), net()
        graph = graph_of(fs, module, lr=0.0)
        for how, weigh in (("event", lambda e: e.sum().item()), (None, lambda e: 1.0)):
            loss = applied(cox, over="batch", weight_by=how)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                results = experiment().run_phase(train_phase(graph, [loss]), **QUIET)
            x = torch.tensor(fs.collection.numpy("features.x.raw"))
            time, event = columns(fs)
            values = [cox(module(x[p]), time[p], event[p]).item() for p in slices(N, 16)]
            by = [weigh(event[p]) for p in slices(N, 16)]
            wanted = np.average(values, weights=by)
            assert results.to_pandas()["train_loss"][0] == pytest.approx(wanted, rel=1e-5)

    def test_trains_like_a_loop_by_hand(self):
        fs, module = survival(), net()
        hand = net()
        graph = graph_of(fs, module, "adam", lr=0.01)
        loss = applied(cox, over="batch", weight_by="event")
        experiment().run_phase(train_phase(graph, [loss], n_epochs=3), **QUIET)
        x = torch.tensor(fs.collection.numpy("features.x.raw"))
        time, event = columns(fs)
        optimizer = torch.optim.Adam(hand.parameters(), lr=0.01)
        for _ in range(3):
            for part in slices(N, 16):
                optimizer.zero_grad()
                cox(hand(x[part]), time[part], event[part]).backward()
                optimizer.step()
        torch.testing.assert_close(hand[1].weight, module[1].weight, atol=1e-7, rtol=0)

    def test_an_evaluation_in_training_sees_all_rows(self):
        fs, module = survival(), net()
        graph = graph_of(fs, module, lr=0.0)
        loss = applied(cox, over="batch")
        fs.add_split(fs.take(range(N), label="all"))
        watch = mm.Evaluation.from_split(
            "val", split="all", batch_size=7, metrics=[mm.EvalLossMetric(loss=loss)]
        )
        phase = train_phase(graph, [loss], callbacks=[watch])
        found = experiment().run_phase(phase, **QUIET).to_pandas()
        x = torch.tensor(fs.collection.numpy("features.x.raw"))
        assert found["val_loss"][0] == pytest.approx(cox(module(x), *columns(fs)).item(), rel=1e-5)

    def test_refused_where_batches_are_put_together(self):
        graph = graph_of(survival(), net())
        with pytest.raises(ConfigError, match=r"over the batch.*accumulate=1"):
            train_phase(graph, [applied(cox, over="batch")], accumulate=2)

    def test_sample_weights_are_refused(self):
        fs = survival()
        graph = graph_of(fs, net())
        loss = mm.AppliedLoss(
            mm.Loss(cox, over="batch"),
            on="net",
            inputs=["outputs", "time", "event"],
            sample_weight="event",
        )
        with pytest.raises(LossError, match="add the weights to its inputs"):
            experiment().run_phase(eval_phase(graph, [loss]))

    def test_arguments(self):
        with pytest.raises(ConfigError, match="over must be"):
            mm.Loss(cox, over="epoch")
        with pytest.raises(ConfigError, match="also pass over='batch'"):
            mm.Loss(cox, weight_by="event")
        loss = mm.Loss("mse", over="batch", reduction="sum", weight_by="event", backend="torch")
        again = mm.Loss.from_config(loss.get_config())
        assert (again.over, again.weight_by, again) == ("batch", "event", loss)

    def test_survives_a_file(self, tmp_path):
        loss = mm.Loss("mse", over="batch", reduction="sum", weight_by="event", backend="torch")
        again = mm.Loss.load(loss.save(tmp_path / "loss"))
        assert (again.over, again.weight_by) == ("batch", "event")

    def test_in_tensorflow(self):
        keras = pytest.importorskip("keras")
        ops, fs = keras.ops, survival()
        model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(1)])
        graph = graph_of(fs, model)

        def spread(out, time, event):
            return ops.max(out * time) - ops.min(out * event)

        loss = applied(spread, over="batch", label="spread")
        results = experiment().run_phase(eval_phase(graph, [loss], batch_size=7))
        out = model(fs.collection.numpy("features.x.raw")[:, None]).numpy()[:, 0]
        time, event = (c.numpy() for c in columns(fs))
        wanted = (out * time).max() - (out * event).min()
        assert results.aggregated_losses("net")["spread"] == pytest.approx(wanted, rel=1e-5)


class TestNotDeclared:
    def run(self, loss, fs=None, batch_size=16, phase=train_phase):
        graph = graph_of(fs or survival(), net(), lr=0.0)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for _ in "ab":
                experiment().run_phase(phase(graph, [loss], batch_size=batch_size))
        return [str(w.message) for w in said if w.category is UserWarning]

    @pytest.mark.parametrize("phase", [train_phase, eval_phase])
    def test_one_warning_for_what_is_no_mean(self, phase):
        (said,) = self.run(applied(cox), phase=phase)
        assert "cox_net" in said
        assert "over='batch'" in said
        assert "for a batch of 16" in said

    def test_one_warning_for_a_sum(self):
        loss = applied("mse", ["outputs", "time"], reduction="sum")
        assert len(self.run(loss)) == 1

    def mean(out, time):
        return ((out - time) ** 2).mean()

    @pytest.mark.parametrize(
        "fn",
        ["mse", nn.L1Loss, nn.L1Loss(), nn.HuberLoss(reduction="none"), F.mse_loss, mean],
    )
    def test_none_for_means(self, fn):
        assert self.run(applied(fn, ["outputs", "time"], label="x")) == []

    def classes(self):
        rng = np.random.default_rng(0)
        y = np.arange(N) % 3 % 2
        x = (y[:, None] * 2.0 + rng.normal(size=(N, 6))).astype("f4")
        return mm.FeatureSet.from_dict("rows", {"x": x, "y": y.astype("i8")}, ["x"], ["y"])

    @pytest.mark.parametrize(
        "loss",
        [
            lambda: mm.Loss(nn.CrossEntropyLoss(weight=torch.tensor([1.0, 9.0]))),
            lambda: mm.Loss(nn.CrossEntropyLoss(ignore_index=1)),
            lambda: mm.Loss(F.cross_entropy, loss_kwargs={"weight": torch.tensor([1.0, 9.0])}),
        ],
        ids=["weights", "ignored", "function"],
    )
    def test_one_warning_for_means_over_weights_or_over_labels_that_count(self, loss):
        graph = graph_of(self.classes(), nn.Sequential(nn.Flatten(), nn.Linear(6, 2)), lr=0.0)
        applied = mm.AppliedLoss(loss(), on="net", inputs=["outputs", "targets"])
        with pytest.warns(UserWarning, match="is averaged over batches"):
            experiment().run_phase(eval_phase(graph, [applied], batch_size=7))

    def test_one_warning_for_ratios_of_sums_in_keras(self):
        keras = pytest.importorskip("keras")
        for loss in ("Dice", keras.losses.Tversky, keras.losses.Tversky()):
            with mm.ExperimentContext().activate():
                graph = graph_of(survival(), keras.Sequential([keras.layers.Flatten()]))
                own = mm.AppliedLoss(mm.Loss(loss), "net", ["features", "outputs"])
                with pytest.warns(UserWarning, match="is averaged over batches"):
                    experiment().run_phase(eval_phase(graph, [own], batch_size=7))

    def test_none_for_one_batch(self):
        assert self.run(applied(cox), batch_size=N) == []

    @pytest.mark.parametrize("batch_size", [N, 16])
    @pytest.mark.parametrize("phase", [train_phase, eval_phase])
    def test_a_mean_over_all_pairs_of_outputs_and_targets_is_warned_of(self, phase, batch_size):
        def broadcast(out, time):
            return ((out[:, 0] - time) ** 2).mean()

        loss = applied(broadcast, ["outputs", "time"])
        said = self.run(loss, batch_size=batch_size, phase=phase)
        assert sum("(n,) and (n, 1) broadcast to a value" in text for text in said) == 1

    @pytest.mark.parametrize(
        "fn",
        [
            lambda out, time: (out[:, 0] - time[:, 0]).abs().mean(),
            lambda out, time: -(out * time).mean(),
        ],
        ids=["absolute", "product"],
    )
    def test_none_where_pairs_are_compared_in_one_batch(self, fn):
        assert self.run(applied(fn, ["outputs", "time"]), batch_size=N) == []

    def test_a_mean_over_all_pairs_is_warned_of_in_tensorflow(self):
        keras = pytest.importorskip("keras")
        ops = keras.ops
        graph = graph_of(
            survival(), keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(1)])
        )
        loss = applied(lambda o, t: ops.mean(abs(o[:, 0] - t)), ["outputs", "time"], label="own")
        with pytest.warns(UserWarning, match="broadcast to a value"):
            experiment().run_phase(train_phase(graph, [loss], batch_size=N), **QUIET)

    def test_the_trial_draws_no_random_number(self):
        def noisy(out, time):
            return ((out + torch.randn_like(out) - time) ** 2).mean()

        found = []
        for over in (None, "sample"):
            with mm.ExperimentContext().activate():
                module = net()
                graph = graph_of(survival(), module)
                loss = applied(noisy, ["outputs", "time"], over=over)
                torch.manual_seed(3)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    experiment().run_phase(train_phase(graph, [loss]), **QUIET)
            found.append(module[1].weight)
        assert torch.equal(*found)

    def test_in_tensorflow(self):
        keras = pytest.importorskip("keras")
        ops = keras.ops
        for fn, n in ((lambda o, t: ops.max(o - t), 1), (lambda o, t: ops.mean(abs(o - t)), 0)):
            with mm.ExperimentContext().activate(), warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(1)])
                graph = graph_of(survival(), model)
                loss = applied(fn, ["outputs", "time"], label="own")
                experiment().run_phase(train_phase(graph, [loss]), **QUIET)
            assert sum("over='batch'" in str(w.message) for w in said) == n


class TestWrongLength:
    def test_values_for_pairs_are_refused(self):
        graph = graph_of(survival(), net())
        with pytest.raises(LossError, match=r"ranking_net.*over='batch'"):
            experiment().run_phase(train_phase(graph, [applied(ranking)]), **QUIET)

    def test_in_tensorflow(self):
        keras = pytest.importorskip("keras")
        import tensorflow as tf

        model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(1)])
        graph = graph_of(survival(), model)

        def some(out, event):
            return tf.boolean_mask(out[:, 0], event[:, 0] > 0)

        with pytest.raises(LossError, match="over='batch'"):
            experiment().run_phase(
                train_phase(graph, [applied(some, ["outputs", "event"])]), **QUIET
            )

    def test_a_matrix_of_pairs_is_refused(self):
        graph = graph_of(survival(), net())

        def pairs(out, time):
            return (out - time.reshape(-1)) ** 2

        with pytest.raises(LossError, match=r"\(16, 16\)"):
            experiment().run_phase(
                train_phase(graph, [applied(pairs, ["outputs", "time"])]), **QUIET
            )


class TestNothingToAverage:
    def test_an_evaluation_says_so(self):
        graph = graph_of(survival(events=0.0), net())
        with pytest.warns(UserWarning, match=r"cox_net.*NaN.*no event"):
            experiment(audit="off").run_phase(eval_phase(graph, [applied(cox, over="batch")]))

    def test_a_training_names_the_remedy(self):
        graph = graph_of(survival(events=0.1), net())
        phase = train_phase(graph, [applied(cox, over="batch")], batch_size=4)
        with pytest.raises(NonFiniteLossError, match=r"stratify_by.*drop_last"):
            experiment().run_phase(phase, **QUIET)


class TestShapes:
    """Values of one number a sample meet in one shape."""

    def worlds(self, a, b):
        x, y = arrays(n=20)
        fs = featureset(x, y)
        flat = {True: [nn.Flatten(0)], False: []}
        nodes = [
            mm.ModelNode(name, nn.Sequential(*mlp(seed=i), *flat[is_flat]), fs)
            for i, (name, is_flat) in enumerate((("net", a), ("other", b)))
        ]
        graph = mm.ModelGraph(nodes, mm.Optimizer("sgd", opt_kwargs={"lr": 0.0}))
        graph.build()
        outs = [n.model.module(torch.tensor(x)).detach().reshape(-1) for n in nodes]
        return graph, outs, torch.tensor(y).reshape(-1)

    @pytest.mark.parametrize("a", [True, False])
    @pytest.mark.parametrize("b", [True, False])
    def test_outputs_of_two_nodes(self, a, b):
        graph, (net_out, other), _ = self.worlds(a, b)

        def own(o, t):
            assert o.shape == t.shape
            return ((o - t) ** 2).mean()

        for fn in (own, "mse", F.l1_loss):
            loss = applied(fn, ["outputs", "other.outputs"], label="x")
            results = experiment().run_phase(eval_phase(graph, [loss]))
            by = {own: F.mse_loss, "mse": F.mse_loss}.get(fn, fn)
            wanted = by(net_out, other).item()
            assert results.aggregated_losses("net")["x"] == pytest.approx(wanted, rel=1e-6)

    @pytest.mark.parametrize("a", [True, False])
    def test_outputs_and_targets(self, a):
        graph, (net_out, _), y = self.worlds(a, False)
        loss = applied(lambda o, t: (o - t) ** 2, ["outputs", "y"], label="x")
        results = experiment().run_phase(eval_phase(graph, [loss]))
        assert results.aggregated_losses("net")["x"] == pytest.approx(
            F.mse_loss(net_out, y).item(), rel=1e-6
        )

    def test_weights_beside_class_numbers(self):
        rng = np.random.default_rng(0)
        x, w = rng.normal(size=(20, 6)).astype("f"), rng.random(20).astype("f")
        c = rng.integers(0, 3, 20)
        fs = mm.FeatureSet.from_dict("d", {"x": x, "c": c, "w": w}, "x", "c", "w")
        module = nn.Sequential(nn.Flatten(), nn.Linear(6, 3))
        graph = graph_of(fs, module)

        def own(out, c, w):
            return F.cross_entropy(out, c, reduction="none") * w

        results = experiment().run_phase(eval_phase(graph, [applied(own, ["outputs", "c", "w"])]))
        out = module(torch.tensor(x))
        wanted = (F.cross_entropy(out, torch.tensor(c), reduction="none") * torch.tensor(w)).mean()
        assert results.aggregated_losses("net")["own_net"] == pytest.approx(wanted.item())

    def test_outputs_of_unlike_width_are_refused(self):
        x, y = arrays(n=20)
        fs = featureset(x, y)
        a, b = mm.ModelNode("net", mlp(out=1), fs), mm.ModelNode("other", mlp(out=3), fs)
        graph = mm.ModelGraph([a, b], mm.Optimizer("sgd", opt_kwargs={"lr": 0.1}))
        phase = eval_phase(graph, [applied("mse", ["outputs", "other.outputs"])])
        with pytest.raises(ShapeError, match="equal shapes"):
            experiment().run_phase(phase)

    @pytest.mark.parametrize("function", ["subtract", "multiply", torch.maximum])
    def test_a_function_of_two_nodes(self, function):
        graph, (net_out, other), _ = self.worlds(True, False)
        nodes = [graph.get_node(n) for n in ("net", "other")]
        both = mm.FunctionNode("both", nodes, function)
        graph = mm.ModelGraph([*nodes, both], register=False)
        graph.build()
        results = graph.predict(
            {f"x{i}": arrays(n=20)[0][:, i] for i in range(6)}, node="both", unscale=False
        )
        by = {"subtract": torch.sub, "multiply": torch.mul}.get(function, function)
        np.testing.assert_allclose(results.reshape(-1), by(net_out, other), atol=1e-6)
        assert results.shape == (20, 1)
