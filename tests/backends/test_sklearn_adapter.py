"""The adapter for scikit-learn: arrays that cannot be written to, slices, losses."""

import numpy as np
import pytest
import torch
from sklearn import metrics

from modularml.backends import Backend, adapter_for
from modularml.backends.torch import adapter as torch_adapter
from modularml.errors import BackendNotSupportedError

adapter = adapter_for("sklearn")


def test_what_is_not_copied_cannot_be_written_to():
    values = np.arange(6.0).reshape(3, 2)
    tensor = adapter.from_numpy(values)
    with pytest.raises(ValueError, match="read-only"):
        tensor[0] = 1
    assert values.flags.writeable
    assert adapter.from_numpy(values.astype("f4")).dtype == np.float32
    assert adapter.from_numpy(values, dtype=np.dtype("i8")).dtype == np.int64


@pytest.mark.parametrize("rows", [[2, 3, 4], [4, 2, 3], [2, 2, 3], [4], []], ids=str)
def test_gather(rows):
    column = adapter.from_numpy(np.arange(12.0).reshape(6, 2))
    rows = np.array(rows, dtype=np.int64)
    np.testing.assert_array_equal(adapter.gather(column, rows), column[rows])
    room = np.empty((len(rows), 2))
    np.testing.assert_array_equal(adapter.gather(column, rows, room), column[rows])
    np.testing.assert_array_equal(adapter.gather(column, rows, column[: len(rows)]), column[rows])
    assert np.shares_memory(adapter.gather(column, slice(2, 4)), column)


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
def test_padding_equals_torch(mode):
    x = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    mine = adapter.pad(x, [(0, 0), (0, 2)], mode, 7.0)
    theirs = torch_adapter.pad(torch.tensor(x), [(0, 0), (0, 2)], mode, 7.0)
    np.testing.assert_array_equal(mine, theirs.numpy())


def test_losses_equal_scikit_learn_and_torch():
    rng = np.random.default_rng(0)
    out, y = rng.normal(size=(9, 2)), rng.normal(size=(9, 2))
    made = {name: cls() for name, cls in adapter.losses().items()}
    assert made["MSELoss"](out, y).mean() == pytest.approx(metrics.mean_squared_error(y, out))
    assert made["L1Loss"](out, y).mean() == pytest.approx(metrics.mean_absolute_error(y, out))
    huber = torch.nn.HuberLoss()(torch.tensor(out), torch.tensor(y)).item()
    assert made["HuberLoss"](out, y).mean() == pytest.approx(huber)
    p = np.array([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]])
    for labels in ([1, 0], [2, 1]):
        expected = metrics.log_loss(labels, p, labels=[0, 1, 2])
        found = made["CrossEntropyLoss"](p, np.array(labels)).mean()
        assert found == pytest.approx(expected)
    found = made["BCELoss"](p[:, :1], np.array([[1.0], [1.0]])).mean()
    assert found == pytest.approx(metrics.log_loss([1, 1], p[:, 0], labels=[0, 1]))
    assert adapter.losses()["MSELoss"](reduction="mean")(out, y) == made["MSELoss"](out, y).mean()


def test_there_is_nothing_to_optimize():
    assert adapter.backend is Backend.SCIKIT
    assert not adapter.gradients
    with pytest.raises(BackendNotSupportedError, match="no optimizer"):
        adapter.make_optimizer(None, [], {})
    with pytest.raises(BackendNotSupportedError, match="no optimizer"):
        adapter.train_step(None, [])
