"""Additive functions: weighted sums of per-example terms, and a test that they are.

    additive(args, examples, weights) -> aggregate        Σ_n w_n · term(args, x_n)

One is what a set sum (`lite_jax.lite`) is handed: linear in the weights, with terms
that depend on one example each. A `Pooled` one has two stages, costly features and a
cheap pooling of them, so that it can be known before any backward pass which examples
matter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lite_jax.types import Additive, PyTree


@dataclasses.dataclass(frozen=True)
class Pooled:
    """An additive function that exposes per-example features: `pool ∘ features`.

    `lite_sum(sampling="sensitivity")` draws examples by the norm of the loss's exact
    derivative by their features, which `pool` alone is differentiated for.

    Attributes:
        features: `(args, examples [n]) -> features`, a pytree of arrays `[n, …]`; row i
            depends on example i alone. What is costly belongs here.
        pool: `(features, examples, weights [n]) -> aggregate`, linear in the weights,
            cheap, and without parameters of its own.

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
        """Return the term of one example, which has no leading axis."""
        return self(args, jax.tree.map(lambda x: x[None], example), jnp.ones(1))


def per_example(encode: Callable[[PyTree, PyTree], PyTree]) -> Pooled:
    """Lift an encoder of one example to an additive function.

    Args:
        encode: `(args, example) -> term`; `example` has no batch axis, `term` is
            any pytree of arrays.

    Returns:
        `additive(args, examples, weights)`: Σ_n weights_n · encode(args, x_n),
        accumulated in float32 at least. `encode` runs under `jax.vmap`; a network is
        faster, and its weight gradient smaller, through `batched`.

    >>> cube = per_example(lambda a, x: a * x**3)
    >>> print(cube(2.0, jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, 1.0, 0.0])))
    18.0
    """
    return batched(jax.vmap(encode, in_axes=(None, 0)))


def batched(encode: Callable[[PyTree, PyTree], PyTree]) -> Pooled:
    """Lift an encoder of a batch to an additive function.

    Args:
        encode: `(args, examples [n]) -> terms [n]`. Row i must depend on example i
            alone, so no batch statistics; `check_additive` tests it.

    Returns:
        `additive(args, examples, weights)`: Σ_n weights_n · terms_n, accumulated in
        float32 at least. The terms are its features, all of equal sensitivity.
    """

    def pool(terms: PyTree, examples: PyTree, weights: jax.Array) -> PyTree:
        del examples

        def weighted_sum(terms: jax.Array) -> jax.Array:
            # A product, not a sum of products: XLA:CPU of jaxlib 0.10.2 reduces
            # weights · terms wrongly where the terms are large.
            terms = terms.astype(accumulation_dtype(terms.dtype))
            row = weights.astype(terms.dtype)
            return jnp.tensordot(row, terms, 1, precision=lax.Precision.HIGHEST)

        return jax.tree.map(weighted_sum, terms)

    return Pooled(encode, pool)


def check_additive(
    additive: Additive, args: PyTree, examples: PyTree, *, rtol: float = 1e-3
) -> None:
    """Raise unless `additive` is a weighted sum of independent per-example terms.

    Compares f(A) + f(B) with f(A ∪ B), with A and B the two halves of `examples`;
    f(A ∪ B) with B at weight 0 against f(A); and f under doubled weights with 2 f.

    Args:
        additive: The function to check.
        args: What it is called with.
        examples: At least two examples, with content that differs.
        rtol: Largest accepted deviation, relative to the norm of each leaf.

    Raises:
        ValueError: It is not additive. The usual cause is an encoder in which one
            example sees another: batch normalisation in training mode, attention
            across examples, a mean over the batch.

    >>> x = jnp.arange(6.0).reshape(6, 1)
    >>> check_additive(batched(lambda a, x: a * x), 2.0, x)
    >>> check_additive(batched(lambda a, x: a * (x - x.mean()) ** 2), 2.0, x)
    Traceback (most recent call last):
        ...
    ValueError: not additive: f(A) + f(B) differs from f(A ∪ B) by 6.8 (relative). \
Does the encoder mix examples (batch statistics, attention across examples)? Use \
GroupNorm, LayerNorm or frozen BatchNorm
    """
    size = leading_axis(examples)
    if size < 2:
        raise ValueError(f"check_additive needs 2 or more examples, got {size}")
    first = jnp.arange(size) < size // 2
    ones = jnp.ones(size)
    whole = additive(args, examples, ones)
    part_a = additive(
        args, jax.tree.map(lambda x: x[: size // 2], examples), ones[first]
    )
    part_b = additive(
        args, jax.tree.map(lambda x: x[size // 2 :], examples), ones[~first]
    )
    claims = {
        "f(A) + f(B) differs from f(A ∪ B)": (
            jax.tree.map(jnp.add, part_a, part_b),
            whole,
        ),
        "examples of weight 0 change the sum": (
            additive(args, examples, first.astype(ones.dtype)),
            part_a,
        ),
        "doubling the weights does not double the sum": (
            additive(args, examples, 2 * ones),
            jax.tree.map(jnp.add, whole, whole),
        ),
    }
    for claim, (found, expected) in claims.items():
        error = _relative_error(found, expected, scale=(part_a, part_b))
        if not error <= rtol:
            raise ValueError(
                f"not additive: {claim} by {error:.2g} (relative). Does the encoder "
                "mix examples (batch statistics, attention across examples)? Use "
                "GroupNorm, LayerNorm or frozen BatchNorm"
            )


def accumulation_dtype(dtype: Any) -> Any:
    """Return the dtype that terms of `dtype` are summed in: float32 at least."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(dtype, jnp.float32)


def leading_axis(examples: PyTree) -> int:
    """Return N, the size of the axis that all leaves of a set of examples share."""
    sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves(examples)}
    if len(sizes) != 1 or () in sizes:
        shapes = [jnp.shape(x) for x in jax.tree.leaves(examples)]
        raise ValueError(
            f"examples: every leaf needs the same leading axis N, got shapes {shapes}"
        )
    return sizes.pop()[0]


def _relative_error(found: PyTree, expected: PyTree, scale: PyTree) -> float:
    """Return the largest leaf-wise ‖found - expected‖ relative to the parts' norm."""

    def leaf_error(x, y, *parts):
        size = max(float(jnp.linalg.norm(jnp.ravel(p))) for p in parts)
        error = float(jnp.linalg.norm(jnp.ravel(x - y)))
        return error / size if size else error

    return max(jax.tree.leaves(jax.tree.map(leaf_error, found, expected, *scale)))
