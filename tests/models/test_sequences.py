"""Models of sequences: masks, padding, and the same numbers in torch and Keras."""

import numpy as np
import pytest

import modularml as mml
from modularml.errors import ConfigError, ShapeError, UnknownNameError
from tests.worlds import experiment, train

torch = pytest.importorskip("torch")
from modularml.models import torch as torch_models  # noqa: E402

LENGTHS = np.array([3, 6, 4, 1, 5, 2, 6, 3])
N, T = len(LENGTHS), 6
MASK = np.arange(T) < LENGTHS[:, None]
KINDS = [
    ("SequentialRNN", {"cell": "gru", "n_layers": 2}),
    ("SequentialRNN", {"cell": "lstm"}),
    ("SequentialTCN", {"n_layers": 2, "kernel_size": 2, "activation": "tanh"}),
    ("SequentialTransformer", {"n_heads": 2, "activation": "gelu"}),
]
each_kind = pytest.mark.parametrize(("name", "kwargs"), KINDS)
each_pooling = pytest.mark.parametrize("pooling", ["last", "mean"])


def scattered():
    """Return a mask whose real steps are anywhere, one row of them all."""
    rng = np.random.default_rng(1)
    return np.array([np.isin(np.arange(T), rng.permutation(T)[:n]) for n in LENGTHS])


def values(mask, pad):
    x = np.random.default_rng(0).normal(size=(N, 2, T)).astype("f4")
    return np.where(mask[:, None], x, np.float32(pad))


def copy_to_keras(model, twin, cell=None):
    """Give a Keras model torch's weights; Keras has gates of a GRU in another order."""
    found, names = [], list(twin.get_weights())
    weights = twin.get_weights()
    while names:
        name = names.pop(0)
        w = weights[name]
        if "bias_hh" in name or "bias_ih" in name:
            other = weights[names.pop(0)]
            both = np.stack([w, other]) if cell == "gru" else w + other
            found.append(_gates(both, cell))
        elif "weight_ih" in name or "weight_hh" in name:
            found.append(_gates(w.T, cell))
        else:
            found.append(np.moveaxis(w, (0, 1), (-1, -2)) if w.ndim > 1 else w)
    model.set_weights(dict(zip(model.get_weights(), found, strict=True)))


def _gates(values, cell):
    if cell == "lstm":
        return values
    reset, update, new = np.split(values, 3, axis=-1)
    return np.concatenate([update, reset, new], axis=-1)


def built(name, kwargs, pooling="last", shape=(2, T), out=(3,)):
    torch.manual_seed(0)
    model = getattr(torch_models, name)(hidden_dim=8, pooling=pooling, **kwargs)
    model.build(shape, out)
    return model.eval()


def alone(model, x, mask):
    """Return the outputs of a model for each sequence alone, without padding."""
    with torch.no_grad():
        rows = [model(torch.from_numpy(x[i][None][:, :, mask[i]])) for i in range(len(x))]
    return torch.cat(rows).numpy()


@each_kind
@each_pooling
@pytest.mark.parametrize("pad", [0.0, 1e6, np.nan])
@pytest.mark.parametrize("where", ["after", "anywhere"])
def test_padding_changes_no_output_of_torch(name, kwargs, pooling, pad, where):
    mask = MASK if where == "after" else scattered()
    x, model = values(mask, pad), built(name, kwargs, pooling)
    with torch.no_grad():
        found = model(torch.from_numpy(x), mask=torch.from_numpy(mask)).numpy()
    np.testing.assert_allclose(found, alone(model, x, mask), rtol=1e-5, atol=1e-6)


@each_kind
def test_a_sequence_without_real_steps_has_no_output(name, kwargs):
    mask = MASK.copy()
    mask[2] = False
    for pooling in ("last", "mean"):
        model = built(name, kwargs, pooling)
        found = model(torch.from_numpy(values(mask, 0.0)), torch.from_numpy(mask))
        assert found.isnan().all(dim=1).tolist() == [i == 2 for i in range(N)]


