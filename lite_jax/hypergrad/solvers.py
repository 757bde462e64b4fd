"""Iterative solvers of H v = b that return a vector without NaN."""

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
"""A search has diverged if its last residual, relative to b, is larger than this."""


class Solution(NamedTuple):
    """An approximate solution v of H v = b.

    Attributes:
        vector: v, a tree like b.
        residual: ‖H v − b‖ / ‖b‖, a scalar. Both solvers of this module give 0 where b
            is 0.
        steps: Number of iterations taken, int32; each formed one product.
        curvature: The least pᵀH p / pᵀp over the search directions p; infinite if
            there were none.
        diverged: Whether the search went astray, bool: the last iterate of conjugate
            gradients has a residual above `DIVERGED`, or no partial sum of the Neumann
            series has one below that of v = 0.
    """

    vector: PyTree
    residual: jax.Array
    steps: jax.Array
    curvature: jax.Array
    diverged: jax.Array


class _SearchState(NamedTuple):
    """The state of conjugate gradients between two iterations.

    Attributes:
        vector: The iterate v.
        residual: b − H v.
        direction: The next search direction.
        square: ‖residual‖².
        best_vector: The iterate of least residual after the start; 0 before there is
            one.
        best_square: Its ‖residual‖²; infinite before there is one.
        steps: Number of iterations taken.
        curvature: The least pᵀH p / pᵀp so far.
        stopped: Whether the search has ended.
    """

    vector: PyTree
    residual: PyTree
    direction: PyTree
    square: jax.Array
    best_vector: PyTree
    best_square: jax.Array
    steps: jax.Array
    curvature: jax.Array
    stopped: jax.Array


def solve_by_conjugate_gradient(
    operator: Operator,
    target: PyTree,
    start: PyTree | None,
    steps: int,
    tolerance: float,
) -> Solution:
    """Return v with H v ≈ b by at most `steps` iterations of conjugate gradients.

    The search stops once the residual is at most `tolerance` times ‖b‖. It also stops
    at a direction whose curvature is not positive: H is then not the Hessian at a
    minimum. Every step lowers vᵀH v / 2 − bᵀv, but not every step lowers the residual.
    So the last iterate is returned. The iterate of least residual is returned instead
    if the last residual is above `DIVERGED`, which happens where H is singular and b
    outside its range.

    Args:
        operator: v ↦ H v, H symmetric.
        target: b.
        start: First iterate, such as the solution of a similar system; it costs one
            more product. Zero is used if its residual is smaller. None for zero.
        steps: Largest number of iterations.
        tolerance: Residual relative to b at which the search stops; 0 takes all steps.
    """
    scale = trees.norm(target)
    accepted_square = (tolerance * scale) ** 2
    vector, residual = trees.zeros(target), target
    if start is not None:
        start_residual = trees.add(target, operator(start), -1.0)
        nearer = trees.dot(start_residual, start_residual) <= scale**2
        vector = trees.where(nearer, start, vector)
        residual = trees.where(nearer, start_residual, residual)
    square = trees.dot(residual, residual)
    infinity = jnp.asarray(jnp.inf, square.dtype)
    first = _SearchState(
        vector, residual, residual, square, vector, infinity, jnp.int32(0), infinity,
        square <= accepted_square,
    )  # fmt: skip

    def iterate(state: _SearchState) -> _SearchState:
        image = operator(state.direction)
        direction_square = trees.dot(state.direction, state.direction)
        product = trees.dot(state.direction, image)
        curvature = product / jnp.where(direction_square > 0, direction_square, 1)
        positive = product > 0
        step = state.square / jnp.where(positive, product, 1)
        vector = trees.add(state.vector, state.direction, step)
        residual = trees.add(state.residual, image, -step)
        square = trees.dot(residual, residual)
        usable = positive & jnp.isfinite(square)
        ratio = square / jnp.where(state.square > 0, state.square, 1)
        direction = trees.add(residual, state.direction, ratio)
        improves = usable & (square < state.best_square)
        return _SearchState(
            trees.where(usable, vector, state.vector),
            trees.where(usable, residual, state.residual),
            trees.where(usable, direction, state.direction),
            jnp.where(usable, square, state.square),
            trees.where(improves, vector, state.best_vector),
            jnp.where(improves, square, state.best_square),
            state.steps + 1,
            jnp.minimum(state.curvature, curvature),
            ~usable | (square <= accepted_square),
        )

    end = lax.while_loop(
        lambda state: ~state.stopped & (state.steps < steps), iterate, first
    )
    scale = jnp.where(scale > 0, scale, 1)
    last, best = jnp.sqrt(end.square) / scale, jnp.sqrt(end.best_square) / scale
    takes_best = (last > DIVERGED) & (best < last)
    return Solution(
        trees.where(takes_best, end.best_vector, end.vector),
        jnp.where(takes_best, best, last),
        end.steps,
        end.curvature,
        last > DIVERGED,
    )


