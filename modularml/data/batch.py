"""Batches as objects, created on request; the loop itself passes tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from modularml._typing import Array, IntArray
from modularml.data.formats import DataFormat
from modularml.data.samples import (
    SampleData,
    SampleShapes,
    as_numpy,
    concat_samples,
    concat_tensors,
)
from modularml.data.view import FeatureSetView
from modularml.errors import ConfigError, UnknownNameError

__all__ = [
    "Batch",
    "BatchView",
    "RoleData",
    "SampleData",
    "SampleShapes",
    "SampledView",
    "as_numpy",
    "concat_tensors",
]

DEFAULT_ROLE = "default"


class RoleData(Mapping[str, SampleData]):
    """Samples by role; roles are also attributes.

    Parameters
    ----------
    data : mapping of str to SampleData
        At least one role, all with the same number of rows.
    """

    def __init__(self, data: Mapping[str, SampleData]) -> None:
        if not data:
            raise ConfigError("RoleData needs at least one role")
        self._data = dict(data)

    def __getitem__(self, role: str) -> SampleData:
        if role not in self._data:
            raise UnknownNameError("role", role, self._data)
        return self._data[role]

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def __getattr__(self, role: str) -> SampleData:
        if role.startswith("_") or role not in self._data:
            raise AttributeError(
                f"there is no role {role!r}; roles: {list(self.__dict__.get('_data', {}))}"
            )
        return self._data[role]

    @property
    def roles(self) -> list[str]:
        """Names of the roles."""
        return list(self._data)

    def __repr__(self) -> str:
        return f"RoleData({self._data!r})"


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch: samples by role, with weights and masks.

    Parameters
    ----------
    role_data : RoleData
    role_weights, role_masks : mapping of str to ndarray, shape (n,)
        1 for every row by default.
    """

    role_data: RoleData
    role_weights: Mapping[str, Array] = field(default_factory=dict)
    role_masks: Mapping[str, Array] = field(default_factory=dict)

    @property
    def batch_size(self) -> int:
        """Number of rows of a role."""
        return len(next(iter(self.role_data.values())))

    @property
    def roles(self) -> list[str]:
        """Names of the roles."""
        return self.role_data.roles

    @property
    def shapes(self) -> SampleShapes:
        """Shape of one sample in each domain."""
        return next(iter(self.role_data.values())).shapes

    def get(self, domain: str, role: str = DEFAULT_ROLE) -> Any:
        """Return one domain of one role."""
        return self.role_data[role].get(domain)

    def weights(self, role: str = DEFAULT_ROLE) -> Array:
        """Return the weight of each row."""
        return self.role_weights.get(role, np.ones(self.batch_size, dtype=np.float32))

    def mask(self, role: str = DEFAULT_ROLE) -> Array:
        """Return 1 for each row that holds data, 0 for padding."""
        return self.role_masks.get(role, np.ones(self.batch_size, dtype=np.float32))

    @property
    def features(self) -> Any:
        """Features of the default role."""
        return self._only("features")

    @property
    def outputs(self) -> Any:
        """Outputs of the default role."""
        return self._only("outputs")

    @property
    def targets(self) -> Any:
        """Targets of the default role."""
        return self._only("targets")

    @property
    def tags(self) -> Any:
        """Tags of the default role."""
        return self._only("tags")

    @property
    def sample_uuids(self) -> Any:
        """Sample ids of the default role."""
        return self._only("sample_uuids")

    def to(self, fmt: str | DataFormat) -> Batch:
        """Return the same batch with tensors in another array format."""
        return replace(self, role_data=RoleData({r: d.to(fmt) for r, d in self.role_data.items()}))

    @classmethod
    def concat(cls, batches: Sequence[Batch]) -> Batch:
        """Concatenate batches.

        Raises
        ------
        ConfigError
            If `batches` is empty.
        """
        if not batches:
            raise ConfigError("batches must hold at least one batch to concatenate")
        roles = batches[0].roles
        data = {role: concat_samples([b.role_data[role] for b in batches]) for role in roles}
        weights = {r: np.concatenate([b.weights(r) for b in batches]) for r in roles}
        masks = {r: np.concatenate([b.mask(r) for b in batches]) for r in roles}
        return cls(RoleData(data), weights, masks)

    def _only(self, domain: str) -> Any:
        role = DEFAULT_ROLE if DEFAULT_ROLE in self.role_data else self.roles[0]
        if len(self.role_data) > 1 and role != DEFAULT_ROLE:
            raise UnknownNameError("role", DEFAULT_ROLE, self.roles, "use batch.get(domain, role)")
        return self.role_data[role].get(domain)

    def __len__(self) -> int:
        return self.batch_size

    def __repr__(self) -> str:
        return f"Batch({self.batch_size} rows, {self.role_data!r})"


@dataclass(frozen=True, eq=False)
class BatchView:
    """A batch as row numbers of a view; nothing is gathered until `materialize`.

    Parameters
    ----------
    source : FeatureSetView
    role_indices : mapping of str to ndarray of int64, shape (n,)
        Rows of the underlying FeatureSet, by role.
    role_weights : mapping of str to ndarray, shape (n,)
    """

    source: FeatureSetView
    role_indices: Mapping[str, IntArray]
    role_weights: Mapping[str, Array] = field(default_factory=dict)

    @property
    def batch_size(self) -> int:
        """Number of rows of a role."""
        return len(next(iter(self.role_indices.values())))

    @property
    def roles(self) -> list[str]:
        """Names of the roles."""
        return list(self.role_indices)

    def view(self, role: str = DEFAULT_ROLE) -> FeatureSetView:
        """Return the rows of a role as a view."""
        source = self.source
        return FeatureSetView(source.source, self.role_indices[role], source.columns, source.label)

    @property
    def role_masks(self) -> dict[str, Array]:
        """1 for each row that holds data, 0 for padding, for roles that have padding."""
        masks = {role: (rows >= 0).astype(np.float32) for role, rows in self.role_indices.items()}
        return {role: mask for role, mask in masks.items() if not mask.all()}

    def materialize(self, fmt: str | DataFormat = "numpy") -> Batch:
        """Gather the rows into a batch; padding is filled with some other row."""
        rows = {role: np.maximum(indices, 0) for role, indices in self.role_indices.items()}
        filled = replace(self, role_indices=rows)
        data = {role: filled.view(role).to_sample_data(fmt) for role in self.roles}
        return Batch(RoleData(data), self.role_weights, self.role_masks)


@dataclass(frozen=True, eq=False)
class SampledView:
    """All batches of an epoch, by stream.

    Parameters
    ----------
    streams : mapping of str to list of BatchView
    """

    streams: Mapping[str, list[BatchView]]

    def batches(self, stream: str = DEFAULT_ROLE) -> list[BatchView]:
        """Return the batches of a stream."""
        if stream not in self.streams:
            raise UnknownNameError("stream", stream, self.streams)
        return self.streams[stream]

    def __len__(self) -> int:
        return len(next(iter(self.streams.values())))
