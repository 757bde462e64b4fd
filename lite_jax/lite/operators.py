"""Operators that sum or map over a set: exact, LITE and a scaled sub-sample.

An operator is a value: operators made from equal arguments are equal, and share a
compilation. It is called as its sum, and its `map` is the map.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lite_jax.errors import UserError, unknown_name
from lite_jax.lite.additive import Pooled, leading_axis, weighted_sum
from lite_jax.lite.backward import Plan, labels_of, recomputed
from lite_jax.lite.chunks import (
    Chunks,
    as_arrays,
    constant_if_empty,
    full_mask,
    in_accumulators,
    take_chunk,
    whole_set,
    zero_if_empty,
)
from lite_jax.lite.functions import close_over, without_constants
from lite_jax.lite.sampling import (
    LABELS,
    SAMPLERS,
    SCORES,
    Population,
    Sampler,
    sample_uniform,
)
from lite_jax.types import Additive, Key, PyTree

ChunkSize = int | tuple[int, int] | None
Encode = Callable[[PyTree, PyTree], PyTree]


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
        """Return the rows `encode(args, x_n)`, `[N, …]`; those of padding are 0.

        Args:
            encode: `(args, examples [n]) -> rows [n, …]`, any tree; row i depends on
                example i alone.
            args: First argument of `encode`.
            examples: The set, a tree of arrays with leading axis N.
            key: Key of the draw; operators that draw nothing accept None.
            mask: `[N]` bool, True for real examples; None if all are real.
        """
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
        mask = _checked_mask(examples, mask)
        if self._is_plain:
            return _plain_sum(additive, args, examples, mask)
        if self.sampler is not None and SCORES in self.sampler.needs:
            additive = _checked_pooled(additive)
            if additive.pool is not weighted_sum:
                return self._pooled(additive, args, examples, key, mask)
        return self._recomputed(additive, False, args, examples, key, mask)

    def rows(
        self, encode: Encode, args: PyTree, examples: PyTree, key: Key, mask: Any
    ) -> PyTree:
        """Return the rows of the set; see `OperatorMap`."""
        mask = _checked_mask(examples, mask)
        encode = functools.partial(_checked_rows, encode)
        if not self._is_plain:
            return self._recomputed(encode, True, args, examples, key, mask)
        args, examples = constant_if_empty((args, examples), mask)
        return _without_padding(encode(args, whole_set(examples, mask)[0]), mask)

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
            _check_key("lite_sum", key)
            _check_labels(self.sampler, examples)
            drawn = _clip_to_set("num_backprop", self.num_backprop, examples, mask)
            key_data, key_type = _fresh_key_data(key)
        examples, key_types = _with_key_data(examples)
        if any(key_types):
            fun = functools.partial(_on_keys, fun, key_types)
        fun, args = without_constants(fun, args)
        lengths = {self.forward.length(size), self.backward.length(drawn), 1}
        specs = [_specs(examples, length, is_map) for length in sorted(lengths)]
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
        mask = _checked_mask(examples, mask)
        args, examples = constant_if_empty((args, examples), mask)
        chunk = self._sample(examples, key, mask)
        total = in_accumulators(additive(args, chunk.examples, chunk.weights))
        return zero_if_empty(total, mask)

    def rows(
        self, encode: Encode, args: PyTree, examples: PyTree, key: Key, mask: Any
    ) -> PyTree:
        """Return unbiased estimates of the rows; see `OperatorMap`."""
        mask = _checked_mask(examples, mask)
        args, examples = constant_if_empty((args, examples), mask)
        chunk = self._sample(examples, key, mask)
        size = leading_axis(examples)

        def scattered(rows: jax.Array) -> jax.Array:
            weights = chunk.weights.astype(rows.dtype)
            scaled = rows * weights.reshape(-1, *[1] * (rows.ndim - 1))
            table = jnp.zeros((size, *rows.shape[1:]), rows.dtype)
            return table.at[chunk.rows].set(scaled, mode="drop")

        rows = jax.tree.map(scattered, _checked_rows(encode, args, chunk.examples))
        return zero_if_empty(rows, mask)

    def _sample(self, examples: PyTree, key: Key, mask: Any) -> Any:
        _check_key("subsample_sum", key)
        size = _clip_to_set("num_examples", self.num_examples, examples, mask)
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
    return RecomputedSum(*_chunks(chunk_size, axis_name))


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
    size = _whole_number("num_backprop", num_backprop)
    if not isinstance(sampling, Sampler) and sampling not in SAMPLERS:
        raise unknown_name("sampling", sampling, SAMPLERS)
    sampler = sampling if isinstance(sampling, Sampler) else SAMPLERS[sampling]
    return RecomputedSum(*_chunks(chunk_size, axis_name), sampler, size)


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
    return SubsampleSum(_whole_number("num_examples", num_examples))


# ----------------------------------------------------------------- parts of a call


def _plain_sum(additive: Additive, args: PyTree, examples: PyTree, mask: Any) -> PyTree:
    args, examples = constant_if_empty((args, examples), mask)
    total = in_accumulators(additive(args, *whole_set(examples, mask)))
    return zero_if_empty(total, mask)


def _without_padding(rows: PyTree, mask: jax.Array | None) -> PyTree:
    """Return the rows, 0 where the mask is False."""
    if mask is None:
        return rows
    return jax.tree.map(
        lambda x: jnp.where(
            mask.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros_like(x)
        ),
        rows,
    )


def _pool(pool: Any, args: PyTree, rows_and_examples: PyTree, weights: Any) -> PyTree:
    del args
    return pool(*rows_and_examples, weights)


def _checked_rows(encode: Encode, args: PyTree, examples: PyTree) -> PyTree:
    """Return `encode(args, examples)`; raise unless it has a row for each example."""
    rows, size = encode(args, examples), leading_axis(examples)
    shapes = [jnp.shape(x) for x in jax.tree.leaves(rows)]
    if any(shape[:1] != (size,) for shape in shapes):
        raise ValueError(
            f"encode: expected rows with the leading axis {size} of its examples, got "
            f"shapes {shapes}; jax.vmap(encode, (None, 0)) lifts an encoder of one "
            "example"
        )
    return rows


def _with_key_data(examples: PyTree) -> tuple[PyTree, tuple[str | None, ...]]:
    """Return the examples with words in place of typed keys, and each leaf's key type.

    JAX's check of key reuse would count a typed key among the arguments of a derivative
    rule as used twice.
    """
    leaves, tree = jax.tree.flatten(examples)
    types = tuple(_key_type(x) for x in leaves)
    words = [
        x if kind is None else jax.random.key_data(x)
        for x, kind in zip(leaves, types, strict=True)
    ]
    return jax.tree.unflatten(tree, words), types


def _on_keys(
    fun: Any,
    types: tuple[str | None, ...],
    args: PyTree,
    examples: PyTree,
    *weights: Any,
) -> PyTree:
    """Return `fun(args, examples, *weights)` with words made keys again."""
    leaves, tree = jax.tree.flatten(examples)
    keys = [
        x if kind is None else jax.random.wrap_key_data(x, impl=kind)
        for x, kind in zip(leaves, types, strict=True)
    ]
    return fun(args, jax.tree.unflatten(tree, keys), *weights)


def _key_type(x: Any) -> str | None:
    """Return the name of a typed key's type; None for anything else."""
    if not jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key):
        return None
    return str(jax.random.key_impl(x))


