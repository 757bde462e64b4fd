"""The derivative rule of sums and maps: recompute the examples that a rule draws.

Every operator with chunks or a draw uses this rule. The forward pass keeps only its
inputs. In the backward pass the cotangent is exact; the rule draws examples, and their
terms or rows are recomputed and differentiated a chunk at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from lite_jax.errors import UserError
from lite_jax.lite.additive import accumulation_dtype, leading_axis
from lite_jax.lite.chunks import (
    Chunk,
    Chunks,
    add,
    add_to_rows,
    fold,
    full_mask,
    per_row,
    summed,
    take_chunk,
    varied_of,
    whole_set,
    without_padding,
    zero_if_empty,
    zeros_for,
)
from lite_jax.lite.functions import Function
from lite_jax.lite.sampling import LABELS, SCORES, Population, Sampler, sample_all
from lite_jax.trees import merge
from lite_jax.types import PyTree


class Plan(NamedTuple):
    """What is computed, and how it is differentiated; equal plans share a compilation.

    Attributes:
        fun: The additive function of a sum, `(args, examples, weights) -> aggregate`,
            or the encoder of a map, `(args, examples) -> rows`.
        is_map: Whether it is a map.
        forward: The chunks of the forward pass.
        backward: The chunks of the backward pass.
        sampler: Draws the examples of the backward pass; None takes all.
        num_backprop: H.
        key_type: The name of the key's type, or None for a key of raw words.
    """

    fun: Function
    is_map: bool
    forward: Chunks
    backward: Chunks
    sampler: Sampler | None = None
    num_backprop: int = 0
    key_type: str | None = None

    def needs(self, field: str) -> bool:
        """Return whether the sampler reads a field of `Population`."""
        return self.sampler is not None and field in self.sampler.needs

    def draw(self, key_data: Any, population: Population) -> Any:
        """Return the examples that are differentiated."""
        if self.sampler is None:
            return sample_all(population.mask)
        key = key_data
        if self.key_type is not None:
            key = jax.random.wrap_key_data(key_data, impl=self.key_type)
        return self.sampler.draw(key, population, self.num_backprop)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def recomputed(
    plan: Plan, args: PyTree, examples: PyTree, key_data: Any, mask: jax.Array | None
) -> PyTree:
    """Return the sum or the rows of a set; differentiate the examples that are drawn.

    Args:
        plan: What is computed.
        args: The first argument of the function.
        examples: The set, whose arrays have a leading axis `n`.
        key_data: The words of the draw's key; None if nothing is drawn.
        mask: `[n]` bool, True for real examples; None if all are real.
    """
    del key_data
    return _value(plan, args, examples, mask)


@functools.partial(jax.jit, static_argnums=0)
def _value(plan: Plan, args: PyTree, examples: PyTree, mask: Any) -> PyTree:
    if plan.is_map:
        return _rows(plan, args, examples, mask)
    return summed(functools.partial(plan.fun, args), examples, mask, plan.forward)


def _rows(plan: Plan, args: PyTree, examples: PyTree, mask: Any) -> PyTree:
    """Return the rows `[n, …]` of a map, 0 for padding."""
    size = leading_axis(examples)
    encode = functools.partial(plan.fun, args)
    if plan.forward.is_one(size):
        return without_padding(encode(whole_set(examples, mask)[0]), mask)

    def write(table: PyTree, chunk: Chunk) -> PyTree:
        rows = encode(chunk.examples)
        return jax.tree.map(
            lambda t, x: t.at[chunk.rows].set(x, mode="drop"), table, rows
        )

    draw = sample_all(full_mask(examples, mask))
    like = jax.eval_shape(encode, take_chunk(examples, draw, 0, 1).examples)
    table = jax.tree.map(lambda x: jnp.zeros((size, *x.shape[1:]), x.dtype), like)
    return fold(write, table, examples, draw, plan.forward)


def _forward(plan, args, examples, key_data, mask):
    varied = split_varied((args, examples))
    args, examples, key_data, mask = map(values, (args, examples, key_data, mask))
    return _value(plan, args, examples, mask), (varied, key_data, mask)


def _backward(plan, residuals, cotangent):
    cotangent = jax.tree.map(instantiate, cotangent)
    (varied, fixed), key_data, mask = once_differentiable(residuals)
    cotangent = once_differentiable(cotangent)
    gradients = _pulled_back(plan, varied, fixed, key_data, mask, cotangent)
    return *gradients, None, None


@functools.partial(jax.jit, static_argnums=0)
def _pulled_back(plan, varied, fixed, key_data, mask, cotangent):
    """Return the gradients by the varied `(args, examples)`, in their dtypes."""
    varied_args, varied_examples = varied
    examples = merge(varied_examples, fixed[1])
    population = Population(
        full_mask(examples, mask),
        labels_of(examples) if plan.needs(LABELS) else None,
        _scores(plan, cotangent, mask, examples) if plan.needs(SCORES) else None,
    )
    draw = _delay_until(plan.draw(key_data, population), cotangent)

    def pull_back(sums: PyTree, chunk: Chunk) -> PyTree:
        """Add the gradients by the arguments, and those by the chunk's examples."""

        def output(varied_args: PyTree, varied_chunk: PyTree) -> PyTree:
            inputs = merge(varied_args, fixed[0]), merge(varied_chunk, chunk.examples)
            return (
                plan.fun(*inputs) if plan.is_map else plan.fun(*inputs, chunk.weights)
            )

        towards = _weighted_rows(cotangent, chunk) if plan.is_map else cotangent
        point = varied_args, varied_of(chunk, varied_examples)
        by_args, by_chunk = _vjp(output, point, towards)
        return add(sums[0], by_args), add_to_rows(sums[1], chunk, by_chunk)

    zeros = jax.tree.map(zeros_for, varied)
    sums = fold(pull_back, zeros, examples, draw, plan.backward)
    sums = zero_if_empty(sums, mask)
    return jax.tree.map(lambda x, g: g.astype(jnp.result_type(x)), varied, sums)


