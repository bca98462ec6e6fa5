"""Every sampler of ours, and one of a user's, keeps the contract."""

import numpy as np
import pytest

from modularml.errors import ConfigError
from modularml.samplers import (
    BaseSampler,
    EpochBatches,
    NSampler,
    PairedSampler,
    SimilarityCondition,
    SimpleSampler,
    TripletSampler,
    sampler_registry,
)
from tests.contracts.sampler import SamplerContract

SAME, OTHER = SimilarityCondition(), SimilarityCondition("dissimilar")
NEAR = SimilarityCondition(tolerance=0.1, weight_mode="exp", max_weight=3.0, allow_fallback=True)


class TestSimple(SamplerContract):
    def make(self, **kwargs):
        return SimpleSampler(**kwargs)


class TestBalanced(SamplerContract):
    def make(self, **kwargs):
        return SimpleSampler(balance_by="g", weights="x", **kwargs)


class TestPairs(SamplerContract):
    def make(self, **kwargs):
        return PairedSampler({"x": NEAR, "g": SAME}, max_pairs_per_anchor=2, **kwargs)


class TestTriplets(SamplerContract):
    def make(self, **kwargs):
        return TripletSampler({"g": SAME}, {"g": OTHER}, **kwargs)


class TestBestOfN(SamplerContract):
    def make(self, **kwargs):
        return NSampler({"a": {"x": NEAR}, "b": {"x": OTHER}}, choose_best_only=True, **kwargs)


class Padded(BaseSampler):
    """A user's: rows in order, the last batch filled up with padding."""

    gives_weights = True

    def __init__(self, fill: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.fill = fill

    def sample(self, view, epoch):
        padding = [] if self.group_by else [-1, -1, -1]
        rows = np.append(self.rng(epoch).permutation(len(view)), padding).astype(np.int64)
        return self.batches(
            view, {"default": rows}, self.rng(epoch), {"default": 1.0 * (rows >= 0)}
        )


class TestOfAUser(SamplerContract):
    def make(self, **kwargs):
        return Padded(fill=1.0, **kwargs)


def test_all_are_registered():
    assert {"SimpleSampler", "NSampler", "PairedSampler", "TripletSampler"} <= set(sampler_registry)
    assert sampler_registry["tripletsampler"] is TripletSampler


def test_weights_that_nobody_announced_are_refused():
    class Silent(Padded):
        gives_weights = False

    with pytest.raises(ConfigError, match="gives_weights"):
        Silent(batch_size=7).epoch(SamplerContract().view(), 0)


def test_the_constructor_shows_all_arguments():
    assert repr(Padded(fill=2.0, batch_size=4)) == "Padded(fill=2.0, batch_size=4)"
    with pytest.raises(TypeError, match="unexpected keyword"):
        SimpleSampler(batchsize=3)


def test_streams_are_roles_alone():
    found = EpochBatches({"a": np.arange(4), "b": np.arange(4)[::-1]}, np.array([0, 2, 4]))
    assert found.stream("default") is found
    assert found.stream("b").batch(1).tolist() == [1, 0]
    assert found.taken([1, 0, 1]).rows["a"].tolist() == [2, 3, 0, 1, 2, 3]
