"""Every sampler of ours, and one of a user's, keeps the contract."""

import numpy as np
import pytest
import torch

import modularml as mm
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
from tests.worlds import QUIET, arrays, experiment, featureset, mlp, mse, twin

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


class Weighted(BaseSampler):
    """A user's: rows in order, each with a weight of the sampler's own."""

    gives_weights = True

    def sample(self, view, epoch):
        rows = np.arange(len(view))
        return self.batches(view, {"default": rows}, weights={"default": 1.0 + rows % 3})


def test_weights_of_a_sampler_and_of_a_column_are_multiplied():
    x, y = arrays(n=24)
    w = np.linspace(0.5, 4.0, 24).astype(np.float32)
    for batch_size in (24, 5):
        with mm.ExperimentContext().activate():
            net = mlp()
            hand = twin(net)
            fs = featureset(x, y, w=w)
            node = mm.ModelNode("net", net, fs.reference(features="x*", targets="y", tags="w"))
            rate = 0.1 if batch_size == 24 else 0.0
            mm.ModelGraph([node], mm.Optimizer("sgd", opt_kwargs={"lr": rate}))
            sampler = Weighted(batch_size=batch_size)
            phase = mm.TrainPhase(
                "t",
                input_sources=[mm.InputBinding("net", node.feature_refs[0], None, sampler)],
                losses=[mse(sample_weight="w")],
            )
            results = experiment().run_phase(phase, **QUIET)
        both = torch.as_tensor((1.0 + np.arange(24) % 3) * w, dtype=torch.float32)[:, None]
        loss = (both * (hand(torch.as_tensor(x)) - torch.as_tensor(y)) ** 2).sum() / both.sum()
        assert results.figures()["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
        loss.backward()
        for mine, theirs in zip(net.parameters(), hand.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs - rate * theirs.grad, rtol=1e-5, atol=1e-6)
