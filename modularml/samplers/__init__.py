"""Samplers: rows to batches of indices."""

from modularml.samplers.base import BaseSampler, EpochBatches, sampler_registry
from modularml.samplers.simple import SimpleSampler

__all__ = ["BaseSampler", "EpochBatches", "SimpleSampler", "sampler_registry"]
