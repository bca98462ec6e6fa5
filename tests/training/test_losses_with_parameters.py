"""Losses that bring parameters of their own, and readers that write to what they are given."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import modularml as mm
from modularml.backends import adapter_for
from modularml.callbacks import Callback
from modularml.data.batch import SampleData
from modularml.errors import BackendNotSupportedError, ConfigError, DataError, LossError
from tests.worlds import (
    QUIET,
    arrays,
    assert_equal_weights,
    eval_phase,
    experiment,
    featureset,
    graph_of,
    mlp,
    mse,
    slices,
    train_phase,
    twin,
)


class Uncertainty(nn.Module):
    def __init__(self, start=0.0):
        super().__init__()
        self.logvar = nn.Parameter(torch.tensor(start))

    def forward(self, out, target):
        return (out - target) ** 2 * torch.exp(-self.logvar) + self.logvar


WAYS = {
    "object": lambda: mm.Loss(Uncertainty()),
    "class": lambda: mm.Loss(Uncertainty, loss_kwargs={"start": 0.0}),
    "factory": lambda: mm.Loss(factory=Uncertainty, backend="torch"),
}


def by_hand(module, loss, x, y, epochs, lr=0.05):
    optimizer = torch.optim.Adam([*module.parameters(), *loss.parameters()], lr=lr)
    for _ in range(epochs):
        for part in slices(len(x), 16):
            optimizer.zero_grad()
            loss(module(x[part]), y[part]).mean().backward()
            optimizer.step()


def applied(loss):
    return mm.AppliedLoss(loss, on="net", inputs=["outputs", "targets"], label="own")


class TestParameters:
    @pytest.mark.parametrize("own", ["graph", "node"])
    @pytest.mark.parametrize("way", WAYS)
    def test_they_learn(self, way, own):
        x, y = arrays()
        module, loss, hand = mlp(), WAYS[way](), Uncertainty()
        theirs = twin(module)
        optimizer = mm.Optimizer("adam", opt_kwargs={"lr": 0.05})
        node = mm.ModelNode("net", module, featureset(x, y), optimizer if own == "node" else None)
        graph = mm.ModelGraph([node], optimizer if own == "graph" else None)
        run, phase = experiment(), train_phase(graph, [applied(loss)], n_epochs=2)
        run.run_phase(phase, **QUIET)
        run.run_phase(phase, **QUIET)
        by_hand(theirs, hand, torch.tensor(x), torch.tensor(y), 4)
        assert loss.parameters()["logvar"].item() == pytest.approx(hand.logvar.item(), abs=1e-6)
        assert_equal_weights(theirs, module, atol=1e-6)
        assert graph.summary().to_pandas()["parameters"].sum() == 66

    def test_an_object_with_arguments_at_each_call_learns_too(self):
        class Scaled(Uncertainty):
            def forward(self, out, target, scale):
                return scale * super().forward(out, target)

        loss = mm.Loss(Scaled(), loss_kwargs={"scale": 2.0})
        graph = graph_of(featureset(*arrays()), mlp(), "adam", lr=0.05)
        experiment().run_phase(train_phase(graph, [applied(loss)]), **QUIET)
        assert loss.parameters()["logvar"].item() != 0.0

    def test_a_state_has_them(self):
        x, y = arrays()
        loss = WAYS["object"]()
        graph = graph_of(featureset(x, y), mlp(), "adam", lr=0.05)
        run, phase = experiment(), train_phase(graph, [applied(loss)])
        graph.build()
        before = graph.get_state()
        run.run_phase(phase, **QUIET)
        state, value = graph.get_state(), loss.parameters()["logvar"].item()
        run.run_phase(phase, **QUIET)
        graph.set_state(state)
        assert loss.parameters()["logvar"].item() == value
        graph.set_state(before)
        assert loss.parameters()["logvar"].item() == 0.0

    def test_a_checkpoint_goes_on_bit_for_bit(self, tmp_path):
        found = []
        for resumed in (False, True):
            with mm.ExperimentContext().activate():
                x, y = arrays()
                loss, module = WAYS["class"](), mlp()
                graph = graph_of(featureset(x, y), module, "adam", lr=0.05)
                run, phase = experiment(), train_phase(graph, [applied(loss)])
                if not resumed:
                    run.run_phase(phase, **QUIET)
                    graph.save_checkpoint(tmp_path / "one")
                else:
                    graph.restore_checkpoint(tmp_path / "one")
                run.run_phase(phase, **QUIET)
                found.append((loss.parameters()["logvar"].item(), module[0].weight))
        assert found[0][0] == found[1][0]
        assert torch.equal(found[0][1], found[1][1])

    def test_folds_begin_anew(self):
        x, y = arrays()
        fs, loss = featureset(x, y), WAYS["object"]()
        fs.split_random({"train": 0.8, "val": 0.2}, seed=0)
        graph = graph_of(fs, mlp(), "adam", lr=0.05)
        phase = train_phase(graph, [applied(loss)], split="train", callbacks=[Starts()])
        experiment().run_phase(phase, **QUIET)
        moved = loss.parameters()["logvar"].item()
        bindings = mm.CVBinding(fs, ["train", "val"])
        cv = mm.CrossValidation(bindings=bindings, phase=phase, n_folds=2)
        cv.run(show_fold_progress=False, **QUIET)
        assert loss.parameters()["logvar"].item() == moved
        assert Starts.seen == [0.0, 0.0, 0.0]


class Starts(Callback):
    """Notes the parameter of the loss before the first batch."""

    seen: ClassVar[list[float]] = []

    def on_epoch_start(self, *, phase, **facts):
        loss = phase.losses[0].loss
        loss.resolve(adapter_for("torch").backend)
        self.seen.append(loss.parameters()["logvar"].item())


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 1)

    def forward(self, x):
        x += 1.0
        return self.inner(x)


class TestInPlace:
    @pytest.mark.parametrize(
        "make",
        [
            lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 1)),
            lambda: nn.Sequential(
                nn.Dropout(0.0), nn.Flatten(), nn.ELU(inplace=True), nn.Linear(4, 1)
            ),
            InPlace,
        ],
        ids=["relu", "behind others", "own module"],
    )
    def test_outputs_of_a_node_are_its_own(self, make):
        x, y = arrays()
        enc, head = mlp(out=4), make()
        fs = featureset(x, y)
        a = mm.ModelNode("enc", enc, fs)
        b = mm.ModelNode("net", head, a)
        hand = twin(enc), twin(head)
        opt = mm.Optimizer("sgd", opt_kwargs={"lr": 0.05})
        graph = mm.ModelGraph([a, b], opt)
        on_enc = mm.AppliedLoss(mm.Loss(lambda o: o**2), on="enc", inputs=["outputs"], label="e")
        run = experiment()
        out = run.run_phase(eval_phase(graph, [on_enc])).stacked_tensors("enc", "outputs", fmt="np")
        np.testing.assert_allclose(out, hand[0](torch.tensor(x)).detach(), atol=1e-6)
        run.run_phase(train_phase(graph, [mse(), on_enc]), **QUIET)
        optimizer = torch.optim.SGD([*hand[0].parameters(), *hand[1].parameters()], lr=0.05)
        xs, ys = torch.tensor(x), torch.tensor(y)
        for part in slices(len(x), 16):
            optimizer.zero_grad()
            out = hand[0](xs[part])
            (F.mse_loss(hand[1](out.clone()), ys[part]) + (out**2).mean()).backward()
            optimizer.step()
        assert_equal_weights(hand[0], enc, atol=1e-6)
        assert_equal_weights(hand[1], head, atol=1e-6)

    def test_two_readers_of_the_same_columns(self):
        x, y = arrays()
        fs = featureset(x[:, :4], y)
        a = mm.ModelNode("a", nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 1)), fs)
        b = mm.ModelNode("b", nn.Identity(), fs)
        graph = mm.ModelGraph([a, b], mm.Optimizer("sgd", opt_kwargs={"lr": 0.05}))
        results = experiment().run_phase(eval_phase(graph, [mse("a")]))
        np.testing.assert_array_equal(results.stacked_tensors("b", "outputs", fmt="np"), x[:, :4])

    def test_a_node_called_by_hand(self):
        x, y = arrays()
        node = graph_of(featureset(x[:, :4], y), InPlace()).get_node("net")
        node.context.model_graph.build()
        given = torch.tensor(x[:, :4])
        node(SampleData(features=given))
        np.testing.assert_array_equal(given, x[:, :4])

    def test_a_loss_that_writes_is_refused(self):
        x, y = arrays()
        graph = graph_of(featureset(x, y), mlp())

        def own(out, target):
            out -= target
            return out**2

        with pytest.raises(LossError, match="in place"):
            experiment().run_phase(eval_phase(graph, [applied(mm.Loss(own))]))

    def test_plain_layers_are_not_copied_for(self):
        layers = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.ReLU(inplace=True))
        assert not adapter_for("torch").writes_input(layers)


def test_lbfgs_from_a_factory_is_refused_like_by_name():
    fs = featureset(*arrays())
    by_factory = mm.Optimizer.from_factory(torch.optim.LBFGS, backend="torch")
    for i, optimizer in enumerate((mm.Optimizer("lbfgs"), by_factory)):
        graph = mm.ModelGraph([mm.ModelNode(f"n{i}", mlp(), fs)], optimizer, register=False)
        with pytest.raises(BackendNotSupportedError, match="several times per step"):
            graph.build()


def batchnorm():
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


class TestKnownBeforeTheFirstStep:
    def test_batchnorm_and_a_batch_of_one(self):
        x, y = arrays(n=33)
        module = batchnorm()
        graph = graph_of(featureset(x, y), module)
        before = twin(module)
        with pytest.raises(DataError, match=r"drop_last=True"):
            experiment().run_phase(train_phase(graph), **QUIET)
        assert_equal_weights(before, module)
        assert torch.equal(before[1].running_mean, module[1].running_mean)

    def test_batchnorm_over_sequences_takes_one(self):
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(33, 5)).astype("f"), rng.normal(size=33).astype("f")
        module = nn.Sequential(nn.BatchNorm1d(1), nn.Flatten(), nn.Linear(5, 1))
        graph = graph_of(mm.FeatureSet.from_dict("d", {"x": x, "y": y}, "x", "y"), module)
        experiment().run_phase(train_phase(graph), **QUIET)

    @pytest.mark.parametrize(("every", "needs"), [("batch", 8), ("epoch", 2)])
    def test_a_schedule_that_ends_too_early(self, every, needs):
        x, y = arrays(n=50)
        module = mlp()
        before = twin(module)
        kwargs = {"max_lr": 0.1, "total_steps": needs - 1}
        schedule = mm.LRSchedule("OneCycleLR", schedule_kwargs=kwargs, every=every)
        optimizer = mm.Optimizer("sgd", opt_kwargs={"lr": 0.1}, schedule=schedule)
        graph = mm.ModelGraph([mm.ModelNode("net", module, featureset(x, y))], optimizer)
        with pytest.raises(ConfigError, match=f"{needs - 1} steps left.*needs {needs}"):
            experiment().run_phase(train_phase(graph, n_epochs=2), **QUIET)
        assert_equal_weights(before, module)
        optimizer.reset()
        schedule.schedule_kwargs["total_steps"] = needs
        experiment().run_phase(train_phase(graph, n_epochs=2), **QUIET)
        assert optimizer.scheduler.last_epoch == needs

    def test_a_metric_object_names_what_to_give(self):
        class Metric:
            def __call__(self, preds, target):
                return 0.0

        x, y = arrays(n=50)
        graph_of(featureset(x, y), mlp())
        phase = eval_phase(mm.ExperimentContext.get_active().model_graph)
        with pytest.raises(ConfigError, match="pass its name"):
            mm.Evaluation(eval_phase=phase, metrics=[Metric()])
