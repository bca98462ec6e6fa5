"""Losses by name, class, callable and factory; whatever they return means the same."""

import copy
import functools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import modularml as mm
from modularml.data.batch import BatchView
from modularml.data.execution_context import ExecutionContext
from modularml.errors import ConfigError, DataError, LossError, ShapeError, UnknownNameError
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
    twin,
)


def per_element(out, target):
    return (out - target) ** 2


def per_sample(out, target):
    return ((out - target) ** 2).mean(dim=1)


def one_number(out, target):
    return ((out - target) ** 2).mean()


def make_mse():
    return nn.MSELoss()


def applied(loss, **kwargs):
    given = loss if isinstance(loss, mm.Loss) else mm.Loss(loss)
    return mm.AppliedLoss(
        given, on="net", inputs=kwargs.pop("inputs", ["outputs", "targets"]), **kwargs
    )


WAYS = [
    "mse",
    "MSE",
    "MSELoss",
    "mean_squared_error",
    nn.MSELoss,
    per_element,
    per_sample,
    one_number,
    mm.Loss(factory=make_mse),
    mm.Loss("mse", reduction="mean"),
    mm.Loss(nn.MSELoss, loss_kwargs={"reduction": "mean"}),
]


@pytest.mark.parametrize("loss", WAYS, ids=range(len(WAYS)))
@pytest.mark.parametrize("columns", [1, 3])
def test_all_ways_mean_the_same(loss, columns):
    x, y = arrays(n=37)
    y = np.repeat(y, columns, axis=1) * np.arange(1, columns + 1, dtype=np.float32)
    mine = mlp(out=columns)
    theirs = twin(mine)
    results = train(graph_of(featureset(x, y), mine), [applied(loss)], n_epochs=2)
    means = by_hand(theirs, lambda p: torch.optim.SGD(p, lr=0.05), x, y)
    assert_equal_weights(mine, theirs, atol=1e-5)
    logged = results.metrics().where(name="train_loss", batch=None).values()
    np.testing.assert_allclose(logged, means, rtol=1e-5)


@pytest.mark.parametrize("loss", ["mse", per_element, per_sample, one_number, "l1", "huber"])
@pytest.mark.parametrize("batch_size", [1, 7, 16, 37, None])
def test_evaluation_does_not_depend_on_batch_size(loss, batch_size):
    x, y = arrays(n=37)
    graph = graph_of(featureset(x, y), mlp())
    results = experiment().run_phase(eval_phase(graph, [applied(loss)], batch_size=batch_size))
    whole = experiment("other").run_phase(eval_phase(graph, [applied(loss)], label="whole"))
    found = next(iter(results.aggregated_losses("net").values()))
    want = next(iter(whole.aggregated_losses("net").values()))
    assert found == pytest.approx(want, rel=1e-5)
    assert len(results.batch_indices) == -(-37 // (batch_size or 37))


def test_epoch_loss_counts_each_sample_once():
    x, y = arrays(n=10)
    graph = graph_of(featureset(x, y), mlp(), "sgd", lr=0.0)
    results = train(graph, batch_size=8)
    with torch.no_grad():
        each = (graph.get_node("net").model.inner(torch.tensor(x)) - torch.tensor(y)) ** 2
    epoch = results.metrics().at(name="train_loss", batch=None)
    assert epoch == pytest.approx(each.mean().item(), rel=1e-5)
    batches = results.metrics().where(name="train_loss", batch=[0, 1]).values()
    np.testing.assert_allclose(batches, [each[:8].mean().item(), each[8:].mean().item()], rtol=1e-5)


def test_weights_of_several_losses():
    x, y = arrays(n=40)
    mine = mlp()
    theirs = twin(mine)
    losses = [applied("mse", weight=0.3), applied("l1", weight=2.0)]
    results = train(graph_of(featureset(x, y), mine), losses, n_epochs=2)
    means = by_hand(
        theirs,
        lambda p: torch.optim.SGD(p, lr=0.05),
        x,
        y,
        loss=lambda o, t: 0.3 * F.mse_loss(o, t) + 2.0 * F.l1_loss(o, t),
    )
    assert_equal_weights(mine, theirs, atol=1e-5)
    logged = results.metrics().where(name="train_loss", batch=None).values()
    np.testing.assert_allclose(logged, means, rtol=1e-5)
    labels = {key[2] for key in results.losses("net").keys()}  # noqa: SIM118
    assert labels == {"mse_net", "l1_net"}


def test_a_weight_changed_between_phases_counts():
    x, y = arrays(n=20)
    graph = graph_of(featureset(x, y), mlp(), "sgd", lr=0.0)
    loss, exp = mse(), experiment()
    phase = eval_phase(graph, [loss])
    before = exp.run_phase(phase).aggregated_losses("net")["mse_net"]
    loss.weight = 3.0
    after = exp.run_phase(phase).aggregated_losses("net")["mse_net"]
    assert after == pytest.approx(3 * before, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "hand"),
    [
        ("l1", nn.L1Loss()),
        ("mae", nn.L1Loss()),
        ("mean_absolute_error", nn.L1Loss()),
        ("huber", nn.HuberLoss()),
        ("SmoothL1", nn.SmoothL1Loss()),
        ("smooth_l1_loss", nn.SmoothL1Loss()),
    ],
)
def test_names_and_aliases(name, hand):
    x, y = arrays(n=20)
    graph = graph_of(featureset(x, y), mlp())
    found = experiment().run_phase(eval_phase(graph, [applied(name, label="it")]))
    with torch.no_grad():
        want = hand(graph.get_node("net").model.inner(torch.tensor(x)), torch.tensor(y)).item()
    assert found.aggregated_losses("net")["it"] == pytest.approx(want, rel=1e-5)


