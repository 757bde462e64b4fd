"""Loops over the examples of a draw, a chunk at a time, on one device or several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lite_jax.lite.additive import accumulation_dtype, leading_axis
from lite_jax.lite.sampling import Draw, sample_all
from lite_jax.types import PyTree


class Chunks(NamedTuple):
    """How many examples are computed at once, and on which devices.

    Attributes:
        size: Examples computed at once; None for all of them.
        axis_name: Inside `jax.shard_map`, the axis of the mesh whose devices share the
            examples. Every device receives the whole set and returns the whole result.
            None for one device.
    """

    size: int | None = None
    axis_name: str | None = None

    def is_one(self, num_examples: int) -> bool:
        """Return whether all examples are computed in one call."""
        fits = self.size is None or self.size >= num_examples
        return fits and self.axis_name is None

    def length(self, num_examples: int) -> int:
        """Return the number of examples of a call, on one of the devices."""
        if self.axis_name is not None:
            num_examples = -(-num_examples // lax.axis_size(self.axis_name))
        return min(self.size or num_examples, num_examples)


class Chunk(NamedTuple):
    """Examples that are computed at once.

    Attributes:
        examples: Their arrays `[c, …]`. An example of weight 0 is replaced by the first
            one of the draw, since the content of padding must not reach the encoder: 0
            times a gradient that is not finite is not 0.
        weights: `[c]`, 0 past the end of the draw.
        rows: `[c]` int32, their rows in the set; n, which is no row, at weight 0.
    """

    examples: PyTree
    weights: jax.Array
    rows: jax.Array


def whole_set(examples: PyTree, mask: jax.Array | None) -> tuple[PyTree, jax.Array]:
    """Return the set and its weights `[n]`: 1 for real examples, 0 for padding.

    The first real example replaces the padding. A set without real examples is zeros.
    """
    if mask is None:
        return examples, jnp.ones(leading_axis(examples))
    rows = jnp.where(mask, jnp.arange(mask.size), jnp.argmax(mask))
    examples = jax.tree.map(lambda x: x[rows], as_arrays(examples))
    return zero_if_empty(examples, mask), mask.astype(float)


def zero_if_empty(tree: PyTree, mask: jax.Array | None) -> PyTree:
    """Return the tree, or zeros where the mask has no real example."""
    if mask is None:
        return tree
    some = mask.any()
    return jax.tree.map(lambda x: jnp.where(some, x, jnp.zeros_like(x)), tree)


def without_padding(rows: PyTree, mask: jax.Array | None) -> PyTree:
    """Return rows `[n, …]`, 0 where the mask is False."""
    if mask is None:
        return rows
    return jax.tree.map(
        lambda x: jnp.where(per_row(mask, x), x, jnp.zeros_like(x)), rows
    )


def per_row(numbers: jax.Array, rows: jax.Array) -> jax.Array:
    """Return numbers `[n]` in a shape that broadcasts against rows `[n, …]`."""
    return numbers.reshape(-1, *[1] * (rows.ndim - 1))


def constant_if_empty(tree: PyTree, mask: jax.Array | None) -> PyTree:
    """Return the same tree, whose gradient is 0 where the mask has no real example.

    The gradient of what is computed from padding may not be finite.
    """
    if mask is None:
        return tree
    some = mask.any()

    def kept(x: Any) -> Any:
        if not jnp.issubdtype(jnp.result_type(x), jnp.inexact):
            return x
        return jnp.where(some, x, lax.stop_gradient(x))

    return jax.tree.map(kept, tree)


def fold(
    body: Callable[[PyTree, Chunk], PyTree],
    zeros: PyTree,
    examples: PyTree,
    draw: Draw,
    chunks: Chunks,
) -> PyTree:
    """Return the last `carry = body(carry, chunk)` over the chunks of a draw.

    The number of steps follows the drawn examples, not the padded size: one compilation
    serves all set sizes, and a smaller set takes less time. Where devices share the
    examples, each starts with `zeros`, and their results are added up.

    Args:
        body: Adds a chunk to the carry.
        zeros: The carry at the start.
        examples: The set, with leading axis `n`.
        draw: Rows of the set, and their weights.
        chunks: How many examples are computed at once, and on which devices.
    """
    if chunks.axis_name is not None:
        device_draw = _device_draw(draw, chunks.axis_name)
        one_device = Chunks(chunks.size)
        device_total = fold(body, zeros, examples, device_draw, one_device)
        return lax.psum(device_total, chunks.axis_name)
    size = draw.indices.size
    length = chunks.length(size)

    def next_chunk(step: Any, carry: PyTree) -> PyTree:
        return body(carry, take_chunk(examples, draw, step, length))

    if size == length:
        return next_chunk(0, zeros)
    steps = (draw.num_drawn + length - 1) // length
    return lax.fori_loop(0, steps, next_chunk, zeros)


def summed(
    summand: Callable[[PyTree, jax.Array], PyTree],
    examples: PyTree,
    mask: jax.Array | None,
    chunks: Chunks,
) -> PyTree:
    """Return Σ `summand(examples, weights)` over the chunks of a set; 0 if empty."""
    if chunks.is_one(leading_axis(examples)):
        total = in_accumulators(summand(*whole_set(examples, mask)))
        return zero_if_empty(total, mask)
    draw = sample_all(full_mask(examples, mask))
    first = take_chunk(examples, draw, 0, 1)
    like = jax.eval_shape(summand, first.examples, first.weights)

    def add_chunk(totals: PyTree, chunk: Chunk) -> PyTree:
        return add(totals, summand(chunk.examples, chunk.weights))

    total = fold(add_chunk, jax.tree.map(zeros_for, like), examples, draw, chunks)
    return zero_if_empty(total, mask)


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


def take_chunk(examples: PyTree, draw: Draw, step: Any, length: int) -> Chunk:
    """Return chunk number `step` of a draw, of `length` examples."""
    positions = step * length + jnp.arange(length, dtype=jnp.int32)
    inside = positions < draw.indices.size
    positions = jnp.minimum(positions, draw.indices.size - 1)
    weights = jnp.where(inside, draw.weights[positions], 0)
    taken = jnp.where(weights == 0, draw.indices[0], draw.indices[positions])
    rows = jnp.where(weights == 0, leading_axis(examples), taken)
    return Chunk(jax.tree.map(lambda x: x[taken], as_arrays(examples)), weights, rows)


def varied_of(chunk: Chunk, varied: PyTree) -> PyTree:
    """Return a chunk's examples, None where `varied`, those of the set, has None."""
    return jax.tree.map(
        lambda x, kept: None if kept is None else x,
        chunk.examples, varied, is_leaf=lambda x: x is None,
    )  # fmt: skip


