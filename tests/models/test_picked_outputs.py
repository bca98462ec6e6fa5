"""Nodes that pick one output of a model that returns several."""

import numpy as np
import pytest
import torch
from torch import nn

import modularml as mml
from modularml.errors import ConfigError, ShapeError
from modularml.models.torch import TorchModelWrapper
from tests.worlds import QUIET, experiment, mse, slices

N = 48


class Heads(nn.Module):
    """Two heads on one trunk."""

    def __init__(self, form="dict"):
        super().__init__()
        self.form = form
        self.trunk, self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 1), nn.Linear(8, 1)

    def forward(self, x):
        hidden = torch.tanh(self.trunk(x))
        a, b = self.a(hidden)[:, :, 0], self.b(hidden)[:, :, 0]
        return {"a": a, "b": b} if self.form == "dict" else (a, b)


def rows():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 3)).astype("f4")
    return {"x": x, "a": x.sum(axis=1), "b": x[:, 0] * x[:, 1]}


def heads_of(net, picks):
    fs = mml.FeatureSet.from_dict("rows", rows(), "x", ["a", "b"])
    both = fs.reference(features="x", targets=["a", "b"])
    return [
        mml.ModelNode(f"to_{name}", TorchModelWrapper(model=net, output=pick), both, targets=name)
        for name, pick in zip("ab", picks, strict=True)
    ]


@pytest.mark.parametrize(("form", "picks"), [("dict", ["a", "b"]), ("tuple", [0, -1])])
def test_two_nodes_of_one_module_train_as_a_loop_by_hand(form, picks):
    torch.manual_seed(0)
    net, twin = Heads(form), Heads(form)
    twin.load_state_dict(net.state_dict())
    nodes = heads_of(net, picks)
    mml.ModelGraph(nodes, mml.Optimizer("sgd", opt_kwargs={"lr": 0.1}))
    losses = [
        mml.AppliedLoss(mml.Loss("mse"), on=f"to_{name}", inputs=["outputs", f"targets.{name}"])
        for name in "ab"
    ]
    sampler = mml.SimpleSampler(batch_size=16)
    bindings = [
        mml.InputBinding(node.node_id, ref, None, sampler)
        for node in nodes
        for ref in node.feature_refs
    ]
    phase = mml.TrainPhase("train", input_sources=bindings, losses=losses, n_epochs=3)
    exp = experiment(audit="off")
    exp.run_phase(phase, **QUIET)

    data, optimizer = rows(), torch.optim.SGD(twin.parameters(), lr=0.1)
    for _ in range(3):
        for part in slices(N, 16):
            out = twin(torch.from_numpy(data["x"][part])[:, None, :])
            found = list(out.values()) if form == "dict" else out
            want = [torch.from_numpy(data[k][part]).float()[:, None] for k in "ab"]
            loss = sum(nn.functional.mse_loss(o, w) for o, w in zip(found, want, strict=True))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for mine, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


def test_the_sequence_of_an_lstm_through_folds_and_a_file(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 5, 2)).astype("f4")
    fs = mml.FeatureSet.from_dict("rows", {"x": x, "y": x.sum(axis=(1, 2))}, "x", "y")
    fs.split_random({"train": 0.8, "test": 0.2}, seed=0)
    wrapper = TorchModelWrapper(
        model_class=nn.LSTM,
        model_kwargs={"input_size": 2, "hidden_size": 4, "batch_first": True},
        output=0,
    )
    lstm = mml.ModelNode("lstm", wrapper, fs, input_layout="time_first")
    flat = mml.FlattenNode("flat", lstm)
    head = mml.ModelNode("head", nn.Linear(20, 1), flat)
    graph = mml.ModelGraph([lstm, flat, head], mml.Optimizer("adam"))
    graph.build()
    assert lstm.model.output_shape == (5, 4)
    exp = experiment(audit="off")
    exp.execution_plan.add_phase(
        mml.TrainPhase.from_split(
            "train", split="train", sampler=mml.SimpleSampler(batch_size=16), losses=[mse("head")]
        )
    )
    cv = mml.CrossValidation(bindings=mml.CVBinding(fs, ["train"]), n_folds=2, experiment=exp)
    assert len(cv.run(show_fold_progress=False, **QUIET).to_pandas()) >= 2
    exp.run(**QUIET)
    expected = exp.predict(fs)
    path = exp.save(tmp_path / "lstm")
    with mml.ExperimentContext().activate():
        again = mml.Experiment.load(path)
        (loaded,) = again.ctx.available_featuresets.values()
        np.testing.assert_array_equal(again.predict(loaded), expected)


@pytest.mark.parametrize(
    ("module", "output", "message"),
    [
        (Heads("dict"), "c", r"output='c' is no output of Heads, which has outputs \['a', 'b'\]"),
        (Heads("tuple"), 2, r"output=2 is no output of Heads, which has outputs \[0, 1\]"),
        (nn.Linear(3, 1), 0, "output=0 is no output of Linear, which has one output"),
        (Heads("tuple"), None, "returns several outputs.*output= of TorchModelWrapper"),
    ],
)
def test_wrong_outputs(module, output, message):
    fs = mml.FeatureSet.from_dict("rows", rows(), "x", "a")
    node = mml.ModelNode("net", TorchModelWrapper(model=module, output=output), fs)
    with pytest.raises(ShapeError, match=message):
        mml.ModelGraph([node], mml.Optimizer("adam")).build()


@pytest.mark.parametrize("output", [True, 1.0, ["a"]])
def test_what_is_no_output(output):
    with pytest.raises(ConfigError, match="output must be an int"):
        TorchModelWrapper(model=nn.Linear(3, 1), output=output)


def test_a_keras_model():
    keras = pytest.importorskip("keras")
    from modularml.models.tensorflow import TensorflowModelWrapper

    ends = keras.Input((3,))
    hidden = keras.layers.Dense(4, "tanh")(ends)
    outputs = {"a": keras.layers.Dense(1)(hidden), "b": keras.layers.Dense(2)(hidden)}
    model = keras.Model(ends, outputs)
    fs = mml.FeatureSet.from_dict("rows", rows(), "x", "a")
    node = mml.ModelNode("net", TensorflowModelWrapper(model=model, output="b"), fs)
    graph = mml.ModelGraph([node], mml.Optimizer("adam", backend="tensorflow"))
    graph.build()
    expected = model.predict(rows()["x"], verbose=0)["b"]
    np.testing.assert_allclose(graph.predict(fs, unscale=False), expected, atol=1e-6)
