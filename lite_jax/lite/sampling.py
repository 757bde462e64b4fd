"""Which examples carry the gradient: unbiased draws for `lite_sum(sampling=…)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lite_jax.types import Key

LABELS, SCORES = "labels", "scores"
UNIFORM_SHARE = 0.2
"""Of the inclusion probabilities under sensitivity, the share that is uniform."""


class Population(NamedTuple):
    """What is known of the examples before the draw.

    Attributes:
        mask: `[n]` bool, True for real examples.
        labels: `[n]` int32 strata, or None where the sampler does not need them.
        scores: `[n]` float, how much each example matters: the norm of the loss's exact
            derivative by its features. None where the sampler does not need it.
    """

    mask: jax.Array
    labels: jax.Array | None = None
    scores: jax.Array | None = None


class Draw(NamedTuple):
    """The examples that carry the gradient.

    Attributes:
        indices: `[h]` int32, rows of the example set.
        weights: `[h]` float, Horvitz-Thompson weights: the mean over draws of
            Σ_h weights_h · v[indices_h] is Σ_n mask_n · v[n]. 0 marks no draw.
        num_drawn: int32 scalar; draws of non-zero weight are among the first so many.
    """

    indices: jax.Array
    weights: jax.Array
    num_drawn: jax.Array


class Sampler(NamedTuple):
    """A rule for `lite_sum(sampling=…)`.

    Attributes:
        draw: `(key, population, num_backprop) -> Draw`.
        needs: What it reads of the population besides the mask: of "labels", "scores".
    """

    draw: Callable[[Key, Population, int], Draw]
    needs: tuple[str, ...] = ()


def sample_uniform(key: Key, population: Population, num_backprop: int) -> Draw:
    """Draw H examples uniformly without replacement, each of weight N/H.

    The variance is that of the paper's with-replacement draw times (N-H)/(N-1), and
    0 at H = N. Padding at the end leaves the drawn examples as they are.
    """
    mask = population.mask
    order = _shuffled(key, mask)
    total = mask.sum(dtype=jnp.int32)
    count = jnp.minimum(num_backprop, total)
    weight = total.astype(float) / jnp.maximum(count, 1).astype(float)
    places = jnp.arange(num_backprop, dtype=jnp.int32)
    weights = jnp.where(places < count, weight, 0)
    return Draw(order[:num_backprop], weights, count)


def sample_with_replacement(
    key: Key, population: Population, num_backprop: int
) -> Draw:
    """Draw H examples independently, each of weight N/H (the paper's formula)."""
    mask = population.mask
    total = mask.sum(dtype=jnp.int32)
    places = jax.random.randint(key, (num_backprop,), 0, jnp.maximum(total, 1))
    weight = jnp.full(num_backprop, total.astype(float) / num_backprop)
    return Draw(_real_first(mask)[places], weight, jnp.int32(num_backprop))


def sample_stratified(key: Key, population: Population, num_backprop: int) -> Draw:
    """Draw H examples, from each class its share of H, each example of weight N/H.

    A class of N_k examples gives H N_k / N of them, rounded down or up at random with
    that mean, so every class is reached, also where H is less than their number.
    """
    return _by_size(key, population, num_backprop, population.labels, None)


def sample_sensitivity(key: Key, population: Population, num_backprop: int) -> Draw:
    """Draw H examples without replacement, those that matter more often.

    The inclusion probability of an example is proportional to its score, mixed with a
    uniform one so that no weight is above N / (`UNIFORM_SHARE` H), and at most 1.
    """
    return _by_size(key, population, num_backprop, None, population.scores)


def sample_stratified_sensitivity(
    key: Key, population: Population, num_backprop: int
) -> Draw:
    """Draw H examples by sensitivity, from each class its share of the scores.

    That is Neyman's allocation, with probabilities proportional to size within classes.
    """
    return _by_size(key, population, num_backprop, population.labels, population.scores)


SAMPLERS: dict[str, Sampler] = {
    "uniform": Sampler(sample_uniform),
    "with_replacement": Sampler(sample_with_replacement),
    "stratified": Sampler(sample_stratified, (LABELS,)),
    "sensitivity": Sampler(sample_sensitivity, (SCORES,)),
    "stratified_sensitivity": Sampler(sample_stratified_sensitivity, (LABELS, SCORES)),
}


def sample_all(mask: jax.Array) -> Draw:
    """Take every real example once, at weight 1: the exact gradient."""
    order = _real_first(mask)
    return Draw(order, mask[order].astype(float), mask.sum(dtype=jnp.int32))


# ------------------------------------------------------------------ systematic draws


def _by_size(
    key: Key,
    population: Population,
    num_backprop: int,
    strata: jax.Array | None,
    scores: jax.Array | None,
) -> Draw:
    """Draw systematically from examples in random order, or in that within strata."""
    mask = population.mask
    order_key, start_key = jax.random.split(key)
    count = jnp.minimum(num_backprop, mask.sum(dtype=jnp.int32))
    chances = inclusion_probabilities(_sizes(mask, scores), count)
    order = _shuffled(order_key, mask, strata)
    return systematic(start_key, order, chances, count, num_backprop)


def _sizes(mask: jax.Array, scores: jax.Array | None) -> jax.Array:
    """Return what chances are proportional to: scores mixed with uniform ones."""
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
        sizes: `[n]`, at least 0, not all 0; 0 is never included.
        count: int32 scalar, at most the number of sizes above 0.
    """
    falling = -jnp.sort(-sizes)
    places = jnp.arange(sizes.size, dtype=jnp.int32)
    remaining = jnp.cumsum(falling[::-1])[::-1]  # from each place to the end
    left = (count - places).astype(sizes.dtype)
    certain = (left * falling >= remaining) & (left > 0)
    num_certain = jnp.cumprod(certain.astype(jnp.int32)).sum(dtype=jnp.int32)
    rest = jnp.where(places < num_certain, 0, falling).sum()
    slope = (count - num_certain).astype(sizes.dtype) / jnp.where(rest > 0, rest, 1)
    threshold = jnp.where(places < num_certain, falling, jnp.inf).min()
    chances = jnp.where(sizes >= threshold, 1, jnp.minimum(1, slope * sizes))
    everything = count >= (sizes > 0).sum(dtype=jnp.int32)
    return jnp.where(everything & (sizes > 0), 1, chances)


def systematic(
    key: Key, order: jax.Array, chances: jax.Array, count: jax.Array, num_backprop: int
) -> Draw:
    """Draw `count` examples at equal steps along a line on which each has its chance.

    The line is `chances` laid end to end in `order`, in whole ticks; the first place is
    uniform among the ticks of a step. So the expected number of draws of an example is
    its ticks over those of a step, and its weight the inverse, without rounding: the
    draw is unbiased in whatever precision `chances` came (Madow, "On the theory of
    systematic sampling, II", 1949).

    Args:
        key: Decides the first place.
        order: `[n]` int32, all examples; examples in a row are seldom drawn together.
        chances: `[n]` in [0, 1], of sum `count`.
        count: int32 scalar, at most `num_backprop`.
        num_backprop: Static size of the draw.
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
    """Return the systematic draw that begins at tick `first`, below a step's length."""
    step = step_length(ticks, count)
    line = jnp.cumsum(ticks[order], dtype=jnp.uint32)
    places = jnp.arange(num_backprop, dtype=jnp.uint32)
    found = jnp.searchsorted(line, first + places * step, side="right")
    inside = (places < count.astype(jnp.uint32)) & (found < order.size)
    indices = order[jnp.minimum(found, order.size - 1)]
    weights = step.astype(float) / jnp.maximum(ticks[indices], 1).astype(float)
    return Draw(indices, jnp.where(inside, weights, 0), count)


def step_length(ticks: jax.Array, count: jax.Array) -> jax.Array:
    """Return the least whole step that passes the whole line in `count` of them."""
    draws = jnp.maximum(count, 1).astype(jnp.uint32)
    return jnp.maximum((ticks.sum(dtype=jnp.uint32) + draws - 1) // draws, 1)


def ticks_of(chances: jax.Array, num_backprop: int) -> jax.Array:
    """Return chances as whole numbers that add up within 32 bits."""
    bits = 31 - (num_backprop - 1).bit_length()
    ticks = jnp.maximum(jnp.round(chances * 2.0**bits), 1)
    return jnp.where(chances > 0, ticks, 0).astype(jnp.uint32)


# -------------------------------------------------------------------------- orders


def _shuffled(key: Key, mask: jax.Array, strata: Any = None) -> jax.Array:
    """Return the row numbers in random order, by stratum, padding last."""
    words = jax.random.bits(key, (mask.size, 2), jnp.uint32)
    rows = jnp.arange(mask.size, dtype=jnp.int32)
    first = (~mask,) if strata is None else (~mask, strata)
    keys = (*first, words[:, 0], words[:, 1])
    return lax.sort((*keys, rows), num_keys=len(keys))[-1]


def _real_first(mask: jax.Array) -> jax.Array:
    """Return the row numbers, real examples before padding, else in order."""
    rows = jnp.arange(mask.size, dtype=jnp.int32)
    return lax.sort((~mask, rows), num_keys=2)[1]
