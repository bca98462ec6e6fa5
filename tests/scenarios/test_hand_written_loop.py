"""Training equals a loop written by hand on the same module."""

import numpy as np
import pytest
import torch
from torch import nn

import modularml as mm
from modularml.models.torch import SequentialCNN, SequentialMLP
from tests.worlds import (
    QUIET,
    arrays,
    assert_equal_weights,
    bindings,
    by_hand,
    experiment,
    featureset,
    graph_of,
    mlp,
    mse,
    train,
    train_phase,
    twin,
)


def optimizers():
    return [
        ("sgd", {"lr": 0.05}, torch.optim.SGD),
        ("sgd", {"lr": 0.05, "momentum": 0.9, "nesterov": True}, torch.optim.SGD),
        ("adam", {"lr": 0.01}, torch.optim.Adam),
        ("adamw", {"lr": 0.01, "weight_decay": 0.1}, torch.optim.AdamW),
        ("rmsprop", {"lr": 0.01}, torch.optim.RMSprop),
    ]


@pytest.mark.parametrize(("name", "kwargs", "cls"), optimizers())
def test_mlp(name, kwargs, cls):
    x, y = arrays(n=53)
    mine = mlp()
    theirs = twin(mine)
    results = train(graph_of(featureset(x, y), mine, name, **kwargs), n_epochs=2)
    means = by_hand(theirs, lambda p: cls(p, **kwargs), x, y)
    assert_equal_weights(mine, theirs, atol=1e-5)
    logged = results.metrics().where(name="train_loss", batch=None).values()
    np.testing.assert_allclose(logged, means, rtol=1e-5)


def test_own_mlp_class():
    x, y = arrays(n=40)
    fs = featureset(x, y)
    graph = graph_of(fs, SequentialMLP(n_layers=3, hidden_dim=8, activation="tanh"))
    graph.build()
    model = graph.get_node("net").model
    theirs = nn.Sequential(*twin(model).layers)
    train(graph, n_epochs=2)
    by_hand(theirs, lambda p: torch.optim.SGD(p, lr=0.05), x, y)
    assert_equal_weights(model, theirs, atol=1e-5)


def test_cnn_on_sequences():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(45, 20)).astype(np.float32)
    y = x.mean(axis=1, keepdims=True)
    fs = mm.FeatureSet.from_dict("data", {"wave": x, "y": y[:, 0]}, ["wave"], ["y"])
    graph = graph_of(fs, SequentialCNN(hidden_dim=4, pooling=2))
    graph.build()
    model = graph.get_node("net").model
    assert model.input_shape == (1, 20)
    theirs = nn.Sequential(*twin(model).layers)
    train(graph, n_epochs=2)
    by_hand(theirs, lambda p: torch.optim.SGD(p, lr=0.05), x[:, None, :], y)
    assert_equal_weights(model, theirs, atol=1e-5)


def test_images_and_classes():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 1, 6, 6)).astype(np.float32)
    y = rng.integers(0, 3, size=40)
    fs = mm.FeatureSet.from_dict("data", {"image": x[:, 0], "y": y}, ["image"], ["y"])
    graph = graph_of(fs, SequentialCNN(hidden_dim=4, pooling=2, output_shape=(3,)))
    graph.build()
    model = graph.get_node("net").model
    theirs = nn.Sequential(*twin(model).layers)
    loss = mm.AppliedLoss(mm.Loss("crossentropy"), on="net", inputs=["outputs", "targets"])
    train(graph, [loss], n_epochs=2)
    hand = nn.CrossEntropyLoss()
    by_hand(theirs, lambda p: torch.optim.SGD(p, lr=0.05), x, y, loss=hand)
    assert_equal_weights(model, theirs, atol=1e-5)


def test_batch_norm_statistics():
    x, y = arrays(n=48)
    torch.manual_seed(0)
    mine = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    theirs = twin(mine)
    train(graph_of(featureset(x, y), mine), n_epochs=2)
    by_hand(theirs, lambda p: torch.optim.SGD(p, lr=0.05), x, y)
    assert_equal_weights(mine, theirs, atol=1e-5)


