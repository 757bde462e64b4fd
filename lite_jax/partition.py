"""Splitting a tree in two, and putting it together again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from lite_jax.types import PyTree


def split(tree: PyTree, chosen: Callable[[str], bool]) -> tuple[PyTree, PyTree]:
    """Return the chosen leaves and the others, each with None in place of the rest.

    Args:
        tree: Nested dictionaries of arrays.
        chosen: Called with a leaf's path, such as `head/weights`.
    """

    def keep(wanted: bool) -> PyTree:
        return jax.tree_util.tree_map_with_path(
            lambda path, x: x if chosen(_joined(path)) == wanted else None, tree
        )

    return keep(True), keep(False)


def merge(first: PyTree, second: PyTree) -> PyTree:
    """Put together two trees, each of which has None where the other has a leaf."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, first, second, is_leaf=lambda x: x is None
    )


def _joined(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
