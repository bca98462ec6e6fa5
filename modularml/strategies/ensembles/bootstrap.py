"""Bootstrap samples: training rows of each member, drawn with replacement."""

from __future__ import annotations

import numpy as np

from modularml._typing import Array, IntArray
from modularml.data.selectors import select_one
from modularml.errors import ConfigError
from modularml.io.randomness import derived_seed
from modularml.splitters.base import key_list
from modularml.splitters.factors import factorise
from modularml.strategies.folds.cv_binding import CVBinding
from modularml.strategies.variants.variant import Sides, Variant

__all__ = ["make_bootstraps"]


def make_bootstraps(binding: CVBinding, *, n: int, seed: int) -> list[Variant]:
    """Draw the training rows of `n` members from the pool of a binding.

    A row that is drawn several times is in the training split as often, so that samplers, scalers
    and estimators see it as often. Whole groups are drawn if the binding has `group_by`, and as
    many rows as there are of each stratum if it has `stratify_by`. Rows that are not drawn are the
    validation split of the member.

    Raises
    ------
    ConfigError
        If the binding asks for what a bootstrap does not do.
    """
    _check(binding)
    pool = binding.pool()
    schema = pool.collection.schema
    columns = {
        key: pool.column(select_one(schema, key))
        for key in key_list(binding.group_by, binding.stratify_by)
    }
    groups, strata = (
        factorise(keys, columns).codes if (keys := key_list(names)) else None
        for names in (binding.group_by, binding.stratify_by)
    )
    variants = []
    for i in range(n):
        generator = np.random.default_rng(derived_seed(seed, "bootstrap", i))
        positions = _drawn(len(pool), groups, strata, generator)
        rest = np.setdiff1d(np.arange(len(pool)), positions)
        names = binding.train_split_name, binding.val_split_name
        sides = Sides(pool.indices[positions], pool.indices[rest], pool.indices, *names)
        seed_of_member = derived_seed(seed, "member", i) % 2**32
        label = str(binding.featureset.label)
        variants.append(Variant(f"member_{i}", seed_of_member, sides={label: sides}))
    return variants


def _check(binding: CVBinding) -> None:
    for name in ("val_size", "stop_size", "bins"):
        if (value := getattr(binding, name)) is not None:
            raise ConfigError(
                f"vary='bootstrap' draws rows with replacement and has no {name}, got {value!r}; "
                "omit it, and split off rows for early stopping before"
            )
    if binding.group_by is not None and binding.stratify_by is not None:
        raise ConfigError(
            "vary='bootstrap' draws whole groups or rows of each stratum, not both; pass group_by "
            "or stratify_by to the CVBinding"
        )


def _drawn(
    n: int, groups: Array | None, strata: Array | None, generator: np.random.Generator
) -> IntArray:
    """Return positions drawn with replacement, ascending."""
    if groups is not None:
        n_groups = int(groups.max()) + 1
        times = np.bincount(generator.integers(n_groups, size=n_groups), minlength=n_groups)
        return np.repeat(np.arange(n), times[groups])
    if strata is None:
        return np.sort(generator.integers(n, size=n))
    parts = [np.flatnonzero(strata == code) for code in range(int(strata.max()) + 1)]
    drawn = [part[generator.integers(len(part), size=len(part))] for part in parts]
    return np.sort(np.concatenate(drawn))
