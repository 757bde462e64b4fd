"""Additive functions: weighted sums of independent per-example terms.

    additive(args, examples, weights) -> aggregate        Σ_n w_n · term(args, x_n)

A set sum (`lite_jax.lite`) takes an additive function as its first argument. The
function is linear in the weights, and each of its terms depends on one example. A
`Pooled` function has two stages: costly features, and a cheap pooling of them. Its
second stage alone shows how sensitive the loss is to the features of each example.
`lite_jax.check_additive` raises if a function is not additive.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lite_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class Pooled:
    """An additive function that exposes per-example features: `pool ∘ features`.

    `lite_sum(sampling="sensitivity")` draws an example more often, the larger the norm
    of the loss's derivative with respect to its features. That derivative is exact and
    needs the gradient of `pool` alone.

    Attributes:
        features: `(args, examples [n]) -> features`, a pytree of arrays `[n, …]`; row i
            depends on example i alone. The costly computation belongs here.
        pool: `(features, examples, weights [n]) -> aggregate`, linear in the weights,
            cheap, and without parameters.

    >>> squares = Pooled(lambda a, x: a * x, lambda f, x, weights: weights @ f**2)
    >>> print(squares(2.0, jnp.array([1.0, 3.0]), jnp.ones(2)))
    40.0
    """

    features: Callable[[PyTree, PyTree], PyTree]
    pool: Callable[[PyTree, PyTree, Any], PyTree]

    def __call__(self, args: PyTree, examples: PyTree, weights: Any) -> PyTree:
        """Return `Σ_n weights_n · term(args, x_n)`."""
        return self.pool(self.features(args, examples), examples, weights)

    def term(self, args: PyTree, example: PyTree) -> PyTree:
        """Return the term of `example`, one example without the leading axis."""
        return self(args, jax.tree.map(lambda x: x[None], example), jnp.ones(1))


def per_example(encode: Callable[[PyTree, PyTree], PyTree]) -> Pooled:
    """Lift an encoder of one example to an additive function.

    Args:
        encode: `(args, example) -> term`; `example` has no batch axis, `term` is
            any pytree of arrays.

    Returns:
        `additive(args, examples, weights)`: Σ_n weights_n · encode(args, x_n),
        accumulated in float32 at least. `encode` runs under `jax.vmap`. For a network,
        `batched` is faster and needs less memory for the gradient of its weights.

    >>> cube = per_example(lambda a, x: a * x**3)
    >>> print(cube(2.0, jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, 1.0, 0.0])))
    18.0
    """
    return batched(jax.vmap(encode, in_axes=(None, 0)))


def batched(encode: Callable[[PyTree, PyTree], PyTree]) -> Pooled:
    """Lift an encoder of a batch to an additive function.

    Args:
        encode: `(args, examples [n]) -> terms [n]`. Row i must depend on example i
            alone: no batch statistics. `check_additive` tests this.

    Returns:
        `additive(args, examples, weights)`: Σ_n weights_n · terms_n, accumulated in
        float32 at least. Its `features` are the terms themselves.
    """
    return Pooled(encode, weighted_sum)


def weighted_sum(terms: PyTree, examples: PyTree, weights: jax.Array) -> PyTree:
    """Return Σ_n weights_n · terms_n, in float32 at least; the pool of `batched`."""
    del examples

    def leaf_sum(terms: jax.Array) -> jax.Array:
        # A matrix product: XLA:CPU of jaxlib 0.10.2 gives wrong results for
        # (weights · terms).sum(0) where the terms are large.
        terms = terms.astype(accumulation_dtype(terms.dtype))
        row = weights.astype(terms.dtype)
        return jnp.tensordot(row, terms, 1, precision=lax.Precision.HIGHEST)

    return jax.tree.map(leaf_sum, terms)


def row_of(
    encode: Callable[[PyTree, PyTree], PyTree],
) -> Callable[[PyTree, PyTree], PyTree]:
    """Return the encoder of one example, given that of a batch.

    Args:
        encode: `(args, examples [n]) -> rows [n]`, as for a map.

    Returns:
        `(args, example) -> row`, without leading axes.
    """

    def encode_one(args: PyTree, example: PyTree) -> PyTree:
        rows = encode(args, jax.tree.map(lambda x: x[None], example))
        return jax.tree.map(lambda x: x[0], rows)

    return encode_one


def accumulation_dtype(dtype: Any) -> Any:
    """Return the dtype in which terms of `dtype` are summed: float32 at least."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(dtype, jnp.float32)


def leading_axis(examples: PyTree) -> int:
    """Return N, the size of the leading axis of every leaf of `examples`.

    Raises:
        ValueError: The leaves have different leading axes, or one has none.
    """
    sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves(examples)}
    if len(sizes) != 1 or () in sizes:
        shapes = [jnp.shape(x) for x in jax.tree.leaves(examples)]
        raise ValueError(
            f"examples: every leaf needs the same leading axis N, got shapes {shapes}"
        )
    return sizes.pop()[0]
