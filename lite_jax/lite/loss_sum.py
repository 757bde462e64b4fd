"""The exact sum of a scalar loss, differentiated in the forward pass.

The cotangent of the summed loss is one number. The forward pass therefore
differentiates each chunk at once and keeps the sum of the gradients, which the backward
pass scales by the cotangent. This costs three passes per example; recomputation in the
backward pass costs four.
"""

from __future__ import annotations

import functools

import jax
from jax import lax

from lite_jax.lite.additive import leading_axis
from lite_jax.lite.backward import instantiate, split_varied, values
from lite_jax.lite.chunks import Chunks, chunked_sum, full_mask, whole_sum
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
        Value and gradient are exact. With a chunk size or a mesh axis, memory is that
        of one chunk and one gradient, and the sum can be differentiated once, in
        reverse mode. With the default `Chunks()`, this is a plain call of the additive
        function.

    Args:
        additive: `(args, examples, weights) -> (loss, aux)`, the loss a scalar.
        args: The first argument of `additive`, which is differentiated.
        examples: The set, with leading axis `n` and without gradient.
        mask: `[n]` bool, True for real examples; None if all are real.
        chunks: How many examples are computed at once, and on which devices.

    Returns:
        `(loss, aux)`: the sum of the losses, and the sum of `aux`, without gradient.
    """
    examples = lax.stop_gradient(examples)
    if chunks == _WHOLE:
        loss, aux = whole_sum(additive, args, examples, mask)
    else:
        loss, aux = _loss_sum(additive, chunks, args, examples, mask)
    return loss, lax.stop_gradient(aux)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loss_sum(additive, chunks, args, examples, mask):
    if chunks.is_one(leading_axis(examples)):
        return whole_sum(additive, args, examples, mask)
    full_draw = sample_all(full_mask(examples, mask))
    return chunked_sum(functools.partial(additive, args), examples, full_draw, chunks)


def _forward(additive, chunks, args, examples, mask):
    varied, fixed = split_varied(args)
    examples, mask = values(examples), values(mask)

    def summand(chunk: PyTree, weights: jax.Array) -> PyTree:
        def loss(varied: PyTree) -> tuple[jax.Array, PyTree]:
            return additive(merge(varied, fixed), chunk, weights)

        return jax.value_and_grad(loss, has_aux=True)(varied)

    full_draw = sample_all(full_mask(examples, mask))
    total, sums = chunked_sum(summand, examples, full_draw, chunks)
    return total, jax.tree.map(lambda x, g: g.astype(x.dtype), varied, sums)


def _backward(additive, chunks, gradient, cotangent):
    scale = instantiate(cotangent[0])
    scaled = jax.tree.map(lambda g: g * scale.astype(g.dtype), gradient)
    return scaled, None, None


# Symbolic zeros show which arguments are differentiated, as in `lite.backward`.
_loss_sum.defvjp(_forward, _backward, symbolic_zeros=True)
