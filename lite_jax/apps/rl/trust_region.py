"""Trust region policy optimisation: the step that lowers a loss within a divergence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lite_jax import trees
from lite_jax.hypergrad.solvers import solve_by_conjugate_gradient
from lite_jax.types import Params, PyTree

PerTask = Callable[[Params, PyTree], jax.Array]
"""`(params, one task's data) -> scalar`."""


class TrustRegion(NamedTuple):
    """Settings of a step.

    Attributes:
        divergence: The most that the mean divergence may become, in nats.
        solver_steps: Iterations of conjugate gradients.
        damping: Added to the divergence's curvature.
        trials: Steps tried, each shorter than the one before.
        shrink: By what factor.
    """

    divergence: float = 0.01
    solver_steps: int = 10
    damping: float = 1e-5
    trials: int = 15
    shrink: float = 0.8


class Outcome(NamedTuple):
    """What came of a step.

    Attributes:
        loss: Mean over the tasks, before the step.
        change: Of the loss; 0 where no trial was accepted.
        divergence: Of the accepted step.
        trials: Trials made; one more than allowed where none was accepted.
        gradient_norm: Of the loss, before the step.
    """

    loss: jax.Array
    change: jax.Array
    divergence: jax.Array
    trials: jax.Array
    gradient_norm: jax.Array


class _Search(NamedTuple):
    tried: jax.Array
    accepted: jax.Array
    params: Params
    loss: jax.Array
    divergence: jax.Array


def trust_region_step(
    loss: PerTask,
    divergence: PerTask,
    params: Params,
    tasks: PyTree,
    settings: TrustRegion,
    floor: Params | None = None,
) -> tuple[Params, Outcome]:
    """Return the parameters after a step, or as they were if no trial is any better.

    The direction is H⁻¹ g, g the loss's gradient and H the divergence's Hessian at
    `params`, both means over the tasks, which are gone through one after another so
    that memory is that of one. The first trial is as long as the divergence's quadratic
    model allows; a trial is accepted that lowers the loss within the divergence.

    Parameters at their floor whose gradient would take them below stay there, and the
    direction is that of the others; what a trial takes below is put on the floor.

    Args:
        loss: What is lowered.
        divergence: 0 and at its minimum at `params`, and twice differentiable in
            reverse mode there.
        params: Where the step starts.
        tasks: Arrays that begin with an axis of tasks.
        settings: How far, and how thoroughly.
        floor: The least that each parameter may be, −∞ for no bound; None for none.

    References:
        Schulman et al., "Trust Region Policy Optimization", ICML 2015, appendix C.
    """

    def mean(function: Callable[[PyTree], PyTree]) -> PyTree:
        return jax.tree.map(lambda x: x.mean(0), lax.map(function, tasks))

    if floor is None:
        floor = jax.tree.map(lambda x: jnp.full_like(x, -jnp.inf), params)

    def product(vector: Params) -> Params:
        def of_task(task: PyTree) -> Params:
            def slope(params: Params) -> jax.Array:
                return trees.dot(jax.grad(divergence)(params, task), vector)

            return jax.grad(slope)(params)

        return freely(trees.add(mean(of_task), vector, settings.damping))

    def both(params: Params) -> Any:
        return mean(lambda task: (loss(params, task), divergence(params, task)))

    before, slope = mean(lambda task: jax.value_and_grad(loss)(params, task))
    free = jax.tree.map(lambda x, low, g: (x > low) | (g < 0), params, floor, slope)

    def freely(vector: Params) -> Params:
        return jax.tree.map(lambda x, f: jnp.where(f, x, 0), vector, free)

    gradient = freely(slope)
    found = solve_by_conjugate_gradient(
        product, gradient, None, settings.solver_steps, 1e-10
    )
    direction = found.vector
    bend = trees.dot(direction, gradient)  # dᵀHd too: residuals are orthogonal to d
    length = jnp.sqrt(2 * settings.divergence / jnp.where(bend > 0, bend, jnp.inf))

    def attempt(search: _Search) -> _Search:
        scale = -length * settings.shrink ** search.tried.astype(length.dtype)
        trial = jax.tree.map(jnp.maximum, trees.add(params, direction, scale), floor)
        after, moved = both(trial)
        fits = (after < before) & (moved <= settings.divergence)
        return _Search(
            search.tried + 1,
            fits,
            trees.where(fits, trial, params),
            jnp.where(fits, after, before),
            jnp.where(fits, moved, 0),
        )

    start = _Search(
        jnp.int32(0), jnp.array(False), params, before, jnp.zeros_like(before)
    )
    end = lax.while_loop(
        lambda search: ~search.accepted & (search.tried < settings.trials),
        attempt,
        start,
    )
    trials = end.tried + (~end.accepted).astype(jnp.int32)
    return end.params, Outcome(
        before, end.loss - before, end.divergence, trials, trees.norm(gradient)
    )