def test_arguments_of_the_class():
    x, y = arrays(n=20)
    graph = graph_of(featureset(x, 10 * y), mlp())
    loss = mm.Loss("huber", loss_kwargs={"delta": 0.2})
    found = experiment().run_phase(eval_phase(graph, [applied(loss)]))
    with torch.no_grad():
        out = graph.get_node("net").model.inner(torch.tensor(x))
    want = nn.HuberLoss(delta=0.2)(out, torch.tensor(10 * y)).item()
    assert found.aggregated_losses("net")["huber_net"] == pytest.approx(want, rel=1e-5)


def power(out, target, *, exponent=2):
    return (out - target).abs() ** exponent


def test_arguments_of_a_callable():
    x, y = arrays(n=20)
    graph = graph_of(featureset(x, y), mlp())
    loss = mm.Loss(power, loss_kwargs={"exponent": 3})
    found = experiment().run_phase(eval_phase(graph, [applied(loss)]))
    with torch.no_grad():
        out = graph.get_node("net").model.inner(torch.tensor(x))
    want = ((out - torch.tensor(y)).abs() ** 3).mean().item()
    assert found.aggregated_losses("net")["power_net"] == pytest.approx(want, rel=1e-5)


class TestInputs:
    def value(self, graph, loss):
        exp = experiment()
        found = exp.run_phase(eval_phase(graph, [loss])).aggregated_losses(loss.on)
        return next(iter(found.values()))

    def outputs(self, graph, x, node="net"):
        with torch.no_grad():
            return graph.get_node(node).model.inner(torch.tensor(x))

    def test_by_keyword(self):
        x, y = arrays(n=20)
        graph = graph_of(featureset(x, y), mlp())
        loss = applied("mse", inputs={"target": "targets", "input": "outputs"})
        want = F.mse_loss(self.outputs(graph, x), torch.tensor(y)).item()
        assert self.value(graph, loss) == pytest.approx(want, rel=1e-5)

    def test_features_make_an_autoencoder(self):
        x, y = arrays(n=40)
        mine = mlp(out=6)
        theirs = twin(mine)
        loss = applied("mse", inputs=["outputs", "features"])
        node = mm.ModelNode("net", mine, featureset(x, y))
        graph = mm.ModelGraph([node], mm.Optimizer("sgd", opt_kwargs={"lr": 0.05}))
        train(graph, [loss], n_epochs=2)
        by_hand(theirs, lambda p: torch.optim.SGD(p, lr=0.05), x, x)
        assert_equal_weights(mine, theirs, atol=1e-5)

    def test_outputs_of_another_node(self):
        x, y = arrays(n=20)
        fs = featureset(x, y)
        first, second = mlp(out=2, seed=0), mlp(out=2, seed=1)
        nodes = [mm.ModelNode("a", first, fs), mm.ModelNode("b", second, fs)]
        graph = mm.ModelGraph(nodes, mm.Optimizer("sgd", opt_kwargs={"lr": 0.1}))
        for other in ("b.outputs", nodes[1], nodes[1].reference(), "b.outputs.default"):
            loss = mm.AppliedLoss(mm.Loss("mse"), on="a", inputs=["outputs", other])
            want = F.mse_loss(self.outputs(graph, x, "a"), self.outputs(graph, x, "b")).item()
            assert self.value(graph, loss) == pytest.approx(want, rel=1e-5)

    @pytest.mark.parametrize(
        "column", ["x3", "x3.raw", "features.x3.raw", "tags.t.raw", "t", "reference"]
    )
    def test_columns(self, column):
        x, y = arrays(n=20)
        fs = featureset(x, y, t=x[:, 3].copy())
        graph = graph_of(fs, mlp())
        item = fs.column_reference("x3") if column == "reference" else column
        want = F.mse_loss(self.outputs(graph, x), torch.tensor(x[:, 3:4])).item()
        got = self.value(graph, applied("mse", inputs=["outputs", item]))
        assert got == pytest.approx(want, rel=1e-5)

    def test_a_column_means_its_newest_representation(self):
        x, y = arrays(n=20)
        fs = featureset(x, 5 * y + 3)
        fs.fit_transform("StandardScaler", domain="targets")
        graph = graph_of(fs, mlp())
        got = self.value(graph, applied("mse", inputs=["outputs", "y"]))
        assert got == self.value(graph, applied("mse"))
        raw = self.value(graph, applied("mse", inputs=["outputs", "y.raw"]))
        want = F.mse_loss(self.outputs(graph, x), torch.tensor(5 * y + 3)).item()
        assert raw == pytest.approx(want, rel=1e-5)

    def test_a_reference_names_its_featureset(self):
        x, y = arrays(n=20)
        one, two = featureset(x, y, "one"), featureset(x, 7 * y, "two")
        nodes = [mm.ModelNode("a", mlp(), one), mm.ModelNode("b", mlp(), two)]
        merged = mm.ConcatNode("both", nodes, concat_axis_targets="first", align_on="position")
        net = mm.ModelNode("net", mlp(d=2), merged)
        graph = mm.ModelGraph([*nodes, merged, net])
        item = two.column_reference("y")
        loss = applied("mse", inputs=["outputs", item])
        result = experiment().run_phase(eval_phase(graph, [loss]))
        out = result.stacked_tensors("net", "outputs", fmt="np")
        want = float(((out - 7 * y) ** 2).mean())
        assert result.aggregated_losses("net")["mse_net"] == pytest.approx(want, rel=1e-5)

    def test_what_a_node_has_not(self):
        x, y = arrays(n=20)
        fs = featureset(x, y)
        graph = graph_of(fs.reference(features="*", targets="y"), mlp())
        exp = experiment()
        with pytest.raises(LossError, match="tags"):
            exp.run_phase(eval_phase(graph, [applied("mse", inputs=["outputs", "tags"])]))
        with pytest.raises(UnknownNameError, match=r"x3|known"):
            exp.run_phase(eval_phase(graph, [applied("mse", inputs=["outputs", "x33"])]))
        with pytest.raises(UnknownNameError, match="net"):
            exp.run_phase(eval_phase(graph, [applied("mse", inputs=["outputs", "nett.outputs"])]))
        with pytest.raises(LossError, match="role"):
            exp.run_phase(eval_phase(graph, [applied("mse", inputs=["outputs.anchor", "targets"])]))
        nowhere = mm.AppliedLoss(mm.Loss("mse"), on="nett", inputs=["outputs", "targets"])
        with pytest.raises(UnknownNameError, match="net"):
            exp.run_phase(eval_phase(graph, [nowhere]))


