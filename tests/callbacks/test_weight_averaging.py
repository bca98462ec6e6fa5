"""Averages of weights, held against torch's own AveragedModel and loops by hand."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import modularml as mm
from modularml.callbacks import EMA, SWA, Callback, ProgressiveUnfreezing
from modularml.errors import BackendNotSupportedError, ConfigError
from tests.fuzz.stopping import differences, outcome
from tests.worlds import (
    QUIET,
    arrays,
    assert_equal_weights,
    assert_same_folds,
    experiment,
    featureset,
    graph_of,
    mlp,
    mse,
    slices,
    train_phase,
    twin,
)

pytestmark = pytest.mark.filterwarnings("ignore::modularml.strategies.SelectionWarning")
X, Y = arrays(n=48)
DATA = torch.tensor(X), torch.tensor(Y)


def normed(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(dropout), nn.Tanh(), nn.Linear(8, 1)
    )


def batches(size=16):
    return [(DATA[0][part], DATA[1][part]) for part in slices(48, size)]


def by_hand(net, average, epochs=4, *, accumulate=1, start=0, swa=False, opt=torch.optim.SGD):
    """Return the losses of the averages on all rows at the end of each epoch."""
    optimizer, found = opt(net.parameters(), lr=0.05), []
    for epoch in range(epochs):
        net.train()
        for i, (x, y) in enumerate(batches(), 1):
            (nn.functional.mse_loss(net(x), y) / accumulate).backward()
            if i % accumulate:
                continue
            optimizer.step()
            optimizer.zero_grad()
            if not swa and epoch >= start:
                average.update_parameters(net)
        if swa and epoch >= start:
            average.update_parameters(net)
        scored = copy.deepcopy(average.module if average.n_averaged else net)
        if average.n_averaged:
            update_bn(batches(), scored)
        with torch.no_grad():
            found.append(nn.functional.mse_loss(scored.eval()(DATA[0]), DATA[1]).item())
    update_bn(batches(), average)
    return found


def run(net, callback, n_epochs=4, opt="sgd", callbacks=(), **kwargs):
    fs = featureset(X, Y)
    fs.add_split(fs.take(np.arange(48), label="all"))
    graph = graph_of(fs, net, opt, lr=0.05)
    loss = mse()
    val = mm.Evaluation.from_split("val", split="all", metrics=[mm.EvalLossMetric(loss=loss)])
    phase = train_phase(graph, [loss], n_epochs=n_epochs, callbacks=[val, callback, *callbacks],
                        **kwargs)  # fmt: skip
    results = experiment(audit="off").run_phase(phase, **QUIET)
    return list(results.metrics().where(name="val_loss", batch=None).values()), results


@pytest.mark.parametrize("make", [mlp, normed])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_ema(make, accumulate):
    net = make()
    hand = twin(net)
    average = AveragedModel(hand, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    callback = EMA(0.9)
    losses, _ = run(net, callback, accumulate=accumulate)
    want = by_hand(hand, average, accumulate=accumulate)
    assert callback.n_averaged == int(average.n_averaged) == 12 // accumulate
    assert losses == pytest.approx(want, rel=1e-5)
    assert_equal_weights(net, average.module, atol=2e-6)


@pytest.mark.parametrize(("start", "first"), [(2, 2), (0.5, 2), (0, 0), (0.75, 3)])
@pytest.mark.parametrize("make", [mlp, normed])
def test_swa(make, start, first):
    net = make()
    hand = twin(net)
    average = AveragedModel(hand)
    losses, _ = run(net, SWA(start=start))
    assert losses == pytest.approx(by_hand(hand, average, start=first, swa=True), rel=1e-5)
    assert_equal_weights(net, average.module, atol=2e-6)


def test_dropout_and_the_training_itself_are_as_without():
    """Estimating statistics draws nothing, and training goes on from its own weights."""
    one, other = normed(0.5), normed(0.5)
    torch.manual_seed(1)
    _, with_average = run(one, SWA(start=0))
    state = torch.get_rng_state()
    with mm.ExperimentContext().activate():
        torch.manual_seed(1)
        _, without = run(other, ProgressiveUnfreezing({0: "net"}))
    assert torch.equal(state, torch.get_rng_state())
    pairs = [r.metrics().where(name="train_loss").values() for r in (with_average, without)]
    assert list(pairs[0]) == list(pairs[1])


def test_early_stopping_restores_the_best_average():
    net = mlp()
    scores = iter([3.0, 1.0, 2.0, 2.5])
    seen = []

    class Watch(Callback):
        def on_epoch_end(self, **facts):
            seen.append(twin(net))

    score = mm.callbacks.MetricCallback("score", lambda **facts: next(scores))
    stop = mm.EarlyStopping(monitor="score", patience=9, restore_best=True)
    run(net, EMA(0.5), callbacks=[score, stop, Watch()])
    assert_equal_weights(net, seen[1])


def test_nodes_that_are_unfrozen_later_join():
    fs = featureset(X, Y)
    enc, net = mlp(out=4, seed=1), mlp(d=4, seed=2)
    first = twin(enc)
    nodes = [mm.ModelNode("enc", enc, fs)]
    graph = mm.ModelGraph(
        [*nodes, mm.ModelNode("net", net, nodes[0])], mm.Optimizer("sgd", opt_kwargs={"lr": 0.05})
    )
    seen = []

    class Watch(Callback):
        def on_batch_end(self, *, exec_ctx, **facts):
            if exec_ctx.epoch_idx >= 2:
                seen.append([p.detach().clone() for p in enc.parameters()])

    callbacks = [ProgressiveUnfreezing({2: "enc"}), EMA(0.8), Watch()]
    phase = train_phase(graph, n_epochs=4, callbacks=callbacks)
    experiment().run_phase(phase, **QUIET)
    average = seen[0]
    for values in seen[1:]:
        average = [a + (1 - 0.8) * (v - a) for a, v in zip(average, values, strict=True)]
    for mine, wanted, begun in zip(enc.parameters(), average, first.parameters(), strict=True):
        torch.testing.assert_close(mine.detach(), wanted)
        assert not torch.equal(mine, begun)


@pytest.mark.parametrize("callback", [EMA(0.9), SWA(start=1)], ids=["ema", "swa"])
def test_keras(callback):
    from tests.keras_worlds import keras, net, tf
    from tests.keras_worlds import twin as keras_twin

    own = net()
    hand = keras_twin(own)
    losses, _ = run(own, callback, opt="SGD")
    optimizer, average, found, n = keras.optimizers.SGD(0.05), None, [], 0
    for epoch in range(4):
        for x, y in batches():
            with tf.GradientTape() as tape:
                value = tf.reduce_mean((hand(x.numpy(), training=True) - y.numpy()) ** 2)
            variables = hand.trainable_variables
            optimizer.apply_gradients(zip(tape.gradient(value, variables), variables, strict=True))
            values = [v.numpy() for v in variables]
            if isinstance(callback, EMA):
                old = average or values
                average = [0.9 * a + 0.1 * v for a, v in zip(old, values, strict=True)]
        if isinstance(callback, SWA) and epoch >= 1:
            old, n = average or values, n + 1
            average = [a + (v - a) / n for a, v in zip(old, values, strict=True)]
        trained = [v.numpy() for v in variables]
        for v, a in zip(variables, average or trained, strict=True):
            v.assign(a)
        found.append(float(tf.reduce_mean((hand(X) - Y) ** 2)))
        for v, t in zip(variables, trained, strict=True):
            v.assign(t)
    assert losses == pytest.approx(found, rel=1e-4)
    for v, a in zip(own.trainable_variables, average, strict=True):
        np.testing.assert_allclose(v.numpy(), a, atol=1e-5)


class EndsOfAverages(Callback):
    def __init__(self):
        super().__init__("ends", execution_order=2_000_000)
        self.hook, self.at, self.n_ = "", -1, 0

    def _count(self, hook):
        self.n_ += hook == self.hook
        if hook == self.hook and self.n_ == self.at:
            raise ValueError("mine")

    def on_batch_end(self, **facts):
        self._count("batch_end")

    def on_epoch_end(self, **facts):
        self._count("epoch_end")

    def on_epoch_start(self, **facts):
        self._count("epoch_start")


@pytest.mark.parametrize("make", [partial(EMA, 0.9), partial(SWA, start=1)], ids=["ema", "swa"])
@pytest.mark.parametrize(("hook", "at"), [("batch_end", 8), ("epoch_end", 3), ("epoch_start", 4)])
def test_resume(tmp_path, make, hook, at):
    def world(folder, at, resume=None):
        with mm.ExperimentContext().activate():
            graph = graph_of(featureset(X, Y), normed(0.3), "adam", lr=0.02)
            ends = EndsOfAverages()
            saving = None
            if folder is not None:
                saving = mm.Checkpointing(mode="disk", save_on=hook, directory=folder)
            phase = train_phase(graph, n_epochs=5, callbacks=[make(), ends], checkpointing=saving)
            exp = experiment(seed=3)
            ends.hook, ends.at = hook, at
            if at > 0:
                with pytest.raises(ValueError, match="mine"):
                    exp.run_phase(phase, **QUIET)
                return None
            exp.run_phase(phase, resume=resume, **QUIET)
            found = outcome(exp)
            return found, phase.callbacks[0].get_state()

    world(tmp_path, at)
    whole, again = world(None, -1), world(tmp_path, -1, "auto")
    assert not differences(whole[0], again[0])
    for name, value in whole[1]["averages"].items():
        np.testing.assert_array_equal(value, again[1]["averages"][name])


@pytest.mark.parametrize(
    "how", [{"stacked": True}, pytest.param({"n_jobs": 2}, marks=pytest.mark.slow)]
)
def test_folds(how):
    def plan():
        x, y = arrays(n=160)
        fs = featureset(x, y, cell=np.arange(160) // 4)
        fs.split_random({"train": 0.75, "val": 0.25}, seed=0, group_by="cell")
        optimizer = mm.Optimizer("adam", opt_kwargs={"lr": 0.01})
        model = mm.models.torch.SequentialMLP(hidden_dim=4)
        mm.ModelGraph([mm.ModelNode("net", model, fs)], optimizer).build()
        exp = experiment(audit="off")
        val = mm.Evaluation.from_split("val", split="val", metrics=[mm.EvalLossMetric(loss=mse())])
        phase = mm.TrainPhase.from_split(
            "train", split="train", sampler=mm.SimpleSampler(batch_size=16, seed=0),
            losses=[mse()], n_epochs=4, callbacks=[val, SWA(start=1)],
        )  # fmt: skip
        exp.execution_plan.add_phase(phase)
        exp.execution_plan.add_phase(mm.EvalPhase.from_split("eval", split="val", losses=[mse()]))
        return exp

    assert_same_folds(plan, how)


def test_copies_and_config():
    for made in (EMA(0.9, every="epoch", start=2), EMA(0.99), SWA(start=0.5)):
        assert type(made).from_config(made.get_config()) == made
        for again in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
            assert again == made
            hook = vars(again).get("on_batch_end")
            assert hook is None or hook.__self__ is again


def test_refusals():
    for bad in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="decay"):
            EMA(bad)
    for bad in (-1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="start"):
            SWA(start=bad)
    with pytest.raises(ConfigError, match="averaged in one way"):
        run(mlp(), EMA(0.9), callbacks=[SWA()])


def test_keras_refusals():
    from tests.keras_worlds import keras, layers

    with pytest.raises(BackendNotSupportedError, match="use layer or group normalization"):
        run(keras.Sequential([keras.Input((6,)), layers.Dense(4), layers.BatchNormalization(),
                              layers.Dense(1)]), EMA(0.9), opt="SGD")  # fmt: skip
    with mm.ExperimentContext().activate():
        graph = graph_of(featureset(X, Y), keras.Sequential([keras.Input((6,)), layers.Dense(1)]),
                         "SGD", lr=0.05, use_ema=True)  # fmt: skip
        with pytest.raises(ConfigError, match="both average the weights"):
            experiment().run_phase(train_phase(graph, callbacks=[SWA()]), **QUIET)
