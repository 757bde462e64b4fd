"""Operators that sum over a set: the exact sum, LITE and a scaled sub-sample."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lite_jax.errors import UserError, unknown_name
from lite_jax.lite.additive import Pooled, leading_axis
from lite_jax.lite.backward import TAKE_ALL, Rule, labels_of, recomputed_sum
from lite_jax.lite.chunks import (
    Chunks,
    full_mask,
    in_accumulators,
    take_chunk,
    whole_sum,
)
from lite_jax.lite.sampling import (
    LABELS,
    SAMPLERS,
    SCORES,
    Draw,
    Population,
    Sampler,
    sample_uniform,
)
from lite_jax.types import Key, PyTree, SetSum


def exact_sum(chunk_size: int | None = None, *, axis_name: str | None = None) -> SetSum:
    """Return the operator with exact value and exact gradient.

    Guarantees:
        With a chunk size or an axis name, one chunk at a time is in memory. The forward
        pass keeps only its inputs, and the backward pass recomputes each chunk. The sum
        can be differentiated once, in reverse mode. With neither, this is a plain call
        of the additive function: the residuals of all N examples are kept, and the sum
        can be differentiated any number of times in either mode.

    Args:
        chunk_size: Examples per chunk, 1 or more; None takes all N at once.
        axis_name: Inside `jax.shard_map`, the axis of the mesh whose devices share the
            examples; see `lite_jax.run.parallel`. None for one device.

    Raises:
        ValueError: A chunk size below 1. From the operator: a mask that is not bool
            `[N]`, or examples whose leading axes differ.

    >>> from lite_jax.lite import per_example
    >>> cube = per_example(lambda a, x: a * x**3)
    >>> total = functools.partial(exact_sum(chunk_size=2), cube)
    >>> print(jax.grad(total)(2.0, jnp.array([1.0, 2.0, 3.0]), None))
    36.0
    """
    _check_positive("chunk_size", chunk_size, optional=True)
    chunks = Chunks(chunk_size, axis_name)

    def set_sum(additive, args, examples, key, mask=None):
        mask = _checked_mask(examples, mask)
        if chunks == Chunks():
            return whole_sum(additive, args, lax.stop_gradient(examples), mask)
        inputs = args, examples, None, mask
        return recomputed_sum(additive, TAKE_ALL, chunks, *inputs)

    return set_sum


def lite_sum(
    num_backprop: int,
    chunk_size: int | None = None,
    sampling: str | Sampler = "uniform",
    *,
    axis_name: str | None = None,
) -> SetSum:
    """Return the operator with exact value and an H-example gradient (LITE, §3).

    The value is Σ_n e_φ(x_n) over all N examples. The gradient is
    L'(e) · Σ_h w_h ∂e_φ(x_h)/∂φ over H drawn examples, with w_h = N/H for a uniform
    draw. The cotangent L'(e) is exact.

    Guarantees:
        Value: that of `exact_sum(chunk_size)`, whatever the draw. Gradient: unbiased
        over draws for any smooth loss, provided that each sum has a separate key; exact
        at H = N without replacement. (An optimiser that is not linear in the gradient,
        such as Adam, does not turn it into an unbiased update.) Memory: one chunk,
        forward or backward, whatever N and H (without a chunk size, N examples forward
        and H backward). Between the two passes only the inputs are kept, and for
        sensitivity sampling the features. Compute: N + H forward and H backward passes.
        The sum can be differentiated once, in reverse mode.

    Args:
        num_backprop: H, the number of examples that are back-propagated, 1 or more. A
            draw without replacement from fewer real examples takes all of them.
        chunk_size: Examples encoded at once; None encodes all N at once.
        sampling: "uniform" (without replacement), "with_replacement", "stratified" (by
            class), "sensitivity" (examples with more effect on the loss are drawn more
            often), "stratified_sensitivity" (both; the smallest variance once trained),
            or a user-defined `Sampler`. See `lite_jax.lite.sampling`.
        axis_name: Inside `jax.shard_map`, the axis of the mesh whose devices share the
            examples. A key draws the same examples as on one device. None for one
            device.

    Raises:
        ValueError: H < 1 or a chunk size < 1. From the operator: no key, H > N without
            a mask, a mask that is not bool `[N]`, or examples whose leading axes
            differ.
        UserError: An unknown sampling rule. From the operator: stratified sampling of
            examples without labels, or sensitivity sampling with an additive function
            that is not `Pooled`.

    >>> from lite_jax.lite import per_example
    >>> cube = per_example(lambda a, x: a * x**3)
    >>> x = jnp.array([1.0, 2.0, 3.0])
    >>> total = functools.partial(lite_sum(num_backprop=2), cube)
    >>> print(total(2.0, x, jax.random.key(0)))
    72.0
    >>> keys = jax.random.split(jax.random.key(0), 99)
    >>> grads = jax.vmap(lambda key: jax.grad(total)(2.0, x, key))(keys)
    >>> draws = sorted({round(float(g), 4) for g in grads})
    >>> print(draws, sum(draws) / 3)  # 3/2 of two of 1, 8 and 27; the exact 36
    [13.5, 42.0, 52.5] 36.0
    """
    _check_positive("num_backprop", num_backprop)
    _check_positive("chunk_size", chunk_size, optional=True)
    if not isinstance(sampling, Sampler) and sampling not in SAMPLERS:
        raise unknown_name("sampling", sampling, SAMPLERS)
    sampler = sampling if isinstance(sampling, Sampler) else SAMPLERS[sampling]
    chunks = Chunks(chunk_size, axis_name)

    def set_sum(additive, args, examples, key, mask=None):
        _check_key("lite_sum", key)
        _check_needs(sampler, additive, examples)
        mask = _checked_mask(examples, mask)
        size = _clip_to_set("num_backprop", num_backprop, examples, mask)
        key_data, to_key = _fresh_key_data(key)

        def draw(key_data: jax.Array, population: Population) -> Draw:
            return sampler.draw(to_key(key_data), population, size)

        rule = Rule(draw, sampler.needs)
        return recomputed_sum(additive, rule, chunks, args, examples, key_data, mask)

    return set_sum


def subsample_sum(num_examples: int) -> SetSum:
    """Return the operator that sums a scaled sub-sample, the baseline of LITE.

    Value and gradient both come from `num_examples` examples. They are drawn uniformly
    without replacement and weighted N/num_examples.

    Guarantees:
        The value is an unbiased estimate of the exact sum. A loss that is not linear in
        the sum is biased, and so is its gradient. Exact at num_examples = N. Memory:
        residuals of `num_examples` examples.

    Args:
        num_examples: Size of the sub-sample, 1 or more.

    Raises:
        ValueError: num_examples < 1. From the operator: no key, num_examples > N
            without a mask, a mask that is not bool `[N]`, or examples whose leading
            axes differ.

    >>> from lite_jax.lite import per_example
    >>> double = per_example(lambda a, x: a * x)
    >>> print(subsample_sum(2)(double, 2.0, jnp.ones(4), jax.random.key(0)))
    8.0
    """
    _check_positive("num_examples", num_examples)

    def set_sum(additive, args, examples, key, mask=None):
        _check_key("subsample_sum", key)
        mask = _checked_mask(examples, mask)
        size = _clip_to_set("num_examples", num_examples, examples, mask)
        draw = sample_uniform(key, Population(full_mask(examples, mask)), size)
        sample = take_chunk(lax.stop_gradient(examples), draw, 0, size)
        return in_accumulators(additive(args, *sample))

    return set_sum


def _fresh_key_data(key: Key) -> tuple[jax.Array, Callable[[jax.Array], Key]]:
    """Return the data of a key split from `key`, and the function back to a key.

    The split consumes `key`, so that JAX's key-reuse check reports two sums that share
    a key. The custom derivative rule receives plain key data, since the check would
    count a typed key among its arguments as used twice.
    """
    fresh = jax.random.split(key, 1)[0]
    if not jnp.issubdtype(fresh.dtype, jax.dtypes.prng_key):
        return fresh, lambda key_data: key_data
    wrap = functools.partial(jax.random.wrap_key_data, impl=jax.random.key_impl(fresh))
    return jax.random.key_data(fresh), wrap


# ----------------------------------------------------------- checks of arguments


def _check_needs(sampler: Sampler, additive: Any, examples: PyTree) -> None:
    if LABELS in sampler.needs and labels_of(examples) is None:
        raise UserError(
            "sampling by strata needs the examples' classes: pass examples with an "
            "attribute or key 'labels' [n], or choose sampling='uniform' or "
            "'sensitivity'"
        )
    if SCORES in sampler.needs and not isinstance(additive, Pooled):
        raise UserError(
            "sampling by sensitivity needs the features of an example, and this "
            "additive function exposes none: make it with lite_jax.Pooled(features, "
            "pool), or choose sampling='stratified' or 'uniform'"
        )


def _checked_mask(examples: PyTree, mask: Any) -> jax.Array | None:
    """Return the mask as an array, or None; raise unless it is bool `[n]`."""
    size = leading_axis(examples)
    if mask is None:
        return None
    mask = jnp.asarray(mask)
    if mask.shape != (size,) or mask.dtype != jnp.bool_:
        raise ValueError(
            f"mask: expected bool [{size}] to match the examples, got "
            f"{mask.dtype} {list(mask.shape)}"
        )
    return mask


def _check_key(operator: str, key: Key) -> None:
    if key is None:
        raise ValueError(
            f"key: {operator} draws examples and needs a jax.random.key, got None"
        )


def _check_positive(name: str, value: int | None, optional: bool = False) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        kind = "a positive integer or None" if optional else "a positive integer"
        raise ValueError(f"{name}: expected {kind}, got {value!r}")


def _clip_to_set(name: str, value: int, examples: PyTree, mask: Any) -> int:
    """Return the smaller of `value` and the size n of the set.

    Without a mask a larger value raises a `ValueError`; with a mask it warns.
    """
    size = leading_axis(examples)
    if value <= size:
        return value
    if mask is None:
        raise ValueError(
            f"{name}={value} is more than the {size} examples there are: lower it, or "
            f"use exact_sum for the exact gradient"
        )
    warnings.warn(
        f"{name}={value} is more than the {size} examples a set can hold: all of them "
        "are used",
        stacklevel=3,
    )
    return size
