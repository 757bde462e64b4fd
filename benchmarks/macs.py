"""Multiply-accumulate operations of a function, counted in what JAX traces."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax


def count_macs(fun: Callable[..., Any], *args: Any) -> int:
    """Return the MACs of the convolutions and matrix products in `fun(*args)`.

    A scan counts as often as it runs; a loop with a dynamic trip count is refused.
    Traced as for a GPU, where every convolution stands as one.

    Args:
        fun: Any function; it is traced and not run.
        args: Arrays, or `jax.ShapeDtypeStruct`s.
    """
    with mock.patch("jax.default_backend", return_value="gpu"):
        return _count(jax.make_jaxpr(fun)(*args).jaxpr)


def _count(jaxpr: Any) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        terms = math.prod(shape[axis] for axis in contracted)
        return terms * math.prod(equation.outvars[0].aval.shape)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        outputs = params["dimension_numbers"].rhs_spec[0]
        terms = math.prod(kernel) // kernel[outputs]
        return terms * math.prod(equation.outvars[0].aval.shape)
    if name == "while":
        raise ValueError("count_macs: a loop's trip count is not known: use no chunks")
    repeats = params["length"] if name == "scan" else 1
    return repeats * sum(_count(inner) for inner in _jaxprs(params))


def _jaxprs(params: dict[str, Any]) -> list[Any]:
    """Return the traced functions among an equation's parameters."""
    found = [
        getattr(value, "jaxpr", value)
        for entry in params.values()
        for value in (entry if isinstance(entry, (tuple, list)) else (entry,))
    ]
    return [value for value in found if hasattr(value, "eqns")]
