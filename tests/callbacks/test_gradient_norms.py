"""Norms of gradients, held against loops by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import modularml as mm
from modularml.callbacks import GradientNorms
from modularml.errors import ConfigError
from tests.worlds import (
    QUIET,
    arrays,
    assert_equal_weights,
    experiment,
    featureset,
    graph_of,
    mlp,
    train,
    twin,
)

X, Y = arrays(n=48)


def chain(own=False, **kwargs):
    fs = featureset(X, Y)
    opts = [mm.Optimizer("sgd", opt_kwargs={"lr": 0.05}, **kwargs) for _ in range(2)]
    enc = mm.ModelNode("enc", mlp(out=4, seed=1), fs, opts[0] if own else None)
    net = mm.ModelNode("net", mlp(d=4, seed=2), enc, opts[1] if own else None)
    return mm.ModelGraph([enc, net], None if own else opts[0])


def by_hand(enc, net, accumulate=1, clip=None, epochs=2):
    """Return the norms of each update: of all, of the encoder and of the head."""
    both, found = nn.Sequential(enc, net), []
    optimizer = torch.optim.SGD(both.parameters(), lr=0.05)
    x, y = torch.tensor(X), torch.tensor(Y)
    for _ in range(epochs):
        for at in range(0, 48, 16 * accumulate):
            rows = slice(at, at + 16 * accumulate)
            optimizer.zero_grad()
            nn.functional.mse_loss(both(x[rows]), y[rows]).backward()
            norms = [
                torch.nn.utils.get_total_norm([p.grad for p in part.parameters()]).item()
                for part in (both, enc, net)
            ]
            found.append(norms)
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(both.parameters(), clip)
            optimizer.step()
    return np.array(found)


@pytest.mark.parametrize(("accumulate", "clip", "own"), [
    (1, None, False), (3, None, False), (1, 0.1, False), (2, 0.1, False), (1, None, True),
])  # fmt: skip
def test_norms_before_clipping(accumulate, clip, own):
    graph = chain(own=own, clip_norm=clip)
    parts = [graph.get_node(k).model.module for k in ("enc", "net")]
    hand = [twin(part) for part in parts]
    results = train(graph, n_epochs=2, accumulate=accumulate, callbacks=[GradientNorms()])
    updates = by_hand(*hand, accumulate, clip)
    per_epoch = updates.reshape(2, -1, 3)
    frame = results.to_pandas()
    for i, name in enumerate(("grad_norm", "grad_norm_enc", "grad_norm_net")):
        np.testing.assert_allclose(frame[name], per_epoch[..., i].mean(axis=1), rtol=1e-4)
    np.testing.assert_allclose(frame["grad_norm_max"], per_epoch[..., 0].max(axis=1), rtol=1e-4)
    for mine, theirs in zip(parts, hand, strict=True):
        assert_equal_weights(mine, theirs, atol=1e-6)


def test_each_update():
    net = mlp()
    hand = twin(net)
    graph = graph_of(featureset(X, Y), net)
    results = train(graph, accumulate=2, callbacks=[GradientNorms(every="batch")])
    found = results.metrics().where(name="grad_norm")
    assert [key[-1] for key in found.keys()] == [1, 2]  # noqa: SIM118 - a series
    want = by_hand(nn.Identity(), hand, 2, epochs=1)[:, 0]
    np.testing.assert_allclose(list(found.values()), want, rtol=1e-4)
    assert results.metric_names() == ["train_loss", "grad_norm"]


def test_training_is_as_without():
    nets = [mlp(), mlp()]
    for net, callbacks in zip(nets, ([GradientNorms()], []), strict=True):
        with mm.ExperimentContext().activate():
            train(graph_of(featureset(X, Y), net, "adam", lr=0.01), n_epochs=2, callbacks=callbacks)
    assert_equal_weights(*nets)


def test_keras():
    from tests.keras_worlds import net, tf
    from tests.keras_worlds import twin as keras_twin

    own = net()
    hand = keras_twin(own)
    graph = graph_of(featureset(X, Y), own, "SGD")
    results = train(graph, callbacks=[GradientNorms(every="batch")])
    found = list(results.metrics().where(name="grad_norm").values())
    with tf.GradientTape() as tape:
        value = tf.reduce_mean((hand(X[:16]) - Y[:16]) ** 2)
    grads = tape.gradient(value, hand.trainable_variables)
    assert len(found) == 3
    assert found[0] == pytest.approx(float(tf.linalg.global_norm(grads)), rel=1e-4)


def test_folds_note_why_they_are_not_trained_as_one(caplog):
    fs = featureset(*arrays(n=160))
    fs.split_random({"train": 0.75, "val": 0.25}, seed=0)
    graph_of(fs, mm.models.torch.SequentialMLP(hidden_dim=4)).build()
    exp = experiment(audit="off")
    loss = mm.AppliedLoss(mm.Loss("mse"), "net", ["outputs", "targets"])
    exp.execution_plan.add_phase(
        mm.TrainPhase.from_split(
            "train", split="train", sampler=mm.SimpleSampler(batch_size=16, seed=0), losses=[loss],
            callbacks=[GradientNorms()],
        )
    )  # fmt: skip
    binding = mm.CVBinding("data", ["train", "val"])
    cv = mm.CrossValidation(bindings=binding, experiment=exp, n_folds=2, stacked=True)
    results = cv.run(show_fold_progress=False, **QUIET)
    assert "'GradientNorms' looks at each batch" in caplog.text
    assert "grad_norm" in results.get_fold(1).get_train_result("train").metric_names()


def test_config_and_refusals():
    made = GradientNorms(every="batch")
    assert GradientNorms.from_config(made.get_config()) == made
    assert copy.deepcopy(made).gradient_squares is not made.gradient_squares
    with pytest.raises(ConfigError, match="every"):
        GradientNorms(every="step")
    callbacks = [made, GradientNorms(label="other")]
    with pytest.raises(ConfigError, match="several GradientNorms"):
        train(graph_of(featureset(X, Y), mlp()), callbacks=callbacks)
