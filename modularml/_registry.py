"""Registries of named objects."""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from modularml.errors import RegistrationError, UnknownNameError

__all__ = ["Registry", "member"]

T = TypeVar("T")
E = TypeVar("E", bound=enum.Enum)

_FILLING = threading.RLock()


def member(cls: type[E], value: object, kind: str) -> E:
    """Return a member of an enum, passed as member or as value in any case.

    Raises
    ------
    UnknownNameError
        If there is none.
    """
    if isinstance(value, cls):
        return value
    known = {m.value: m for m in cls}
    if not isinstance(value, str) or value.lower() not in known:
        raise UnknownNameError(kind, value, known)
    return known[value.lower()]


class Registry(Mapping[str, T], Generic[T]):
    """A mapping of names to objects; case-insensitive, in order of registration.

    Parameters
    ----------
    kind : str
        Kind of the objects, such as ``"scaler"``; used in messages.
    entries : mapping of str to object, optional
        Initial entries.
    load : callable, optional
        Called once before the first look-up, to add entries that are expensive to import.

    Examples
    --------
    >>> colours = Registry("colour", {"Red": 1})
    >>> colours["red"]
    1
    """

    def __init__(
        self,
        kind: str,
        entries: Mapping[str, T] | None = None,
        *,
        load: Callable[[], Mapping[str, T]] | None = None,
    ) -> None:
        self.kind = kind
        self._entries: dict[str, T] = dict(entries or {})
        self._load = load

    def register(self, name: str, obj: T, *, overwrite: bool = False) -> T:
        """Add an object under a name and return it.

        Raises
        ------
        RegistrationError
            If the name is taken by another object and ``overwrite`` is false.
        """
        existing = self._find(name)
        if existing is not None and self._entries[existing] is not obj and not overwrite:
            raise RegistrationError(
                f"{self.kind} name {name!r} is taken by {self._entries[existing]!r}; "
                "choose another name or pass overwrite=True"
            )
        if existing is not None:
            del self._entries[existing]
        self._entries[name] = obj
        return obj

    def name_of(self, obj: object) -> str | None:
        """Return the name an object is registered under, or None."""
        self._fill()
        return next((name for name, known in self._entries.items() if known is obj), None)

    def __getitem__(self, name: str) -> T:
        key = self._find(name)
        if key is None:
            raise UnknownNameError(self.kind, name, self._entries)
        return self._entries[key]

    def __contains__(self, name: object) -> bool:
        return self._find(name) is not None

    def __iter__(self) -> Iterator[str]:
        self._fill()
        return iter(self._entries)

    def __len__(self) -> int:
        self._fill()
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Registry({self.kind!r}, {list(self)})"

    def _fill(self) -> None:
        with _FILLING:  # another thread waits until the entries are there
            load, self._load = self._load, None
            if load is None:
                return
            try:
                self._entries = {**load(), **self._entries}
            except BaseException:
                self._load = load  # try again the next time
                raise

    def _find(self, name: object) -> str | None:
        self._fill()
        if name in self._entries:
            return str(name)
        folded = str(name).casefold()
        return next((known for known in self._entries if known.casefold() == folded), None)