def test_dropout_draws_as_by_hand():
    x, y = arrays(n=48)
    torch.manual_seed(0)
    mine = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.Linear(8, 1))
    theirs = twin(mine)
    graph = graph_of(featureset(x, y), mine)
    graph.build()
    torch.manual_seed(5)
    train(graph, n_epochs=2)
    torch.manual_seed(5)
    by_hand(theirs, lambda p: torch.optim.SGD(p, lr=0.05), x, y)
    assert_equal_weights(mine, theirs, atol=1e-5)


def test_shuffled_in_the_samplers_order():
    x, y = arrays(n=37)
    mine = mlp()
    theirs = twin(mine)
    fs = featureset(x, y)
    sampler = mm.SimpleSampler(batch_size=16, shuffle=True, seed=3)
    orders = [sampler.epoch(fs.to_view(), epoch).rows["default"] for epoch in range(3)]
    graph = graph_of(fs, mine)
    phase = mm.TrainPhase(
        "train", input_sources=bindings(graph, sampler), losses=[mse()], n_epochs=3
    )
    experiment().run_phase(phase, **QUIET)
    by_hand(theirs, lambda p: torch.optim.SGD(p, lr=0.05), x, y, epochs=3, orders=orders)
    assert_equal_weights(mine, theirs, atol=1e-5)


def test_on_a_split():
    x, y = arrays(n=40)
    fs = featureset(x, y)
    fs.split_random({"train": 0.5, "test": 0.5}, seed=1)
    rows = fs["train"].indices
    mine = mlp()
    theirs = twin(mine)
    train(graph_of(fs, mine), split="train", n_epochs=2)
    by_hand(theirs, lambda p: torch.optim.SGD(p, lr=0.05), x[rows], y[rows])
    assert_equal_weights(mine, theirs, atol=1e-5)


def test_double_precision():
    x, y = arrays(n=40)
    mine = mlp().double()
    theirs = twin(mine)
    train(graph_of(featureset(x, y), mine), n_epochs=2)
    by_hand(theirs, lambda p: torch.optim.SGD(p, lr=0.05), x.astype(float), y.astype(float))
    assert_equal_weights(mine, theirs, atol=1e-12)


def test_embedding_and_float_targets():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 5, size=(40, 1))
    y = (codes**2 * 0.3 + 0.1).astype(np.float32)
    fs = mm.FeatureSet.from_dict("data", {"code": codes[:, 0], "y": y[:, 0]}, ["code"], ["y"])
    torch.manual_seed(0)
    mine = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(3, 1))
    theirs = twin(mine)
    train(graph_of(fs, mine), n_epochs=2)
    by_hand(theirs, lambda p: torch.optim.SGD(p, lr=0.05), codes, y)
    assert_equal_weights(mine, theirs, atol=1e-5)


def test_second_phase_goes_on_where_the_first_ended():
    x, y = arrays(n=40)
    mine = mlp()
    theirs = twin(mine)
    graph = graph_of(featureset(x, y), mine, "adam", lr=0.01)
    exp = experiment()
    for label in ("first", "second"):
        exp.run_phase(train_phase(graph, label=label), **QUIET)
    by_hand(theirs, lambda p: torch.optim.Adam(p, lr=0.01), x, y, epochs=2)
    assert_equal_weights(mine, theirs, atol=1e-5)


def test_parameters_that_the_user_switched_off_stay():
    x, y = arrays(n=40)
    mine = mlp()
    mine[0].weight.requires_grad_(False)
    theirs = twin(mine)
    train(graph_of(featureset(x, y), mine, "adam", lr=0.01), n_epochs=2)
    by_hand(theirs, lambda p: torch.optim.Adam(p, lr=0.01), x, y)
    assert_equal_weights(mine, theirs, atol=1e-5)
    assert not mine[0].weight.requires_grad


def test_parameter_switched_off_between_phases_is_not_moved_by_an_old_gradient():
    x, y = arrays(n=40)
    mine = mlp()
    graph = graph_of(featureset(x, y), mine, "adam", lr=0.01)
    exp = experiment()
    exp.run_phase(train_phase(graph, label="first"), **QUIET)
    mine[0].weight.requires_grad_(False)
    before = mine[0].weight.clone()
    exp.run_phase(train_phase(graph, [mse(label="again")], label="second"), **QUIET)
    assert torch.equal(mine[0].weight, before)
