"""Implicit hypergradient estimators: conjugate gradients, Neumann, identity, dense."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, get_args

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from lite_jax import trees
from lite_jax.errors import check_number, check_whole, unknown_name
from lite_jax.hypergrad import solvers
from lite_jax.hypergrad.problem import (
    Estimator,
    Hypergrad,
    InnerStep,
    Problem,
    check_problem,
)
from lite_jax.hypergrad.products import Mode, Products
from lite_jax.lite import exact_sum
from lite_jax.types import PyTree, SetSum

_EXACT_SUM = exact_sum()


def conjugate_gradient(
    steps: int = 10,
    damping: float = 0.0,
    warm_start: bool = False,
    *,
    tolerance: float = 0.0,
    set_sum: SetSum = _EXACT_SUM,
    mode: Mode = "forward",
    axis_name: str | None = None,
) -> Estimator:
    """Return MRML's estimator, which solves H v = b by conjugate gradients.

    H is the inner Hessian ∂²g/∂θ² and b = ∂f/∂θ. The solver needs products H p only,
    and no inner trajectory is stored. Memory is a few vectors of θ's size, one of λ's
    size, and the activations of one gradient. It does not depend on the number of inner
    steps that led to θ.

    Guarantees:
        Exact in the limit of `steps` at an inner solution where H is positive definite.
        The error after k steps falls as ((√κ − 1) / (√κ + 1))^k, with κ the condition
        number of H. The search stops at a direction of zero or negative curvature, and
        the iterate before it is used. v is never NaN. A warning with the curvature and
        the residual is logged where a curvature was not positive or the search
        diverged.

    Args:
        steps: Largest number of iterations, 1 or more. An iteration takes one Hessian
            product.
        damping: Number added to the Hessian's diagonal, 0 or more: v then solves
            (H + damping · I) v = b. It turns v towards b. An inner loss without
            curvature needs it.
        warm_start: Start from the v of the last call, which is the state. This helps
            where θ and λ move little between calls.
        tolerance: Residual ‖H v − b‖ / ‖b‖ at which the search stops; 0 takes all
            steps.
        set_sum: Operator that the losses sum over examples with.
        mode: How products are formed; see `Products`. With "sums" and `lite_sum` they
            are sampled. All products of a solve then use the same draw, so give the
            inner loss its keys as raw words (`jax.random.key_data`). The inner loss has
            to be linear in its sums, or else the sampled operator is not symmetric.
        axis_name: Mesh axis that the batches are split over, inside `jax.shard_map`;
            each iteration averages one vector of θ's size over it. None for one device.

    Returns:
        The estimator. Its state is v with `warm_start`, and empty without. It has a
        `solve` without `warm_start`.

    Raises:
        UserError: `steps` under 1, a negative damping or tolerance, or an unknown
            mode.
    """
    check_whole("steps", steps)
    check_number("damping", damping)
    check_number("tolerance", tolerance)
    _check_mode(mode)

    def solve(
        operator: solvers.Operator, target: PyTree, start: PyTree = None, **_: Any
    ) -> solvers.Solution:
        def damped(vector: PyTree) -> PyTree:
            return trees.add(operator(vector), vector, damping)

        return solvers.warned(
            solvers.solve_by_conjugate_gradient(damped, target, start, steps, tolerance)
        )

    def init(inner_params: PyTree, meta_params: PyTree) -> Any:
        return trees.zeros(inner_params) if warm_start else ()

    products = functools.partial(
        Products, set_sum=set_sum, mode=mode, axis_name=axis_name
    )
    hypergrad = _implicit_hypergrad(solve, products, set_sum, warm_start=warm_start)
    return Estimator(init, hypergrad, None if warm_start else solve)


def neumann(
    steps: int = 20,
    step_size: float = 1.0,
    *,
    set_sum: SetSum = _EXACT_SUM,
    mode: Mode = "forward",
    axis_name: str | None = None,
) -> Estimator:
    """Return the estimator that approximates v by a truncated Neumann series.

    v = η Σ_{k<K} (I − η H)^k b

    H is the inner Hessian ∂²g/∂θ² and b = ∂f/∂θ. At a fixed point of gradient descent
    the estimate equals that of K unrolled steps, and stores no trajectory. Where terms
    grow, the partial sum of least residual is used, η b at least, and a warning is
    logged.

    Args:
        steps: K, the number of terms, 1 or more. Each takes one Hessian product; the
            last product only serves to compute the residual.
        step_size: η > 0. The series converges for η < 2 / L, with L the largest
            curvature of the inner loss. A learner that knows a bound on L takes the
            smaller of η and the largest step that cannot overshoot.
        set_sum: Operator that the losses sum over examples with.
        mode: How products are formed, "forward", "reverse" or "sums"; see `Products`
            and `conjugate_gradient`.
        axis_name: Mesh axis that the batches are split over, inside `jax.shard_map`.
            None for one device.

    Returns:
        The estimator. Its state is empty.

    Raises:
        UserError: `steps` under 1, a step size that is not positive, or an unknown
            mode.
    """
    check_whole("steps", steps)
    check_number("step_size", step_size, above=0)
    _check_mode(mode)

    def solve(
        operator: solvers.Operator,
        target: PyTree,
        largest_step: Any = None,
        **_: Any,
    ) -> solvers.Solution:
        limit = jnp.inf if largest_step is None else largest_step
        size = jnp.minimum(step_size, limit)
        return solvers.warned(solvers.neumann_series(operator, target, steps, size))

    products = functools.partial(
        Products, set_sum=set_sum, mode=mode, axis_name=axis_name
    )
    return Estimator(_empty_state, _implicit_hypergrad(solve, products, set_sum), solve)


def identity(
    *, set_sum: SetSum = _EXACT_SUM, axis_name: str | None = None
) -> Estimator:
    """Return the estimator that replaces the inner Hessian by the identity: v = ∂f/∂θ.

    It is known as T1–T2 or one-step unrolling, and is SAMA without adaptation. Nothing
    is solved, so the diagnostics "residual" and "curvature" are NaN.

    Args:
        set_sum: Operator that the losses sum over examples with.
        axis_name: Mesh axis that the batches are split over, inside `jax.shard_map`.
            None for one device.
    """

    def solve(operator: solvers.Operator, target: PyTree, **_: Any) -> solvers.Solution:
        return solvers.not_solved(target)

    products = functools.partial(Products, set_sum=set_sum, axis_name=axis_name)
    return Estimator(_empty_state, _implicit_hypergrad(solve, products, set_sum), solve)


def dense(*, set_sum: SetSum = _EXACT_SUM) -> Estimator:
    """Return the exact estimator, which forms the whole inner Hessian; for tests.

    Memory is the square of θ's size. The diagnostic "curvature" is the Hessian's least
    eigenvalue.

    Args:
        set_sum: Operator that the losses sum over examples with.
    """

    def solve(operator: solvers.Operator, target: PyTree, **_: Any) -> solvers.Solution:
        flat, unravel = ravel_pytree(target)
        basis = jnp.eye(flat.size, dtype=flat.dtype)

        def column(unit: jax.Array) -> jax.Array:
            return ravel_pytree(operator(unravel(unit)))[0]

        hessian = jax.lax.map(column, basis)
        flat_vector = jnp.linalg.solve(hessian, flat)
        error = jnp.linalg.norm(hessian @ flat_vector - flat)
        residual = error / jnp.linalg.norm(flat)
        curvature = jnp.linalg.eigvalsh((hessian + hessian.T) / 2)[0]
        vector, steps = unravel(flat_vector), jnp.int32(0)
        diverged = jnp.bool_(False)
        return solvers.Solution(vector, residual, steps, curvature, diverged)

    products = functools.partial(Products, set_sum=set_sum)
    return Estimator(_empty_state, _implicit_hypergrad(solve, products, set_sum), solve)


def _check_mode(mode: str) -> None:
    if mode not in get_args(Mode):
        raise unknown_name("mode", mode, get_args(Mode))


def _empty_state(inner_params: PyTree, meta_params: PyTree) -> Any:
    return ()


def _implicit_hypergrad(
    solve: Callable[..., solvers.Solution],
    make_products: Callable[..., Products],
    set_sum: SetSum,
    *,
    warm_start: bool = False,
) -> Any:
    """Return the `hypergrad` function of an estimator that solves for v.

    Args:
        solve: `(H, b) -> solution`; with `warm_start` it also takes `start`.
        make_products: `(problem, inner_params, meta_params, batches) -> Products`.
        set_sum: Operator that the problem is checked with.
        warm_start: Whether the state is the last v, from which a solve starts.
    """

    def hypergrad(
        problem: Problem,
        inner_params: PyTree,
        meta_params: PyTree,
        batches: tuple[Any, Any],
        state: Any,
        *,
        inner_step: InnerStep | None = None,
    ) -> Hypergrad:
        check_problem(problem, inner_params, meta_params, batches[0], set_sum)
        products = make_products(problem, inner_params, meta_params, batches)
        target, direct = products.outer_grads()
        start = {"start": state} if warm_start else {}
        solution = solve(products.hessian, products.mean(target), **start)
        mixed = products.mixed(solution.vector)
        grads = products.mean(trees.add(direct, mixed, -1.0))
        diagnostics = {
            "residual": solution.residual,
            "steps": solution.steps,
            "curvature": solution.curvature,
            "inner_grad_norm": products.inner_grad_norm(solution.vector, inner_step),
        }
        state = solution.vector if warm_start else state
        return Hypergrad(grads, state, diagnostics)

    return hypergrad
