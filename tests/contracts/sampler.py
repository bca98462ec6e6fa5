"""What every sampler must do. Inherit it beside your own class and define `make`.

::

    class TestMySampler(SamplerContract):
        def make(self, **kwargs):
            return MySampler(..., **kwargs)
"""

import json
import warnings

import numpy as np
import pytest

from modularml.config import decode, encode
from modularml.data import FeatureSet
from modularml.errors import DataError
from modularml.samplers import BaseSampler


class SamplerContract:
    n = 60

    def make(self, **kwargs) -> BaseSampler:
        """Make a sampler; what is given goes to `BaseSampler`."""
        raise NotImplementedError

    def view(self):
        """Rows to sample: numbers in ``x``, classes in ``g``."""
        rng = np.random.default_rng(0)
        data = {"x": rng.random(self.n), "g": rng.choice(["a", "b", "c"], self.n)}
        fs = FeatureSet.from_dict("rows", data, ["x"], [], ["g"], register=False)
        return fs.take(np.arange(self.n)[::-1])

    def run(self, epoch=0, **kwargs):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.make(batch_size=7, seed=5, **kwargs).epoch(self.view(), epoch)

    def test_batches_are_positions_by_role(self):
        sampler, found = self.make(batch_size=7, seed=5), self.run()
        assert tuple(found.rows) == sampler.roles
        assert found.bounds[0] == 0
        assert (np.diff(found.bounds) > 0).all()
        for role, rows in found.rows.items():
            assert rows.dtype == np.int64
            assert len(rows) == found.bounds[-1]
            padded = rows < 0
            assert (rows >= -1).all()
            assert (rows < self.n).all()
            if found.weights is not None and (weights := found.weight(role)) is not None:
                assert len(weights) == len(rows)
                assert (weights >= 0).all()
                assert not weights[padded].any()
            else:
                assert not padded.any()

    def test_weights_are_announced(self):
        if self.run().weights is not None:
            assert self.make().gives_weights

    def test_seed_and_epoch_alone_decide(self):
        first = [self.run(epoch, shuffle=True) for epoch in (0, 1, 0)]
        assert_same(first[0], first[2])
        again = self.make(batch_size=7, seed=5, shuffle=True)
        assert_same(again.epoch(self.view(), 1), first[1])
        assert_same(again.epoch(self.view(), 0), first[0])

    def test_config_and_state_round_trip(self):
        sampler = self.make(batch_size=7, shuffle=True)
        twin = decode(json.loads(json.dumps(encode(sampler))))
        assert twin == sampler
        assert repr(twin) == repr(sampler)
        twin.set_state(json.loads(json.dumps(sampler.get_state())))
        assert_same(twin.epoch(self.view(), 3), sampler.epoch(self.view(), 3))

    def test_groups_do_not_share_a_batch(self):
        found = self.run(group_by="g", shuffle=True)
        rows = found.rows[self.make().roles[0]]
        groups = self.view().get_tags("numpy")[:, 0][rows]
        for start, stop in zip(found.bounds, found.bounds[1:], strict=False):
            assert len(set(groups[start:stop])) == 1

    def test_last_batch_can_be_left_out(self):
        assert set(self.run(drop_last=True).sizes) == {7}

    def test_iteration_gives_views_and_goes_on_where_it_was(self):
        def made():
            return self.make(batch_size=7, seed=5, shuffle=True, sources=[self.view()])

        whole, left = made(), made()
        batches = [list(whole), list(whole)]
        seen = iter(left)
        for _ in range(3):
            next(seen)
        resumed = made()
        resumed.set_state(left.get_state())
        rest = [*resumed, *resumed]
        wanted = [*batches[0][3:], *batches[1]]
        assert len(rest) == len(wanted)
        for mine, theirs in zip(rest, wanted, strict=True):
            for role in mine.roles:
                np.testing.assert_array_equal(mine.role_indices[role], theirs.role_indices[role])
        assert rest[0].materialize().batch_size == rest[0].batch_size

    def test_an_empty_view_is_refused(self):
        with pytest.raises(DataError):
            self.make().epoch(self.view().take([]), 0)


def assert_same(a, b):
    np.testing.assert_array_equal(a.bounds, b.bounds)
    for role in a.rows:
        np.testing.assert_array_equal(a.rows[role], b.rows[role])
        for mine, theirs in [(a.weight(role), b.weight(role))]:
            assert (mine is None) == (theirs is None)
            if mine is not None:
                np.testing.assert_array_equal(mine, theirs)