@each_kind
@each_pooling
def test_keras_gives_the_numbers_of_torch(name, kwargs, pooling):
    tf = pytest.importorskip("tensorflow")
    from modularml.models import tensorflow as keras_models

    twin = built(name, kwargs, pooling)
    model = getattr(keras_models, name)(hidden_dim=8, pooling=pooling, **kwargs)
    model.build((2, T), (3,))
    copy_to_keras(model, twin, kwargs.get("cell"))
    mask = scattered()
    x = values(mask, np.nan)
    found = model(tf.constant(x), mask=tf.constant(mask)).numpy()
    np.testing.assert_allclose(found, alone(twin, x, mask), rtol=1e-4, atol=1e-5)
    whole = values(np.ones_like(mask), 0.0)
    want = twin(torch.from_numpy(whole)).detach().numpy()
    np.testing.assert_allclose(model(tf.constant(whole)).numpy(), want, rtol=1e-4, atol=1e-5)
    numbers = [sum(v.size for v in m.get_weights().values()) for m in (model, twin)]
    more = 4 * 8 if kwargs.get("cell") == "lstm" else 0  # torch's second bias
    assert numbers[1] == numbers[0] + more


@each_kind
def test_arguments_and_defaults_are_those_of_keras(name, kwargs):
    pytest.importorskip("tensorflow")
    from modularml.models import tensorflow as keras_models

    ours, theirs = getattr(torch_models, name)(), getattr(keras_models, name)()
    assert ours.get_init_args() == theirs.get_init_args()
    model = getattr(torch_models, name)(**kwargs)
    assert model.get_init_args() == {**ours.get_init_args(), **kwargs}
    again = type(model).from_config(model.get_config())
    assert again.get_init_args() == model.get_init_args()


def test_attention_is_that_of_torch():
    """The encoder equals `torch.nn.TransformerEncoder` with the same weights."""
    model = built("SequentialTransformer", {"n_heads": 2, "n_layers": 2}, "mean")
    layer = torch.nn.TransformerEncoderLayer(
        8, 2, 32, dropout=0.0, activation="relu", batch_first=True, norm_first=True
    )
    theirs = torch.nn.TransformerEncoder(layer, 2, model.norm, enable_nested_tensor=False).eval()
    for block, other in zip(model.blocks, theirs.layers, strict=True):
        other.self_attn.in_proj_weight.data = block.qkv.weight.data
        other.self_attn.in_proj_bias.data = block.qkv.bias.data
        other.self_attn.out_proj = block.out
        other.norm1, other.norm2 = block.norm, block.norm_again
        other.linear1, other.linear2 = block.up, block.down
    x, mask = torch.from_numpy(values(MASK, 0.0)), torch.from_numpy(MASK)
    encoded = model.steps(x.transpose(1, 2)) + model.encoding
    steps = theirs(encoded, src_key_padding_mask=~mask) * mask[..., None]
    want = model.head(steps.sum(dim=1) / mask.sum(dim=1, keepdim=True))
    torch.testing.assert_close(model(x, mask), want, rtol=1e-5, atol=1e-6)


