"""The exact sum whose backward pass computes again what a rule picks.

One derivative rule serves every operator with a chunk size or a draw: the forward pass
keeps nothing but its inputs (and, where the rule asks for scores, the features); the
backward pass lets the rule pick examples, with the cotangent known exactly, and
computes those again, a chunk at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from lite_jax.lite.additive import Pooled, accumulation_dtype, leading_axis
from lite_jax.lite.chunks import (
    all_weighted,
    chunked_sum,
    full_mask,
    pooled_sum,
    whole_sum,
)
from lite_jax.lite.sampling import LABELS, SCORES, Draw, Population, sample_all
from lite_jax.trees import merge
from lite_jax.types import PyTree


class Rule(NamedTuple):
    """Which examples the backward pass takes.

    Attributes:
        draw: `(seed, population) -> Draw`.
        needs: What it reads of the population besides the mask.
    """

    draw: Callable[[Any, Population], Draw]
    needs: tuple[str, ...] = ()


TAKE_ALL = Rule(lambda seed, population: sample_all(population.mask))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def recomputed_sum(additive, rule, chunks, args, examples, seed, mask):
    """Return the sum over all examples; differentiate those that `rule` picks.

    Args:
        additive: The additive function; `Pooled` if the rule needs scores.
        rule: A `Rule`.
        chunks: `Chunks`; one takes all N forward and all H backward.
        args: What is differentiated.
        examples: The set, without gradient.
        seed: What the rule draws with.
        mask: `[n]` bool, or None for all.
    """
    if chunks.is_one(leading_axis(examples)):
        return whole_sum(additive, args, examples, mask)
    everything = sample_all(full_mask(examples, mask))
    return chunked_sum(functools.partial(additive, args), examples, everything, chunks)


def _forward(additive, rule, chunks, args, examples, seed, mask):
    varied, fixed = split_varied(args)
    args, examples, seed, mask = map(values, (args, examples, seed, mask))
    if SCORES in rule.needs:
        total, features = pooled_sum(additive, args, examples, mask, chunks)
    else:
        inputs = args, examples, seed, mask
        total, features = recomputed_sum(additive, rule, chunks, *inputs), None
    return total, (varied, fixed, features, examples, seed, mask)


def _backward(additive, rule, chunks, residuals, cotangent):
    varied, fixed, features, examples, seed, mask = residuals
    cotangent = jax.tree.map(instantiate, cotangent)
    population = Population(
        full_mask(examples, mask),
        labels_of(examples) if LABELS in rule.needs else None,
        _sensitivity(additive, features, examples, mask, cotangent)
        if SCORES in rule.needs
        else None,
    )
    picked = _once_known(cotangent, rule.draw(seed, population))

    def pull_back(chunk: PyTree, weights: jax.Array) -> PyTree:
        def summand(varied: PyTree) -> PyTree:
            return additive(merge(varied, fixed), chunk, weights)

        (gradient,) = _vjp(summand, varied, cotangent)
        return gradient

    sums = chunked_sum(pull_back, examples, picked, chunks, like=varied)
    gradient = jax.tree.map(lambda x, g: g.astype(jnp.result_type(x)), varied, sums)
    return gradient, None, None, None


def _once_known(cotangent: PyTree, draw: Draw) -> Draw:
    """Return the draw, for passes that are not to begin before the cotangent is there.

    Where the drawn fit one chunk there is no loop, and XLA would compute ahead what
    their backward pass keeps, which depends on no cotangent, and hold it during the
    passes that the cotangent comes from. It does not know that 0 · c is 0.
    """
    zero = jnp.zeros((), draw.indices.dtype)
    for leaf in jax.tree.leaves(cotangent):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            zero += (0 * leaf.ravel()[:1].real).sum().astype(zero.dtype)
    return draw._replace(indices=draw.indices + zero)


# Symbolic zeros tell which arguments are differentiated: a frozen backbone among them
# costs neither the memory nor the time of its gradient.
recomputed_sum.defvjp(_forward, _backward, symbolic_zeros=True)


def values(tree: PyTree) -> PyTree:
    """Return the arrays of an argument as a forward rule gets it."""
    return jax.tree.map(lambda leaf: leaf.value, tree)


def split_varied(tree: PyTree) -> tuple[PyTree, PyTree]:
    """Return the arrays that are differentiated and the others, as `merge` has them."""

    def varies(leaf: Any) -> bool:
        inexact = jnp.issubdtype(jnp.result_type(leaf.value), jnp.inexact)
        return leaf.perturbed and inexact

    varied = jax.tree.map(lambda x: x.value if varies(x) else None, tree)
    return varied, jax.tree.map(lambda x: None if varies(x) else x.value, tree)


def instantiate(cotangent: Any) -> jax.Array:
    """Return a cotangent as an array, as a backward rule gets it."""
    if isinstance(cotangent, SymbolicZero):
        return jnp.zeros(cotangent.shape, cotangent.dtype)
    return cotangent


def _sensitivity(
    additive: Pooled, features: PyTree, examples: PyTree, mask: Any, cotangent: PyTree
) -> jax.Array:
    """Return `[n]`: the norms of ∂⟨cotangent, Σ terms⟩ / ∂features."""
    examples, weights = all_weighted(examples, mask)

    def pooled(features: PyTree) -> PyTree:
        return additive.pool(features, examples, weights)

    (gradient,) = _vjp(pooled, features, cotangent)
    squares = [
        jnp.sum(jnp.square(g.astype(accumulation_dtype(g.dtype))), range(1, g.ndim))
        for g in jax.tree.leaves(gradient)
    ]
    return jnp.sqrt(sum(squares[1:], squares[0]))


def _vjp(fun: Callable[[Any], PyTree], at: PyTree, cotangent: PyTree) -> tuple[PyTree]:
    """Pull a cotangent back, in the dtypes of the values of `fun`."""
    total, vjp = jax.vjp(fun, at)
    return vjp(jax.tree.map(lambda c, t: c.astype(t.dtype), cotangent, total))


def labels_of(examples: PyTree) -> jax.Array | None:
    """Return the labels that a set of examples holds, by attribute or by key."""
    if isinstance(examples, Mapping):
        return examples.get(LABELS)
    return getattr(examples, LABELS, None)
