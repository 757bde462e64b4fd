"""Unbiased draws of the examples that carry the gradient of `lite_sum`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lite_jax.types import Key

LABELS, SCORES = "labels", "scores"
UNIFORM_SHARE = 0.2
"""The uniform share of the sizes in sensitivity sampling; scores make up the rest."""


class Population(NamedTuple):
    """The examples that a sampler draws from.

    Attributes:
        mask: `[n]` bool, True for real examples.
        labels: `[n]` int class indices, the strata. None if the sampler does not need
            them.
        scores: `[n]` float, the sensitivity of the loss to each example: the norm of
            its exact derivative with respect to the example's features. None if the
            sampler does not need them.
    """

    mask: jax.Array
    labels: jax.Array | None = None
    scores: jax.Array | None = None


class Draw(NamedTuple):
    """The examples that carry the gradient.

    Attributes:
        indices: `[h]` int32, rows of the example set.
        weights: `[h]` float, Horvitz-Thompson weights: the mean over draws of
            Σ_h weights_h · v[indices_h] is Σ_n mask_n · v[n]. An entry of weight 0 is
            not drawn.
        num_drawn: int32 scalar; entries of weight other than 0 are among the first
            `num_drawn`.
    """

    indices: jax.Array
    weights: jax.Array
    num_drawn: jax.Array


class Sampler(NamedTuple):
    """A sampling rule for `lite_sum(sampling=…)`.

    Attributes:
        draw: `(key, population, num_backprop) -> Draw`.
        needs: Fields of `Population` that `draw` reads besides the mask: of "labels"
            and "scores".
    """

    draw: Callable[[Key, Population, int], Draw]
    needs: tuple[str, ...] = ()


def sample_uniform(key: Key, population: Population, num_backprop: int) -> Draw:
    """Draw H examples uniformly without replacement, each of weight N/H.

    The variance is that of the paper's with-replacement draw times (N-H)/(N-1); it is
    0 at H = N. Padding appended to the set does not change which examples are drawn.
    """
    mask = population.mask
    order = _random_order(key, mask)
    total = mask.sum(dtype=jnp.int32)
    count = jnp.minimum(num_backprop, total)
    weight = total.astype(float) / jnp.maximum(count, 1).astype(float)
    positions = jnp.arange(num_backprop, dtype=jnp.int32)
    weights = jnp.where(positions < count, weight, 0)
    return Draw(order[:num_backprop], weights, count)


def sample_with_replacement(
    key: Key, population: Population, num_backprop: int
) -> Draw:
    """Draw H examples independently, each of weight N/H (the paper's formula)."""
    mask = population.mask
    total = mask.sum(dtype=jnp.int32)
    ranks = jax.random.randint(key, (num_backprop,), 0, jnp.maximum(total, 1))
    weight = jnp.full(num_backprop, total.astype(float) / num_backprop)
    return Draw(_real_first_order(mask)[ranks], weight, jnp.int32(num_backprop))


def sample_stratified(key: Key, population: Population, num_backprop: int) -> Draw:
    """Draw H examples, H N_k / N of them from class k, each of weight N/H.

    The number from a class of N_k examples is H N_k / N rounded down or up at random,
    with that mean. Every class can be drawn, also where H is less than the number of
    classes.
    """
    return _draw_by_size(key, population, num_backprop, population.labels, None)


def sample_sensitivity(key: Key, population: Population, num_backprop: int) -> Draw:
    """Draw H examples without replacement, more often those of a larger score.

    The inclusion probability of an example is at most 1 and proportional to a mixture
    of its score and a constant. The constant, of share `UNIFORM_SHARE`, keeps every
    weight at or below N / (`UNIFORM_SHARE` H).
    """
    return _draw_by_size(key, population, num_backprop, None, population.scores)


def sample_stratified_sensitivity(
    key: Key, population: Population, num_backprop: int
) -> Draw:
    """Draw H examples by sensitivity, from each class in proportion to its scores.

    This is Neyman allocation to the classes, with inclusion probabilities proportional
    to size within each class. `sample_sensitivity` defines the sizes.
    """
    return _draw_by_size(
        key, population, num_backprop, population.labels, population.scores
    )


SAMPLERS: dict[str, Sampler] = {
    "uniform": Sampler(sample_uniform),
    "with_replacement": Sampler(sample_with_replacement),
    "stratified": Sampler(sample_stratified, (LABELS,)),
    "sensitivity": Sampler(sample_sensitivity, (SCORES,)),
    "stratified_sensitivity": Sampler(sample_stratified_sensitivity, (LABELS, SCORES)),
}


def sample_all(mask: jax.Array) -> Draw:
    """Return the draw of every real example once, at weight 1."""
    order = _real_first_order(mask)
    return Draw(order, mask[order].astype(float), mask.sum(dtype=jnp.int32))


# ------------------------------------------------------------------ systematic draws


def _draw_by_size(
    key: Key,
    population: Population,
    num_backprop: int,
    strata: jax.Array | None,
    scores: jax.Array | None,
) -> Draw:
    """Return a systematic draw along a random order, sorted by stratum if given.

    Args:
        key: Decides the order and the start.
        population: Only its mask is read.
        num_backprop: H, at least 1; also the static size of the draw.
        strata: `[n]` int, or None.
        scores: `[n]` float, see `Population`; None for equal inclusion probabilities.
    """
    mask = population.mask
    order_key, strata_key, start_key = jax.random.split(key, 3)
    count = jnp.minimum(num_backprop, mask.sum(dtype=jnp.int32))
    chances = inclusion_probabilities(_sizes(mask, scores), count)
    order = _random_order(order_key, mask, _ranks(strata_key, strata))
    return systematic(start_key, order, chances, count, num_backprop)


def _sizes(mask: jax.Array, scores: jax.Array | None) -> jax.Array:
    """Return sizes `[n]` of sum 1: scores mixed with a constant, 0 for padding.

    The sizes of real examples are equal without scores, and where no score is above 0.
    Scores that are not finite count as 0.
    """
    real = mask.astype(float)
    uniform = real / jnp.maximum(real.sum(), 1)
    if scores is None:
        return uniform
    scores = jnp.where(mask & jnp.isfinite(scores), scores.astype(real.dtype), 0)
    largest = scores.max()
    shares = scores / jnp.where(largest > 0, largest, 1)
    shares = shares / jnp.maximum(shares.sum(), 1)
    mixed = (1 - UNIFORM_SHARE) * shares + UNIFORM_SHARE * uniform
    return jnp.where(largest > 0, mixed, uniform)


def inclusion_probabilities(sizes: jax.Array, count: jax.Array) -> jax.Array:
    """Return `[n]` probabilities min(1, c · sizes) that add up to `count`.

    Args:
        sizes: `[n]` float, at least 0, not all 0. Size 0 gives probability 0.
        count: int32 scalar, at most the number of sizes above 0.
    """
    descending = -jnp.sort(-sizes)
    ranks = jnp.arange(sizes.size, dtype=jnp.int32)
    remaining = jnp.cumsum(descending[::-1])[::-1]  # from each rank to the last
    count_left = (count - ranks).astype(sizes.dtype)
    certain = (count_left * descending >= remaining) & (count_left > 0)
    num_certain = jnp.cumprod(certain.astype(jnp.int32)).sum(dtype=jnp.int32)
    rest = jnp.where(ranks < num_certain, 0, descending).sum()
    slope = (count - num_certain).astype(sizes.dtype) / jnp.where(rest > 0, rest, 1)
    threshold = jnp.where(ranks < num_certain, descending, jnp.inf).min()
    chances = jnp.where(sizes >= threshold, 1, jnp.minimum(1, slope * sizes))
    takes_all = count >= (sizes > 0).sum(dtype=jnp.int32)
    return jnp.where(takes_all & (sizes > 0), 1, chances)


def systematic(
    key: Key, order: jax.Array, chances: jax.Array, count: jax.Array, num_backprop: int
) -> Draw:
    """Draw `count` examples by systematic sampling (Madow, 1949).

    Each example is an interval of a line. Its length is its inclusion probability,
    rounded to whole ticks (`ticks_of`), and the intervals stand in `order`. The draw
    takes the examples at equal steps along the line, from a start that is uniform among
    the ticks of one step. The expected number of draws of an example is its ticks over
    the ticks of a step. Its weight is the inverse, so the draw is unbiased whatever the
    precision of `chances`.

    Args:
        key: Decides the start.
        order: `[n]` int32, a permutation of the rows. Neighbours in it are seldom drawn
            together.
        chances: `[n]` inclusion probabilities in [0, 1], of sum `count`.
        count: int32 scalar, at most `num_backprop`.
        num_backprop: Static size of the draw.

    References:
        Madow, "On the theory of systematic sampling, II", 1949.
    """
    ticks = ticks_of(chances, num_backprop)
    step = step_length(ticks, count)
    first = jax.random.randint(key, (), 0, step, jnp.uint32)
    return draw_from(first, order, ticks, count, num_backprop)


def draw_from(
    first: jax.Array,
    order: jax.Array,
    ticks: jax.Array,
    count: jax.Array,
    num_backprop: int,
) -> Draw:
    """Return the systematic draw that starts at tick `first`.

    Args:
        first: uint32 scalar, less than `step_length(ticks, count)`.
        order: `[n]` int32, a permutation of the rows.
        ticks: `[n]` uint32, from `ticks_of`.
        count: int32 scalar, at most `num_backprop`.
        num_backprop: Static size of the draw.
    """
    step = step_length(ticks, count)
    ends = jnp.cumsum(ticks[order], dtype=jnp.uint32)
    numbers = jnp.arange(num_backprop, dtype=jnp.uint32)
    positions = jnp.searchsorted(ends, first + numbers * step, side="right")
    inside = (numbers < count.astype(jnp.uint32)) & (positions < order.size)
    indices = order[jnp.minimum(positions, order.size - 1)]
    weights = step.astype(float) / jnp.maximum(ticks[indices], 1).astype(float)
    return Draw(indices, jnp.where(inside, weights, 0), count)


def step_length(ticks: jax.Array, count: jax.Array) -> jax.Array:
    """Return the smallest number of ticks of which `count` steps span all ticks."""
    draws = jnp.maximum(count, 1).astype(jnp.uint32)
    return jnp.maximum((ticks.sum(dtype=jnp.uint32) + draws - 1) // draws, 1)


def ticks_of(chances: jax.Array, num_backprop: int) -> jax.Array:
    """Return probabilities `[n]` in whole ticks, uint32, whose sum fits in 32 bits.

    A probability above 0 has one tick or more. The number of ticks of probability 1 is
    a power of two that depends on `num_backprop`.
    """
    bits = 31 - (num_backprop - 1).bit_length()
    ticks = jnp.maximum(jnp.round(chances * 2.0**bits), 1)
    return jnp.where(chances > 0, ticks, 0).astype(jnp.uint32)


# -------------------------------------------------------------------------- orders


def _random_order(
    key: Key, mask: jax.Array, ranks: tuple[jax.Array, ...] = ()
) -> jax.Array:
    """Return the rows `[n]` int32 in random order, sorted by `ranks`, padding last."""
    words = jax.random.bits(key, (mask.size, 2), jnp.uint32)
    rows = jnp.arange(mask.size, dtype=jnp.int32)
    keys = (~mask, *ranks, words[:, 0], words[:, 1])
    return lax.sort((*keys, rows), num_keys=len(keys))[-1]


def _ranks(key: Key, strata: jax.Array | None) -> tuple[jax.Array, ...]:
    """Return arrays `[n]` by which strata are sorted in random order.

    A fixed order would leave few distinct draws where H is under the number of strata:
    those of neighbours in it would always be drawn together.
    """
    if strata is None:
        return ()

    def rank(stratum: jax.Array) -> jax.Array:
        return jax.random.bits(jax.random.fold_in(key, stratum), (), jnp.uint32)

    return jax.vmap(rank)(strata), strata  # two strata may have one rank


def _real_first_order(mask: jax.Array) -> jax.Array:
    """Return the rows `[n]` int32, real examples before padding, otherwise in order."""
    rows = jnp.arange(mask.size, dtype=jnp.int32)
    return lax.sort((~mask, rows), num_keys=2)[1]
