"""Predictions and targets have the same axes, whatever a model returns for a row."""

import numpy as np
import pytest

import modularml as mm
from tests.worlds import arrays, featureset

torch = pytest.importorskip("torch")


class Flat(torch.nn.Module):
    """Gives one number a row, without an axis of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(6, 1)

    def forward(self, x):
        return self.layer(x).squeeze(-1)


def test_one_number_a_row_is_one_column():
    x, y = arrays()
    fs = featureset(x, y)
    model = Flat()
    graph = mm.ModelGraph([mm.ModelNode("net", model, fs)])
    graph.build()
    predicted = graph.predict(fs, unscale=False)
    assert predicted.shape == fs.get_targets("numpy").shape == (len(y), 1)
    with torch.no_grad():
        wanted = model(torch.tensor(x)).numpy()
    np.testing.assert_allclose(predicted[:, 0], wanted, rtol=1e-6)
