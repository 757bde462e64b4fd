"""Operators that sum or map over a set: exact, LITE and a scaled sub-sample.

An operator is a value: operators made from equal arguments are equal, and share a
compilation. It is called as its sum, and its `map` is the map.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from lite_jax.errors import unknown_name
from lite_jax.lite.additive import Pooled, leading_axis, weighted_sum
from lite_jax.lite.arguments import (
    ChunkSize,
    Encode,
    check_key,
    check_strata,
    checked_mask,
    checked_pooled,
    checked_rows,
    chunk_specs,
    chunks_of,
    clip_to_set,
    fresh_key_data,
    on_keys,
    whole_number,
    with_key_data,
)
from lite_jax.lite.backward import Plan, recomputed
from lite_jax.lite.chunks import (
    Chunks,
    add_to_rows,
    as_arrays,
    constant_if_empty,
    full_mask,
    in_accumulators,
    per_row,
    summed,
    take_chunk,
    whole_set,
    without_padding,
    zero_if_empty,
)
from lite_jax.lite.functions import close_over, without_constants
from lite_jax.lite.sampling import (
    SAMPLERS,
    SCORES,
    Population,
    Sampler,
    sample_uniform,
)
from lite_jax.types import Additive, Key, PyTree


@dataclasses.dataclass(frozen=True)
class OperatorMap:
    """The map of an operator: `(encode, args, examples, key, mask=None) -> rows`.

    Attributes:
        set_sum: The operator.
    """

    set_sum: Any

    def __call__(
        self,
        encode: Encode,
        args: PyTree,
        examples: PyTree,
        key: Key,
        mask: jax.Array | None = None,
    ) -> PyTree:
        """Return the rows `encode(args, x_n)`; see `lite_jax.types.SetMap`."""
        return self.set_sum.rows(encode, args, examples, key, mask)


@dataclasses.dataclass(frozen=True)
class RecomputedSum:
    """The exact sum and the exact map, with a choice of backward pass.

    `exact_sum` and `lite_sum` make it.

    Attributes:
        forward: The chunks of the forward pass.
        backward: The chunks of the backward pass.
        sampler: Draws the examples that are differentiated; None takes all.
        num_backprop: H; 0 without a sampler.
    """

    forward: Chunks
    backward: Chunks
    sampler: Sampler | None = None
    num_backprop: int = 0

    @property
    def map(self) -> OperatorMap:
        """The map of the same operator."""
        return OperatorMap(self)

    def __call__(
        self,
        additive: Additive,
        args: PyTree,
        examples: PyTree,
        key: Key,
        mask: jax.Array | None = None,
    ) -> PyTree:
        """Return Σ_n mask_n · term(args, x_n); see `lite_jax.types.SetSum`."""
        mask = checked_mask(examples, mask)
        if self._is_plain:
            args, examples = constant_if_empty((args, examples), mask)
            additive = functools.partial(additive, args)
            return summed(additive, examples, mask, self.forward)
        if self.sampler is not None and SCORES in self.sampler.needs:
            additive = checked_pooled(additive)
            if additive.pool is not weighted_sum:
                return self._pooled(additive, args, examples, key, mask)
        return self._recomputed(additive, False, args, examples, key, mask)

    def rows(
        self, encode: Encode, args: PyTree, examples: PyTree, key: Key, mask: Any
    ) -> PyTree:
        """Return the rows of the set; see `OperatorMap`."""
        mask = checked_mask(examples, mask)
        encode = functools.partial(checked_rows, encode)
        if not self._is_plain:
            return self._recomputed(encode, True, args, examples, key, mask)
        args, examples = constant_if_empty((args, examples), mask)
        return without_padding(encode(args, whole_set(examples, mask)[0]), mask)

    @property
    def _is_plain(self) -> bool:
        """Whether JAX differentiates one call of the function, as it stands."""
        return self.sampler is None and self.forward == self.backward == Chunks()

    def _pooled(
        self, additive: Pooled, args: PyTree, examples: PyTree, key: Key, mask: Any
    ) -> PyTree:
        """Return the pool of a map's rows, whose cotangents are the sensitivities."""
        rows = self.rows(additive.features, args, examples, key, mask)
        pool = RecomputedSum(self.forward, self.forward)
        return pool(
            functools.partial(_pool, additive.pool), (), (rows, examples), None, mask
        )

    def _recomputed(
        self,
        fun: Any,
        is_map: bool,
        args: PyTree,
        examples: PyTree,
        key: Key,
        mask: Any,
    ) -> PyTree:
        """Return the sum or the rows, with the derivative rule of `recomputed`."""
        size = leading_axis(examples)
        drawn, key_data, key_type = size, None, None
        if self.sampler is not None:
            check_key("lite_sum", key)
            check_strata(self.sampler, examples)
            drawn = clip_to_set("num_backprop", self.num_backprop, examples, mask)
            key_data, key_type = fresh_key_data(key)
        examples, key_types = with_key_data(examples)
        if any(key_types):
            fun = functools.partial(on_keys, fun, key_types)
        fun, args = without_constants(fun, args)
        lengths = {self.forward.length(size), self.backward.length(drawn), 1}
        specs = [chunk_specs(examples, length, is_map) for length in sorted(lengths)]
        function, args = close_over(fun, args, specs)
        plan = Plan(
            function, is_map, self.forward, self.backward, self.sampler,
            drawn if self.sampler else 0, key_type,
        )  # fmt: skip
        return recomputed(plan, args, as_arrays(examples), key_data, mask)


