"""Graphs that must do the same in every framework with gradients."""

from importlib import import_module

import numpy as np
import pytest

import modularml as mm
from modularml.backends import adapter_for
from modularml.errors import ConfigError
from tests.worlds import QUIET, arrays, bindings, eval_phase, experiment, featureset, mse, train


def models(backend):
    return import_module(f"modularml.models.{backend}")


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
def test_padded_concatenation(backend, mode):
    rng = np.random.default_rng(0)
    values = [
        rng.normal(size=(4, *shape)) for shape in ((2, 3), (1, 5))
    ]  # reflected further than once round
    fs = featureset(*arrays(n=4))
    refs = [fs.reference(features=name) for name in ("x0", "x1")]
    node = mm.ConcatNode("both", refs, 0, pad_inputs=True, pad_mode=mode, pad_value=2.5)
    adapter = adapter_for(backend)
    found = node.apply_merge([adapter.from_numpy(v) for v in values])
    expected = node.apply_merge(values)  # by numpy
    assert expected.shape == (4, 3, 5)
    np.testing.assert_array_equal(adapter.to_numpy(found), expected)


def test_merged_branches_learn_and_tell(backend):
    """Targets are averaged, one branch is frozen, and every batch is kept with its outputs."""
    x, y = arrays(n=60)
    mlp = models(backend).SequentialMLP
    fs = featureset(x, np.hstack([y, 3 * y]))
    a = mm.ModelNode("a", mlp(output_shape=(4,)), fs.reference(features="x0", targets="y0"))
    b = mm.ModelNode("b", mlp(output_shape=(2,)), fs.reference(features="x1", targets="y1"))
    both = mm.ConcatNode("both", [a, b], concat_axis=-1, concat_axis_targets="mean")
    head = mm.ModelNode("net", mlp(hidden_dim=16), both)
    rate = mm.Optimizer("adam", opt_kwargs={"lr": 0.02})
    graph = mm.ModelGraph([a, b, both, head], rate)
    graph.build()
    b.freeze()
    kept = b.model.get_weights()
    results = train(graph, n_epochs=15)
    assert all(np.array_equal(v, kept[k]) for k, v in b.model.get_weights().items())
    losses = results.metrics().where(name="train_loss", batch=None).values()
    assert losses[-1] < 0.8 * losses[0]
    told = experiment("told").run_phase(eval_phase(graph, label="told"), **QUIET)
    out = told.stacked_tensors("net", "outputs", fmt="np").reshape(-1)
    target = told.stacked_tensors("net", "targets", fmt="np").reshape(-1)
    np.testing.assert_allclose(target, 2 * y[:, 0], rtol=1e-6)
    expected = ((out - target) ** 2).mean()
    np.testing.assert_allclose(told.aggregated_losses("net")["mse_net"], expected, rtol=1e-5)
    fmt = told.stacked_tensors("net", "outputs", fmt=backend)
    np.testing.assert_allclose(adapter_for(backend).to_numpy(fmt).reshape(-1), out)
    assert "SequentialMLP" in graph.visualize().to_text()


def test_features_that_stay_features_load_again(backend):
    """A network without an output shape gets no layer more when its weights come back."""
    cnn = models(backend).SequentialCNN(hidden_dim=3)
    cnn.build((1, 8))
    again = models(backend).SequentialCNN(hidden_dim=3)
    again.set_state(cnn.get_state())
    assert again.output_shape == cnn.output_shape == (24,)
    assert again.same_weights(cnn)
    with pytest.raises(ConfigError, match="lack"):
        again.set_weights({})


def test_optimizer_gets_back_its_moments(backend):
    x, y = arrays(n=40)
    node = mm.ModelNode("net", models(backend).SequentialMLP(), featureset(x, y))
    graph = mm.ModelGraph([node], mm.Optimizer("adam", opt_kwargs={"lr": 0.01}))
    train(graph, [mse()], n_epochs=1)
    state = graph.get_state()
    train(graph, [mse()], n_epochs=2, label="first")
    ends = graph.predict(featureset(x, y, "again"))
    graph.set_state(state)
    train(graph, [mse()], n_epochs=2, label="second")
    np.testing.assert_allclose(graph.predict(featureset(x, y, "more")), ends, rtol=1e-5)


def test_weights_of_samples_and_roles(backend):
    x, y = arrays(30)
    w = np.random.default_rng(0).random(30)
    fs = featureset(x, y, w=w)
    node = mm.ModelNode("net", models(backend).SequentialMLP(output_shape=(1,)), fs)
    graph = mm.ModelGraph([node], optimizer=mm.Optimizer("sgd", opt_kwargs={"lr": 1e-9}))
    graph.build()
    out = graph.predict(fs)
    near = mm.SimilarityCondition(tolerance=1.0, weight_mode="exp", max_weight=2.0)
    pairs = mm.PairedSampler({"y": near}, batch_size=7, seed=0)
    inputs = ["outputs.anchor", "targets.pair"]
    loss = mm.AppliedLoss(mm.Loss("mse"), on="net", inputs=inputs, sample_weight="w")
    phase = mm.TrainPhase("train", input_sources=bindings(graph, pairs), losses=[loss])
    results = experiment().run_phase(phase, **QUIET)
    found = pairs.epoch(fs.to_view(), 0)
    a, p = found.rows["anchor"], found.rows["pair"]
    wanted = np.average((out[a] - y[p])[:, 0] ** 2, weights=w[a] * found.weight("pair"))
    logged = results.metrics().where(name="train_loss", batch=None).one()
    assert logged == pytest.approx(wanted, rel=1e-4)


def test_samplers_take_turns(backend):
    """Where one rests, its node gives zeros, has no loss and does not move."""
    sets = [featureset(*arrays(n, seed=n), f"set{n}") for n in (16, 8)]
    mlp = models(backend).SequentialMLP
    nodes = [mm.ModelNode(f"net{i}", mlp(output_shape=(1,)), fs) for i, fs in enumerate(sets)]
    graph = mm.ModelGraph(nodes, optimizer=mm.Optimizer("adam", opt_kwargs={"lr": 0.01}))
    sources = [
        mm.InputBinding.for_training(node=n, sampler=mm.SimpleSampler(batch_size=8), upstream=None)
        for n in nodes
    ]
    losses, kept = [mse("net0"), mse("net1")], []
    phase = mm.TrainPhase(
        "turns", input_sources=sources, losses=losses, batch_schedule="alternate_cycle"
    )
    graph.build()
    for ctx in phase.iter_execution(show_training_progress=False):
        kept.append([dict(node.model.get_weights()) for node in nodes])
        graph.train_step(ctx, losses)
        turn = ctx.batch_idx % 2
        now = [node.model.get_weights() for node in nodes]
        moved = [any((now[i][k] != v).any() for k, v in kept[-1][i].items()) for i in (0, 1)]
        assert moved == [turn == 0, turn == 1]
        assert [record.value > 0 for record in ctx.losses] == moved
        resting = ctx.outputs[nodes[1 - turn].node_id]
        assert not np.asarray(resting.outputs).any()
        assert resting.mask().tolist() == [0.0] * 8
    assert len(kept) == 4
