"""Scores, tables and pictures of padded targets, against the steps that hold data alone."""

import numpy as np
import pytest
from sklearn import metrics

import modularml as mml
from modularml.callbacks import Evaluation, ScoreMetric
from modularml.errors import DataError, ShapeError
from modularml.samplers import PairedSampler, SimilarityCondition
from tests.worlds import eval_phase, experiment, train_phase

torch = pytest.importorskip("torch")
LENGTHS = np.array([3, 5, 4, 2, 5, 3, 4, 1])
N, T = len(LENGTHS), 5
MASK = np.arange(T) < LENGTHS[:, None]


def padded(pad=99.0, targets="y"):
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, 2, size=(2, N, T)).astype(np.float32)
    c = rng.integers(0, 3, size=(N, T))
    x[~MASK], y[~MASK] = 0.0, pad
    c[~MASK] = -1
    data = {"x": x, "y": y, "c": c, "mask": MASK, "cell": np.arange(N) % 2}
    return mml.FeatureSet.from_dict("s", data, "x", ["y", "c"], ["mask", "cell"], mask="mask")


def evaluated(fs, model, targets="y", losses=()):
    node = mml.ModelNode("net", model, fs.reference(features="x", targets=targets))
    graph = mml.ModelGraph([node], optimizer=mml.Optimizer("sgd", opt_kwargs={"lr": 0.0}))
    return experiment().run_phase(eval_phase(graph, losses, batch_size=3)), graph


@pytest.mark.parametrize("scaled", [False, True])
def test_scores_and_tables_are_of_real_steps(scaled):
    fs = padded()
    if scaled:
        fs.fit_transform("StandardScaler", domain="targets", keys="y", merged_axes=(0, 2))
    losses = [mml.AppliedLoss(mml.Loss("mse"), "net", ["outputs", "targets"])]
    results, _ = evaluated(fs, torch.nn.Conv1d(1, 1, 1), losses=losses)
    out = results.stacked_tensors("net", "outputs", unscale=True, fmt="numpy")[:, 0]
    true = results.stacked_tensors("net", "targets", unscale=True, fmt="numpy")[:, 0]
    np.testing.assert_array_equal(true[~MASK], 99.0)
    table = results.scores(["r2", "mae"], group_by="cell")
    for group in (None, 0, 1):
        rows = np.ones(N, bool) if group is None else np.arange(N) % 2 == group
        for name, hand in (("r2", metrics.r2_score), ("mae", metrics.mean_absolute_error)):
            want = hand(true[rows][MASK[rows]], out[rows][MASK[rows]])
            is_group = table.group.isna() if group is None else table.group == group
            own = table[(table.score == name) & is_group]
            assert own.value.item() == pytest.approx(want, rel=1e-5)
    frame = results.to_pandas()
    assert frame.isna().to_numpy().sum() == 2 * (~MASK).sum()
    np.testing.assert_allclose(frame.filter(like="target").to_numpy()[MASK], true[MASK])
    mask = np.concatenate(list(results.tensors("net", "mask").values()))
    np.testing.assert_array_equal(mask[:, 0], MASK)


def test_scores_of_classes_are_of_real_steps():
    fs = padded()
    results, _ = evaluated(fs, torch.nn.Conv1d(1, 3, 1), "c")
    out = results.stacked_tensors("net", "outputs", fmt="numpy")
    true = results.stacked_tensors("net", "targets", fmt="numpy")[:, 0]
    want = metrics.accuracy_score(true[MASK], out.argmax(axis=1)[MASK])
    assert results.scores(["accuracy"]).value.item() == pytest.approx(want)


def test_outputs_without_steps_are_refused():
    fs = padded()
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(T, 1))
    results, _ = evaluated(fs, model)
    with pytest.raises(ShapeError, match=r"targets are padded.*ModelNode\(targets=\)"):
        results.scores(["r2"])


def test_pictures_and_metrics_of_evaluations_are_of_real_steps():
    fs = padded()
    _, graph = evaluated(fs, torch.nn.Conv1d(1, 1, 1))
    check = eval_phase(graph, [], label="check")
    callback = Evaluation(eval_phase=check, metrics=[ScoreMetric("mae", name="mae")])
    phase = train_phase(graph, label="train", batch_size=4, n_epochs=1, callbacks=[callback])
    exp = experiment("second")
    logged = exp.run_phase(phase).metrics().where(name="mae").values()
    results = exp.run_phase(eval_phase(graph, [], label="after"))
    read = results.stacked_tensors
    true, out = (read("net", d, fmt="numpy")[:, 0] for d in ("targets", "outputs"))
    want = np.abs(true - out)[MASK].mean()
    np.testing.assert_allclose(list(logged), [want], rtol=1e-5)
    pytest.importorskip("matplotlib")
    figure = results.plot()
    assert MASK.sum() in [len(line.get_xdata()) for line in figure.axes[0].lines]


def test_summaries_and_pairs_of_padded_columns():
    fs = padded()
    row = fs.summary().set_index("key").loc["y"]
    y = fs.collection.numpy("targets.y.raw")[MASK]
    assert (row["min"], row["max"]) == (y.min(), y.max())
    assert row["mean"] == pytest.approx(y.mean(), rel=1e-6)
    sampler = PairedSampler({"x": SimilarityCondition(tolerance=0.5)}, batch_size=2)
    with pytest.raises(DataError, match="padded, and padding would affect"):
        sampler.epoch(fs.to_view(), 0)
