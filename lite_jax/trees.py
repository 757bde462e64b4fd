"""Trees of arrays: arithmetic as on one vector, and splitting in two."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lite_jax.types import PyTree


def dot(first: PyTree, second: PyTree) -> jax.Array:
    """Return the inner product, summed in float32 at least."""
    pairs = list(zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))
    dtype = np.result_type(np.float32, *(x.dtype for x, _ in pairs))
    parts = [jnp.vdot(x.astype(dtype), y.astype(dtype)) for x, y in pairs]
    return functools.reduce(jnp.add, parts, jnp.zeros((), dtype))


def norm(tree: PyTree) -> jax.Array:
    """Return the Euclidean norm."""
    return jnp.sqrt(dot(tree, tree))


def add(first: PyTree, second: PyTree, scale: jax.Array | float = 1.0) -> PyTree:
    """Return `first + scale · second`, in the dtypes of `first`."""
    return jax.tree.map(
        lambda x, y: x + (jnp.asarray(scale, y.dtype) * y).astype(x.dtype),
        first,
        second,
    )


def once_known(vector: PyTree, point: PyTree) -> PyTree:
    """Return the point, for passes that are not to begin before `vector` is there.

    What a product of second derivatives computes of the point alone, XLA would else
    compute ahead, beside the gradient that the vector comes from and before a solver's
    loop, and hold its activations all along: twice the memory and more. It does not
    know that 0 · v is 0, and an `optimization_barrier` is gone before it orders the
    program.
    """
    return add(point, vector, 0.0)


def times(tree: PyTree, scale: jax.Array | float) -> PyTree:
    """Return `scale · tree`."""
    return jax.tree.map(lambda x: jnp.asarray(scale, x.dtype) * x, tree)


def zeros(tree: PyTree) -> PyTree:
    """Return zeros shaped like the tree."""
    return jax.tree.map(jnp.zeros_like, tree)


def where(condition: jax.Array, first: PyTree, second: PyTree) -> PyTree:
    """Return one tree or the other."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), first, second)


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
