"""`jax.grad` and `jax.value_and_grad` for functions of sums over a set."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax

from lite_jax.lite.arguments import ChunkSize
from lite_jax.lite.operators import exact_sum, lite_sum
from lite_jax.lite.sampling import Sampler
from lite_jax.types import SetSum


def lite_grad(
    fun: Callable[..., Any],
    *,
    num_backprop: int,
    chunk_size: ChunkSize = None,
    sampling: str | Sampler = "uniform",
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
) -> Callable[..., Any]:
    """Return the gradient function of `fun` under LITE's backward pass.

    Binds `set_sum=lite_sum(num_backprop, chunk_size, sampling)`, and `set_map` to its
    map, whichever `fun` asks for, and applies `jax.grad`. `lite_sum` and `lite_map`
    state the guarantees.

    Args:
        fun: `fun(*args, set_sum) -> loss`, or `(loss, aux)` with `has_aux`; with
            `set_map` in place of `set_sum` or beside it. Each sum and map needs a
            separate key.
        num_backprop: H, examples back-propagated per sum.
        chunk_size: Examples encoded at once. It sets the memory, never the result.
        sampling: How the H examples are drawn; see `lite_sum`.
        argnums: Arguments to differentiate, as in `jax.grad`.
        has_aux: Whether `fun` returns `(loss, aux)`, as in `jax.grad`.

    Returns:
        A function of `fun`'s arguments without `set_sum`. It returns what `jax.grad`
        returns: the gradient, or `(gradient, aux)`.

    Raises:
        TypeError: `fun` takes neither keyword.

    >>> import jax.numpy as jnp
    >>> from lite_jax.lite import per_example
    >>> def fun(a, x, key, *, set_sum):
    ...     return jnp.sin(set_sum(per_example(lambda a, x: a * x), a, x, key))
    >>> x = jnp.array([0.1, 0.2, 0.3])
    >>> print(f"{exact_grad(fun)(1.0, x, None):.4f}")
    0.4952
    >>> keys = jax.random.split(jax.random.key(0), 99)
    >>> each = jax.vmap(lite_grad(fun, num_backprop=1), (None, None, 0))(1.0, x, keys)
    >>> draws = sorted({round(float(g), 4) for g in each})
    >>> print(draws, f"{sum(draws) / 3:.4f}")
    [0.2476, 0.4952, 0.7428] 0.4952
    """
    set_sum = lite_sum(num_backprop, chunk_size, sampling)
    return jax.grad(_substitute(fun, set_sum), argnums, has_aux)


def lite_value_and_grad(
    fun: Callable[..., Any],
    *,
    num_backprop: int,
    chunk_size: ChunkSize = None,
    sampling: str | Sampler = "uniform",
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
) -> Callable[..., Any]:
    """Return the value and gradient function of `fun` under LITE's backward pass.

    The value is exact. Arguments are those of `lite_grad`; the result is that of
    `jax.value_and_grad`.
    """
    set_sum = lite_sum(num_backprop, chunk_size, sampling)
    return jax.value_and_grad(_substitute(fun, set_sum), argnums, has_aux)


def exact_grad(
    fun: Callable[..., Any],
    *,
    chunk_size: ChunkSize = None,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
) -> Callable[..., Any]:
    """Return the gradient function of `fun` with exact sums, `exact_sum(chunk_size)`.

    Arguments are those of `lite_grad`; the result is that of `jax.grad`.
    """
    return jax.grad(_substitute(fun, exact_sum(chunk_size)), argnums, has_aux)


def exact_value_and_grad(
    fun: Callable[..., Any],
    *,
    chunk_size: ChunkSize = None,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
) -> Callable[..., Any]:
    """Return the value and gradient function of `fun` with `exact_sum(chunk_size)`.

    Arguments are those of `lite_grad`; the result is that of `jax.value_and_grad`.
    """
    return jax.value_and_grad(_substitute(fun, exact_sum(chunk_size)), argnums, has_aux)


def _substitute(fun: Callable[..., Any], set_sum: SetSum) -> Callable[..., Any]:
    """Return `fun` with its keywords `set_sum` and `set_map` bound."""
    parameters = inspect.signature(fun).parameters
    operators = {"set_sum": set_sum, "set_map": set_sum.map}
    asked = {name: x for name, x in operators.items() if name in parameters}
    if any(x.kind is x.VAR_KEYWORD for x in parameters.values()):
        asked = {"set_sum": set_sum} | asked
    if not asked:
        name = getattr(fun, "__name__", repr(fun))
        raise TypeError(
            f"{name}{inspect.signature(fun)} takes no 'set_sum' keyword and no "
            f"'set_map': write it as {name}(…, *, set_sum) and form its sums over "
            "examples with set_sum(additive, args, examples, key), or with set_map its "
            "rows, set_map(encode, args, examples, key)"
        )
    return functools.partial(fun, **asked)
