"""What every splitter must do. Inherit it beside your own class and define `make`.

::

    class TestMySplitter(SplitterContract):
        def make(self):
            return MySplitter(...)
"""

import json
from collections.abc import Mapping

import numpy as np

from modularml.config import decode, encode
from modularml.splitters import BaseSplitter


class SplitterContract:
    n = 60

    def make(self) -> BaseSplitter:
        raise NotImplementedError

    def columns(self) -> dict[str, np.ndarray]:
        """Columns of ``n`` rows that the splitter needs."""
        return {}

    def test_needs_name_columns_each_once(self):
        needs = self.make().needs
        assert all(isinstance(name, str) for name in needs)
        assert len(set(needs)) == len(needs)

    def test_parts_are_ascending_positions_of_rows(self):
        for name, rows in self.make().assign(self.n, columns=self.columns()).items():
            assert isinstance(name, str)
            assert name
            assert rows.dtype == np.int64
            assert rows.ndim == 1
            assert (np.diff(rows) > 0).all()
            assert ((rows >= 0) & (rows < self.n)).all()

    def test_same_rows_give_same_parts(self):
        splitter = self.make()
        first = splitter.assign(self.n, columns=self.columns())
        again = splitter.assign(self.n, columns=self.columns())
        fresh = self.make().assign(self.n, columns=self.columns())
        assert_same_parts(first, again)
        assert_same_parts(first, fresh)

    def test_config_round_trip_gives_same_parts(self):
        splitter = self.make()
        found = decode(json.loads(json.dumps(encode(splitter))))
        assert found == splitter
        assert_same_parts(
            found.assign(self.n, columns=self.columns()),
            splitter.assign(self.n, columns=self.columns()),
        )

    def test_only_needed_columns_are_read_and_none_is_changed(self):
        columns = self.columns()
        before = {name: values.copy() for name, values in columns.items()}
        for values in columns.values():
            values.flags.writeable = False
        seen = _Seen(columns)
        splitter = self.make()
        splitter.assign(self.n, columns=seen)
        assert seen.names <= set(splitter.needs)
        for name, values in before.items():
            np.testing.assert_array_equal(columns[name], values)

    def test_split_is_assign_checked(self):
        splitter = self.make()
        assert_same_parts(
            splitter.split(self.n, columns=self.columns()),
            splitter.assign(self.n, columns=self.columns()),
        )


class _Seen(Mapping):
    """Columns that note who was looked at."""

    def __init__(self, columns):
        self.columns, self.names = columns, set()

    def __getitem__(self, name):
        self.names.add(name)
        return self.columns[name]

    def __iter__(self):
        return iter(self.columns)

    def __len__(self):
        return len(self.columns)


def assert_same_parts(a, b):
    assert list(a) == list(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
