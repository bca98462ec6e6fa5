"""The torch adapter: tensors, modes, dtypes, frozen parameters."""

import numpy as np
import pytest
import torch
from torch import nn

from modularml.backends import Backend, adapter_for, backend_of
from modularml.backends.torch import adapter
from modularml.errors import BackendNotSupportedError, DeviceError, ShapeError, UnknownNameError


class TestBackend:
    def test_names(self):
        for name in ("torch", "PyTorch", Backend.TORCH):
            assert Backend.from_value(name) is Backend.TORCH
        assert Backend.from_value(None) is Backend.NONE
        with pytest.raises(UnknownNameError, match="torch"):
            Backend.from_value("torhc")

    def test_of_objects(self):
        for obj in (nn.Linear(1, 1), nn.Linear, torch.ones(1), torch.optim.Adam, nn.MSELoss):
            assert backend_of(obj) is Backend.TORCH
        assert backend_of(nn.functional.mse_loss) is Backend.TORCH
        for obj in (np.ones(1), 3, "torch", dict, lambda x: x):
            assert backend_of(obj) is Backend.NONE

    def test_adapters(self):
        assert adapter_for("torch") is adapter
        with pytest.raises(BackendNotSupportedError, match="none"):
            adapter_for("none")


class TestTensors:
    def test_copies_and_never_aliases(self):
        values = np.arange(6.0).reshape(2, 3)
        values.flags.writeable = False
        for given in (values, values.T, values[:, ::-1], np.asfortranarray(values)):
            tensor = adapter.from_numpy(given)
            tensor.add_(1)
            np.testing.assert_array_equal(tensor.numpy() - 1, given)
        np.testing.assert_array_equal(values, np.arange(6.0).reshape(2, 3))

    @pytest.mark.parametrize("dtype", ["f4", "f8", "i8", "i4", "u1", "u2", "u4", "?", "f2"])
    def test_dtypes(self, dtype):
        values = np.ones(3, dtype)
        np.testing.assert_array_equal(adapter.to_numpy(adapter.from_numpy(values)), values)

    def test_text_is_refused(self):
        with pytest.raises(ShapeError, match="dtype"):
            adapter.from_numpy(np.array(["a"]))

    def test_gather_and_chunks(self):
        column = torch.arange(10.0)[:, None]
        rows = np.array([3, 1, 3, 9])
        rows.flags.writeable = False
        assert adapter.gather(column, rows)[:, 0].tolist() == [3, 1, 3, 9]
        assert [len(p) for p in adapter.chunks(column, 4)] == [4, 4, 2]
        assert [len(p) for p in adapter.chunks(column, [1, 9])] == [1, 9]

    def test_means(self):
        for values in (torch.ones(3, 2) * 2, torch.tensor([1.0, 3.0]), torch.tensor(2.0)):
            assert adapter.sample_mean(values).item() == 2.0
        assert adapter.mean([torch.zeros(2), torch.ones(2)]).tolist() == [0.5, 0.5]
        assert adapter.floats([torch.tensor(1.5), torch.tensor(2.5)]) == [1.5, 2.5]
        assert adapter.floats([]) == []
        assert adapter.floats([1.0, 2]) == [1.0, 2.0]

    def test_devices(self):
        assert adapter.check_device("cpu") == torch.device("cpu")
        with pytest.raises(DeviceError, match="cpu"):
            adapter.check_device(f"cuda:{torch.cuda.device_count()}")


class TestModels:
    def test_modes_are_restored(self):
        a, b = nn.Sequential(nn.Dropout(), nn.Linear(1, 1)), nn.Linear(1, 1).eval()
        a[0].eval()
        with adapter.modes([(a, False), (b, True)]):
            assert not a.training
            assert b.training
            with adapter.modes([(a, True)]):
                assert a[0].training
            assert not any(m.training for m in a.modules())
        assert [m.training for m in a.modules()] == [True, False, True]
        assert not b.training
        with pytest.raises(KeyError), adapter.modes([(b, True)]):
            raise KeyError
        assert not b.training

    def test_dtypes(self):
        assert adapter.input_dtype(None) is torch.float32
        assert adapter.input_dtype(nn.ReLU()) is torch.float32
        assert adapter.input_dtype(nn.Linear(1, 1).double()) is torch.float64
        embeds = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 1))
        assert adapter.input_dtype(embeds) is torch.int64
        assert adapter.loss_dtype("float", embeds.double()) is torch.float64
        assert adapter.loss_dtype("index", embeds) is torch.int64

    def test_frozen_parameters(self):
        net = nn.Linear(2, 2)
        net.bias.requires_grad_(False)
        net(torch.ones(1, 2)).sum().backward()
        assert list(adapter.parameters(net)) == ["weight"]
        for _ in range(2):
            adapter.set_frozen(net, True)
            assert not net.weight.requires_grad
            assert net.weight.grad is None
            assert list(adapter.parameters(net)) == ["weight"]
        adapter.set_frozen(net, False)
        assert net.weight.requires_grad
        assert not net.bias.requires_grad
        adapter.set_frozen(net, False)
        assert list(adapter.parameters(net)) == ["weight"]

    def test_names_of_losses_and_optimizers(self):
        assert {"MSELoss", "CrossEntropyLoss"} <= set(adapter.losses())
        assert {"Adam", "SGD"} <= set(adapter.optimizers())
        assert "Optimizer" not in adapter.optimizers()