class TestClasses:
    """Class numbers against logits."""

    def data(self, dtype=np.int64):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(30, 6)).astype(np.float32)
        return x, rng.integers(0, 3, size=30).astype(dtype)

    @pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.int8, np.bool_])
    @pytest.mark.parametrize("loss", ["crossentropy", "cross_entropy", "CrossEntropyLoss", "ce"])
    def test_three_logits(self, dtype, loss):
        x, y = self.data(dtype)
        mine = mlp(out=3)
        theirs = twin(mine)
        train(graph_of(featureset(x, y), mine), [applied(loss)], n_epochs=2)
        hand = nn.CrossEntropyLoss()
        by_hand(theirs, lambda p: torch.optim.SGD(p, lr=0.05), x, y.astype(np.int64), loss=hand)
        assert_equal_weights(mine, theirs, atol=1e-5)

    def test_a_bare_linear_keeps_its_outputs(self):
        x, y = self.data()
        graph = graph_of(featureset(x, y), nn.Linear(6, 3))
        graph.build()
        assert graph.get_node("net").output_shape == (3,)
        train(graph, [applied("crossentropy")])

    def test_an_explicit_output_shape_is_kept(self):
        from modularml.models.torch import SequentialMLP

        x, y = self.data()
        graph = graph_of(featureset(x, y), SequentialMLP(output_shape=(3,)))
        graph.build()
        assert graph.get_node("net").output_shape == (3,)
        train(graph, [applied("crossentropy")])

    def test_functional_form(self):
        x, y = self.data()
        graph = graph_of(featureset(x, y), mlp(out=3))
        found = experiment().run_phase(eval_phase(graph, [applied(F.cross_entropy, label="it")]))
        with torch.no_grad():
            out = graph.get_node("net").model.inner(torch.tensor(x))
        want = F.cross_entropy(out, torch.tensor(y)).item()
        assert found.aggregated_losses("net")["it"] == pytest.approx(want, rel=1e-5)

    def test_by_keyword_and_with_class_weights(self):
        x, y = self.data()
        graph = graph_of(featureset(x, y), mlp(out=3))
        loss = applied("crossentropy", inputs={"input": "outputs", "target": "targets"}, label="it")
        found = experiment().run_phase(eval_phase(graph, [loss], batch_size=7))
        with torch.no_grad():
            out = graph.get_node("net").model.inner(torch.tensor(x))
        want = F.cross_entropy(out, torch.tensor(y)).item()
        assert found.aggregated_losses("net")["it"] == pytest.approx(want, rel=1e-5)

    def test_probabilities_as_targets(self):
        x, _ = self.data()
        p = np.random.default_rng(1).dirichlet(np.ones(3), size=30).astype(np.float32)
        graph = graph_of(featureset(x, p), mlp(out=3))
        found = experiment().run_phase(eval_phase(graph, [applied("ce")], batch_size=8))
        with torch.no_grad():
            out = graph.get_node("net").model.inner(torch.tensor(x))
        want = F.cross_entropy(out, torch.tensor(p)).item()
        assert found.aggregated_losses("net")["ce_net"] == pytest.approx(want, rel=1e-5)

    def test_binary(self):
        x, y = self.data()
        graph = graph_of(featureset(x, (y > 0).astype(np.int64)), mlp())
        found = experiment().run_phase(eval_phase(graph, [applied("bce_with_logits", label="it")]))
        with torch.no_grad():
            out = graph.get_node("net").model.inner(torch.tensor(x))
        target = torch.tensor(y > 0).float()[:, None]
        want = F.binary_cross_entropy_with_logits(out, target).item()
        assert found.aggregated_losses("net")["it"] == pytest.approx(want, rel=1e-5)

    def test_one_output_for_two_classes_is_refused(self):
        x, y = self.data()
        with pytest.raises(ShapeError, match="one output per class; for a single output use 'bce'"):
            train(graph_of(featureset(x, (y > 0).astype(np.float32)), mlp()), [applied("ce")])

    def test_float_classes_are_refused_with_both_shapes(self):
        x, y = self.data()
        graph = graph_of(featureset(x, y.astype(np.float32)), mlp(out=3))
        with pytest.raises(ShapeError, match=r"integer.*\(3,\).*\(1,\)"):
            experiment().run_phase(eval_phase(graph, [applied("crossentropy")]))

    def test_multi_margin_and_nll(self):
        x, y = self.data()
        net = nn.Sequential(nn.Linear(6, 3), nn.LogSoftmax(dim=1))
        graph = graph_of(featureset(x, y), net)
        losses = [applied("nll"), applied("multi_margin")]
        found = experiment().run_phase(eval_phase(graph, losses, batch_size=7))
        with torch.no_grad():
            out, target = net(torch.tensor(x)), torch.tensor(y)
        got = found.aggregated_losses("net")
        assert got["nll_net"] == pytest.approx(F.nll_loss(out, target).item(), rel=1e-5)
        want = F.multi_margin_loss(out, target).item()
        assert got["multi_margin_net"] == pytest.approx(want, rel=1e-5)


