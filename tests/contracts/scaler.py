"""What every scaler must do behind `Scaler`. Inherit it beside your own class and define `make`.

::

    class TestMyScaler(ScalerContract):
        def make(self):
            return MyScaler(...)
"""

import json

import numpy as np
import pytest

from modularml.config import decode, encode
from modularml.errors import NotFittedError, ScalerError, ShapeError
from modularml.scalers import NoInverseError, Scaler


class ScalerContract:
    keeps_float32 = True
    has_inverse = True
    tolerance = 1e-9

    def make(self):
        """Anything that `Scaler` takes."""
        raise NotImplementedError

    def data(self) -> np.ndarray:
        """Rows of 4 columns that can be scaled."""
        return np.random.default_rng(7).normal(3, 5, size=(40, 4))

    @pytest.fixture
    def scaler(self) -> Scaler:
        return Scaler(self.make()).fit(self.data())

    def test_fit_returns_the_scaler_and_says_so(self):
        scaler = Scaler(self.make())
        assert not scaler.is_fit
        assert scaler.fit(self.data()) is scaler
        assert scaler.is_fit

    def test_data_is_not_changed(self, scaler):
        data = self.data()
        scaler.fit(data)
        out = scaler.transform(data)
        out[:] = 0
        np.testing.assert_array_equal(data, self.data())

    def test_fit_transform_is_fit_then_transform(self, scaler):
        found = Scaler(self.make()).fit_transform(self.data())
        np.testing.assert_array_equal(found, scaler.transform(self.data()))

    def test_there_and_back(self, scaler):
        data = self.data()
        scaled = scaler.transform(data)
        if not self.has_inverse:
            with pytest.raises(NoInverseError):
                scaler.inverse_transform(scaled)
            return
        back = scaler.inverse_with(scaled, scaler.row_facts(data))
        np.testing.assert_allclose(back, data, rtol=self.tolerance, atol=self.tolerance)

    def test_plain_inverse_is_right_or_refused(self, scaler):
        scaled = scaler.transform(self.data())
        if scaler.needs_rows or not self.has_inverse:
            with pytest.raises(NotImplementedError):
                scaler.inverse_transform(scaled)
        else:
            back = scaler.inverse_transform(scaled)
            np.testing.assert_allclose(back, self.data(), rtol=self.tolerance, atol=self.tolerance)

    def test_facts_of_other_rows_are_refused(self, scaler):
        if not scaler.needs_rows:
            return
        facts = scaler.row_facts(self.data())
        with pytest.raises(ShapeError, match="facts"):
            scaler.inverse_with(scaler.transform(self.data()), facts[1:])

    def test_state_round_trip_is_bit_for_bit(self, scaler):
        state = scaler.get_state()
        assert state["is_fit"] is True
        fresh = scaler.clone_unfitted()
        assert not fresh.is_fit
        fresh.set_state(state)
        assert fresh.is_fit
        np.testing.assert_array_equal(fresh.transform(self.data()), scaler.transform(self.data()))
        assert_plain(state)

    def test_state_is_not_shared(self, scaler):
        before = scaler.transform(self.data())
        state = scaler.get_state()
        fresh = scaler.clone_unfitted()
        fresh.set_state(state)
        for array in arrays_in(state):
            array[...] = 0
        np.testing.assert_array_equal(scaler.transform(self.data()), before)
        np.testing.assert_array_equal(fresh.transform(self.data()), before)

    def test_config_round_trip(self, scaler):
        found = decode(json.loads(json.dumps(encode(scaler))))
        assert found.get_config() == scaler.get_config()
        assert not found.is_fit
        np.testing.assert_array_equal(
            found.fit_transform(self.data()), scaler.transform(self.data())
        )

    def test_float32_stays(self, scaler):
        if not self.keeps_float32:
            return
        data = self.data().astype(np.float32)
        assert scaler.fit_transform(data).dtype == np.float32

    def test_no_rows_give_no_rows(self, scaler):
        found = scaler.transform(self.data()[:0])
        assert found.shape == (0, scaler.transform(self.data()).shape[1])

    def test_another_number_of_columns_is_refused(self, scaler):
        with pytest.raises(ShapeError, match=r"4 columns.*got 3"):
            scaler.transform(self.data()[:, :3])

    def test_unfitted_is_refused(self):
        with pytest.raises(NotFittedError):
            Scaler(self.make()).transform(self.data())

    def test_failed_fit_changes_nothing(self, scaler):
        before = scaler.transform(self.data())
        for bad in (self.data()[:0], self.data()[0], np.full((3, 4), "x")):
            with pytest.raises((ScalerError, ShapeError)):
                scaler.fit(bad)
        np.testing.assert_array_equal(scaler.transform(self.data()), before)


def assert_plain(value):
    if isinstance(value, dict):
        assert all(isinstance(key, str) for key in value)
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            assert_plain(item)
    else:
        assert value is None or isinstance(
            value, bool | int | float | str | np.generic | np.ndarray
        )
        assert not (isinstance(value, np.ndarray) and value.dtype.hasobject)


def arrays_in(value):
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from arrays_in(item)