def _fresh_key_data(key: Key) -> tuple[jax.Array, str | None]:
    """Return the words of a key split from `key`, and the name of its type.

    The split consumes `key`, so that JAX's check reports two sums that share a key.
    """
    fresh = jax.random.split(key, 1)[0]
    kind = _key_type(fresh)
    return fresh if kind is None else jax.random.key_data(fresh), kind


def _specs(examples: PyTree, length: int, is_map: bool) -> tuple[Any, ...]:
    """Return the specs of a function's arguments for a chunk of `length` examples."""
    chunk = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((length, *jnp.shape(x)[1:]), jnp.result_type(x)),
        examples,
    )
    weights = jax.ShapeDtypeStruct((length,), jnp.result_type(float))
    return (chunk,) if is_map else (chunk, weights)


# ----------------------------------------------------------- checks of arguments


def _chunks(chunk_size: ChunkSize, axis_name: str | None) -> tuple[Chunks, Chunks]:
    """Return the chunks of the forward and of the backward pass."""
    pair = chunk_size if isinstance(chunk_size, tuple) else (chunk_size, chunk_size)
    if len(pair) != 2:
        raise ValueError(
            f"chunk_size: expected a whole number or a pair (forward, backward), got "
            f"{chunk_size!r}"
        )
    sizes = [None if x is None else _whole_number("chunk_size", x) for x in pair]
    return Chunks(sizes[0], axis_name), Chunks(sizes[1], axis_name)


def _whole_number(name: str, value: Any) -> int:
    """Return a whole number of 1 or more, NumPy's included."""
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        kind = (
            "a positive integer or None"
            if name == "chunk_size"
            else "a positive integer"
        )
        raise ValueError(f"{name}: expected {kind}, got {value!r}")
    return number


def _check_labels(sampler: Sampler, examples: PyTree) -> None:
    if LABELS not in sampler.needs:
        return
    labels = labels_of(examples)
    if labels is None:
        raise UserError(
            "sampling by strata needs the examples' classes: pass examples with an "
            "attribute or key 'labels' [n], or choose sampling='uniform' or "
            "'sensitivity'"
        )
    if jnp.ndim(labels) != 1 or not jnp.issubdtype(
        jnp.result_type(labels), jnp.integer
    ):
        raise UserError(
            f"sampling by strata: labels of shape {list(jnp.shape(labels))} and dtype "
            f"{jnp.result_type(labels)}; expected class indices, integers [n] "
            "(labels.argmax(-1) of one-hot ones)"
        )


def _checked_pooled(additive: Any) -> Pooled:
    """Return an additive function with features; warn where they tell nothing."""
    if not isinstance(additive, Pooled):
        raise UserError(
            "sampling by sensitivity needs the features of an example, and this "
            "additive function exposes none: make it with lite_jax.Pooled(features, "
            "pool), or choose sampling='stratified' or 'uniform'"
        )
    if additive.pool is weighted_sum:
        warnings.warn(
            "sampling by sensitivity: a loss is equally sensitive to all terms of a "
            "plain sum, so this draw is uniform: expose features by lite_jax.Pooled or "
            "choose sampling='stratified' or 'uniform'",
            stacklevel=3,
        )
    return additive


def _checked_mask(examples: PyTree, mask: Any) -> jax.Array | None:
    """Return the mask as an array, or None; raise unless it is bool `[n]`."""
    size = leading_axis(examples)
    if size == 0:
        raise ValueError(
            "examples: the set is empty (N = 0): pad it to 1 or more and give a mask "
            "that is False there"
        )
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