class TestShapes:
    def test_axes_of_length_one_are_aligned(self):
        x, y = arrays(n=20)

        class Flat(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = nn.Linear(6, 1)

            def forward(self, x):
                return self.inner(x)[:, 0]

        graph = graph_of(featureset(x, y), Flat())
        assert train(graph).n_epochs == 1
        assert graph.get_node("net").output_shape == ()
        found = experiment("e").run_phase(eval_phase(graph, batch_size=7))
        out = found.stacked_tensors("net", "outputs", fmt="np")
        want = float(((out - y[:, 0]) ** 2).mean())
        assert found.aggregated_losses("net")["mse_net"] == pytest.approx(want, rel=1e-5)

    def test_vector_targets(self):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(20, 4)).astype(np.float32)
        y = rng.normal(size=(20, 5)).astype(np.float32)
        fs = mm.FeatureSet.from_dict("data", {"x": x, "y": y}, ["x"], ["y"])
        torch.manual_seed(0)
        mine = nn.Sequential(nn.Flatten(), nn.Linear(4, 5))
        theirs = twin(mine)
        train(graph_of(fs, mine), n_epochs=2)
        by_hand(theirs, lambda p: torch.optim.SGD(p, lr=0.05), x, y)
        assert_equal_weights(mine, theirs, atol=1e-5)

    def test_a_model_without_output_shape_gets_its_targets(self):
        from modularml.models.torch import SequentialMLP

        rng = np.random.default_rng(0)
        x = rng.normal(size=(20, 4)).astype(np.float32)
        y = rng.normal(size=(20, 5)).astype(np.float32)
        fs = mm.FeatureSet.from_dict("data", {"x": x, "y": y}, ["x"], ["y"])
        graph = graph_of(fs, SequentialMLP())
        assert train(graph).n_epochs == 1
        assert graph.get_node("net").output_shape == (1, 5)

    def test_what_does_not_fit_is_refused_with_both_shapes(self):
        x, y = arrays(n=20)
        graph = graph_of(featureset(x, y), mlp(out=3))
        with pytest.raises(ShapeError, match=r"'net'.*\(3,\).*\(1,\)"):
            experiment().run_phase(eval_phase(graph))

    def test_text_targets_are_refused(self):
        x, _ = arrays(n=4)
        fs = featureset(x, np.array(["a", "b", "a", "b"]))
        graph = graph_of(fs, mlp(out=2))
        with pytest.raises(ValueError, match="numbers"):
            experiment().run_phase(eval_phase(graph, [applied("crossentropy")]))


