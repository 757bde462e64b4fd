"""Errors that a user can correct, and functions that word them."""

from __future__ import annotations

import difflib
import math
import numbers
import operator
from collections.abc import Iterable
from typing import Any

MALFORMED = (
    AttributeError, LookupError, OverflowError, RecursionError, TypeError, ValueError
)  # fmt: skip
"""Exceptions raised by reading JSON or text that lacks the expected form."""


class UserError(ValueError):
    """A mistake in a config, a data set or a workdir.

    The message names the setting, its value and the correction. The command line
    prints it without a traceback and exits with 1.
    """


def check_whole(name: str, value: Any, least: int = 1) -> int:
    """Return a whole number of at least `least`, NumPy's included.

    Raises:
        UserError: It is something else; the message names it.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise UserError(f"{name}={value!r}: expected a whole number")
    if number < least:
        raise UserError(f"{name}={value}: expected {least} or more")
    return number


def check_number(name: str, value: Any, *, above: float | None = None) -> float:
    """Return a finite number, which is above a bound, or else 0 or more.

    Raises:
        UserError: It is something else; the message names it.
    """
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not math.isfinite(value):
        raise UserError(f"{name}={value!r}: expected a finite number")
    if above is not None and not value > above:
        raise UserError(f"{name}={value}: expected > {above:g}")
    if above is None and value < 0:
        raise UserError(f"{name}={value}: expected 0 or more")
    return float(value)


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for an unknown name; its message suggests the nearest one.

    It also lists all known names, unless there are more than 12 and one is suggested.

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
    """Return `known[name]`.

    Raises:
        UserError: `name` is unknown; the message suggests the nearest known name.
    """
    if name not in known:
        raise unknown_name(kind, name, known)
    return known[name]
