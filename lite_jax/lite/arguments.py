"""The arguments of operators: their checks, and what is made of keys and examples."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lite_jax.errors import UserError
from lite_jax.lite.additive import Pooled, leading_axis, weighted_sum
from lite_jax.lite.backward import labels_of
from lite_jax.lite.chunks import Chunks
from lite_jax.lite.sampling import LABELS, Sampler
from lite_jax.types import Key, PyTree

ChunkSize = int | tuple[int, int] | None
Encode = Callable[[PyTree, PyTree], PyTree]


def checked_rows(encode: Encode, args: PyTree, examples: PyTree) -> PyTree:
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


def with_key_data(examples: PyTree) -> tuple[PyTree, tuple[str | None, ...]]:
    """Return the examples with words in place of typed keys, and each leaf's key type.

    JAX's check of key reuse would count a typed key among the arguments of a derivative
    rule as used twice.
    """
    leaves, tree = jax.tree.flatten(examples)
    types = tuple(key_type(x) for x in leaves)
    words = [
        x if kind is None else jax.random.key_data(x)
        for x, kind in zip(leaves, types, strict=True)
    ]
    return jax.tree.unflatten(tree, words), types


def on_keys(
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


def key_type(x: Any) -> str | None:
    """Return the name of a typed key's type; None for anything else."""
    if not jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key):
        return None
    return str(jax.random.key_impl(x))


def fresh_key_data(key: Key) -> tuple[jax.Array, str | None]:
    """Return the words of a key split from `key`, and the name of its type.

    The split consumes `key`, so that JAX's check reports two sums that share a key.
    """
    fresh = jax.random.split(key, 1)[0]
    kind = key_type(fresh)
    return fresh if kind is None else jax.random.key_data(fresh), kind


def chunk_specs(examples: PyTree, length: int, is_map: bool) -> tuple[Any, ...]:
    """Return the specs of a function's arguments for a chunk of `length` examples."""
    chunk = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((length, *jnp.shape(x)[1:]), jnp.result_type(x)),
        examples,
    )
    weights = jax.ShapeDtypeStruct((length,), jnp.result_type(float))
    return (chunk,) if is_map else (chunk, weights)


def chunks_of(chunk_size: ChunkSize, axis_name: str | None) -> tuple[Chunks, Chunks]:
    """Return the chunks of the forward and of the backward pass."""
    pair = chunk_size if isinstance(chunk_size, tuple) else (chunk_size, chunk_size)
    if len(pair) != 2:
        raise ValueError(
            f"chunk_size: expected a whole number or a pair (forward, backward), got "
            f"{chunk_size!r}"
        )
    sizes = [None if x is None else whole_number("chunk_size", x) for x in pair]
    return Chunks(sizes[0], axis_name), Chunks(sizes[1], axis_name)


def whole_number(name: str, value: Any) -> int:
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


def check_strata(sampler: Sampler, examples: PyTree) -> None:
    """Raise unless the examples have the labels that a sampler needs."""
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


def checked_pooled(additive: Any) -> Pooled:
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


def checked_mask(examples: PyTree, mask: Any) -> jax.Array | None:
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


def check_key(operator: str, key: Key) -> None:
    """Raise unless there is a key, which an operator of this name needs."""
    if key is None:
        raise ValueError(
            f"key: {operator} draws examples and needs a jax.random.key, got None"
        )


def clip_to_set(name: str, value: int, examples: PyTree, mask: Any) -> int:
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
