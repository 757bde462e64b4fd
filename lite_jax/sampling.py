"""Which examples carry the gradient: unbiased draws for `lite_sum(sampling=…)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lite_jax.types import Key


class Draw(NamedTuple):
    """The examples that carry the gradient.

    Attributes:
        indices: `[h]` int32, rows of the example set.
        weights: `[h]` float, Horvitz-Thompson weights: the mean over draws of
            Σ_h weights_h · v[indices_h] is Σ_n mask_n · v[n]. 0 marks no draw.
        num_drawn: int32 scalar; draws of non-zero weight are among the first so many.
    """

    indices: jax.Array
    weights: jax.Array
    num_drawn: jax.Array


Sampler = Callable[[Key, jax.Array, int], Draw]
"""`(key, mask [n], num_backprop) -> Draw`, a rule for `lite_sum(sampling=…)`."""


def sample_uniform(key: Key, mask: jax.Array, num_backprop: int) -> Draw:
    """Draw H examples uniformly without replacement, each of weight N/H.

    The variance is that of the paper's with-replacement draw times (N-H)/(N-1), and
    0 at H = N. Padding at the end leaves the drawn examples as they are.
    """
    words = jax.random.bits(key, (mask.size, 2), jnp.uint32)
    rows = jnp.arange(mask.size, dtype=jnp.int32)
    *_, order = lax.sort((~mask, words[:, 0], words[:, 1], rows), num_keys=3)
    total = mask.sum(dtype=jnp.int32)
    count = jnp.minimum(num_backprop, total)
    weight = total.astype(float) / jnp.maximum(count, 1).astype(float)
    places = jnp.arange(num_backprop, dtype=jnp.int32)
    weights = jnp.where(places < count, weight, 0)
    return Draw(order[:num_backprop], weights, count)


def sample_with_replacement(key: Key, mask: jax.Array, num_backprop: int) -> Draw:
    """Draw H examples independently, each of weight N/H (the paper's formula)."""
    total = mask.sum(dtype=jnp.int32)
    places = jax.random.randint(key, (num_backprop,), 0, jnp.maximum(total, 1))
    weight = jnp.full(num_backprop, total.astype(float) / num_backprop)
    return Draw(_real_first(mask)[places], weight, jnp.int32(num_backprop))


SAMPLERS: dict[str, Sampler] = {
    "uniform": sample_uniform,
    "with_replacement": sample_with_replacement,
}


def sample_all(seed: Any, mask: jax.Array) -> Draw:
    """Take every real example once, at weight 1: the exact gradient."""
    del seed
    order = _real_first(mask)
    return Draw(order, mask[order].astype(float), mask.sum(dtype=jnp.int32))


def _real_first(mask: jax.Array) -> jax.Array:
    """Return the row numbers, real examples before padding, else in order."""
    rows = jnp.arange(mask.size, dtype=jnp.int32)
    return lax.sort((~mask, rows), num_keys=2)[1]
