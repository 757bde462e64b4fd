"""The exact sum whose backward pass recomputes the examples that a rule draws.

Every operator with chunks or a draw uses this derivative rule. The forward pass keeps
only its inputs, and the features if the rule needs scores. In the backward pass the
cotangent is exact; the rule draws examples, and their terms are recomputed and
differentiated a chunk at a time.
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
    """Rule that draws the examples of the backward pass.

    Attributes:
        draw: `(seed, population) -> Draw`.
        needs: Fields of `Population` that `draw` reads besides the mask: of "labels"
            and "scores".
    """

    draw: Callable[[Any, Population], Draw]
    needs: tuple[str, ...] = ()


TAKE_ALL = Rule(lambda seed, population: sample_all(population.mask))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def recomputed_sum(additive, rule, chunks, args, examples, seed, mask):
    """Return the sum over all examples; differentiate those that `rule` draws.

    Args:
        additive: The additive function; `Pooled` if the rule needs scores.
        rule: A `Rule`.
        chunks: `Chunks`. Without a size, one call computes all N examples forward and
            one all H drawn examples backward.
        args: The first argument of `additive`, which is differentiated.
        examples: The set, whose arrays have a leading axis `n` and no gradient.
        seed: The first argument of `rule.draw`.
        mask: `[n]` bool, True for real examples; None if all are real.
    """
    if chunks.is_one(leading_axis(examples)):
        return whole_sum(additive, args, examples, mask)
    full_draw = sample_all(full_mask(examples, mask))
    return chunked_sum(functools.partial(additive, args), examples, full_draw, chunks)


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
    draw = _delay_until(rule.draw(seed, population), cotangent)

    def pull_back(chunk: PyTree, weights: jax.Array) -> PyTree:
        def summand(varied: PyTree) -> PyTree:
            return additive(merge(varied, fixed), chunk, weights)

        (gradient,) = _vjp(summand, varied, cotangent)
        return gradient

    sums = chunked_sum(pull_back, examples, draw, chunks, like=varied)
    gradient = jax.tree.map(lambda x, g: g.astype(jnp.result_type(x)), varied, sums)
    return gradient, None, None, None


def _delay_until(draw: Draw, cotangent: PyTree) -> Draw:
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


# Symbolic zeros show which arguments are differentiated. The others, such as a frozen
# backbone, cost no memory and no time for a gradient.
recomputed_sum.defvjp(_forward, _backward, symbolic_zeros=True)


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


def instantiate(cotangent: Any) -> jax.Array:
    """Return one leaf of a backward rule's cotangent as an array."""
    if isinstance(cotangent, SymbolicZero):
        return jnp.zeros(cotangent.shape, cotangent.dtype)
    return cotangent


def _sensitivity(
    additive: Pooled, features: PyTree, examples: PyTree, mask: Any, cotangent: PyTree
) -> jax.Array:
    """Return the scores `[n]`: norms of ∂⟨cotangent, Σ terms⟩ / ∂features_n."""
    examples, weights = all_weighted(examples, mask)

    def pooled(features: PyTree) -> PyTree:
        return additive.pool(features, examples, weights)

    (gradient,) = _vjp(pooled, features, cotangent)
    squares = [
        jnp.sum(jnp.square(g.astype(accumulation_dtype(g.dtype))), range(1, g.ndim))
        for g in jax.tree.leaves(gradient)
    ]
    return jnp.sqrt(sum(squares[1:], squares[0]))


def _vjp(
    fun: Callable[[Any], PyTree], point: PyTree, cotangent: PyTree
) -> tuple[PyTree]:
    """Return the vector-Jacobian product of `fun` at `point`, as a tuple of one tree.

    The cotangent is cast to the dtypes of `fun`'s values.
    """
    total, vjp = jax.vjp(fun, point)
    return vjp(jax.tree.map(lambda c, t: c.astype(t.dtype), cotangent, total))


def labels_of(examples: PyTree) -> jax.Array | None:
    """Return the attribute or key "labels" of a set of examples; None if absent."""
    if isinstance(examples, Mapping):
        return examples.get(LABELS)
    return getattr(examples, LABELS, None)
