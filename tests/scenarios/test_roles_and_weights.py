"""Pairs, triplets, weights and alternating samplers, each against a hand-written torch loop."""

import numpy as np
import pytest
import torch
from torch import nn

import modularml as mm
from modularml.data.batch import BatchView
from modularml.errors import ConfigError, DataError, LossError
from modularml.results.packed_results import packed_steps, unpacked_steps
from modularml.results.step_log import StepLog
from modularml.samplers import BaseSampler
from tests.worlds import (
    QUIET,
    arrays,
    assert_equal_weights,
    bindings,
    eval_phase,
    experiment,
    featureset,
    graph_of,
    mlp,
    mse,
    train,
    twin,
)

SAME, OTHER = mm.SimilarityCondition(), mm.SimilarityCondition("dissimilar")
GRADED = mm.SimilarityCondition(
    tolerance=0.5, weight_mode="exp", max_weight=3.0, allow_fallback=True
)


def labelled(n=60, **tags):
    x, y = arrays(n)
    return featureset(x, y, c=(y[:, 0] > 0).astype(np.int64), **tags), x, y


def contrastive(a, b, ya, yb):
    gap = (a - b).norm(dim=1)
    same = ((ya > 0) == (yb > 0)).float().reshape(-1)
    return same * gap**2 + (1 - same) * torch.relu(1.0 - gap) ** 2


def run(graph, sampler, losses, epochs=2, **kwargs):
    phase = mm.TrainPhase(
        "train", input_sources=bindings(graph, sampler), losses=losses, n_epochs=epochs, **kwargs
    )
    return experiment().run_phase(phase, **QUIET)


def by_hand(module, sampler, view, x, y, loss, epochs=2):
    """Train on the sampler's own rows; return each epoch's weighted mean loss."""
    x, y = torch.as_tensor(x), torch.as_tensor(y)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    means = []
    for epoch in range(epochs):
        found, total, weight = sampler.epoch(view, epoch), 0.0, 0.0
        for i in range(found.n_batches):
            rows = [found.batch(i, role) for role in sampler.roles]
            part = slice(found.bounds[i], found.bounds[i + 1])
            w = np.ones(part.stop - part.start)
            for role in sampler.roles:
                own = found.weight(role)
                w = w * (1.0 if own is None else own[part])
            w = torch.as_tensor(w, dtype=torch.float32)
            values = loss(*[module(x[r]) for r in rows], *[y[r] for r in rows])
            value = (values * w).sum() / w.sum()
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            total, weight = total + value.item() * w.sum().item(), weight + w.sum().item()
        means.append(total / weight)
    return means


@pytest.mark.parametrize("conditions", [{"c": SAME}, {"y": GRADED}], ids=["plain", "weighted"])
def test_siamese_pairs_equal_the_loop_by_hand(conditions):
    fs, x, y = labelled()
    module = mlp(out=3)
    mine = twin(module)
    sampler = mm.PairedSampler(conditions, batch_size=16, shuffle=True, seed=3)
    inputs = ["outputs.anchor", "outputs.pair", "targets.anchor", "targets.pair"]
    loss = mm.AppliedLoss(mm.Loss(contrastive, backend="torch"), on="net", inputs=inputs)
    results = run(graph_of(fs, module), sampler, [loss])
    means = by_hand(mine, sampler, fs.to_view(), x, y, contrastive)
    assert_equal_weights(module, mine, atol=1e-6)
    logged = results.metrics().where(name="train_loss", batch=None).values()
    assert logged == pytest.approx(means, rel=1e-5)
    batch = results.batches("net").at(epoch=1, batch=0)
    found = sampler.epoch(fs.to_view(), 1)
    if sampler.gives_weights:
        np.testing.assert_array_equal(batch.weights("pair"), found.weight("pair")[:16])
        assert batch.weights("anchor").tolist() == [1.0] * 16
    assert results.source_view("net", role="pair", batch=0)


def test_triplet_margin_loss_equals_the_loop_by_hand():
    fs, x, y = labelled()
    module = mlp(out=3)
    mine = twin(module)
    sampler = mm.TripletSampler({"c": SAME}, {"c": OTHER}, batch_size=16, shuffle=True, seed=3)
    inputs = ["outputs.anchor", "outputs.positive", "outputs.negative"]
    results = run(
        graph_of(fs, module), sampler, [mm.AppliedLoss(mm.Loss("triplet_margin"), "net", inputs)]
    )
    loss = nn.TripletMarginLoss(reduction="none")
    means = by_hand(mine, sampler, fs.to_view(), x, y, lambda a, p, n, *_: loss(a, p, n))
    assert_equal_weights(module, mine, atol=1e-6)
    logged = results.metrics().where(name="train_loss", batch=None).values()
    assert logged == pytest.approx(means, rel=1e-5)


