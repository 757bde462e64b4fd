"""Sums over a set, all at once or a chunk at a time; no derivative rule in here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lite_jax.additive import accumulation_dtype, leading_axis
from lite_jax.sampling import Draw
from lite_jax.types import Additive, PyTree


def whole_sum(
    additive: Additive, args: PyTree, examples: PyTree, mask: jax.Array | None
) -> PyTree:
    """Sum all examples in one call; `mask` None means that all are real."""
    if mask is None:
        weights = jnp.ones(leading_axis(examples))
    else:
        weights, first = mask.astype(float), jnp.argmax(mask)
        rows = jnp.where(mask, jnp.arange(mask.size), first)
        examples = _take(examples, rows)
    return in_accumulators(additive(args, examples, weights))


def chunked_sum(
    summand: Callable[[PyTree, jax.Array], PyTree],
    zeros: PyTree,
    examples: PyTree,
    draw: Draw,
    chunk_size: int,
) -> PyTree:
    """Add `summand(chunk, weights)` over the chunks of a draw, `zeros` first.

    The trip count follows the draw, not the padded size, so that one compilation
    serves all set sizes at their own cost.
    """
    chunk_size = min(chunk_size, draw.indices.size)

    def add_chunk(step, totals):
        return _add(totals, summand(*take_chunk(examples, draw, step, chunk_size)))

    if draw.indices.size == chunk_size:
        return add_chunk(0, zeros)
    steps = (draw.num_drawn + chunk_size - 1) // chunk_size
    return lax.fori_loop(0, steps, add_chunk, zeros)


def take_chunk(
    examples: PyTree, draw: Draw, step: Any, chunk_size: int
) -> tuple[PyTree, jax.Array]:
    """Return the examples and weights of chunk `step`; past the end, weight 0.

    Where the weight is 0 a drawn example stands in: what the padding holds must not
    reach the encoder, since 0 times a gradient that is not finite is not 0.
    """
    places = step * chunk_size + jnp.arange(chunk_size, dtype=jnp.int32)
    inside = places < draw.indices.size
    places = jnp.minimum(places, draw.indices.size - 1)
    weights = jnp.where(inside, draw.weights[places], 0)
    rows = jnp.where(weights == 0, draw.indices[0], draw.indices[places])
    return _take(examples, rows), weights


def _take(examples, rows):
    return jax.tree.map(lambda x: jnp.asarray(x)[rows], examples)


def full_mask(examples: PyTree, mask: jax.Array | None) -> jax.Array:
    """Return the mask, all True by default."""
    return jnp.ones(leading_axis(examples), bool) if mask is None else mask


def zeros_for(like: Any) -> jax.Array:
    """Return what a sum of arrays like this one begins with."""
    return jnp.zeros(jnp.shape(like), accumulation_dtype(jnp.result_type(like)))


def in_accumulators(total: PyTree) -> PyTree:
    """Return an aggregate in the dtypes that sums are kept in."""
    return jax.tree.map(lambda x: x.astype(accumulation_dtype(x.dtype)), total)


def _add(left: PyTree, right: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: a + b.astype(a.dtype), left, right)