@dataclasses.dataclass(frozen=True)
class SubsampleSum:
    """The scaled sum over a sub-sample; see `subsample_sum`.

    Attributes:
        num_examples: Size of the sub-sample.
    """

    num_examples: int

    @property
    def map(self) -> OperatorMap:
        """The map whose rows are scaled by N/num_examples, and 0 where not drawn."""
        return OperatorMap(self)

    def __call__(
        self,
        additive: Additive,
        args: PyTree,
        examples: PyTree,
        key: Key,
        mask: jax.Array | None = None,
    ) -> PyTree:
        """Return the scaled sum; see `lite_jax.types.SetSum`."""
        mask = checked_mask(examples, mask)
        args, examples = constant_if_empty((args, examples), mask)
        chunk = self._sample(examples, key, mask)
        total = in_accumulators(additive(args, chunk.examples, chunk.weights))
        return zero_if_empty(total, mask)

    def rows(
        self, encode: Encode, args: PyTree, examples: PyTree, key: Key, mask: Any
    ) -> PyTree:
        """Return unbiased estimates of the rows; see `OperatorMap`."""
        mask = checked_mask(examples, mask)
        args, examples = constant_if_empty((args, examples), mask)
        chunk = self._sample(examples, key, mask)
        size = leading_axis(examples)

        def scattered(rows: jax.Array) -> jax.Array:
            weights = chunk.weights.astype(rows.dtype)
            table = jnp.zeros((size, *rows.shape[1:]), rows.dtype)
            return add_to_rows(table, chunk, rows * per_row(weights, rows))

        rows = jax.tree.map(scattered, checked_rows(encode, args, chunk.examples))
        return zero_if_empty(rows, mask)

    def _sample(self, examples: PyTree, key: Key, mask: Any) -> Any:
        check_key("subsample_sum", key)
        size = clip_to_set("num_examples", self.num_examples, examples, mask)
        draw = sample_uniform(key, Population(full_mask(examples, mask)), size)
        return take_chunk(examples, draw, 0, size)


def exact_sum(
    chunk_size: ChunkSize = None, *, axis_name: str | None = None
) -> RecomputedSum:
    """Return the operator with exact value and exact gradient.

    Guarantees:
        The gradients by `args`, by `examples` and by what the function closes over are
        exact. With a chunk size or an axis name, one chunk at a time is in memory. The
        forward pass keeps only its inputs, and the backward pass recomputes each chunk.
        The sum can be differentiated once, in reverse mode; a second derivative raises.
        With neither, this is a plain call of the function: the residuals of all N
        examples are kept, and the sum can be differentiated any number of times in
        either mode.

    Args:
        chunk_size: Examples per chunk, 1 or more; a pair for the forward and the
            backward pass; None takes all N at once.
        axis_name: Inside `jax.shard_map(…, check_vma=False)`, the axis of the mesh
            whose devices share the examples; see `lite_jax.run.parallel`. None for one
            device.

    Raises:
        ValueError: A chunk size below 1. From the operator: a mask that is not bool
            `[N]`, or examples whose leading axes differ.

    >>> from lite_jax.lite import per_example
    >>> cube = per_example(lambda a, x: a * x**3)
    >>> total = functools.partial(exact_sum(chunk_size=2), cube)
    >>> print(jax.grad(total)(2.0, jnp.array([1.0, 2.0, 3.0]), None))
    36.0
    """
    return RecomputedSum(*chunks_of(chunk_size, axis_name))


