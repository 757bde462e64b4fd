"""Per-class sums over a support set, and classifiers made from them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lite_jax.additive import accumulation_dtype


class ClassSums(NamedTuple):
    """What class means are made of; additive over examples.

    Attributes:
        features: `[way, d]`, the sum of each class's features.
        counts: `[way]`, the sum of each class's weights.
    """

    features: jax.Array
    counts: jax.Array


def class_sums(
    features: jax.Array, labels: jax.Array, weights: jax.Array, way: int
) -> ClassSums:
    """Return the weighted sums of features and of ones within each class.

    Args:
        features: `[n, d]`.
        labels: `[n]` int in `0 … way-1`; a label outside belongs to no class.
        weights: `[n]`.
        way: Static number of classes.

    Returns:
        Sums in float32 at least, with full-precision products.
    """
    features = features.astype(accumulation_dtype(features.dtype))
    members = jax.nn.one_hot(labels, way, dtype=features.dtype)
    members = members * weights.astype(features.dtype)[:, None]
    totals = jnp.matmul(members.T, features, precision=lax.Precision.HIGHEST)
    return ClassSums(totals, members.sum(0))


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