# Symbolic zeros show which arguments are differentiated. The others, such as a frozen
# backbone or images, cost no memory and no time for a gradient.
recomputed.defvjp(_forward, _backward, symbolic_zeros=True)


def _weighted_rows(cotangent: PyTree, chunk: Chunk) -> PyTree:
    """Return the cotangent of a chunk's rows, times the weights of the draw."""

    def weighted(c: Any) -> Any:
        if c.dtype == jax.dtypes.float0:
            return np.zeros((chunk.rows.size, *c.shape[1:]), c.dtype)
        rows = c.at[chunk.rows].get(mode="fill", fill_value=0)
        weights = chunk.weights.astype(accumulation_dtype(c.dtype))
        return rows.astype(weights.dtype) * per_row(weights, rows)

    return jax.tree.map(weighted, cotangent)


def _delay_until(draw: Any, cotangent: PyTree) -> Any:
    """Return the same draw, made to depend on `cotangent`.

    There is no loop where the drawn examples fit one chunk. XLA then computes their
    activations, which do not depend on the cotangent, ahead of the passes that yield
    the cotangent, and holds them meanwhile. The indices plus 0 · cotangent prevent
    this, since XLA does not simplify 0 · c to 0.
    """
    zero = jnp.zeros((), draw.indices.dtype)
    for leaf in jax.tree.leaves(cotangent):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            zero += (0 * leaf.ravel()[:1].real).sum().astype(zero.dtype)
    return draw._replace(indices=draw.indices + zero)


def _scores(plan: Plan, cotangent: PyTree, mask: Any, examples: PyTree) -> jax.Array:
    """Return the sensitivities `[n]`; a loss is equally sensitive to a sum's terms."""
    if plan.is_map:
        return row_norms(cotangent)
    return full_mask(examples, mask).astype(float)


def row_norms(tree: PyTree) -> jax.Array:
    """Return the norm `[n]` of each row of all arrays together.

    Rows are scaled by their largest entry, so that no square over- or underflows.
    """
    with jax.numpy_dtype_promotion("standard"):
        tables = [
            jnp.abs(x.astype(accumulation_dtype(x.dtype))).reshape(len(x), -1)
            for x in jax.tree.leaves(tree)
            if jnp.issubdtype(x.dtype, jnp.inexact)
        ]
        table = jnp.concatenate(tables, axis=1)
    largest = table.max(1, initial=0)
    scaled = table / jnp.where(largest > 0, largest, 1)[:, None]
    return largest * jnp.sqrt(jnp.square(scaled).sum(1))


def _vjp(fun: Callable[..., PyTree], point: tuple[Any, ...], cotangent: PyTree) -> Any:
    """Return the vector-Jacobian product of `fun` at `point`.

    The cotangent is cast to the dtypes of `fun`'s values.
    """
    total, pull = jax.vjp(fun, *point)

    def cast(c: Any, t: jax.Array) -> Any:
        return c if c.dtype == jax.dtypes.float0 else c.astype(t.dtype)

    return pull(jax.tree.map(cast, cotangent, total))


def labels_of(examples: PyTree) -> jax.Array | None:
    """Return the attribute or key "labels" of a set of examples; None if absent."""
    if isinstance(examples, Mapping):
        return examples.get(LABELS)
    return getattr(examples, LABELS, None)


# ------------------------------------------------- arguments of derivative rules


@jax.custom_jvp
def _once(x):
    return x


@_once.defjvp
def _twice(primals, tangents):
    raise UserError(
        "second derivatives through a set sum or map with chunks or a draw would be "
        "wrong, so they are refused: use exact_sum() without chunk_size, or form the "
        "inner gradients as set sums themselves, as lite_jax.maml does"
    )


def once_differentiable(tree: PyTree) -> PyTree:
    """Return the same tree; differentiating what is computed from it raises."""
    return jax.tree.map(
        lambda x: _once(x) if jnp.issubdtype(x.dtype, jnp.inexact) else x, tree
    )


def values(tree: PyTree) -> PyTree:
    """Return the arrays of a forward rule's argument.

    With `symbolic_zeros=True` its leaves are objects with a `value` and the flag
    `perturbed`.
    """
    return jax.tree.map(lambda leaf: leaf.value, tree)


def split_varied(tree: PyTree) -> tuple[PyTree, PyTree]:
    """Return the arrays that are differentiated, and the others, for `trees.merge`.

    Both have the structure of `tree`, an argument of a forward rule (see `values`), and
    None in place of the leaves that are in the other.
    """

    def varies(leaf: Any) -> bool:
        inexact = jnp.issubdtype(jnp.result_type(leaf.value), jnp.inexact)
        return leaf.perturbed and inexact

    varied = jax.tree.map(lambda x: x.value if varies(x) else None, tree)
    return varied, jax.tree.map(lambda x: None if varies(x) else x.value, tree)


def instantiate(cotangent: Any) -> Any:
    """Return one leaf of a backward rule's cotangent as an array."""
    if not isinstance(cotangent, SymbolicZero):
        return cotangent
    if cotangent.dtype == jax.dtypes.float0:
        return np.zeros(cotangent.shape, cotangent.dtype)
    return jnp.zeros(cotangent.shape, cotangent.dtype)