def neumann_series(
    operator: Operator, target: PyTree, steps: int, step_size: float | jax.Array
) -> Solution:
    """Return v = η Σ_{k<K} (I − η H)^k b, which tends to H⁻¹ b for 0 < η < 2 / L.

    The partial sum of least residual is returned. Where terms grow because η is too
    large, it is not the last but η b. The residual of a partial sum is the first term
    that it leaves out.

    Args:
        operator: v ↦ H v, H symmetric with largest eigenvalue L.
        target: b.
        steps: K, the number of terms.
        step_size: η.
    """
    scale = trees.norm(target)

    def iterate(carry, _):
        term, total, best, best_square, curvature, num_steps = carry
        image = operator(term)
        term_square = trees.dot(term, term)
        term_curvature = trees.dot(term, image) / jnp.where(
            term_square > 0, term_square, 1
        )
        total = trees.add(total, term, step_size)
        next_term = trees.add(term, image, -step_size)
        square = trees.dot(next_term, next_term)
        improves = (num_steps == 0) | (square < best_square)
        return (
            trees.where(jnp.isfinite(square), next_term, trees.zeros(term)),
            total,
            trees.where(improves, total, best),
            jnp.where(improves, square, best_square),
            jnp.minimum(curvature, jnp.where(term_square > 0, term_curvature, jnp.inf)),
            num_steps + 1,
        ), None

    zeros = trees.zeros(target)
    infinity = jnp.asarray(jnp.inf, scale.dtype)
    start = (target, zeros, zeros, infinity, infinity, jnp.int32(0))
    (_, _, best, best_square, curvature, num_steps), _ = lax.scan(
        iterate, start, None, length=steps
    )
    relative = jnp.sqrt(best_square) / jnp.where(scale > 0, scale, 1)
    return Solution(best, relative, num_steps, curvature, ~(relative <= 1))


def not_solved(vector: PyTree) -> Solution:
    """Return a vector that takes the place of a solution; its residual is not known."""
    unknown = jnp.float32(jnp.nan)
    return Solution(vector, unknown, jnp.int32(0), unknown, jnp.bool_(False))


def warned(solution: Solution) -> Solution:
    """Return the solution, and log a warning at run time if the solve diverged.

    A curvature of 0 or less is warned of too, as by `warn_if_astray`.
    """
    jax.debug.callback(warn_if_astray, solution)
    return solution


def warn_if_astray(found: Solution) -> None:
    """Log a warning if a search diverged or met a curvature of 0 or less."""
    residual, curvature = float(found.residual), float(found.curvature)
    if found.diverged or curvature <= 0:
        _logger.warning(
            "the inner problem has curvature %.3g along a search direction, and the "
            "search for H v = b ended with a residual of %.3g times b: add damping, or "
            "a regulariser to the inner loss, or lower the step size of a series",
            curvature, residual,
        )  # fmt: skip
