"""Estimators that solve with the inner Hessian: conjugate gradients, Neumann, dense."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from lite_jax import trees
from lite_jax.errors import UserError
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

_WHOLE = exact_sum()

Solve = Callable[[Products, PyTree, Any], tuple[solvers.Solution, Any]]


def conjugate_gradient(
    steps: int = 10,
    damping: float = 0.0,
    warm_start: bool = False,
    *,
    tolerance: float = 0.0,
    set_sum: SetSum = _WHOLE,
    mode: Mode = "forward",
    axis_name: str | None = None,
) -> Estimator:
    """Return the estimator of MRML: v by conjugate gradients on Hessian products.

    No inner trajectory is kept: memory is a few vectors the size of θ, one the size of
    λ, and one gradient's activations, however many inner steps led to θ.

    Guarantees:
        Exact in the limit of steps at an inner solution of positive curvature; the
        error after k steps falls as ((√κ − 1) / (√κ + 1))^k, κ the condition number of
        H. At a negative or vanishing curvature the search stops and the best iterate is
        returned; never NaN. A warning tells so, with the residual.

    Args:
        steps: Iterations at most, 1 or more, each one Hessian product.
        damping: Added to the Hessian: (H + damping · I) v = b. Bends v towards b; what
            an inner loss without curvature needs.
        warm_start: Start from the last call's v, which is the state. Pays where inner
            and meta-parameters move little between calls.
        tolerance: Stop at this residual, relative to b.
        set_sum: What the losses form their sums with.
        mode: How products are formed; see `Products`. "sums" with `lite_sum` samples
            them; then give keys as raw words (`jax.random.key_data`), for one draw
            serves all products of a solve, and form an inner loss that is linear in
            its sums, for the sampled operator to be symmetric.
        axis_name: Inside `jax.shard_map`, the axis of the mesh that shares the batches
            out: one mean of θ's size a step.

    Raises:
        UserError: No steps, or a negative damping.
    """
    if steps < 1:
        raise UserError(f"steps={steps}: expected 1 or more")
    if damping < 0:
        raise UserError(f"damping={damping}: expected 0 or more")

    def solve(products: Products, target: PyTree, state: PyTree) -> Any:
        def operator(vector: PyTree) -> PyTree:
            return trees.add(products.hessian(vector), vector, damping)

        start = state if warm_start else None
        found = solvers.conjugate_gradient(operator, target, start, steps, tolerance)
        return found, found.vector if warm_start else state

    def init(inner_params: PyTree, meta_params: PyTree) -> Any:
        return trees.zeros(inner_params) if warm_start else ()

    products = functools.partial(
        Products, set_sum=set_sum, mode=mode, axis_name=axis_name
    )
    return Estimator(init, _by_solving(solve, products, set_sum, warns=True))


def neumann(
    steps: int = 20,
    step_size: float = 1.0,
    *,
    set_sum: SetSum = _WHOLE,
    mode: Mode = "forward",
    axis_name: str | None = None,
) -> Estimator:
    """Return the estimator with the truncated Neumann series η Σ_{k<K} (I − η H)^k b.

    What K unrolled steps of gradient descent at a fixed point give, without unrolling.

    Args:
        steps: K, the number of terms, 1 or more; each takes a Hessian product, the last
            one for the residual alone.
        step_size: η, below 2 / L for the largest curvature L of the inner loss.
        set_sum: As in `conjugate_gradient`.
        mode: As there.
        axis_name: As there.

    Raises:
        UserError: No steps, or a step size that is not positive.
    """
    if steps < 1:
        raise UserError(f"steps={steps}: expected 1 or more")
    if not step_size > 0:
        raise UserError(f"step_size={step_size}: expected a positive number")

    def solve(products: Products, target: PyTree, state: PyTree) -> Any:
        operator = products.hessian
        return solvers.neumann_series(operator, target, steps, step_size), state

    products = functools.partial(
        Products, set_sum=set_sum, mode=mode, axis_name=axis_name
    )
    return Estimator(_no_state, _by_solving(solve, products, set_sum, warns=True))


def identity(*, set_sum: SetSum = _WHOLE, axis_name: str | None = None) -> Estimator:
    """Return the estimator that takes the inner Hessian for the identity: v = b.

    Known as T1–T2, or one-step unrolling; SAMA without adaptation.
    """

    def solve(products: Products, target: PyTree, state: PyTree) -> Any:
        nothing = jnp.float32(jnp.nan)
        found = solvers.Solution(target, nothing, jnp.int32(0), nothing, nothing)
        return found, state

    products = functools.partial(Products, set_sum=set_sum, axis_name=axis_name)
    return Estimator(_no_state, _by_solving(solve, products, set_sum))


def dense(*, set_sum: SetSum = _WHOLE) -> Estimator:
    """Return the exact estimator, which writes the Hessian down: for tests.

    Memory is the square of θ's size.
    """

    def solve(products: Products, target: PyTree, state: PyTree) -> Any:
        flat, unravel = ravel_pytree(target)
        basis = jnp.eye(flat.size, dtype=flat.dtype)

        def column(unit: jax.Array) -> jax.Array:
            return ravel_pytree(products.hessian(unravel(unit)))[0]

        hessian = jax.lax.map(column, basis)
        found = jnp.linalg.solve(hessian, flat)
        residual = jnp.linalg.norm(hessian @ found - flat) / jnp.linalg.norm(flat)
        least = jnp.linalg.eigvalsh((hessian + hessian.T) / 2)[0]
        vector, steps = unravel(found), jnp.int32(0)
        return solvers.Solution(vector, residual, steps, least, residual), state

    products = functools.partial(Products, set_sum=set_sum)
    return Estimator(_no_state, _by_solving(solve, products, set_sum))


def _no_state(inner_params: PyTree, meta_params: PyTree) -> Any:
    return ()


def _by_solving(
    solve: Solve,
    make_products: Callable[..., Products],
    set_sum: SetSum,
    *,
    warns: bool = False,
) -> Any:
    """Return `hypergrad` of the estimators that find v and take its mixed product."""

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
        solution, state = solve(products, products.mean(target), state)
        mixed = products.mixed(solution.vector)
        grads = products.mean(trees.add(direct, mixed, -1.0))
        diagnostics = {
            "residual": solution.residual,
            "steps": solution.steps,
            "curvature": solution.curvature,
            "inner_grad_norm": products.inner_grad_norm(solution.vector, inner_step),
        }
        if warns:
            jax.debug.callback(solvers.warn_if_astray, solution)
        return Hypergrad(grads, state, diagnostics)

    return hypergrad
