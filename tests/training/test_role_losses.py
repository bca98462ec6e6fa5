"""Losses over roles, and class weights: gradients equal those of loops written by hand."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import modularml as mm
from modularml.samplers import BaseSampler, EpochBatches
from tests.worlds import (
    QUIET,
    arrays,
    assert_equal_weights,
    bindings,
    experiment,
    featureset,
    graph_of,
    mlp,
    slices,
    train,
    twin,
)


class Shifted(BaseSampler):
    """Each row with the rows 1, 2, ... places further, one a role."""

    def __init__(self, roles, *, batch_size=8):
        super().__init__(batch_size=batch_size)
        self.roles = tuple(roles)

    def sample(self, view, epoch):
        rows = np.arange(len(view))
        found = {role: np.roll(rows, -i) for i, role in enumerate(self.roles)}
        bounds = np.minimum(np.arange(0, len(view) + self.batch_size, self.batch_size), len(view))
        return EpochBatches(found, bounds.astype(np.int64))


def contrastive(a, b, same, margin=1.0):
    """Hadsell, Chopra & LeCun 2006, one value a pair."""
    d = F.pairwise_distance(a, b)
    return same * d**2 + (1 - same) * F.relu(margin - d) ** 2


def triplet_by_hand(outs, x, y):
    return nn.TripletMarginLoss(margin=0.5)(*outs)


def cosine_by_hand(outs, x, y):
    return nn.CosineEmbeddingLoss()(*outs, y)


def contrastive_by_hand(outs, x, y):
    return contrastive(*outs, (y + 1) / 2).mean()


def autoencoder_by_hand(outs, x, y):
    return F.mse_loss(outs[1], x)


CASES = {
    "triplet": (
        ("anchor", "positive", "negative"),
        mm.Loss("triplet", loss_kwargs={"margin": 0.5}),
        ["outputs.anchor", "outputs.positive", "outputs.negative"],
        triplet_by_hand,
    ),
    "cosine": (
        ("anchor", "pair"),
        mm.Loss("cosine"),
        ["outputs.anchor", "outputs.pair", "targets.anchor"],
        cosine_by_hand,
    ),
    "contrastive": (
        ("anchor", "pair"),
        mm.Loss(lambda a, b, y: contrastive(a, b, (y[:, 0] + 1) / 2)),
        {"a": "outputs.anchor", "b": "outputs.pair", "y": "targets.anchor"},
        contrastive_by_hand,
    ),
    "denoising autoencoder": (
        ("anchor", "pair"),
        mm.Loss("mse"),
        ["outputs.pair", "features.anchor"],
        autoencoder_by_hand,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_roles(case):
    roles, loss, inputs, by_hand = CASES[case]
    x, _ = arrays(n=30)
    y = np.where(np.arange(30) % 3 == 0, 1.0, -1.0).astype(np.float32)
    mine = mlp(out=6)
    hand = twin(mine)
    graph = graph_of(featureset(x, y), mine)
    applied = mm.AppliedLoss(loss, on="net", inputs=inputs)
    phase = mm.TrainPhase("t", input_sources=bindings(graph, Shifted(roles)), losses=[applied])
    experiment().run_phase(phase, **QUIET)
    optimizer = torch.optim.SGD(hand.parameters(), lr=0.05)
    shifted = [torch.as_tensor(np.roll(x, -i, axis=0)) for i in range(len(roles))]
    for part in slices(30, 8):
        optimizer.zero_grad()
        outs = [hand(values[part]) for values in shifted]
        by_hand(outs, shifted[0][part], torch.as_tensor(y)[part]).backward()
        optimizer.step()
    assert_equal_weights(mine, hand, atol=1e-6)


def test_roles_travel_through_merge_nodes():
    x, y = arrays(n=30)
    fs = featureset(x, y)
    a, b = mlp(out=3, seed=1), mlp(out=3, seed=2)
    hand = nn.ModuleList([twin(a), twin(b)])
    nodes = [mm.ModelNode("a", a, fs), mm.ModelNode("b", b, fs)]
    both = mm.SumNode("both", nodes)
    graph = mm.ModelGraph([*nodes, both], mm.Optimizer("sgd", opt_kwargs={"lr": 0.05}))
    roles, loss, inputs, _ = CASES["triplet"]
    applied = mm.AppliedLoss(loss, on="both", inputs=inputs)
    phase = mm.TrainPhase("t", input_sources=bindings(graph, Shifted(roles)), losses=[applied])
    results = experiment().run_phase(phase, **QUIET)
    optimizer = torch.optim.SGD(hand.parameters(), lr=0.05)
    for part in slices(30, 8):
        optimizer.zero_grad()
        rolled = [torch.as_tensor(np.roll(x, -i, axis=0))[part] for i in range(3)]
        nn.TripletMarginLoss(margin=0.5)(*[hand[0](v) + hand[1](v) for v in rolled]).backward()
        optimizer.step()
    assert_equal_weights(a, hand[0], atol=1e-6)
    assert_equal_weights(b, hand[1], atol=1e-6)
    batch = results.execution_contexts().at(epoch=0, batch=0).outputs[both.node_id]
    ids = fs.get_sample_uuids()
    assert list(batch.role_data["negative"].sample_uuids) == list(ids[2:10])


@pytest.mark.parametrize("kwargs", [{}, {"weight": [1.0, 5.0, 10.0]}, {"label_smoothing": 0.1}])
def test_class_weights_and_ignored_labels_are_means_over_samples(kwargs):
    x, _ = arrays(n=40)
    y = np.where(np.arange(40) % 5 == 0, -100, np.arange(40) % 3)
    if "weight" in kwargs:
        kwargs = {"weight": torch.tensor(kwargs["weight"])}
    mine = mlp(out=3)
    hand = twin(mine)
    loss = mm.Loss("crossentropy", loss_kwargs=kwargs or None)
    applied = mm.AppliedLoss(loss, on="net", inputs=["outputs", "targets"])
    train(graph_of(featureset(x, y), mine), [applied], n_epochs=2)
    optimizer = torch.optim.SGD(hand.parameters(), lr=0.05)
    for _ in range(2):
        for part in slices(40, 16):
            optimizer.zero_grad()
            out, labels = hand(torch.as_tensor(x[part])), torch.as_tensor(y[part])
            each = nn.CrossEntropyLoss(reduction="none", **kwargs)(out, labels)
            (each.sum() / len(labels)).backward()
            optimizer.step()
    assert_equal_weights(mine, hand, atol=1e-6)
