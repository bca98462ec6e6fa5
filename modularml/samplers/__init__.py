"""Samplers, which turn rows into batches of indices."""

from modularml.samplers.base import BaseSampler, sampler_registry
from modularml.samplers.batching import EpochBatches
from modularml.samplers.search import SimilarityCondition
from modularml.samplers.simple import SimpleSampler
from modularml.samplers.tuples import NSampler, PairedSampler, TripletSampler

__all__ = [
    "BaseSampler",
    "EpochBatches",
    "NSampler",
    "PairedSampler",
    "SimilarityCondition",
    "SimpleSampler",
    "TripletSampler",
    "sampler_registry",
]
