"""Registries of named objects."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from modularml.errors import RegistrationError, UnknownNameError

T = TypeVar("T")
E = TypeVar("E", bound=enum.Enum)


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
    late : dict of str to callable, optional
        Imports the object of each name when it is first looked up. The name must be the object's
        ``__name__``.

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
        late: Mapping[str, Callable[[], T]] | None = None,
    ) -> None:
        self.kind = kind
        self._late = dict(late or {})
        self._entries: dict[str, Any] = {**dict.fromkeys(self._late), **(entries or {})}
        for name in entries or ():
            self._late.pop(name, None)

    def register(self, name: str, obj: T, *, overwrite: bool = False) -> T:
        """Add an object under a name and return it.

        Raises
        ------
        RegistrationError
            If the name is taken by another object and ``overwrite`` is false.
        """
        existing = self.find(name)
        if existing is not None and not overwrite and self[existing] is not obj:
            raise RegistrationError(
                f"{self.kind} name {name!r} is taken by {self[existing]!r}; "
                "choose another name or pass overwrite=True"
            )
        if existing is not None:
            del self._entries[existing]
            self._late.pop(existing, None)
        self._entries[name] = obj
        return obj

    def name_of(self, obj: object) -> str | None:
        """Return the name an object is registered under, or None."""
        if getattr(obj, "__name__", None) in self._late:
            self[obj.__name__]  # type: ignore[attr-defined]
        known = ((name, it) for name, it in self._entries.items() if name not in self._late)
        return next((name for name, it in known if it is obj), None)

    def find(self, name: object) -> str | None:
        """Return a name as it was registered, or None; imports nothing."""
        if name in self._entries:
            return str(name)
        folded = str(name).casefold()
        return next((known for known in self._entries if known.casefold() == folded), None)

    def is_late(self, name: str) -> bool:
        """Return whether the object of a registered name is still to be imported."""
        return name in self._late

    def __getitem__(self, name: str) -> T:
        key = self.find(name)
        if key is None:
            raise UnknownNameError(self.kind, name, self._entries)
        late = self._late.get(key)
        if late is not None:
            self._entries[key] = late()
            self._late.pop(key, None)  # another thread may have done so
        found: T = self._entries[key]
        return found

    def get(self, name: str, default: Any = None) -> Any:
        """Return the object of a name, or a default."""
        key = self.find(name)
        return default if key is None else self[key]

    def __contains__(self, name: object) -> bool:
        return self.find(name) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Registry({self.kind!r}, {list(self)})"
