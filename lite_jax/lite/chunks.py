"""Sums over a set, in one call or a chunk at a time, without derivative rules."""

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
    """How many examples are computed at once, and on which devices.

    Attributes:
        size: Examples computed at once; None for all of them.
        axis_name: Inside `jax.shard_map`, the axis of the mesh whose devices share the
            examples. Every device receives the whole set and returns the whole sum.
            None for one device.
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
    """Return the sum over all examples, computed in one call of `additive`.

    Args:
        additive: The additive function.
        args: Its first argument.
        examples: The set, with leading axis `n`.
        mask: `[n]` bool, True for real examples; None if all are real.
    """
    return in_accumulators(additive(args, *all_weighted(examples, mask)))


def all_weighted(examples: PyTree, mask: jax.Array | None) -> tuple[PyTree, jax.Array]:
    """Return the set and its weights `[n]`: 1 for real examples, 0 for padding.

    In a set with real examples, the first of them replaces the padding, so that the
    content of the padding does not reach the encoder.
    """
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
    """Return the sum of a `Pooled` function, and the features `[n, …]`."""

    def total_and_features(chunk: PyTree, weights: jax.Array) -> tuple[PyTree, PyTree]:
        features = additive.features(args, chunk)
        return additive.pool(features, chunk, weights), features

    size = leading_axis(examples)
    if chunks.is_one(size):
        total, features = total_and_features(*all_weighted(examples, mask))
        return in_accumulators(total), features

    def add_chunk(carry: PyTree, chunk: PyTree, weights: jax.Array) -> PyTree:
        (totals, table), (members, rows) = carry, chunk
        total, features = total_and_features(members, weights)
        table = jax.tree.map(lambda t, f: t.at[rows].set(f), table, features)
        return _add(totals, total), table

    full_draw = sample_all(full_mask(examples, mask))
    first_chunk = take_chunk(examples, full_draw, 0, 1)
    total, features = jax.eval_shape(total_and_features, *first_chunk)
    table = jax.tree.map(lambda x: jnp.zeros((size, *x.shape[1:]), x.dtype), features)
    start = jax.tree.map(zeros_for, total), table
    numbered = examples, jnp.arange(size, dtype=jnp.int32)
    return _fold_chunks(add_chunk, start, numbered, full_draw, chunks)


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
        examples: The set, with leading axis `n`.
        draw: Rows of the set, and their weights.
        chunks: How many examples are computed at once, and on which devices.
        like: A tree of arrays with the shapes and dtypes of the sum. Without it,
            `summand` is traced once more to get them.
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
    """Return the last `carry = body(carry, chunk, weights)` over the chunks of a draw.

    The number of steps follows the drawn examples, not the padded size: one compilation
    serves all set sizes, and a smaller set takes less time. Where devices share the
    examples, each starts with `zeros`, and their results are added up.
    """
    if chunks.axis_name is not None:
        device_draw = _device_draw(draw, chunks.axis_name)
        one_device = Chunks(chunks.size)
        device_total = _fold_chunks(body, zeros, examples, device_draw, one_device)
        return lax.psum(device_total, chunks.axis_name)
    size = draw.indices.size
    chunk_size = min(chunks.size or size, size)

    def next_chunk(step, carry):
        return body(carry, *take_chunk(examples, draw, step, chunk_size))

    if size == chunk_size:
        return next_chunk(0, zeros)
    steps = (draw.num_drawn + chunk_size - 1) // chunk_size
    return lax.fori_loop(0, steps, next_chunk, zeros)


def _device_draw(draw: Draw, axis_name: str) -> Draw:
    """Return this device's part of a draw: every D-th example, for D devices.

    All parts have the same size. Entries past the end of the draw hold its first
    example, at weight 0.
    """
    devices = lax.axis_size(axis_name)
    positions = jnp.arange(-(-draw.indices.size // devices), dtype=jnp.int32)
    positions = positions * devices + lax.axis_index(axis_name)
    inside = positions < draw.num_drawn
    positions = jnp.where(inside, positions, 0)
    weights = jnp.where(inside, draw.weights[positions], 0)
    return Draw(draw.indices[positions], weights, inside.sum(dtype=jnp.int32))


def take_chunk(
    examples: PyTree, draw: Draw, step: Any, chunk_size: int
) -> tuple[PyTree, jax.Array]:
    """Return the examples and weights of chunk number `step`; past the end, weight 0.

    An example of weight 0 is replaced by the first one of the draw. The content of
    padding must not reach the encoder, since 0 times a gradient that is not finite is
    not 0.
    """
    positions = step * chunk_size + jnp.arange(chunk_size, dtype=jnp.int32)
    inside = positions < draw.indices.size
    positions = jnp.minimum(positions, draw.indices.size - 1)
    weights = jnp.where(inside, draw.weights[positions], 0)
    rows = jnp.where(weights == 0, draw.indices[0], draw.indices[positions])
    return _take(examples, rows), weights


def _take(examples, rows):
    return jax.tree.map(lambda x: jnp.asarray(x)[rows], examples)


def full_mask(examples: PyTree, mask: jax.Array | None) -> jax.Array:
    """Return `mask`, or `[n]` True if it is None."""
    return jnp.ones(leading_axis(examples), bool) if mask is None else mask


def zeros_for(like: Any) -> jax.Array:
    """Return zeros of the shape of `like`, in the dtype in which it is summed."""
    return jnp.zeros(jnp.shape(like), accumulation_dtype(jnp.result_type(like)))


def in_accumulators(total: PyTree) -> PyTree:
    """Return an aggregate in the dtypes in which sums are accumulated."""
    return jax.tree.map(lambda x: x.astype(accumulation_dtype(x.dtype)), total)


def _add(left: PyTree, right: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: a + b.astype(a.dtype), left, right)
