"""Torch models: shapes, layers, weights."""

import numpy as np
import pytest
import torch
from torch import nn

import modularml as mm
from modularml.errors import ConfigError, NotFittedError, ShapeError, UnknownNameError
from modularml.models import TorchModelWrapper, wrap_model
from modularml.models.torch import SequentialCNN, SequentialMLP
from tests.worlds import assert_equal_weights, mlp, weights


class Own(mm.TorchBaseModel):
    """A user's model that makes its layers when shapes are known."""

    def __init__(self, *, input_shape=None, output_shape=None, width=4):
        super().__init__(input_shape=input_shape, output_shape=output_shape, width=width)
        self.width = width

    def make_layers(self, input_shape, output_shape):
        self.scale = nn.Parameter(torch.ones(1))
        self.net = nn.Sequential(
            nn.Linear(input_shape[0], self.width), nn.Linear(self.width, output_shape[0])
        )

    def reset_parameters(self):
        nn.init.ones_(self.scale)

    def forward(self, x):
        return self.net(x) * self.scale


class TestMLP:
    def test_layers(self):
        model = SequentialMLP(n_layers=3, hidden_dim=7, activation="Tanh", dropout=0.2)
        assert not model.is_built
        model.build((2, 5), (3,))
        kinds = [type(m).__name__ for m in model.layers]
        assert kinds == [
            "Flatten", "Linear", "Tanh", "Dropout", "Linear", "Tanh", "Dropout", "Linear",
        ]  # fmt: skip
        assert model.input_shape == (2, 5)
        assert model.output_shape == (3,)
        assert model(torch.zeros(4, 2, 5)).shape == (4, 3)

    def test_one_layer_is_linear(self):
        model = SequentialMLP(n_layers=1)
        model.build((4,), (2,))
        assert [type(m).__name__ for m in model.layers] == ["Linear"]

    @pytest.mark.parametrize("shape", [(1,), (3,), (2, 3), (1, 5)])
    def test_output_shapes(self, shape):
        model = SequentialMLP(output_shape=shape)
        model.build((4,), (9,))
        assert model.output_shape == shape
        assert model(torch.zeros(2, 4)).shape == (2, *shape)

    def test_bad_arguments(self):
        for kwargs in ({"n_layers": 0}, {"hidden_dim": 1.5}, {"dropout": 1.0}, {"n_layers": True}):
            with pytest.raises(ConfigError, match=next(iter(kwargs))):
                SequentialMLP(**kwargs)
        with pytest.raises(UnknownNameError, match="ReLU"):
            SequentialMLP(activation="rellu")
        for shape in ((0,), (-1,), "ab", (1.5, "x")):
            with pytest.raises(ShapeError, match="input_shape"):
                SequentialMLP(input_shape=shape)
        with pytest.raises(ShapeError, match="output_shape"):
            SequentialMLP().build((4,))
        with pytest.raises(ShapeError, match="input_shape"):
            SequentialMLP().build()


