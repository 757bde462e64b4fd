"""Functions as values: equality by code and closure, and closures over tracers.

A function made anew in each call, such as a lambda, is equal to the one before if its
code and what it closes over are equal. So eager calls share a compilation. Tracers that
a function closes over become arguments (`close_over`), so that they are differentiated.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from lite_jax.types import PyTree

_DEEPEST = 16
"""How deep objects are looked into; those below are compared by identity."""


class Function:
    """A callable, comparable by its code and what it closes over."""

    def __init__(self, fun: Callable[..., Any], key: Any = None):
        """Store the callable.

        Args:
            fun: The callable.
            key: What it is compared by; None for its code and its closure.
        """
        self.fun = fun
        self._key = _key_of(fun, []) if key is None else key
        self._hash = hash(self._key)

    def __call__(self, *args: Any) -> Any:
        """Call the function."""
        return self.fun(*args)

    def __eq__(self, other: object) -> bool:
        """Return whether both compute the same from the same arguments."""
        return isinstance(other, Function) and self._key == other._key

    def __hash__(self) -> int:
        """Return a hash that equal functions share."""
        return self._hash


def close_over(
    fun: Callable[..., Any], args: PyTree, others: Sequence[tuple[Any, ...]]
) -> tuple[Function, PyTree]:
    """Return `fun` with the tracers that it closes over as a part of its `args`.

    Args:
        fun: `(args, *others) -> tree`.
        args: Its first argument.
        others: Specs of its other arguments, for each set of shapes that it is called
            with. They differ in the size of the first leading axis.

    Returns:
        `(function, args)`. Both are the given ones if `fun` closes over no tracer.
    """
    tracers: list[jax.core.Tracer] = []
    key = _key_of(fun, tracers)
    if not tracers:
        return Function(fun, key), args
    programs = {
        _sizes(x): jax.make_jaxpr(fun, return_shape=True)(args, *x) for x in others
    }
    unique = {id(x): x for closed, _ in programs.values() for x in closed.consts}
    hoisted = [x for x in unique.values() if isinstance(x, jax.core.Tracer)]
    place = {id(x): i for i, x in enumerate(hoisted)}

    def call(args_and_hoisted: PyTree, *rest: Any) -> Any:
        args, values = args_and_hoisted
        closed, shape = programs[_sizes(rest)]
        consts = [values[place[id(x)]] if id(x) in place else x for x in closed.consts]
        leaves = jax.core.eval_jaxpr(
            closed.jaxpr, consts, *jax.tree.leaves((args, *rest))
        )
        return jax.tree.unflatten(jax.tree.structure(shape), leaves)

    return Function(call, ("closed over", key, tuple(programs))), (args, hoisted)


def without_constants(
    fun: Callable[..., Any], args: PyTree
) -> tuple[Callable[..., Any], PyTree]:
    """Return `fun` with the leaves of `args` that are no arrays bound, and the others.

    A module may have functions and texts among its leaves.

    Args:
        fun: `(args, *others) -> tree`.
        args: Its first argument.
    """
    leaves, tree = jax.tree.flatten(args)
    constants = tuple(None if _is_array(x) else x for x in leaves)
    if not any(x is not None for x in constants):
        return fun, args
    bound = functools.partial(_with_constants, fun, tree, constants)
    return bound, [x if _is_array(x) else None for x in leaves]


def _with_constants(
    fun: Any, tree: Any, constants: Any, arrays: Any, *rest: Any
) -> Any:
    leaves = [c if x is None else x for x, c in zip(arrays, constants, strict=True)]
    return fun(jax.tree.unflatten(tree, leaves), *rest)


def _is_array(x: Any) -> bool:
    return isinstance(x, int | float | complex | np.generic) or hasattr(x, "dtype")


def _sizes(arguments: Any) -> tuple[Any, ...]:
    return tuple(x.shape for x in jax.tree.leaves(arguments))


def _key_of(
    value: Any, tracers: list[jax.core.Tracer], inside: tuple[int, ...] = ()
) -> Any:
    """Return what a value is compared by, and append the tracers in it to a list."""
    if isinstance(value, jax.core.Tracer):
        known = [id(x) for x in tracers]
        if id(value) not in known:
            tracers.append(value)
            known.append(id(value))
        return "tracer", known.index(id(value)), value.shape, value.dtype
    if id(value) in inside:  # a function that closes over itself
        return "itself", inside.index(id(value))
    if len(inside) > _DEEPEST:
        return "same", _Same(value)
    parts = _parts_of(value)
    if parts is not None:
        walk = functools.partial(_key_of, tracers=tracers, inside=(*inside, id(value)))
        return type(value), *map(walk, parts)
    try:
        hash(value)
    except TypeError:
        return "same", _Same(value)
    return type(value), value


_WHOLE = (
    type, types.ModuleType, types.CodeType, jax.Array, np.ndarray,
    int, float, complex, str, bytes, frozenset,
)  # fmt: skip
"""Types whose values are not looked into: their attributes do not say what they are."""


class _Same:
    """A value that is equal to itself only."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _parts_of(value: Any) -> list[Any] | None:
    """Return the parts that decide what a value does; None if it has none."""
    if isinstance(value, types.FunctionType):
        cells = [_content_of(cell) for cell in value.__closure__ or ()]
        defaults = [value.__defaults__, value.__kwdefaults__]
        return [value.__code__, _Same(value.__globals__), *defaults, *cells]
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, dict):
        return [x for pair in value.items() for x in pair]
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, (*_WHOLE, _Same)):
        return None
    attributes = getattr(value, "__dict__", None)  # of an object, or a jitted function
    return [x for pair in attributes.items() for x in pair] if attributes else None


def _content_of(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not set yet
        return None