class TestBadInput:
    def test_names(self):
        with pytest.raises(UnknownNameError, match="mse"):
            mm.Loss("msee", backend="torch")
        x, y = arrays(n=10)
        graph = graph_of(featureset(x, y), mlp())
        with pytest.raises(UnknownNameError, match="crossentropy"):
            experiment().run_phase(eval_phase(graph, [applied("crossentrpy")]))

    def test_construction(self):
        with pytest.raises(ConfigError, match="exactly one"):
            mm.Loss()
        with pytest.raises(ConfigError, match="exactly one"):
            mm.Loss("mse", factory=make_mse)
        with pytest.raises(ConfigError, match="name, a class or a callable"):
            mm.Loss(3)
        with pytest.raises(ConfigError, match="Loss"):
            mm.AppliedLoss("mse", on="net", inputs=["outputs"])
        with pytest.raises(TypeError, match="node or its label"):
            mm.AppliedLoss(mm.Loss("mse"), on=3, inputs=["outputs"])
        with pytest.raises(TypeError, match="list or a dict"):
            mm.AppliedLoss(mm.Loss("mse"), on="net", inputs="outputs")
        with pytest.raises(ConfigError, match="empty"):
            mm.AppliedLoss(mm.Loss("mse"), on="net", inputs=[])
        for weight in (float("nan"), "2", None):
            with pytest.raises(ConfigError, match="weight must be a"):
                mm.AppliedLoss(mm.Loss("mse"), on="net", inputs=["outputs"], weight=weight)
        with pytest.raises(ConfigError, match="outputs"):
            mm.AppliedLoss(mm.Loss("mse"), on="net", inputs=["a.b.c.d"])
        with pytest.raises(LossError, match="cannot be built"):
            mm.Loss("mse", loss_kwargs={"nonsense": 1}, backend="torch").build()

    def test_inputs_that_the_loss_does_not_take(self):
        x, y = arrays(n=10)
        graph = graph_of(featureset(x, y), mlp())
        for inputs, match in (
            (["outputs"], r"missing.*'target'.*takes \['input', 'target'\]"),
            (["outputs", "targets", "targets"], "too many"),
            ({"input": "outputs", "goal": "targets"}, "goal"),
        ):
            with pytest.raises(LossError, match=match):
                train(graph, [applied("mse", inputs=inputs)])

    def test_a_loss_on_targets_alone(self):
        x, y = arrays(n=10)
        graph = graph_of(featureset(x, y), mlp())
        with pytest.raises(LossError, match="trainable node"):
            train(graph, [applied("mse", inputs=["targets", "targets"])])

    @pytest.mark.parametrize("label", [7, -1])
    def test_a_label_that_no_output_stands_for(self, label):
        x, _ = arrays(n=20)
        y = np.array([0, 1] * 9 + [0, label])
        mine = mlp(out=3)
        before = copy.deepcopy(mine.state_dict())
        with pytest.raises(DataError, match=rf"0 to 2.*'net'.*holds {label} in row 19"):
            train(graph_of(featureset(x, y), mine), [applied("crossentropy")])
        assert all(torch.equal(before[k], v) for k, v in mine.state_dict().items())

    def test_what_is_no_probability(self):
        x, y = arrays(n=20)
        shares = np.abs(y) / np.abs(y).max()
        three = np.repeat(shares, 3, 1) * [1, 2, 3]
        for loss, module, target, error, said in (
            ("bce", mlp(), shares, LossError, "sigmoid, or use Loss.'bce_with_logits'"),
            ("bce_with_logits", mlp(), y, DataError, "from 0 to 1; column 'targets.y.raw'"),
            ("bce_with_logits", mlp(), np.sign(y), DataError, "holds -1.0 in row"),
            ("nll", mlp(out=3), three, ShapeError, "of an integer dtype"),
        ):
            with mm.ExperimentContext().activate(), pytest.raises(error, match=said):
                train(graph_of(featureset(x, target.astype("f4")), module), [applied(loss)])
        assert train(graph_of(featureset(x, shares), mlp()), [applied("bce_with_logits")])

    @pytest.mark.parametrize("batch_size", [1, 7, None])
    @pytest.mark.parametrize("kwargs", [None, {"weight": torch.tensor([1.0, 5.0, 10.0])}])
    def test_ignored_labels_and_class_weights_do_not_depend_on_batches(self, batch_size, kwargs):
        x, _ = arrays(n=20)
        y = np.where(np.arange(20) % 4 == 0, -100, np.arange(20) % 3)
        mine = mlp(out=3)
        graph = graph_of(featureset(x, y), mine)
        loss = mm.AppliedLoss(
            mm.Loss("crossentropy", loss_kwargs=kwargs), on="net", inputs=["outputs", "targets"]
        )
        results = experiment().run_phase(eval_phase(graph, [loss], batch_size=batch_size))
        with torch.no_grad():
            each = nn.CrossEntropyLoss(reduction="none", **(kwargs or {}))(
                mine(torch.from_numpy(x)), torch.from_numpy(y)
            )
        found = results.aggregated_losses("net")[loss.label]
        assert found == pytest.approx(each.mean().item(), rel=1e-5)

    def test_errors_of_the_framework_tell_their_place(self):
        def picky(output, target):
            if target.min() < 0:
                raise IndexError("below zero")
            return (output - target).square()

        x, _ = arrays(n=20)
        y = np.array([1.0] * 19 + [-1.0], dtype=np.float32)
        with pytest.raises(IndexError, match="below zero") as caught:
            train(graph_of(featureset(x, y), mlp()), [applied(picky)])
        assert caught.value.__notes__ == ["(phase 'train', epoch 0, batch 1)"]

    def test_build(self):
        loss = mm.Loss("mse", backend="torch")
        assert not loss.is_built
        with pytest.raises(LossError, match="build"):
            _ = loss.allowed_keywords
        loss.build()
        assert loss.is_built
        assert loss.allowed_keywords == ["input", "target"]
        with pytest.raises(LossError, match="force_rebuild"):
            loss.build()
        loss.build(force_rebuild=True)
        assert loss(torch.ones(2), torch.zeros(2)).shape == (2,)

    def test_a_loss_must_return_a_tensor(self):
        x, y = arrays(n=10)
        graph = graph_of(featureset(x, y), mlp())
        with pytest.raises(LossError, match="tensor"):
            train(graph, [applied(lambda o, t: 3.0)])

    def test_two_losses_of_one_label(self):
        x, y = arrays(n=10)
        graph = graph_of(featureset(x, y), mlp())
        with pytest.raises(ConfigError, match="label"):
            eval_phase(graph, [mse(), mse()])


