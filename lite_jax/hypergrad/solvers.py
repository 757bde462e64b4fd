"""Iterations for H v = b that never return worse than they have seen, nor NaN."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lite_jax import trees
from lite_jax.types import PyTree

_logger = logging.getLogger(__name__)

Operator = Callable[[PyTree], PyTree]


DIVERGED = 10.0
"""A search that ends with a larger residual than this, relative to b, went astray."""


class Solution(NamedTuple):
    """What a solver found.

    Attributes:
        vector: The last iterate; if the search diverged, that of least residual.
        residual: Its ‖H v − b‖ / ‖b‖; 0 where b is 0.
        steps: Iterations taken, each one product.
        curvature: The least pᵀH p / pᵀp along the directions tried; infinite where none
            was.
        last_residual: That of the last iterate.
    """

    vector: PyTree
    residual: jax.Array
    steps: jax.Array
    curvature: jax.Array
    last_residual: jax.Array


class _Search(NamedTuple):
    vector: PyTree
    residual: PyTree
    direction: PyTree
    squared: jax.Array
    best: PyTree
    least: jax.Array
    steps: jax.Array
    curvature: jax.Array
    stopped: jax.Array


def conjugate_gradient(
    operator: Operator,
    target: PyTree,
    start: PyTree | None,
    steps: int,
    tolerance: float,
) -> Solution:
    """Return v with H v ≈ b by at most `steps` iterations of conjugate gradients.

    Stops where the residual is below `tolerance` of b, or where the curvature along a
    direction is not positive (H is not a Hessian at a minimum). Every step lowers
    vᵀH v / 2 − bᵀv, though not every one the residual, so the last iterate is returned;
    unless its residual is beyond `DIVERGED`, as it becomes where H is singular and b
    outside its range: then the iterate of least residual.

    Args:
        operator: v ↦ H v, H symmetric.
        target: b.
        start: Where the search starts, such as the solution of a system near by, which
            costs a product; not used where zero is nearer. None for zero.
        steps: Iterations.
        tolerance: Of the residual, relative to b; 0 takes all steps.
    """
    scale = trees.norm(target)
    enough = (tolerance * scale) ** 2
    vector, residual = trees.zeros(target), target
    if start is not None:
        left = trees.add(target, operator(start), -1.0)
        nearer = trees.dot(left, left) <= scale**2
        vector = trees.where(nearer, start, vector)
        residual = trees.where(nearer, left, residual)
    squared = trees.dot(residual, residual)
    infinity = jnp.asarray(jnp.inf, squared.dtype)
    first = _Search(
        vector, residual, residual, squared, vector, infinity, jnp.int32(0), infinity,
        squared <= enough,
    )  # fmt: skip

    def iterate(search: _Search) -> _Search:
        image = operator(search.direction)
        length = trees.dot(search.direction, search.direction)
        bend = trees.dot(search.direction, image)
        curvature = bend / jnp.where(length > 0, length, 1)
        upward = bend > 0
        step = search.squared / jnp.where(upward, bend, 1)
        vector = trees.add(search.vector, search.direction, step)
        residual = trees.add(search.residual, image, -step)
        squared = trees.dot(residual, residual)
        usable = upward & jnp.isfinite(squared)
        ratio = squared / jnp.where(search.squared > 0, search.squared, 1)
        direction = trees.add(residual, search.direction, ratio)
        closer = usable & (squared < search.least)
        return _Search(
            trees.where(usable, vector, search.vector),
            trees.where(usable, residual, search.residual),
            trees.where(usable, direction, search.direction),
            jnp.where(usable, squared, search.squared),
            trees.where(closer, vector, search.best),
            jnp.where(closer, squared, search.least),
            search.steps + 1,
            jnp.minimum(search.curvature, curvature),
            ~usable | (squared <= enough),
        )

    found = lax.while_loop(
        lambda search: ~search.stopped & (search.steps < steps), iterate, first
    )
    scale = jnp.where(scale > 0, scale, 1)
    last, least = jnp.sqrt(found.squared) / scale, jnp.sqrt(found.least) / scale
    astray = (last > DIVERGED) & (least < last)
    return Solution(
        trees.where(astray, found.best, found.vector),
        jnp.where(astray, least, last),
        found.steps,
        found.curvature,
        last,
    )


def neumann_series(
    operator: Operator, target: PyTree, steps: int, step_size: float | jax.Array
) -> Solution:
    """Return η Σ_{k ≤ K} (I − η H)^k b, which is H⁻¹ b in the limit for 0 < η < 2 / L.

    Where terms grow (η is too large), the partial sum of least residual is returned:
    the residual of a partial sum is the next term of the series over η.
    """
    scale = trees.norm(target)

    def iterate(carry, _):
        term, total, best, least, curvature, taken = carry
        image = operator(term)
        length = trees.dot(term, term)
        bend = trees.dot(term, image) / jnp.where(length > 0, length, 1)
        total = trees.add(total, term, step_size)
        following = trees.add(term, image, -step_size)
        squared = trees.dot(following, following)
        closer = jnp.isfinite(squared) & (squared < least)
        return (
            trees.where(jnp.isfinite(squared), following, trees.zeros(term)),
            total,
            trees.where(closer, total, best),
            jnp.where(closer, squared, least),
            jnp.minimum(curvature, jnp.where(length > 0, bend, jnp.inf)),
            taken + 1,
        ), None

    nothing = trees.zeros(target)
    infinity = jnp.asarray(jnp.inf, scale.dtype)
    start = (target, nothing, nothing, scale**2, infinity, jnp.int32(0))
    (_, _, best, least, curvature, taken), _ = lax.scan(
        iterate, start, None, length=steps
    )
    relative = jnp.sqrt(least) / jnp.where(scale > 0, scale, 1)
    return Solution(best, relative, taken, curvature, relative)


def reported(found: Solution) -> PyTree:
    """Return the vector; a solve that went astray is warned of when it has run."""
    jax.debug.callback(warn_if_astray, found)
    return found.vector


def warn_if_astray(found: Solution) -> None:
    """Log a warning if the search diverged or met no positive curvature."""
    residual, curvature = float(found.last_residual), float(found.curvature)
    if residual > DIVERGED or curvature <= 0:
        _logger.warning(
            "the inner problem has curvature %.3g along a search direction, and the "
            "search for H v = b ended with a residual of %.3g times b: add damping, or "
            "a regulariser to the inner loss",
            curvature, residual,
        )  # fmt: skip
