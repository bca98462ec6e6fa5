"""What happens when a label is taken."""

from __future__ import annotations

import enum
import os

from modularml._registry import member
from modularml._warning import warn
from modularml.progress import in_ipython


class RegistrationWarning(UserWarning):
    """A node took the place of another with the same label."""


class RegistrationPolicy(enum.Enum):
    """What happens when a label is taken.

    The default is read from ``MODULARML_EXP_REGISTRATION_POLICY``; where that is not set, it is
    ``overwrite_warn`` in IPython, as cells of notebooks run again and again, and ``error`` in a
    script.
    ``raise`` is another name of ``error``.

    Examples
    --------
    >>> RegistrationPolicy("overwrite").name
    'OVERWRITE'
    """

    ERROR = RAISE = "error"
    OVERWRITE = "overwrite"
    OVERWRITE_WARN = "overwrite_warn"
    NO_REGISTER = "no_register"

    @classmethod
    def from_value(cls, value: str | RegistrationPolicy | None) -> RegistrationPolicy:
        """Read a policy from its name; None gives the default."""
        if value is None:
            usual = "overwrite_warn" if in_ipython() else "error"
            value = os.environ.get("MODULARML_EXP_REGISTRATION_POLICY", usual)
        alias = "error" if str(value).lower() == "raise" else value
        return member(cls, alias, "registration policy")


def is_run_again(what: str) -> bool:
    """Return whether what is defined again replaces the old one: in IPython, with a warning."""
    if in_ipython():
        warn(f"{what}: defined again, and replaced", RegistrationWarning)
    return in_ipython()
