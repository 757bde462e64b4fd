"""Operators of comparisons, given as a sum and a map."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from lite_jax.types import SetMap


@dataclasses.dataclass(frozen=True, eq=False)
class Operator:
    """A `SetSum` of two functions.

    Attributes:
        total: `(additive, args, examples, key, mask) -> aggregate`.
        rows: `(encode, args, examples, key, mask) -> rows [n, …]`.
    """

    total: Callable[..., Any]
    rows: Callable[..., Any]

    def __call__(
        self, additive: Any, args: Any, examples: Any, key: Any, mask: Any = None
    ) -> Any:
        """Return the sum."""
        return self.total(additive, args, examples, key, mask)

    @property
    def map(self) -> SetMap:
        """The map."""
        return lambda *args, mask=None: self.rows(*(*args, mask)[:5])