def test_config_round_trip():
    for loss in ("mse", nn.L1Loss, per_sample):
        made = mm.Loss(loss, loss_kwargs=None)
        again = mm.Loss.from_config(made.get_config())
        assert again == made
        assert again.name == made.name
    one = mm.AppliedLoss(
        mm.Loss("huber", loss_kwargs={"delta": 0.5}),
        on="net",
        inputs={"input": "outputs", "target": "targets"},
        weight=0.5,
        label="it",
    )
    again = mm.AppliedLoss.from_config(one.get_config())
    assert again == one
    assert (again.weight, again.label, again.keywords) == (0.5, "it", ["input", "target"])


def test_compute_on_a_step_by_hand():
    x, y = arrays(n=10)
    graph = graph_of(featureset(x, y), mlp())
    loss = mse(weight=2.0)
    phase = eval_phase(graph, [loss])
    for ctx in phase.iter_execution():
        graph.eval_step(ctx, [loss])
        assert loss.compute(ctx).item() == pytest.approx(ctx.losses[0].value, rel=1e-6)


def test_two_inputs_of_one_sampler_in_an_unequal_loss_do_not_mix():
    x, y = arrays(n=30)
    one, two = featureset(x[:20], y[:20], "one"), featureset(x[:9], y[:9], "two")
    nodes = [mm.ModelNode("a", mlp(seed=1), one), mm.ModelNode("b", mlp(seed=2), two)]
    graph = mm.ModelGraph(nodes, mm.Optimizer("sgd", opt_kwargs={"lr": 0.0}))
    losses = [mse("a"), mse("b")]
    phase = mm.TrainPhase(
        "t",
        input_sources=bindings(graph, mm.SimpleSampler(batch_size=16)),
        losses=losses,
        batch_schedule="zip_cycle",
    )
    results = experiment().run_phase(phase, **QUIET)
    each = []
    for node, rows in (("a", [*range(20)]), ("b", [*range(9), *range(9)])):
        with torch.no_grad():
            out = graph.get_node(node).model.inner(torch.tensor(x[rows]))
        each.append(F.mse_loss(out, torch.tensor(y[rows])).item())
    assert results.metrics().at(name="train_loss", batch=None) == pytest.approx(sum(each), rel=1e-5)


