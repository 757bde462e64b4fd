"""The direct sum of features: every example adds its own in a row of its own.

Σ_n e_n ⊗ f(x_n) is the `[n, d]` table of all features, as a set sum: what a classifier
needs that is no function of class moments, or of which moments would be larger.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lite_jax.lite.additive import accumulation_dtype
from lite_jax.types import Examples


class Slotted(NamedTuple):
    """Images `[n, …]`, and a one in the place of each one's row, `slot [n, rows]`.

    The labels `[n]` take no part in the sum; `lite_sum` can draw by class with them.
    """

    inputs: jax.Array
    slot: jax.Array
    labels: jax.Array


def with_slots(examples: Examples) -> Slotted:
    """Return the images with a row for each, in their order."""
    slot = jnp.eye(examples.mask.size, dtype=jnp.float32)
    return Slotted(examples.inputs, slot, examples.labels)


def add_rows(features: jax.Array, slot: jax.Array, weights: jax.Array) -> jax.Array:
    """Return `Σ_n weights_n · slot_n ⊗ features_n`, `[rows, d]`, additive."""
    features = features.astype(accumulation_dtype(features.dtype))
    slot = slot.astype(features.dtype) * weights.astype(features.dtype)[:, None]
    return jnp.matmul(slot.T, features, precision=lax.Precision.HIGHEST)
