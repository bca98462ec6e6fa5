"""Random states of the process, as plain data: kept in checkpoints, and put back after loading."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from modularml._optional import loaded

__all__ = ["derived_seed", "random_states", "seed_all", "set_random_states", "unchanged_randomness"]


def derived_seed(*key: int) -> int:
    """Return a seed below 2**32 that follows from some numbers, each at least 0."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def seed_all(seed: int) -> None:
    """Seed the generators of Python, numpy and of every framework that is loaded."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    if (torch := loaded("torch")) is not None:
        torch.manual_seed(seed)
    if (keras := loaded("keras")) is not None:
        keras.utils.set_random_seed(seed)


def random_states() -> dict[str, Any]:
    """Return the states of Python's, numpy's and torch's generators; torch's where it is loaded."""
    version, words, gauss = random.getstate()
    name, keys, pos, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - a user's code may draw from it
    return {
        "python": {"version": version, "words": np.array(words, dtype=np.uint64), "gauss": gauss},
        "numpy": {"name": name, "keys": keys, "rest": [pos, has_gauss, cached]},
        "torch": _torch_states(),
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Go back to what `random_states` returned."""
    python, numpy = states["python"], states["numpy"]
    words = tuple(int(word) for word in python["words"])
    random.setstate((python["version"], words, python["gauss"]))
    np.random.set_state((numpy["name"], numpy["keys"], *numpy["rest"]))  # noqa: NPY002
    torch = loaded("torch")
    if torch is not None and states["torch"] is not None:
        torch.random.set_rng_state(torch.from_numpy(states["torch"]["cpu"]))
        for place, state in enumerate(states["torch"]["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(torch.from_numpy(state), place)


@contextmanager
def unchanged_randomness() -> Iterator[None]:
    """Put random states back at the end of a block: loading a model draws weights first."""
    before = random_states()
    try:
        yield
    finally:
        set_random_states(before)


def _torch_states() -> dict[str, Any] | None:
    torch = loaded("torch")
    if torch is None:
        return None
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "cpu": torch.random.get_rng_state().numpy().copy(),
        "cuda": [s.numpy().copy() for s in cuda],
    }