class Weighted(BaseSampler):
    """Rows in order, weighted by a column of numbers; the last batch is padded."""

    gives_weights = True

    def sample(self, view, epoch):
        rows = np.append(np.arange(len(view)), [-1, -1])
        weights = np.append(np.linspace(0, 2, len(view)), [0.0, 0.0])
        return self.batches(view, {"default": rows}, self.rng(epoch), {"default": weights})


def test_weights_and_padding_reach_the_loss_and_hand_driven_steps():
    fs, x, y = labelled(30)
    graph = graph_of(fs, mlp())
    mine = twin(graph.get_node("net").model.module)
    sampler = Weighted(batch_size=32)
    results = run(graph, sampler, [mse()], epochs=1)
    w = torch.linspace(0, 2, 30)
    optimizer = torch.optim.SGD(mine.parameters(), lr=0.05)
    value = ((mine(torch.as_tensor(x)) - torch.as_tensor(y)).pow(2)[:, 0] * w).sum() / w.sum()
    value.backward()
    optimizer.step()
    assert_equal_weights(graph.get_node("net").model.module, mine, atol=1e-6)
    batch = results.batches("net").one()
    assert batch.mask().tolist() == [1.0] * 30 + [0.0] * 2
    assert batch.weights().tolist() == pytest.approx([*w.tolist(), 0, 0])

    phase = mm.TrainPhase("by hand", input_sources=bindings(graph, sampler), losses=[mse()])
    with torch.no_grad():
        after = ((mine(torch.as_tensor(x)) - torch.as_tensor(y)).pow(2)[:, 0] * w).sum() / w.sum()
    for ctx in phase.iter_execution(show_training_progress=False):
        graph.eval_step(ctx, phase.losses)
        assert ctx.losses[0].value == pytest.approx(after.item(), rel=1e-5)
        assert ctx.loss_totals() == pytest.approx([w.sum().item()])
        assert phase.losses[0].compute(ctx).item() == pytest.approx(after.item(), rel=1e-5)
    [view] = phase.input_sources[0].materialize_batches()
    assert isinstance(view, BatchView)
    assert view.materialize().mask().tolist() == batch.mask().tolist()


@pytest.mark.parametrize("batch_size", [7, 60])
def test_sample_weight_is_a_weighted_mean(batch_size):
    w = np.random.default_rng(1).random(60)
    w[:20] = 0
    fs, x, y = labelled(w=w)
    loss = mse(sample_weight="tags.w")
    assert mm.AppliedLoss.from_config(loss.get_config()).sample_weight == "tags.w"
    graph = graph_of(fs, mlp(), opt="sgd", lr=0.0)
    module = graph.get_node("net").model.module
    out = module(torch.as_tensor(x)).detach().numpy()
    wanted = np.average((out - y)[:, 0] ** 2, weights=w)
    results = train(graph, [loss], batch_size=batch_size)
    assert results.metrics().where(name="train_loss", batch=None).one() == pytest.approx(wanted)
    results = experiment("two").run_phase(eval_phase(graph, [loss], batch_size=batch_size), **QUIET)
    assert results.aggregated_losses("net")[loss.label] == pytest.approx(wanted, rel=1e-5)
    results._execution = StepLog(unpacked_steps(packed_steps(results._execution)))
    assert results.aggregated_losses("net")[loss.label] == pytest.approx(wanted, rel=1e-5)


def test_sample_weights_that_cannot_be_used():
    fs, *_ = labelled(w=np.linspace(-1, 1, 60), v=np.ones(60))
    graph = graph_of(fs, mlp())
    with pytest.raises(DataError, match="non-negative"):
        train(graph, [mse(sample_weight="tags.w")])
    scalar = mm.Loss(lambda a, b: (a - b).mean(), backend="torch")
    loss = mm.AppliedLoss(scalar, "net", ["outputs", "targets"], sample_weight="v")
    with pytest.raises(LossError, match="one value per sample"):
        train(graph, [loss])
    with pytest.raises(ConfigError, match="sample_weight"):
        mse(sample_weight=3)


def test_nothing_is_added_where_nothing_weighs():
    fs, *_ = labelled()
    plan, _ = graph_of(fs, mlp()).plan([mse()], training=True)
    assert len(plan.slots) == 2
    assert plan.layout.weight_sources == (None,)


# -- several samplers -------------------------------------------------------------------------


def two_heads():
    """Two inputs, each with a node and a target; weights differ."""
    sets, nodes, data = [], [], []
    for i, n in enumerate((40, 24)):
        x, y = arrays(n, seed=i)
        sets.append(featureset(x, y, f"set{i}"))
        nodes.append(mm.ModelNode(f"net{i}", mlp(seed=i), sets[i]))
        data.append((torch.as_tensor(x), torch.as_tensor(y)))
    mm.ModelGraph(nodes, optimizer=mm.Optimizer("adam", opt_kwargs={"lr": 0.01}))
    return nodes, data


