"""Mistakes a user can mend, and how they are worded."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

MALFORMED = (
    AttributeError, LookupError, OverflowError, RecursionError, TypeError, ValueError
)  # fmt: skip
"""What comes of reading JSON, or text, that is not of the form that is expected."""


class UserError(ValueError):
    """A mistake in a config, a data set or a workdir.

    The message names the setting, its value and the mend; the command line prints
    it without a traceback and exits with 1.
    """


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for a name nobody registered, with the nearest known one.

    All known names are listed too, unless they are many and one of them is near.

    >>> raise unknown_name("dataset", "omniglt", ["digits", "omniglot"])
    Traceback (most recent call last):
        ...
    lite_jax.errors.UserError: unknown dataset 'omniglt'; did you mean 'omniglot'? \
Known: digits, omniglot
    """
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    listed = f" Known: {', '.join(known)}" if len(known) <= 12 or not close else ""
    return UserError(f"unknown {kind} {name!r}{hint}{listed}")


def pick(kind: str, name: str, known: dict[str, Any]) -> Any:
    """Return what a setting names, or raise with the nearest known name."""
    if name not in known:
        raise unknown_name(kind, name, known)
    return known[name]
