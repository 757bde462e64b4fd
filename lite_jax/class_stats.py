"""Per-class sums over a support set, and classifiers made from them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lite_jax.additive import accumulation_dtype


class ClassSums(NamedTuple):
    """One example's share, or their sum, of what a class mean needs.

    Attributes:
        features: `[…, way, d]`, features in the row of the example's class.
        counts: `[…, way]`, 1 at the example's class.
    """

    features: jax.Array
    counts: jax.Array


def class_terms(features: jax.Array, labels: jax.Array, way: int) -> ClassSums:
    """Return the terms `[n]` whose sum over examples gives the class means.

    Args:
        features: `[n, d]`.
        labels: `[n]` int in `0 … way-1`; a label outside belongs to no class.
        way: Static number of classes.
    """
    counts = jax.nn.one_hot(labels, way, dtype=features.dtype)
    return ClassSums(counts[:, :, None] * features[:, None, :], counts)


def class_means(totals: ClassSums) -> jax.Array:
    """Return `[way, d]` class means; 0 for a class without examples."""
    return totals.features / jnp.maximum(totals.counts, 1)[:, None]


def euclidean_logits(
    features: jax.Array, prototypes: jax.Array, present: jax.Array
) -> jax.Array:
    """Return the negative squared distances `-‖f_m - c_k‖²`.

    Args:
        features: `[m, d]`.
        prototypes: `[way, d]`.
        present: `[way]` bool; other classes get −inf.

    Returns:
        Logits `[m, way]`, float32 at least, with full-precision products.
    """
    dtype = accumulation_dtype(features.dtype)
    features, prototypes = features.astype(dtype), prototypes.astype(dtype)
    products = jnp.matmul(features, prototypes.T, precision=lax.Precision.HIGHEST)
    squares = jnp.sum(features**2, -1)[:, None] + jnp.sum(prototypes**2, -1)[None, :]
    return jnp.where(present[None, :], 2 * products - squares, -jnp.inf)
