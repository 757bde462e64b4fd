"""Trust region policy optimisation: a step that lowers a loss, within a divergence."""

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
    """The arguments of a trust region step.

    Attributes:
        divergence: Largest mean divergence of a step, in nats.
        solver_steps: Iterations of conjugate gradients.
        damping: Added to the diagonal of the divergence's Hessian.
        trials: Most trials of the line search, each shorter than the one before.
        shrink: Ratio of the lengths of successive trials, below 1.
    """

    divergence: float = 0.01
    solver_steps: int = 10
    damping: float = 1e-5
    trials: int = 15
    shrink: float = 0.8


class Outcome(NamedTuple):
    """The outcome of a step; all fields are scalars.

    Attributes:
        loss: Mean loss over the tasks, before the step.
        change: Change of the mean loss; 0 if no trial was accepted.
        divergence: Mean divergence of the accepted trial; 0 if none was.
        trials: Number of trials; one more than the limit if none was accepted.
        gradient_norm: Norm of the loss's gradient, before the step.
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
    """Return the parameters after a step, and its outcome.

    The direction is H⁻¹ g. Here g is the gradient of the loss and H the Hessian of the
    divergence at `params`, both means over the tasks. Tasks are computed one after
    another, so memory is that of one task. The first trial is as long as the quadratic
    model of the divergence allows. A trial is accepted if it lowers the loss and its
    divergence is within the limit. If none is accepted, the parameters do not change.

    Parameters at their floor whose gradient is not negative stay there, and the
    direction is computed for the others. A trial below the floor is clipped to it.

    Args:
        loss: The loss that the step lowers.
        divergence: Has its minimum, 0, at `params`; twice differentiable in reverse
            mode there.
        params: The start of the step.
        tasks: Arrays with a leading axis of tasks.
        settings: The arguments of the step.
        floor: The lower bound of each parameter, −∞ for none; None for no bounds.

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

        return on_free(trees.add(mean(of_task), vector, settings.damping))

    def both(params: Params) -> Any:
        return mean(lambda task: (loss(params, task), divergence(params, task)))

    loss_before, slope = mean(lambda task: jax.value_and_grad(loss)(params, task))
    free = jax.tree.map(lambda x, low, g: (x > low) | (g < 0), params, floor, slope)

    def on_free(vector: Params) -> Params:
        return jax.tree.map(lambda x, f: jnp.where(f, x, 0), vector, free)

    gradient = on_free(slope)
    solution = solve_by_conjugate_gradient(
        product, gradient, None, settings.solver_steps, 1e-10
    )
    direction = solution.vector
    curvature = trees.dot(direction, gradient)  # = dᵀHd: residuals are orthogonal to d
    length = jnp.sqrt(
        2 * settings.divergence / jnp.where(curvature > 0, curvature, jnp.inf)
    )

    def attempt(search: _Search) -> _Search:
        scale = -length * settings.shrink ** search.tried.astype(length.dtype)
        trial = jax.tree.map(jnp.maximum, trees.add(params, direction, scale), floor)
        loss_after, divergence_after = both(trial)
        fits = (loss_after < loss_before) & (divergence_after <= settings.divergence)
        return _Search(
            search.tried + 1,
            fits,
            trees.where(fits, trial, params),
            jnp.where(fits, loss_after, loss_before),
            jnp.where(fits, divergence_after, 0),
        )

    start = _Search(
        jnp.int32(0), jnp.array(False), params, loss_before, jnp.zeros_like(loss_before)
    )
    end = lax.while_loop(
        lambda search: ~search.accepted & (search.tried < settings.trials),
        attempt,
        start,
    )
    trials = end.tried + (~end.accepted).astype(jnp.int32)
    return end.params, Outcome(
        loss_before,
        end.loss - loss_before,
        end.divergence,
        trials,
        trees.norm(gradient),
    )
