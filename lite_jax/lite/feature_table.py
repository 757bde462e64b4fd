"""Stacked features: the table of all features of a support set, as a set sum.

The sum Σ_n e_n ⊗ f(x_n) is the `[n, d]` table in which row n holds the features of
example n. A classifier uses it if it is no function of class moments, or if the moments
would be larger than the table.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lite_jax.lite.additive import accumulation_dtype
from lite_jax.types import Examples


class Slotted(NamedTuple):
    """Inputs with the row of the feature table that each of them fills.

    Attributes:
        inputs: `[n, …]`, such as images.
        slot: `[n, rows]` float32, one-hot: 1 in the column of the example's row.
        labels: `[n]` class indices. The sum does not use them; a stratified `lite_sum`
            does.
    """

    inputs: jax.Array
    slot: jax.Array
    labels: jax.Array


def with_slots(examples: Examples) -> Slotted:
    """Return the inputs and labels with slot n for example n."""
    slot = jnp.eye(examples.mask.size, dtype=jnp.float32)
    return Slotted(examples.inputs, slot, examples.labels)


def add_rows(features: jax.Array, slot: jax.Array, weights: jax.Array) -> jax.Array:
    """Return the table `Σ_n weights_n · slot_n ⊗ features_n`.

    Args:
        features: `[n, d]`.
        slot: `[n, rows]` one-hot, see `Slotted`.
        weights: `[n]`.

    Returns:
        `[rows, d]`, in float32 at least.
    """
    features = features.astype(accumulation_dtype(features.dtype))
    slot = slot.astype(features.dtype) * weights.astype(features.dtype)[:, None]
    return jnp.matmul(slot.T, features, precision=lax.Precision.HIGHEST)