class TestCNN:
    @pytest.mark.parametrize("shape", [(2, 16), (2, 16, 12), (1, 8, 8, 8)])
    @pytest.mark.parametrize("out", [None, (3,), (2, 2)])
    def test_ranks(self, shape, out):
        model = SequentialCNN(hidden_dim=4, pooling=2, output_shape=out)
        model.build(shape)
        features = 4 * np.prod([n // 4 for n in shape[1:]])
        assert model.output_shape == (out or (features,))
        assert model(torch.zeros(3, *shape)).shape == (3, *model.output_shape)

    def test_features_as_they_are(self):
        model = SequentialCNN(hidden_dim=4, flatten_output=False)
        model.build((1, 10))
        assert model.output_shape == (4, 10)

    def test_sizes_as_torch_counts_them(self):
        for kernel, padding, stride, pooling in ((3, 0, 2, 1), (5, 2, 1, 3), (2, 1, 3, 2)):
            model = SequentialCNN(
                n_layers=1, kernel_size=kernel, padding=padding, stride=stride, pooling=pooling,
                output_shape=(1,),
            )  # fmt: skip
            model.build((1, 31))

    def test_bad_arguments(self):
        for kwargs in (
            {"n_layers": 0}, {"kernel_size": 0}, {"stride": 0}, {"pooling": 0}, {"padding": -1},
            {"dropout": -0.1},
        ):  # fmt: skip
            with pytest.raises(ConfigError, match=next(iter(kwargs))):
                SequentialCNN(**kwargs)
        with pytest.raises(ShapeError, match="channels"):
            SequentialCNN().build((5,))


class TestBuild:
    def test_what_was_given_wins(self):
        model = SequentialMLP(input_shape=(4,), output_shape=(2,))
        model.build((4,), (7,))
        assert model.output_shape == (2,)
        with pytest.raises(ShapeError, match=r"\(4,\).*\(5,\)"):
            SequentialMLP(input_shape=(4,)).build((5,), (1,))

    def test_used_too_early(self):
        with pytest.raises(NotFittedError, match="SequentialMLP has no layers yet"):
            SequentialMLP()(torch.zeros(2, 4))

    def test_once_and_by_force(self):
        model = SequentialMLP()
        model.build((4,), (1,))
        before = weights(model)
        model.build((4,), (1,))
        assert_equal_weights(before, model)
        with pytest.raises(ShapeError, match="force"):
            model.build((5,))
        model.build((5,), (2,), force=True)
        assert (model.input_shape, model.output_shape) == ((5,), (2,))

    def test_probing_leaves_batch_norm_and_flags_alone(self):
        net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        net[0].eval()
        model = TorchModelWrapper(model=net)
        model.build((4,))
        assert net[1].num_batches_tracked == 0
        assert [m.training for m in net.modules()] == [True, False, True]

    def test_own_model(self):
        model = Own(width=3)
        model.build((4,), (2,))
        assert model(torch.zeros(5, 4)).shape == (5, 2)
        again = Own.from_config(model.get_config())
        assert again.width == 3
        again.set_state(model.get_state())
        assert again.same_weights(model)


class TestWeights:
    def test_there_and_back(self):
        model = TorchModelWrapper(model=nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))
        model.build((4,))
        kept = model.get_weights()
        with torch.no_grad():
            model.inner[0].weight.add_(1)
        assert not np.array_equal(kept["inner.0.weight"], model.inner[0].weight.detach().numpy())
        model.set_weights(kept)
        np.testing.assert_array_equal(
            kept["inner.0.weight"], model.inner[0].weight.detach().numpy()
        )
        for value in kept.values():
            value.flags.writeable = False
        model.set_weights(kept)

    def test_refused_whole(self):
        model = SequentialMLP()
        model.build((4,), (1,))
        before = model.get_weights()
        names = list(before)
        for wrong, error, match in (
            ({k: v for k, v in before.items() if k != names[-1]}, ConfigError, "lack"),
            ({**before, "more": before[names[0]]}, ConfigError, "more"),
            ({**before, names[-1]: np.zeros(7, "f4")}, ShapeError, r"\(7,\)"),
        ):
            changed = {k: v + 1 for k, v in wrong.items()}
            with pytest.raises(error, match=match):
                model.set_weights(changed)
            assert_equal_weights({k: torch.tensor(v) for k, v in before.items()}, model)

    def test_new_weights_from_a_seed(self):
        model = SequentialMLP(n_layers=3)
        model.build((4,), (1,))
        state = torch.get_rng_state()
        model.reset_weights(seed=5)
        assert torch.equal(state, torch.get_rng_state())
        first = weights(model)
        model.reset_weights()
        assert not torch.equal(first["layers.0.weight"], model.layers[0].weight)
        model.reset_weights(seed=5)
        assert_equal_weights(first, model)

    def test_new_weights_reach_everything(self):
        net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        model = TorchModelWrapper(model=net)
        model.build((4,))
        net[1].running_mean.add_(3)
        model.reset_weights()
        assert (net[1].running_mean == 0).all()
        own = Own()
        own.build((4,), (1,))
        with torch.no_grad():
            own.scale.add_(2)
        own.reset_weights()
        assert own.scale.item() == 1.0

    @pytest.mark.private("attention of torch draws its weights by a private method")
    def test_new_weights_reach_attention(self):
        attention = TorchModelWrapper(model=Attends())
        attention.build((3, 4))
        before = weights(attention)
        attention.reset_weights(seed=1)
        moved = [k for k, v in weights(attention).items() if not torch.equal(v, before[k])]
        assert "inner.inner.in_proj_weight" in moved

    def test_weights_that_nobody_can_draw(self):
        class Bare(nn.Module):
            def __init__(self):
                super().__init__()
                self.first = nn.Linear(4, 4)
                self.w = nn.Parameter(torch.randn(4))

            def forward(self, x):
                return self.first(x) * self.w

        model = TorchModelWrapper(model=Bare())
        model.build((4,))
        before = weights(model)
        with pytest.raises(ConfigError, match=r"'inner'.*reset_parameters"):
            model.reset_weights()
        assert_equal_weights(before, model)


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        return self.inner(x, x, x)[0]


class TestWrapping:
    def test_what_fits(self):
        net = mlp()
        assert wrap_model(net).inner is net
        model = SequentialMLP()
        assert wrap_model(model) is model
        assert isinstance(wrap_model(SequentialMLP), SequentialMLP)
        made = wrap_model(nn.Identity)
        made.build((3,))
        assert made.output_shape == (3,)

    def test_what_does_not(self):
        for obj in (3, "mlp", object(), int):
            with pytest.raises(ConfigError, match="model must be"):
                wrap_model(obj)
        with pytest.raises(ConfigError, match="exactly one"):
            TorchModelWrapper()
        with pytest.raises(ConfigError, match="exactly one"):
            TorchModelWrapper(model=mlp(), model_class=nn.Linear)
        with pytest.raises(ConfigError, match="Module"):
            TorchModelWrapper(model=nn.Linear)
        with pytest.raises(ConfigError, match="class of"):
            TorchModelWrapper(model_class=mlp())

    def test_arguments_that_do_not_fit(self):
        wrapped = TorchModelWrapper(model_class=nn.Linear, model_kwargs={"in_features": 4})
        with pytest.raises(ShapeError, match="Linear"):
            wrapped.build((4,))

    def test_shapes_under_other_names(self):
        class Net(nn.Module):
            def __init__(self, n_in, output_shape=None):
                super().__init__()
                self.shapes = n_in, output_shape

            def forward(self, x):
                return x

        wrapped = TorchModelWrapper(model_class=Net, inject_input_shape_as="n_in")
        wrapped.build((4,), (2,))
        assert wrapped.inner.shapes == ((4,), (2,))

    def test_config_round_trip(self):
        for model in (
            SequentialMLP(n_layers=4, output_shape=(2,)),
            SequentialCNN(pooling=2),
            TorchModelWrapper(
                model_class=nn.Linear, model_kwargs={"in_features": 4, "out_features": 1}
            ),
        ):
            again = type(model).from_config(model.get_config())
            assert again.get_config() == model.get_config()
            assert not again.is_built
            clone = model.clone()
            clone.build((1, 8) if isinstance(model, SequentialCNN) else (4,), (2,))