@pytest.mark.parametrize(
    ("policy", "steps"),
    [
        ("alternate_strict", [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]),
        (
            "alternate_cycle",
            [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2), (0, 3), (1, 0), (0, 4), (1, 1)],
        ),
    ],
)
def test_alternating_samplers_equal_a_loop_that_takes_turns(policy, steps):
    nodes, data = two_heads()
    mine = [twin(node.model.module) for node in nodes]
    sources = [
        mm.InputBinding.for_training(
            node=node, sampler=mm.SimpleSampler(batch_size=8), upstream=None
        )
        for node in nodes
    ]
    losses = [mse("net0"), mse("net1")]
    phase = mm.TrainPhase(
        "turns", input_sources=sources, losses=losses, batch_schedule=policy, n_epochs=2
    )
    results = experiment().run_phase(phase, **QUIET)
    optimizer = torch.optim.Adam([p for m in mine for p in m.parameters()], lr=0.01)
    values = []
    for _ in range(2):
        for turn, place in steps:
            x, y = (t[8 * place : 8 * place + 8] for t in data[turn])
            optimizer.zero_grad()  # to None: what rests is not moved
            value = nn.functional.mse_loss(mine[turn](x), y)
            value.backward()
            optimizer.step()
            values.append((turn, value.item()))
    for node, module in zip(nodes, mine, strict=True):
        assert_equal_weights(node.model.module, module, atol=1e-6)
    for turn in (0, 1):
        logged = [r.value for r in results.losses(f"net{turn}").values()]
        assert logged == pytest.approx([v if t == turn else 0.0 for t, v in values], rel=1e-4)
    first = values[: len(steps)]
    means = [np.mean([v for t, v in first if t == turn]) for turn in (0, 1)]
    logged = results.metrics().where(name="train_loss", epoch=0, batch=None).one()
    assert logged == pytest.approx(sum(means), rel=1e-4)
    resting = results.batches("net1").at(epoch=0, batch=0)
    assert resting.mask().tolist() == resting.weights().tolist() == [0.0] * 8
    assert not resting.outputs.any()
    ctx = results.execution_contexts().at(epoch=0, batch=0)
    rows = [view.role_indices["default"].tolist() for view in ctx.inputs.values()]
    assert rows == [list(range(8)), [-1] * 8]


def test_a_loss_that_alternating_never_computes_is_refused():
    nodes, _ = two_heads()
    sources = [
        mm.InputBinding.for_training(
            node=node, sampler=mm.SimpleSampler(batch_size=8), upstream=None
        )
        for node in nodes
    ]
    both = mm.AppliedLoss(mm.Loss("mse"), "net0", ["outputs", "net1.outputs"], label="both")
    for losses, text in (
        ([mse("net0"), mse("net1"), both], "never brings"),
        ([mse("net0")], "no loss is on"),
    ):
        phase = mm.TrainPhase(
            "turns", input_sources=sources, losses=losses, batch_schedule="alternate_cycle"
        )
        with pytest.raises(ConfigError, match=text):
            experiment(f"exp {text}").run_phase(phase, **QUIET)


def aligned_sets():
    """Rows of one cell in two sets, in another order, with one more cell in the first."""
    x, y = arrays(30)
    cells = np.array([f"c{i}" for i in range(30)])
    shuffled = np.random.default_rng(0).permutation(29)
    one = featureset(x, y, "one", cell=cells)
    two = featureset(2 * x[shuffled], y[shuffled], "two", cell=cells[shuffled])
    return one, two, cells


def test_aligned_inputs_read_rows_that_belong_together():
    one, two, cells = aligned_sets()
    nodes = [mm.ModelNode("a", mlp(), one), mm.ModelNode("b", mlp(), two)]
    both = mm.ConcatNode("both", nodes, concat_axis=0, concat_axis_targets="first")
    tail = mm.ModelNode("net", mlp(d=2), both)
    graph = mm.ModelGraph(
        [*nodes, both, tail], optimizer=mm.Optimizer("sgd", opt_kwargs={"lr": 0.01})
    )
    sampler = mm.SimpleSampler(batch_size=8, shuffle=True, seed=0, align_on="cell")
    with pytest.warns(UserWarning, match="1 of 30 rows of 'one'"):
        results = run(graph, sampler, [mse()], epochs=1)
    seen = []
    for ctx in results.execution_contexts().values():
        one_rows, two_rows = (view.view() for view in ctx.inputs.values())
        mine, theirs = (v.get_tags("numpy")[:, 0].tolist() for v in (one_rows, two_rows))
        assert mine == theirs
        seen += mine
    assert sorted(seen) == sorted(cells[:29])