def exact_map(
    chunk_size: ChunkSize = None, *, axis_name: str | None = None
) -> OperatorMap:
    """Return the map with exact rows and exact gradient, `exact_sum(…).map`.

    With a chunk size it does what `jax.lax.map` of a `jax.checkpoint`ed function does,
    and takes masks, sets of varying size and devices as well.

    >>> rows = exact_map(chunk_size=2)(lambda a, x: a * x, 2.0, jnp.arange(3.0), None)
    >>> print(rows)
    [0. 2. 4.]
    """
    return exact_sum(chunk_size, axis_name=axis_name).map


def lite_sum(
    num_backprop: int,
    chunk_size: ChunkSize = None,
    sampling: str | Sampler = "uniform",
    *,
    axis_name: str | None = None,
) -> RecomputedSum:
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
        The gradient by `examples` is that of the drawn ones, weighted, and unbiased.
        The sum can be differentiated once, in reverse mode; a second derivative raises.

    Args:
        num_backprop: H, the number of examples that are back-propagated, 1 or more. A
            draw without replacement from fewer real examples takes all of them.
        chunk_size: Examples encoded at once; a pair for the forward and the backward
            pass; None encodes all N at once.
        sampling: "uniform" (without replacement), "with_replacement", "stratified" (by
            class), "sensitivity" (examples with more effect on the loss are drawn more
            often), "stratified_sensitivity" (both; the smallest variance once trained),
            or a user-defined `Sampler`. See `lite_jax.lite.sampling`.
        axis_name: Inside `jax.shard_map(…, check_vma=False)`, the axis of the mesh
            whose devices share the examples. A key draws the same examples as on one
            device. None for one device.

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
    size = whole_number("num_backprop", num_backprop)
    if not isinstance(sampling, Sampler) and sampling not in SAMPLERS:
        raise unknown_name("sampling", sampling, SAMPLERS)
    sampler = sampling if isinstance(sampling, Sampler) else SAMPLERS[sampling]
    return RecomputedSum(*chunks_of(chunk_size, axis_name), sampler, size)


def lite_map(
    num_backprop: int,
    chunk_size: ChunkSize = None,
    sampling: str | Sampler = "uniform",
    *,
    axis_name: str | None = None,
) -> OperatorMap:
    """Return the map with exact rows and the gradient of H of them, `lite_sum(…).map`.

    The loss is any function of the rows. Its cotangents of all rows are exact; the H
    rows that are drawn are computed again and differentiated, weighted by the inverse
    of their chances. With "sensitivity", a row's chance follows the norm of its
    cotangent.

    Guarantees:
        Rows are those of `exact_map(chunk_size)`. The gradients by `args`, by the
        examples and by what `encode` closes over are unbiased over draws for any smooth
        loss, and exact at H = N without replacement. Memory: the table of rows and one
        chunk.

    >>> x = jnp.array([1.0, 2.0, 3.0])
    >>> def loss(a, key, set_map):  # a softmax over the set, which no sum gives
    ...     rows = set_map(lambda a, x: a * x, a, x, key)
    ...     return jax.nn.softmax(rows) @ rows
    >>> print(f"{jax.grad(loss)(1.0, None, exact_map()):.3f}")
    3.000
    >>> sampled = functools.partial(loss, set_map=lite_map(num_backprop=2))
    >>> keys = jax.random.split(jax.random.key(0), 99)
    >>> grads = jax.vmap(jax.grad(sampled), (None, 0))(1.0, keys)
    >>> draws = sorted({round(float(g), 3) for g in grads})
    >>> print(draws, f"{sum(draws) / 3:.3f}")
    [0.234, 4.188, 4.577] 3.000
    """
    return lite_sum(num_backprop, chunk_size, sampling, axis_name=axis_name).map


def subsample_sum(num_examples: int) -> SubsampleSum:
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
    return SubsampleSum(whole_number("num_examples", num_examples))


# ----------------------------------------------------------------- parts of a call


def _pool(pool: Any, args: PyTree, rows_and_examples: PyTree, weights: Any) -> PyTree:
    del args
    return pool(*rows_and_examples, weights)
