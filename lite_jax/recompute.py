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

from lite_jax.additive import Pooled, accumulation_dtype, leading_axis
from lite_jax.chunks import (
    all_weighted,
    chunked_sum,
    full_mask,
    pooled_sum,
    take_chunk,
    whole_sum,
    zeros_for,
)
from lite_jax.partition import merge
from lite_jax.sampling import LABELS, SCORES, Draw, Population, sample_all
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
def recomputed_sum(additive, rule, chunk_size, args, examples, seed, mask):
    """Return the sum over all examples; differentiate those that `rule` picks.

    Args:
        additive: The additive function; `Pooled` if the rule needs scores.
        rule: A `Rule`.
        chunk_size: Examples at once; None takes all N forward, all H backward.
        args: What is differentiated.
        examples: The set, without gradient.
        seed: What the rule draws with.
        mask: `[n]` bool, or None for all.
    """
    if chunk_size is None or chunk_size >= leading_axis(examples):
        return whole_sum(additive, args, examples, mask)
    everything = sample_all(full_mask(examples, mask))
    summand = functools.partial(additive, args)
    first_chunk = take_chunk(examples, everything, 0, chunk_size)
    zeros = jax.tree.map(zeros_for, jax.eval_shape(summand, *first_chunk))
    return chunked_sum(summand, zeros, examples, everything, chunk_size)


def _forward(additive, rule, chunk_size, args, examples, seed, mask):
    value = functools.partial(jax.tree.map, lambda leaf: leaf.value)
    varied = jax.tree.map(lambda x: x.value if _varies(x) else None, args)
    fixed = jax.tree.map(lambda x: None if _varies(x) else x.value, args)
    args, examples, seed, mask = map(value, (args, examples, seed, mask))
    if SCORES in rule.needs:
        total, features = pooled_sum(additive, args, examples, mask, chunk_size)
    else:
        inputs = args, examples, seed, mask
        total, features = recomputed_sum(additive, rule, chunk_size, *inputs), None
    return total, (varied, fixed, features, examples, seed, mask)


def _backward(additive, rule, chunk_size, residuals, cotangent):
    varied, fixed, features, examples, seed, mask = residuals
    cotangent = jax.tree.map(_instantiate, cotangent)
    population = Population(
        full_mask(examples, mask),
        labels_of(examples) if LABELS in rule.needs else None,
        _sensitivity(additive, features, examples, mask, cotangent)
        if SCORES in rule.needs
        else None,
    )
    picked = rule.draw(seed, population)

    def pull_back(chunk: PyTree, weights: jax.Array) -> PyTree:
        def summand(varied: PyTree) -> PyTree:
            return additive(merge(varied, fixed), chunk, weights)

        (gradient,) = _vjp(summand, varied, cotangent)
        return gradient

    size = chunk_size or picked.indices.size
    zeros = jax.tree.map(zeros_for, varied)
    sums = chunked_sum(pull_back, zeros, examples, picked, size)
    gradient = jax.tree.map(lambda x, g: g.astype(jnp.result_type(x)), varied, sums)
    return gradient, None, None, None


# Symbolic zeros tell which arguments are differentiated: a frozen backbone among them
# costs neither the memory nor the time of its gradient.
recomputed_sum.defvjp(_forward, _backward, symbolic_zeros=True)


def _varies(leaf: Any) -> bool:
    """Say whether an argument, as a forward rule gets it, is differentiated."""
    return leaf.perturbed and jnp.issubdtype(jnp.result_type(leaf.value), jnp.inexact)


def _instantiate(cotangent: Any) -> jax.Array:
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