def test_streams_of_roles_feed_two_heads_from_two_sets():
    one, two, _ = aligned_sets()
    nodes = [mm.ModelNode("a", mlp(), one), mm.ModelNode("b", mlp(seed=1), two)]
    mm.ModelGraph(nodes, optimizer=mm.Optimizer("sgd", opt_kwargs={"lr": 0.01}))
    near = mm.SimilarityCondition(tolerance=0.5, weight_mode="linear", max_weight=2.0)
    sampler = mm.PairedSampler({"y": near}, batch_size=8, seed=0, align_on="cell")
    sources = [
        mm.InputBinding.for_training(node=n, sampler=sampler, upstream=None, stream=stream)
        for n, stream in zip(nodes, ("anchor", "pair"), strict=True)
    ]
    loss = mm.AppliedLoss(mm.Loss("mse"), "a", ["outputs", "b.outputs"])
    phase = mm.TrainPhase("pairs", input_sources=sources, losses=[loss])
    with pytest.warns(UserWarning, match="omitted|drops"):
        results = experiment().run_phase(phase, **QUIET)
    for ctx in results.execution_contexts().values():
        a, b = (view.view().get_targets("numpy")[:, 0] for view in ctx.inputs.values())
        assert (np.abs(a - b) <= 0.5).all()
        w = results.batches("b").at(epoch=0, batch=ctx.batch_idx).weights()
        np.testing.assert_allclose(w, np.clip(0.5 / np.abs(a - b), 1, 2), rtol=1e-4)
        outs = [ctx.output(node.node_id).numpy() for node in nodes]
        wanted = np.average((outs[0] - outs[1])[:, 0] ** 2, weights=w)
        assert ctx.losses[0].value == pytest.approx(wanted, rel=1e-4)
    with pytest.raises(mm.errors.UnknownNameError, match="stream 'positive' of PairedSampler"):
        mm.InputBinding.for_training(node="a", sampler=sampler, upstream=None, stream="positive")


def test_aligned_sources_outside_a_phase():
    one, two, _ = aligned_sets()
    sampler = mm.SimpleSampler(batch_size=8, sources=[one, two], align_on="cell")
    with pytest.warns(UserWarning, match="no match"):
        batches = list(sampler)
    for batch in batches:
        a, b = (batch[name].materialize().tags for name in ("one", "two"))
        np.testing.assert_array_equal(a, b)
    with pytest.warns(UserWarning, match="no match"):
        assert len(sampler.materialize_batches()) == len(batches) == 4
    copied = one.copy(label="again", register=False)
    ids = mm.SimpleSampler(batch_size=8, sources=[one, copied], align_on="sample_uuids")
    assert len(list(ids)) == 4
    with pytest.raises(ConfigError, match="align_on"):
        list(mm.SimpleSampler(sources=[one, two]))
    with pytest.raises(ConfigError, match="nothing to sample"):
        list(mm.SimpleSampler())
    many = mm.SimpleSampler(batch_size=3, sources=[one, two.take([0, 0, 1])], align_on="cell")
    with pytest.warns(UserWarning, match="28 of 30 rows of 'one'"):
        (batch,) = many
    np.testing.assert_array_equal(*(batch[n].materialize().tags for n in ("one", "two")))
    with pytest.raises(DataError, match="repeat in 'one' and in 'two'"):
        list(mm.SimpleSampler(sources=[one.take([0, 0]), two.take([0, 0, 1])], align_on="cell"))
    with pytest.raises(ConfigError, match="different FeatureSets"):
        list(mm.SimpleSampler(sources=[one, one.take([0, 1])], align_on="cell"))
    numbers = np.arange(4)
    sets = [
        mm.FeatureSet.from_dict(f"n{i}", {"x": numbers, "n": n}, "x", [], "n", register=False)
        for i, n in enumerate((numbers, numbers + 0.5, np.stack([numbers] * 2, axis=1)))
    ]
    for other, match in ((sets[1], "cast one of them"), (sets[2], "arrays")):
        with pytest.raises(DataError, match=match):
            list(mm.SimpleSampler(sources=[other, sets[0]], align_on="n"))


def test_a_mean_over_nothing_is_nan():
    fs, _, _ = labelled(w=np.zeros(60))
    graph = graph_of(fs, mlp())
    results = experiment().run_phase(eval_phase(graph, [mse(sample_weight="w")]), **QUIET)
    assert np.isnan(results.aggregated_losses("net")["mse_net"])


def test_an_epoch_in_which_every_sample_weighs_nothing_logs_nan_and_moves_nothing():
    module = mlp()
    graph, before = graph_of(featureset(*arrays(n=40), w=np.zeros(40)), module), twin(module)
    results = train(graph, [mse(sample_weight="tags.w")], n_epochs=2)
    assert results.to_pandas()["train_loss"].isna().tolist() == [True, True]
    assert_equal_weights(module, before)