def test_positions_are_those_of_the_paper():
    from modularml.models.sequence_arguments import positions

    for dim in (6, 7):
        found = positions(5, dim)
        for place in range(5):
            for i in range(dim):
                angle = place / 10_000 ** (2 * (i // 2) / dim)
                want = np.sin(angle) if i % 2 == 0 else np.cos(angle)
                assert found[place, i] == pytest.approx(want, abs=1e-6)


def test_no_step_of_a_tcn_sees_a_later_one():
    model = built("SequentialTCN", {"n_layers": 3})
    x = torch.randn(1, 2, T)
    before = model.encode(x.transpose(1, 2), None)
    x[..., 4:] += 1.0
    after = model.encode(x.transpose(1, 2), None)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.equal(before[:, 4:], after[:, 4:])


@each_kind
def test_a_column_of_steps_is_a_sequence_too(name, kwargs):
    model, steps = built(name, kwargs), built(name, kwargs, shape=(1, T, 2))
    steps.load_state_dict(model.state_dict())
    x = torch.randn(3, 2, T)
    torch.testing.assert_close(model(x), steps(x.transpose(1, 2)[:, None]))


@each_kind
@pytest.mark.parametrize("backend", ["torch", "tensorflow"])
def test_the_mask_reaches_them_in_graphs_folds_and_files(name, kwargs, backend, tmp_path):
    pytest.importorskip(backend)
    models = __import__(f"modularml.models.{backend}", fromlist=[name])
    rng = np.random.default_rng(0)
    x = np.where(MASK[..., None], rng.normal(size=(N, T, 2)), 40.0).astype("f4")
    data = {"x": x, "y": rng.normal(size=N).astype("f4"), "mask": MASK}
    fs = mml.FeatureSet.from_dict("s", data, "x", "y", "mask", mask="mask")
    fs.add_split(fs.take(range(N), label="all"))
    model = getattr(models, name)(hidden_dim=8, dropout=0.3, **kwargs)
    node = mml.ModelNode("net", model, fs.reference(features="x"), mask_as="mask")
    graph = mml.ModelGraph([node], optimizer=mml.Optimizer("adam"))
    train(graph, batch_size=4, n_epochs=2)
    rows = [
        np.asarray(model(_tensor(backend, x[i : i + 1, None, : LENGTHS[i]]))) for i in range(N)
    ] if backend == "tensorflow" else [
        model.eval()(torch.from_numpy(x[i : i + 1, None, : LENGTHS[i]])).detach().numpy()
        for i in range(N)
    ]  # fmt: skip
    want = np.concatenate(rows)
    np.testing.assert_allclose(graph.predict(fs), want, rtol=1e-4, atol=1e-5)
    exp = experiment("saved")
    path = exp.save(tmp_path / "e")
    with mml.ExperimentContext().activate():
        again = mml.Experiment.load(path).ctx.model_graph
        found = again.predict({"x": x, "mask": MASK})
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


def _tensor(backend, values):
    import tensorflow as tf

    return tf.constant(values)


def test_bad_arguments():
    for name, kwargs, match in (
        ("SequentialRNN", {"cell": "rnn"}, "cell must be one of 'gru', 'lstm', got 'rnn'"),
        ("SequentialRNN", {"pooling": "max"}, "pooling must be one of 'last', 'mean', got 'max'"),
        ("SequentialRNN", {"n_layers": 0}, "n_layers"),
        ("SequentialRNN", {"dropout": 1.0}, "dropout"),
        ("SequentialTCN", {"n_layers": 17}, "at most 16"),
        ("SequentialTCN", {"kernel_size": 0}, "kernel_size"),
        ("SequentialTransformer", {"hidden_dim": 10}, "multiple of n_heads, got 10 and 4"),
    ):
        with pytest.raises(ConfigError, match=match):
            getattr(torch_models, name)(**kwargs)
    with pytest.raises(UnknownNameError, match=r"did you mean .*GELU"):
        torch_models.SequentialTCN(activation="gleu")
    with pytest.raises(ShapeError, match=r"\(channels, time\).*got \(5,\)"):
        torch_models.SequentialRNN().build((5,))
    model = built("SequentialRNN", {})
    with pytest.raises(ShapeError, match=r"shape \(n, 6\).*got \(3, 5\)"):
        model(torch.zeros(3, 2, 6), torch.ones(3, 5, dtype=torch.bool))


def test_padded_columns_without_a_mask_are_warned_of():
    data = {"x": values(MASK, 0.0).transpose(0, 2, 1), "y": np.zeros(N), "mask": MASK}
    fs = mml.FeatureSet.from_dict("s", data, "x", "y", "mask", mask="mask")
    node = mml.ModelNode("net", torch_models.SequentialRNN(), fs.reference(features="x"))
    graph = mml.ModelGraph([node])
    with pytest.warns(UserWarning, match=r"mask 'mask', and its SequentialRNN takes padding"):
        graph.build()
    graph.build()