class TestComputeByHand:
    """A loss of a step that has run reads what its inputs name."""

    @pytest.fixture
    def ctx(self):
        rng = np.random.default_rng(0)
        columns = {k: rng.normal(size=12).astype("f4") for k in ("x", "y", "z", "w")}
        self.columns = columns | {"w": np.abs(columns["w"])}
        fs = mm.FeatureSet.from_dict("data", self.columns, "x", ["y", "z"], "w")
        graph = mm.ModelGraph([mm.ModelNode("net", nn.Linear(1, 1), fs)])
        node = graph.get_node("net")
        rows = {"default": np.array([7, 2, 9])}
        view = BatchView(fs.to_view(), rows)
        ctx = ExecutionContext("hand", inputs={(node.node_id, node.feature_refs[0]): view})
        graph.eval_step(ctx, [])
        with torch.no_grad():
            x = torch.tensor(self.columns["x"][rows["default"], None])
            self.out = node.model.inner(x).numpy()[:, 0]
        self.rows = rows["default"]
        return ctx

    @pytest.mark.parametrize(
        ("item", "key"),
        [("z", "z"), ("targets.z", "z"), ("targets.y.raw", "y"), ("data.targets.z.raw", "z"),
         ("w", "w"), ("tags.w", "w"), ("features.x", "x")],
    )  # fmt: skip
    def test_reads_the_column_that_it_names(self, ctx, item, key):
        loss = mm.AppliedLoss(mm.Loss("mse"), "net", ["outputs", item], weight=2.0)
        by_hand = 2 * np.mean((self.out - self.columns[key][self.rows]) ** 2)
        assert loss.compute(ctx).item() == pytest.approx(by_hand, rel=1e-5)

    def test_refuses_columns_that_are_not_there(self, ctx):
        for item in ("rul", "targets.rul", "other.targets.z.raw"):
            with pytest.raises(UnknownNameError, match=r"unknown input .* of loss 'mse_net'"):
                mm.AppliedLoss(mm.Loss("mse"), "net", ["outputs", item]).compute(ctx)

    def test_refuses_to_leave_out_weights(self, ctx):
        loss = mm.AppliedLoss(mm.Loss("mse"), "net", ["outputs", "y"], sample_weight="w")
        with pytest.raises(LossError, match="without this loss; pass it to graph"):
            loss.compute(ctx)


