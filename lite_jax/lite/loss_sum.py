"""The exact sum of a loss, differentiated on the way forward.

What the loss of a query set is multiplied with later is one number. So each chunk is
differentiated as soon as it is computed, and the sum of the gradients is kept instead
of the inputs: three passes an example, where computing chunks again takes four.
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
    """Return the sum over a set of a scalar loss, and of what is reported beside it.

    Guarantees:
        Value and gradient are exact. With a chunk size, memory is that of one chunk
        and of one gradient, and there is one derivative, in reverse mode; without one
        this is a plain call of the additive function.

    Args:
        additive: `(args, examples, weights) -> (loss, aux)`, the loss a scalar.
        args: What is differentiated.
        examples: The set, without gradient.
        mask: `[n]` bool, or None for all.
        chunks: How the set is gone through.
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
    everything = sample_all(full_mask(examples, mask))
    return chunked_sum(functools.partial(additive, args), examples, everything, chunks)


def _forward(additive, chunks, args, examples, mask):
    varied, fixed = split_varied(args)
    examples, mask = values(examples), values(mask)

    def summand(chunk: PyTree, weights: jax.Array) -> PyTree:
        def loss(varied: PyTree) -> tuple[jax.Array, PyTree]:
            return additive(merge(varied, fixed), chunk, weights)

        return jax.value_and_grad(loss, has_aux=True)(varied)

    everything = sample_all(full_mask(examples, mask))
    total, sums = chunked_sum(summand, examples, everything, chunks)
    return total, jax.tree.map(lambda x, g: g.astype(x.dtype), varied, sums)


def _backward(additive, chunks, gradient, cotangent):
    scale = instantiate(cotangent[0])
    scaled = jax.tree.map(lambda g: g * scale.astype(g.dtype), gradient)
    return scaled, None, None


# Symbolic zeros tell which arguments are differentiated, as in `recompute`.
_loss_sum.defvjp(_forward, _backward, symbolic_zeros=True)
