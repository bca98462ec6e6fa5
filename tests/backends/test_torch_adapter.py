"""The torch adapter: tensors, modes, dtypes, frozen parameters."""

import numpy as np
import pytest
import torch
from torch import nn

from modularml.backends import Backend, adapter_for, backend_of
from modularml.backends.torch import adapter
from modularml.errors import BackendNotSupportedError, UnknownNameError
from tests.contracts.backend import BackendContract


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
        with pytest.raises(BackendNotSupportedError, match="none"):
            adapter_for("none")


class TestContract(BackendContract):
    adapter = adapter

    def model(self):
        return nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 2))

    def array(self, parameter):
        return parameter.detach().numpy().copy()

    def assign(self, parameter, values):
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(values))


class TestModels:
    def test_modes_of_shared_modules_and_after_a_failing_train_are_restored(self):
        class NoTraining(torch.nn.Module):
            def train(self, mode=True):
                raise RuntimeError("not to be trained")

        shared = torch.nn.Linear(2, 2).eval()
        with adapter.modes([(shared, True), (shared, True)]):
            assert shared.training
        assert not shared.training
        with pytest.raises(RuntimeError), adapter.modes([(shared, True), (NoTraining(), True)]):
            pass
        assert not shared.training

    def test_a_train_of_a_module_s_own_is_called(self):
        net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).eval()
        net[1].train = lambda mode=True: net[1]
        with adapter.modes([(net, True)]):
            assert net[0].training
            assert not net[1].training

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
        assert adapter.input_dtype(embeds, (4,)) is torch.int64
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