@pytest.mark.parametrize("target", ["i8", "?", "f4"])
@pytest.mark.parametrize(
    "loss",
    [
        "bce_with_logits",
        nn.BCEWithLogitsLoss,
        nn.BCEWithLogitsLoss(),
        F.binary_cross_entropy_with_logits,
        functools.partial(F.binary_cross_entropy_with_logits),
    ],
)
def test_objects_and_functions_of_torch_get_targets_as_their_names_do(loss, target):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 2)).astype("f4"), (np.arange(12) % 2).astype(target)
    fs = mm.FeatureSet.from_dict("fs", {"x": x, "y": y}, "x", "y")
    module = nn.Sequential(nn.Flatten(), nn.Linear(2, 1))
    node = mm.ModelNode("net", module, fs)
    mm.ModelGraph([node], mm.Optimizer("sgd"))
    applied = mm.AppliedLoss(mm.Loss(loss), "net", ["outputs", "targets"], label="bce")
    binding = mm.InputBinding.for_evaluation(node=node, upstream=fs)
    phase = mm.EvalPhase("e", input_sources=[binding], losses=[applied])
    results = mm.Experiment.from_active_context("e").run_phase(phase)
    out, truth = module(torch.tensor(x))[:, 0], torch.tensor(y.astype("f4"))
    wanted = F.binary_cross_entropy_with_logits(out, truth).item()
    assert results.aggregated_losses("net")["bce"] == pytest.approx(wanted, rel=1e-5)
