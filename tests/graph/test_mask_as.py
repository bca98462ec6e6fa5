"""Nodes that are given the mask of their padded input."""

import numpy as np
import pytest

import modularml as mml
from modularml.data.batch import SampleData
from modularml.errors import ConfigError, DataError, GraphError, UnknownNameError
from tests.worlds import QUIET, eval_phase, experiment, mse, train

torch = pytest.importorskip("torch")
LENGTHS = np.array([3, 5, 4, 2, 5, 3, 4, 1])
N, T = len(LENGTHS), 5
MASK = np.arange(T) < LENGTHS[:, None]


class Pooled(torch.nn.Module):
    """An MLP on the mean of the steps that hold data."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.steps, self.head = torch.nn.Linear(2, 4), torch.nn.Linear(4, 1)

    def forward(self, x, mask):
        steps = torch.tanh(self.steps(x[:, 0])) * mask[..., None]
        return self.head(steps.sum(dim=1) / mask.sum(dim=1, keepdim=True))


def padded(pad=0.0, **kwargs):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(N, T, 2)).astype(np.float32), rng.normal(size=N).astype(np.float32)
    x[~MASK] = pad
    data = {"x": x, "y": y, "mask": MASK, "cell": np.arange(N) % 4}
    return mml.FeatureSet.from_dict("s", data, "x", "y", ["mask", "cell"], mask="mask"), x, y


def graph_of(fs, model, **kwargs):
    ref = fs.reference(features="x", targets="y")
    node = mml.ModelNode("net", model, ref, mask_as=kwargs.pop("mask_as", "mask"), **kwargs)
    return mml.ModelGraph([node], optimizer=mml.Optimizer("sgd", opt_kwargs={"lr": 0.1}))


def predicted(model, x):
    """Return what a model says of each sequence alone, without padding."""
    with torch.no_grad():
        rows = [
            model(torch.tensor(x[i, :n])[None, None], mask=torch.ones((1, n), dtype=torch.bool))
            for i, n in enumerate(LENGTHS[: len(x)])
        ]
    return torch.cat(rows).numpy()


@pytest.mark.parametrize("pad", [0.0, 50.0])
def test_the_mask_reaches_torch_in_training_evaluation_prediction_and_by_hand(pad):
    fs, x, y = padded(pad)
    model, theirs = Pooled(), Pooled()
    graph = graph_of(fs, model)
    results = experiment("first").run_phase(eval_phase(graph, batch_size=3))
    want = predicted(theirs, x)
    np.testing.assert_allclose(results.stacked_tensors("net", "outputs"), want, rtol=1e-5)
    np.testing.assert_allclose(graph.predict(fs), want, rtol=1e-5)
    np.testing.assert_allclose(graph.predict({"x": x[:3], "mask": MASK[:3]}), want[:3], rtol=1e-5)
    with pytest.raises(DataError, match="lacks the column 'mask'"):
        graph.predict({"x": x})
    node = graph.get_node("net")
    sample = SampleData(features=torch.tensor(x[:, None]))
    by_hand = node(sample, mask=torch.tensor(MASK)).outputs.detach()
    np.testing.assert_allclose(by_hand, want, rtol=1e-5)
    with pytest.raises(GraphError, match=r"pass it: node\(batch, mask=mask\)"):
        node(sample)
    train(graph, batch_size=N, n_epochs=1)
    loss = torch.nn.functional.mse_loss(
        theirs(torch.tensor(x[:, None]), torch.tensor(MASK)), torch.tensor(y[:, None])
    )
    loss.backward()
    for mine, p in zip(model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.detach(), (p - 0.1 * p.grad).detach())


def test_the_mask_reaches_frozen_nodes_nodes_below_folds_and_files(tmp_path):
    fs, x, _ = padded(50.0)
    model = mml.TorchModelWrapper(model_class=Pooled)
    ref = fs.reference(features="x", targets="y")
    below = mml.ModelNode("first", torch.nn.Tanh(), ref)
    node = mml.ModelNode("net", model, below, mask_as="mask")
    graph = mml.ModelGraph([below, node], optimizer=mml.Optimizer("sgd", opt_kwargs={"lr": 0.1}))
    graph.build()
    want = predicted(model.inner, np.tanh(x))
    np.testing.assert_allclose(graph.predict(fs), want, rtol=1e-5)
    node.freeze()
    results = experiment("frozen").run_phase(eval_phase(graph, batch_size=3))
    np.testing.assert_allclose(results.stacked_tensors("net", "outputs"), want, rtol=1e-5)
    node.unfreeze()
    exp = experiment("saved")
    path = exp.save(tmp_path / "e")
    with mml.ExperimentContext().activate():
        loaded = mml.Experiment.load(path)
        again = loaded.ctx.model_graph
        assert again.get_node("net").mask_as == "mask"
        np.testing.assert_allclose(again.predict({"x": x, "mask": MASK}), want, rtol=1e-5)


def test_arguments_that_are_not_there_are_refused_at_build():
    fs, _, _ = padded()
    with pytest.raises(UnknownNameError, match="mask_as 'msk' of Pooled; did you mean 'mask'"):
        graph_of(fs, Pooled(), mask_as="msk").build()


def test_inputs_without_a_mask_and_estimators_are_refused():
    linear = pytest.importorskip("sklearn.linear_model")
    fs = mml.FeatureSet.from_dict("u", {"x": np.zeros((4, T, 2)), "y": np.zeros(4)}, "x", "y")
    with pytest.raises(GraphError, match="reads no padded column"):
        graph_of(fs, Pooled()).build()
    with pytest.raises(ConfigError, match="takes no mask"):
        mml.ModelNode("r", linear.Ridge(), fs, mask_as="mask")


def test_the_mask_reaches_keras():
    keras = pytest.importorskip("keras")
    import tensorflow as tf

    class PooledKeras(keras.Model):
        def __init__(self):
            super().__init__()
            self.head = keras.layers.Dense(1, kernel_initializer="ones")
            self.supports_masking = True

        def compute_mask(self, inputs, previous=None):
            return None

        def call(self, x, mask=None):
            steps = tf.where(mask[..., None], x[:, 0], 0.0)
            count = tf.reduce_sum(tf.cast(mask, tf.float32), axis=1, keepdims=True)
            return self.head(tf.reduce_sum(steps, axis=1) / count)

    fs, x, y = padded(50.0)
    graph = graph_of(fs, PooledKeras())
    results = experiment("first").run_phase(eval_phase(graph, batch_size=3))
    want = np.array([x[i, :n].mean(axis=0).sum() for i, n in enumerate(LENGTHS)])[:, None]
    found = np.concatenate([np.asarray(t) for t in results.tensors("net", "outputs").values()])
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(graph.predict(fs), want, rtol=1e-4, atol=1e-5)
    logged = train(graph, batch_size=N, n_epochs=1).metrics().at(name="train_loss", batch=None)
    assert logged == pytest.approx(((want[:, 0] - y) ** 2).mean(), rel=1e-4)
    with mml.ExperimentContext().activate(), pytest.raises(UnknownNameError, match="msk"):
        graph_of(padded()[0], PooledKeras(), mask_as="msk").build()


@pytest.mark.parametrize("road", ["made", "loaded"])
def test_the_mask_reaches_the_model_in_each_fold(road, tmp_path):
    fs, x, y = padded(50.0)
    fs.add_split(fs.take(range(N), label="all"))
    graph_of(fs, mml.TorchModelWrapper(model_class=Pooled))
    exp = experiment("folds", audit="off")
    sampler = mml.SimpleSampler(batch_size=N)
    phase = mml.TrainPhase.from_split(
        "train", split="all", sampler=sampler, losses=[mse()], n_epochs=2
    )
    exp.execution_plan.add_phase(phase)
    if road == "loaded":
        path = exp.save(tmp_path / "e")
        with mml.ExperimentContext().activate():
            exp = mml.Experiment.load(path)
        fs = exp.ctx.get_node("s")
    binding = mml.CVBinding(fs, ["all"], group_by="cell", train_split_name="all")
    cv = mml.CrossValidation(bindings=binding, n_folds=2, experiment=exp)
    found = cv.run(show_fold_progress=False, **QUIET).out_of_fold("net")["prediction"]
    want = np.empty(N)
    for fold in cv.folds:
        sides, model = fold.sides["s"], Pooled()  # whose weights come from a seed of its own
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            alone = [
                model(torch.tensor(x[i, : LENGTHS[i]])[None, None], torch.ones(1, LENGTHS[i]) > 0)
                for i in sides.train
            ]
            target = torch.tensor(y[sides.train])[:, None]
            torch.nn.functional.mse_loss(torch.cat(alone), target).backward()
            optimizer.step()
        want[sides.val] = predicted(model, x)[sides.val, 0]
    np.testing.assert_allclose(found.loc[fs.get_sample_uuids("list")], want, rtol=1e-4, atol=1e-6)
