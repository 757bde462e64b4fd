"""Arithmetic on trees of arrays as on vectors, and splitting and merging of trees."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lite_jax.types import PyTree


def dot(first: PyTree, second: PyTree) -> jax.Array:
    """Return the inner product of two trees, summed in float32 at least."""
    pairs = list(zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))
    dtype = np.result_type(np.float32, *(x.dtype for x, _ in pairs))
    parts = [jnp.vdot(x.astype(dtype), y.astype(dtype)) for x, y in pairs]
    return functools.reduce(jnp.add, parts, jnp.zeros((), dtype))


def norm(tree: PyTree) -> jax.Array:
    """Return the Euclidean norm of all leaves together."""
    return jnp.sqrt(dot(tree, tree))


def add(first: PyTree, second: PyTree, scale: jax.Array | float = 1.0) -> PyTree:
    """Return `first + scale · second`, in the dtypes of `first`."""
    return jax.tree.map(
        lambda x, y: x + (jnp.asarray(scale, y.dtype) * y).astype(x.dtype),
        first,
        second,
    )


def delay_until(point: PyTree, vector: PyTree) -> PyTree:
    """Return the same `point`, made to depend on `vector`.

    XLA then cannot compute anything from the point before the vector is there. A
    product of second derivatives with the vector computes activations from the point
    alone. XLA would compute them ahead of a solver's loop, beside the gradient that
    yields the vector, and hold them meanwhile, which takes twice the memory or more.

    The result is `point + 0 · vector`: XLA does not simplify 0 · v to 0. It removes an
    `optimization_barrier` before it orders the program.

    Args:
        point: Tree of arrays.
        vector: Tree of arrays of the same structure and shapes, all finite.
    """
    return add(point, vector, 0.0)


def times(tree: PyTree, scale: jax.Array | float) -> PyTree:
    """Return `scale · tree`."""
    return jax.tree.map(lambda x: jnp.asarray(scale, x.dtype) * x, tree)


def zeros(tree: PyTree) -> PyTree:
    """Return zeros of the shapes and dtypes of the tree's leaves."""
    return jax.tree.map(jnp.zeros_like, tree)


def where(condition: jax.Array, first: PyTree, second: PyTree) -> PyTree:
    """Return `first` where `condition` is True, else `second`, leaf by leaf."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), first, second)


def split(tree: PyTree, chosen: Callable[[str], bool]) -> tuple[PyTree, PyTree]:
    """Return two trees: the leaves that `chosen` selects, and the others.

    Both have None in place of the leaves that are in the other; see `merge`.

    Args:
        tree: Nested dictionaries of arrays.
        chosen: `path -> bool`, called with a leaf's path, such as `head/weights`.
    """

    def leaves_where(selected: bool) -> PyTree:
        return jax.tree_util.tree_map_with_path(
            lambda path, x: x if chosen(_joined(path)) == selected else None, tree
        )

    return leaves_where(True), leaves_where(False)


def merge(first: PyTree, second: PyTree) -> PyTree:
    """Return the union of two trees, one with None where the other has a leaf."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, first, second, is_leaf=lambda x: x is None
    )


def _joined(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
