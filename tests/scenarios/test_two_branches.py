"""A whole story: two branches, validation, early stopping, test figures, predictions."""

import numpy as np
import torch
from torch import nn

import modularml as mm
from modularml.models.torch import SequentialCNN, SequentialMLP
from tests.worlds import QUIET


def sensors(n=240, seed=0):
    """Return waves of three kinds, with scalar facts beside them."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, size=n)
    t = np.linspace(0, 1, 32)
    wave = np.sin(2 * np.pi * (kind[:, None] + 1) * t) + 0.3 * rng.normal(size=(n, 32))
    load = kind + rng.normal(size=n)
    return {
        "wave": wave.astype(np.float32),
        "load": load.astype(np.float32),
        "heat": rng.normal(20, 5, size=n).astype(np.float32),
        "kind": kind,
        "device": rng.integers(0, 30, size=n).astype(str),
    }


def build(seed=0):
    fs = mm.FeatureSet.from_dict(
        "sensors", sensors(), ["wave", "load", "heat"], ["kind"], ["device"]
    )
    fs.split_random({"train": 0.6, "val": 0.2, "test": 0.2}, group_by="device", seed=1)
    fs.fit_transform(
        "StandardScaler", keys=["load", "heat"], domain="features", fit_to_split="train"
    )
    waves = fs.reference(features="wave", targets="kind")
    facts = fs.reference(features=["load", "heat"], targets="kind")
    torch.manual_seed(seed)
    cnn = mm.ModelNode("cnn", SequentialCNN(hidden_dim=8, pooling=2, output_shape=(8,)), waves)
    mlp = mm.ModelNode("mlp", SequentialMLP(output_shape=(4,)), facts)
    both = mm.ConcatNode("both", [cnn, mlp], concat_axis_targets="first")
    head = mm.ModelNode("head", SequentialMLP(output_shape=(3,)), both)
    graph = mm.ModelGraph([cnn, mlp, both, head], mm.Optimizer("adam", opt_kwargs={"lr": 0.01}))
    graph.build()
    loss = mm.AppliedLoss(mm.Loss("cross_entropy"), on="head", inputs=["outputs", "targets"])
    phase = mm.TrainPhase.from_split(
        "train",
        split="train",
        sampler=mm.SimpleSampler(batch_size=32, shuffle=True, seed=0),
        losses=[loss],
        n_epochs=30,
        callbacks=[
            mm.Evaluation.from_split("val", split="val", metrics=[mm.EvalLossMetric(loss=loss)]),
            mm.EarlyStopping(patience=4, restore_best=True),
        ],
        result_recording="last",
    )
    exp = mm.Experiment.from_active_context("sensors")
    exp.execution_plan.add_phase(phase)
    exp.execution_plan.add_phase(mm.EvalPhase.from_split("test", split="test", losses=[loss]))
    return fs, graph, exp


def test_learns_and_tells():
    fs, _, exp = build()
    results = exp.run(**QUIET)
    trained, tested = results.get_train_result(), results.get_eval_result()
    out = tested.stacked_tensors("head", "outputs", fmt="np")
    truth = tested.stacked_tensors("head", "targets", fmt="np")[:, 0]
    assert (out.argmax(axis=1) == truth).mean() > 0.95
    np.testing.assert_array_equal(truth, fs["test"].get_targets("numpy")[:, 0])
    stopped = trained.callbacks(kind="early_stopping").one()
    values = trained.metrics().where(name="val_loss").values()
    assert stopped.best_epoch == int(np.argmin(values))
    val = exp.run_phase(
        mm.EvalPhase.from_split("val", split="val", losses=exp.execution_plan.flatten()[0].losses)
    )
    found = val.aggregated_losses("head")["cross_entropy_head"]
    np.testing.assert_allclose(found, min(values), rtol=1e-6)
    new = {k: v for k, v in sensors(n=20, seed=9).items() if k in ("wave", "load", "heat")}
    assert (exp.predict(new).argmax(axis=1) == sensors(n=20, seed=9)["kind"]).mean() > 0.9
    assert exp.predict(fs["test"]).shape == (len(fs["test"]), 3)


def test_reproducible():
    curves = []
    for _ in range(2):
        with mm.ExperimentContext().activate():
            _, _, exp = build(seed=3)
            results = exp.run(**QUIET)
            curves.append(results.get_train_result().metrics().values())
    assert curves[0] == curves[1]


def test_equals_one_module_by_hand():
    fs, graph, exp = build()

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            import copy

            parts = {k: copy.deepcopy(graph.get_node(k).model) for k in ("cnn", "mlp", "head")}
            self.parts = nn.ModuleDict({k: m.layers for k, m in parts.items()})

        def forward(self, wave, facts):
            merged = torch.cat([self.parts["cnn"](wave), self.parts["mlp"](facts)], dim=1)
            return self.parts["head"](merged)

    whole = Whole()
    phase = exp.execution_plan.get_train_phase("train")
    phase.callbacks.clear()
    phase.n_epochs = 3
    view = fs["train"]
    wave = torch.tensor(view.get_features("numpy", features="wave"))
    facts = torch.tensor(
        view.get_features("numpy", features=["load.transformed", "heat.transformed"])
    )
    kind = torch.tensor(view.get_targets("numpy")[:, 0])
    sampler = phase.input_sources[0].sampler
    optimizer = torch.optim.Adam(whole.parameters(), lr=0.01)
    for epoch in range(3):
        batches = sampler.epoch(view, epoch)
        for i in range(batches.n_batches):
            rows = torch.as_tensor(batches.batch(i))
            optimizer.zero_grad()
            out = whole(wave[rows], facts[rows].to(wave.dtype))
            nn.functional.cross_entropy(out, kind[rows]).backward()
            optimizer.step()
    exp.run_phase(phase, **QUIET)
    for name, layers in whole.parts.items():
        mine = graph.get_node(name).model.layers
        for a, b in zip(mine.parameters(), layers.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
