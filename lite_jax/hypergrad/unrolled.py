"""Hypergradients by differentiation through K unrolled inner steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from lite_jax import trees
from lite_jax.errors import check_whole
from lite_jax.hypergrad.implicit import _EXACT_SUM
from lite_jax.hypergrad.problem import (
    Estimator,
    Hypergrad,
    InnerStep,
    Problem,
    check_problem,
)
from lite_jax.types import PyTree, SetSum


def unrolled(
    steps: int,
    optimizer: optax.GradientTransformation,
    *,
    remat: bool = False,
    mixed_mode: bool = False,
    set_sum: SetSum = _EXACT_SUM,
) -> Estimator:
    """Return the estimator that differentiates through K steps of the inner optimiser.

    The steps start at the given `inner_params` with a new optimiser state. The outer
    loss is evaluated at the parameters after the last step.

    Guarantees:
        The exact derivative of the outer loss after K steps, which tends to the
        hypergradient as K grows and the steps converge. Memory grows with K: K times
        the activations of an inner gradient without `remat`, K times θ and the
        optimiser's state with it.

    Args:
        steps: K, 1 or more.
        optimizer: Optimiser of the inner parameters; `optax.sgd(α)` gives the usual
            iterative differentiation.
        remat: Compute each step again in the backward pass.
        mixed_mode: Differentiate each inner gradient forward over reverse (Kemaev et
            al., "Scalable Meta-Learning via Mixed-Mode Differentiation", ICML 2025).
            The result is the same, with less memory and time than reverse over reverse.
        set_sum: Operator that the losses sum over examples with.

    Returns:
        The estimator. Its state is empty.

    Raises:
        UserError: `steps` under 1.
    """
    check_whole("steps", steps)

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

        def inner(inner_params: PyTree, meta_params: PyTree, batch: Any) -> jax.Array:
            return problem.inner(inner_params, meta_params, batch, set_sum=set_sum)

        gradient = mixed_mode_grad(inner) if mixed_mode else jax.grad(inner)
        batch = batches[0]

        def outer_and_params(meta_params: PyTree) -> tuple[jax.Array, PyTree]:
            def step(carry: Any, _: None) -> tuple[Any, None]:
                params, opt_state = carry
                grads = gradient(params, meta_params, batch)
                updates, opt_state = optimizer.update(grads, opt_state, params)
                return (optax.apply_updates(params, updates), opt_state), None

            body = jax.checkpoint(step, prevent_cse=False) if remat else step
            start = inner_params, optimizer.init(inner_params)
            (params, _), _ = lax.scan(body, start, None, length=steps)
            loss = problem.outer(params, meta_params, batches[1], set_sum=set_sum)
            return loss, params

        grads, params = jax.grad(outer_and_params, has_aux=True)(meta_params)
        inner_norm = trees.norm(jax.grad(inner)(params, meta_params, batch))
        diagnostics = {"inner_grad_norm": inner_norm, "steps": jnp.int32(steps)}
        return Hypergrad(grads, state, diagnostics)

    return Estimator(lambda inner_params, meta_params: (), hypergrad)


def mixed_mode_grad(inner: Callable[..., jax.Array]) -> Callable[..., PyTree]:
    """Return the function ∂g/∂θ, with a VJP that is formed forward over reverse.

    The VJP with u is (H u, (∂²g/∂λ∂θ) u). Second derivatives are symmetric, so one
    `jvp` of the gradients by θ and λ along u gives both.

    Args:
        inner: `(inner_params, meta_params, batch) -> scalar`. The batch gets no
            gradient.

    Returns:
        `(inner_params, meta_params, batch) -> ∂g/∂θ`.
    """

    @jax.custom_vjp
    def gradient(inner_params: PyTree, meta_params: PyTree, batch: Any) -> PyTree:
        return jax.grad(inner)(inner_params, meta_params, batch)

    def forward(*point: Any) -> tuple[PyTree, Any]:
        return gradient(*point), point

    def backward(point: Any, cotangent: PyTree) -> Any:
        inner_params, meta_params, batch = point

        def both(inner_params: PyTree) -> tuple[PyTree, PyTree]:
            return jax.grad(inner, argnums=(0, 1))(inner_params, meta_params, batch)

        return *jax.jvp(both, (inner_params,), (cotangent,))[1], None

    gradient.defvjp(forward, backward)
    return gradient
