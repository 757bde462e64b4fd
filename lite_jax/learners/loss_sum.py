"""The exact sum of a scalar loss, differentiated in the forward pass.

The cotangent of the summed loss is one number. The forward pass therefore
differentiates each chunk at once and keeps the sum of the gradients, which the backward
pass scales by the cotangent. This costs three passes per example; recomputation in the
backward pass costs four.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lite_jax.lite.additive import leading_axis
from lite_jax.lite.arguments import chunk_specs
from lite_jax.lite.backward import (
    instantiate,
    once_differentiable,
    split_varied,
    values,
)
from lite_jax.lite.chunks import (
    Chunk,
    Chunks,
    add,
    add_to_rows,
    as_arrays,
    fold,
    full_mask,
    summed,
    take_chunk,
    varied_of,
    zero_if_empty,
    zeros_for,
)
from lite_jax.lite.functions import Function, close_over
from lite_jax.lite.sampling import sample_all
from lite_jax.trees import merge
from lite_jax.types import Additive, PyTree

_WHOLE = Chunks()


def loss_sum(
    additive: Additive,
    args: PyTree,
    examples: PyTree,
    mask: jax.Array | None = None,
    chunks: Chunks = _WHOLE,
) -> tuple[jax.Array, PyTree]:
    """Return the sums over a set of a scalar loss and of auxiliary outputs.

    Guarantees:
        Value and gradient, by `args` and by the examples, are exact. With a chunk size
        or a mesh axis, memory is that of one chunk and one gradient, and the sum can be
        differentiated once, in reverse mode. With the default `Chunks()`, this is a
        plain call of the additive function.

    Args:
        additive: `(args, examples, weights) -> (loss, aux)`, the loss a scalar.
        args: The first argument of `additive`.
        examples: The set, with leading axis `n`.
        mask: `[n]` bool, True for real examples; None if all are real.
        chunks: How many examples are computed at once, and on which devices.

    Returns:
        `(loss, aux)`: the sum of the losses, and the sum of `aux`, without gradient.
    """
    if chunks == _WHOLE:
        summand = functools.partial(additive, args)
        loss, aux = summed(summand, examples, mask, chunks)
    else:
        lengths = {chunks.length(leading_axis(examples)), 1}
        specs = [chunk_specs(examples, length, False) for length in sorted(lengths)]
        function, args = close_over(additive, args, specs)
        plan = _Plan(function, chunks)
        loss, aux = _loss_sum(plan, args, as_arrays(examples), mask)
    return loss, jax.lax.stop_gradient(aux)


class _Plan(NamedTuple):
    """The additive function and the chunks; equal plans share a compilation."""

    additive: Function
    chunks: Chunks


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss_sum(plan: _Plan, args: PyTree, examples: PyTree, mask: Any) -> Any:
    return _value(plan, args, examples, mask)


@functools.partial(jax.jit, static_argnums=0)
def _value(plan: _Plan, args: PyTree, examples: PyTree, mask: Any) -> Any:
    return summed(functools.partial(plan.additive, args), examples, mask, plan.chunks)


def _forward(plan, args, examples, mask):
    varied, fixed = split_varied((args, examples))
    return _value_and_gradients(plan, varied, fixed, values(mask))


@functools.partial(jax.jit, static_argnums=0)
def _value_and_gradients(plan: _Plan, varied: Any, fixed: Any, mask: Any) -> Any:
    """Return the sums, and the gradients of the loss's by the varied inputs.

    Gradients stay in the dtype in which they are summed: those of half precision may
    overflow before they are scaled.
    """
    _, varied_examples = varied
    examples = merge(varied_examples, fixed[1])
    draw = sample_all(full_mask(examples, mask))

    def differentiated(chunk: Chunk) -> tuple[Any, Any]:
        def loss(varied: tuple[PyTree, PyTree]) -> tuple[jax.Array, PyTree]:
            inputs = merge(varied[0], fixed[0]), merge(varied[1], chunk.examples)
            return plan.additive(*inputs, chunk.weights)

        return jax.value_and_grad(loss, has_aux=True)(
            (varied[0], varied_of(chunk, varied_examples))
        )

    def add_chunk(sums: Any, chunk: Chunk) -> Any:
        totals, by_args, table = sums
        value, gradients = differentiated(chunk)
        table = add_to_rows(table, chunk, gradients[1])
        return add(totals, value), add(by_args, gradients[0]), table

    like = jax.eval_shape(
        lambda x: differentiated(x)[0], take_chunk(examples, draw, 0, 1)
    )
    zeros = jax.tree.map(zeros_for, (like, *varied))
    total, *gradients = fold(add_chunk, zeros, examples, draw, plan.chunks)
    like = jax.tree.map(lambda x: jnp.zeros((), x.dtype), varied)
    return zero_if_empty(total, mask), (zero_if_empty(tuple(gradients), mask), like)


def _backward(plan, residuals, cotangent):
    gradients, like = once_differentiable(residuals)
    scale = once_differentiable(instantiate(cotangent[0]))
    scaled = jax.tree.map(
        lambda g, x: (g * scale.astype(g.dtype)).astype(x.dtype), gradients, like
    )
    return *scaled, None


# Symbolic zeros show which arguments are differentiated, as in `lite.backward`.
_loss_sum.defvjp(_forward, _backward, symbolic_zeros=True)