def add_to_rows(table: PyTree, chunk: Chunk, rows: PyTree) -> PyTree:
    """Return tables `[n, …]` with a chunk's rows added where they belong."""
    return jax.tree.map(
        lambda t, x: t.at[chunk.rows].add(x.astype(t.dtype), mode="drop"), table, rows
    )


def full_mask(examples: PyTree, mask: jax.Array | None) -> jax.Array:
    """Return `mask`, or `[n]` True if it is None."""
    return jnp.ones(leading_axis(examples), bool) if mask is None else mask


def as_arrays(tree: PyTree) -> PyTree:
    """Return the tree with NumPy's arrays as JAX's."""
    return jax.tree.map(jnp.asarray, tree)


def zeros_for(like: Any) -> jax.Array:
    """Return zeros of the shape of `like`, in the dtype in which it is summed."""
    return jnp.zeros(jnp.shape(like), accumulation_dtype(jnp.result_type(like)))


def in_accumulators(total: PyTree) -> PyTree:
    """Return an aggregate in the dtypes in which sums are accumulated."""
    return jax.tree.map(lambda x: x.astype(accumulation_dtype(x.dtype)), total)


def add(left: PyTree, right: PyTree) -> PyTree:
    """Return the sum of two trees, in the dtypes of the first."""
    return jax.tree.map(lambda a, b: a + b.astype(a.dtype), left, right)
