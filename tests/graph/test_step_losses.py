"""Losses of padded sequences against loops over the single sequences, without their padding."""

import numpy as np
import pytest

import modularml as mml
from modularml.errors import DataError, LossError
from tests.worlds import eval_phase, experiment, train

torch = pytest.importorskip("torch")
F = torch.nn.functional
LENGTHS = np.array([3, 5, 4, 2, 5, 3])
N, T = len(LENGTHS), 5
MASK = np.arange(T) < LENGTHS[:, None]


def sequences(*, pad=99.0, n_classes=0, channels=()):
    """Sequences with a target for each step, and one for each sequence."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, T, *channels)).astype(np.float32)
    y = rng.normal(size=(N, T, *channels)).astype(np.float32)
    if n_classes:
        y = rng.integers(0, n_classes, size=(N, T))
    z = y.reshape(N, -1)[:, 0].copy()
    x[~MASK], y[~MASK] = 0.0, pad
    data = {"x": x, "y": y, "z": z, "mask": MASK}
    return mml.FeatureSet.from_dict("s", data, "x", ["y", "z"], "mask", mask="mask"), x, y


def graph_of(fs, model, targets="y", **kwargs):
    node = mml.ModelNode("net", model, fs.reference(features="x", targets=targets), **kwargs)
    return mml.ModelGraph([node], optimizer=mml.Optimizer("sgd", opt_kwargs={"lr": 0.1}))


def conv(out=1):
    torch.manual_seed(0)
    return torch.nn.Conv1d(1, out, 3, padding=1)


class GRU(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.gru, self.head = torch.nn.GRU(1, 4, batch_first=True), torch.nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.gru(x.transpose(1, 2))[0]).transpose(1, 2)


def by_hand(model, x, y, loss):
    """One step of gradient descent on the mean over sequences, each called without padding."""
    losses = []
    for i, n in enumerate(LENGTHS):
        out = model(torch.tensor(x[i, :n])[None, None])
        losses.append(loss(out, torch.tensor(y[i, :n])))
    total = torch.stack(losses).mean()
    total.backward()
    with torch.no_grad():
        for p in model.parameters():
            p.sub_(0.1 * p.grad)
    return total.item()


def mse(out, y):
    return F.mse_loss(out[0, 0], y)


def cross_entropy(out, y):
    return F.cross_entropy(out[0].T, y)


def squared(out, target):
    return (out - target) ** 2


CASES = [
    ("mse", mse, conv, 0),
    ("mse", mse, GRU, 0),
    ("l1", lambda out, y: F.l1_loss(out[0, 0], y), conv, 0),
    (squared, mse, conv, 0),
    ("cross_entropy", cross_entropy, lambda: conv(3), 3),
]


@pytest.mark.parametrize(("loss", "hand", "make", "n_classes"), CASES)
@pytest.mark.parametrize("batch_size", [N, 4])
def test_padding_counts_in_no_loss_and_each_sequence_once(loss, hand, make, n_classes, batch_size):
    pad = -7 if n_classes else np.nan
    fs, x, y = sequences(pad=pad, n_classes=n_classes)
    mine, theirs = make(), make()
    graph = graph_of(fs, mine)
    applied = mml.AppliedLoss(mml.Loss(loss), "net", ["outputs", "targets"])
    results = experiment("first").run_phase(eval_phase(graph, [applied], batch_size=batch_size))
    found = results.aggregated_losses("net")[applied.label]
    trained = train(graph, [applied], batch_size=N, shuffle=False, n_epochs=1)
    want = by_hand(theirs, x, y, hand)
    assert found == pytest.approx(want, rel=1e-5)
    assert trained.metrics().at(name="train_loss", batch=None) == pytest.approx(want, rel=1e-5)
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_weights_of_sequences_weigh_the_means_of_their_real_steps():
    fs, x, y = sequences()
    model, weights = conv(), np.arange(1.0, N + 1)
    data = {"x": x, "y": y, "w": weights, "mask": MASK}
    fs = mml.FeatureSet.from_dict("w", data, "x", "y", ["w", "mask"], mask="mask")
    applied = mml.AppliedLoss(mml.Loss("mse"), "net", ["outputs", "targets"], sample_weight="w")
    results = experiment().run_phase(eval_phase(graph_of(fs, model), [applied], batch_size=4))
    with torch.no_grad():
        each = [
            mse(model(torch.tensor(x[i, :n])[None, None]), torch.tensor(y[i, :n])).item()
            for i, n in enumerate(LENGTHS)
        ]
    found = results.aggregated_losses("net")["mse_net"]
    assert found == pytest.approx(np.average(each, weights=weights), rel=1e-5)


def test_reconstructions_of_padded_features_and_steps_of_several_numbers():
    fs, x, _ = sequences(channels=(2,))
    model = torch.nn.Linear(2, 2)
    applied = mml.AppliedLoss(mml.Loss("mse"), "net", ["outputs", "features"])
    results = experiment().run_phase(eval_phase(graph_of(fs, model, "z"), [applied]))
    with torch.no_grad():
        out = model(torch.tensor(x)).numpy()
    each = [((out[i, :n] - x[i, :n]) ** 2).mean() for i, n in enumerate(LENGTHS)]
    assert results.aggregated_losses("net")["mse_net"] == pytest.approx(np.mean(each), rel=1e-5)


def mean_of_steps(out, target):
    return ((out - target) ** 2).mean(dim=(1, 2))


def one_number(out, target):
    return ((out - target) ** 2).mean()


def with_mask(out, target, mask):
    squares = (out - target) ** 2 * mask
    return squares.sum(dim=(1, 2)) / mask.sum(dim=(1, 2))


def test_losses_that_cannot_leave_out_padding_are_refused_unless_they_read_the_mask():
    fs, _, _ = sequences()
    exp, graph = experiment(), graph_of(fs, conv())
    for i, loss in enumerate([mean_of_steps, one_number, mml.Loss(one_number, over="batch")]):
        applied = mml.AppliedLoss(
            loss if isinstance(loss, mml.Loss) else mml.Loss(loss), "net", ["outputs", "targets"]
        )
        with pytest.raises(LossError, match=r"padded column 'y'.*inputs=\[\.\.\., 'mask'\]"):
            exp.run_phase(eval_phase(graph, [applied], label=f"e{i}"))
    both = [
        mml.AppliedLoss(mml.Loss("mse"), "net", ["outputs", "targets"]),
        mml.AppliedLoss(mml.Loss(with_mask), "net", ["outputs", "targets", "mask"]),
    ]
    found = exp.run_phase(eval_phase(graph, both, label="both")).aggregated_losses("net")
    assert found["with_mask_net"] == pytest.approx(found["mse_net"], rel=1e-5)


def test_a_target_of_the_sequence_has_no_padding():
    fs, x, y = sequences()
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(T, 1))
    applied = mml.AppliedLoss(mml.Loss(one_number_of_rows), "net", ["outputs", "targets"])
    results = experiment().run_phase(eval_phase(graph_of(fs, model, "z"), [applied]))
    with torch.no_grad():
        want = ((model(torch.tensor(x)).numpy()[:, 0] - y[:, 0]) ** 2).mean()
    found = next(iter(results.aggregated_losses("net").values()))
    assert found == pytest.approx(want, rel=1e-5)


def one_number_of_rows(out, target):
    return F.mse_loss(out, target)


def test_estimators_do_not_learn_padded_targets():
    linear = pytest.importorskip("sklearn.linear_model")
    fs, _, _ = sequences()
    node = mml.ModelNode("ridge", linear.Ridge(), fs.reference(features="x", targets="y"))
    mml.ModelGraph([node])
    phase = mml.FitPhase(
        "fit", input_sources=[mml.InputBinding(node.node_id, node.feature_refs[0])]
    )
    with pytest.raises(DataError, match="would learn the padding"):
        experiment().run_phase(phase)


@pytest.mark.parametrize("name", ["mse", "mean_squared_error", "huber", "log_cosh"])
@pytest.mark.parametrize("shape", [(T,), (T, 1)])
def test_keras_losses_leave_out_padding(name, shape):
    keras = pytest.importorskip("keras")
    import tensorflow as tf

    fs, x, y = sequences(pad=np.nan)
    layers = [
        keras.layers.Permute((2, 1)),
        keras.layers.Conv1D(1, 3, padding="same"),
        keras.layers.Reshape(shape),
    ]
    model = keras.Sequential([keras.layers.Input((1, T)), *layers])
    loss = keras.losses.MeanSquaredError if name == "mean_squared_error" else name
    applied = mml.AppliedLoss(mml.Loss(loss, backend="tensorflow"), "net", ["outputs", "targets"])
    graph = graph_of(fs, model)
    results = experiment("first").run_phase(eval_phase(graph, [applied], batch_size=4))
    weights = [tf.Variable(v) for v in model.weights]
    own = {"huber": keras.losses.huber, "log_cosh": keras.losses.log_cosh}
    hand = own.get(name, keras.losses.mean_squared_error)
    with tf.GradientTape() as tape:
        losses = []
        for i, n in enumerate(LENGTHS):
            steps = tf.reshape(x[i, :n], (1, n, 1))
            out = tf.nn.conv1d(steps, weights[0], 1, "SAME") + weights[1]
            losses.append(hand(y[i, :n], out[0, :, 0]))
        total = tf.reduce_mean(tf.stack(losses))
    grads = tape.gradient(total, weights)
    found = next(iter(results.aggregated_losses("net").values()))
    assert found == pytest.approx(float(total), rel=1e-5)
    train(graph, [applied], batch_size=N, n_epochs=1)
    for variable, before, grad in zip(model.weights, weights, grads, strict=True):
        np.testing.assert_allclose(variable, before - 0.1 * grad, rtol=1e-4, atol=1e-6)
