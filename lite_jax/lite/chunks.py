"""Sums over a set, all at once or a chunk at a time; no derivative rule in here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lite_jax.lite.additive import Pooled, accumulation_dtype, leading_axis
from lite_jax.lite.sampling import Draw, sample_all
from lite_jax.types import Additive, PyTree


class Chunks(NamedTuple):
    """How a set is gone through.

    Attributes:
        size: Examples computed at once; None for all of them.
        axis_name: Inside `jax.shard_map`, the axis of the mesh whose devices share the
            chunks out among them; every device is given the whole set, and returns
            the whole sum. None for one device.
    """

    size: int | None = None
    axis_name: str | None = None

    def is_one(self, num_examples: int) -> bool:
        """Say whether all examples are computed in one call."""
        fits = self.size is None or self.size >= num_examples
        return fits and self.axis_name is None


def whole_sum(
    additive: Additive, args: PyTree, examples: PyTree, mask: jax.Array | None
) -> PyTree:
    """Sum all examples in one call; `mask` None means that all are real."""
    return in_accumulators(additive(args, *all_weighted(examples, mask)))


def all_weighted(examples: PyTree, mask: jax.Array | None) -> tuple[PyTree, jax.Array]:
    """Return the set with weights 1, and in place of padding a real one at weight 0."""
    if mask is None:
        return examples, jnp.ones(leading_axis(examples))
    rows = jnp.where(mask, jnp.arange(mask.size), jnp.argmax(mask))
    return _take(examples, rows), mask.astype(float)


def pooled_sum(
    additive: Pooled,
    args: PyTree,
    examples: PyTree,
    mask: jax.Array | None,
    chunks: Chunks,
) -> tuple[PyTree, PyTree]:
    """Return the sum of a `Pooled` function, and the features `[n, …]` on its way."""

    def both(chunk: PyTree, weights: jax.Array) -> tuple[PyTree, PyTree]:
        features = additive.features(args, chunk)
        return additive.pool(features, chunk, weights), features

    size = leading_axis(examples)
    if chunks.is_one(size):
        total, features = both(*all_weighted(examples, mask))
        return in_accumulators(total), features

    def add_chunk(carry: PyTree, chunk: PyTree, weights: jax.Array) -> PyTree:
        (totals, table), (members, rows) = carry, chunk
        total, features = both(members, weights)
        table = jax.tree.map(lambda t, f: t.at[rows].set(f), table, features)
        return _add(totals, total), table

    everything = sample_all(full_mask(examples, mask))
    first_chunk = take_chunk(examples, everything, 0, 1)
    total, features = jax.eval_shape(both, *first_chunk)
    table = jax.tree.map(lambda x: jnp.zeros((size, *x.shape[1:]), x.dtype), features)
    start = jax.tree.map(zeros_for, total), table
    numbered = examples, jnp.arange(size, dtype=jnp.int32)
    return _fold_chunks(add_chunk, start, numbered, everything, chunks)


def chunked_sum(
    summand: Callable[[PyTree, jax.Array], PyTree],
    examples: PyTree,
    draw: Draw,
    chunks: Chunks,
    like: PyTree = None,
) -> PyTree:
    """Return the sum of `summand(chunk, weights)` over the chunks of a draw.

    Args:
        summand: `(chunk, weights) -> tree`.
        examples: What the draw picks of.
        draw: Which examples, at which weights.
        chunks: How many at once.
        like: A tree of the shapes and dtypes of the sum; without it, `summand` is
            traced once more.
    """
    if like is None:
        like = jax.eval_shape(summand, *take_chunk(examples, draw, 0, 1))
    zeros = jax.tree.map(zeros_for, like)

    def add_chunk(totals: PyTree, chunk: PyTree, weights: jax.Array) -> PyTree:
        return _add(totals, summand(chunk, weights))

    return _fold_chunks(add_chunk, zeros, examples, draw, chunks)


def _fold_chunks(
    body: Callable[[PyTree, PyTree, jax.Array], PyTree],
    zeros: PyTree,
    examples: PyTree,
    draw: Draw,
    chunks: Chunks,
) -> PyTree:
    """Return what `carry = body(carry, chunk, weights)` makes of all chunks of a draw.

    The trip count follows the draw, not the padded size, so that one compilation
    serves all set sizes at their own cost. Where devices share the chunks, each begins
    with zeros, and what they made is added up at the end.
    """
    if chunks.axis_name is not None:
        own = _share(draw, chunks.axis_name)
        mine = _fold_chunks(body, zeros, examples, own, Chunks(chunks.size))
        return lax.psum(mine, chunks.axis_name)
    size = draw.indices.size
    chunk_size = min(chunks.size or size, size)

    def next_chunk(step, carry):
        return body(carry, *take_chunk(examples, draw, step, chunk_size))

    if size == chunk_size:
        return next_chunk(0, zeros)
    steps = (draw.num_drawn + chunk_size - 1) // chunk_size
    return lax.fori_loop(0, steps, next_chunk, zeros)


def _share(draw: Draw, axis_name: str) -> Draw:
    """Return the part of a draw that this device computes: of D devices, every D-th.

    A place past the end holds the first example, at weight 0.
    """
    devices = lax.axis_size(axis_name)
    places = jnp.arange(-(-draw.indices.size // devices), dtype=jnp.int32)
    places = places * devices + lax.axis_index(axis_name)
    inside = places < draw.num_drawn
    places = jnp.where(inside, places, 0)
    weights = jnp.where(inside, draw.weights[places], 0)
    return Draw(draw.indices[places], weights, inside.sum(dtype=jnp.int32))


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
