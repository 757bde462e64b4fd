"""The exact derivative of K inner steps, with three ways to pay for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from lite_jax import trees
from lite_jax.errors import UserError
from lite_jax.hypergrad.implicit import _WHOLE
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
    set_sum: SetSum = _WHOLE,
) -> Estimator:
    """Return the estimator that differentiates through K steps of the inner optimiser.

    The steps start at the `inner_params` given, with a fresh optimiser state; the outer
    loss is that at their end.

    Guarantees:
        The exact derivative of the outer loss after K steps; the hypergradient itself
        in the limit of steps. Memory grows with K: by K times the activations of an
        inner gradient without `remat`, by K times θ with it.

    Args:
        steps: K, 1 or more.
        optimizer: Of the inner parameters; `optax.sgd(α)` for iterative
            differentiation as usual.
        remat: Compute each step again in the backward pass.
        mixed_mode: Differentiate each inner gradient forward over reverse (Kemaev et
            al., "Scalable Meta-Learning via Mixed-Mode Differentiation", ICML 2025):
            exact, with less memory and time than reverse over reverse.
        set_sum: What the losses form their sums with.

    Raises:
        UserError: No steps.
    """
    if steps < 1:
        raise UserError(f"steps={steps}: expected 1 or more")

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

        def outer_after(meta_params: PyTree) -> tuple[jax.Array, PyTree]:
            def step(carry: Any, _: None) -> tuple[Any, None]:
                params, opt_state = carry
                grads = gradient(params, meta_params, batch)
                updates, opt_state = optimizer.update(grads, opt_state, params)
                return (optax.apply_updates(params, updates), opt_state), None

            one = jax.checkpoint(step, prevent_cse=False) if remat else step
            start = inner_params, optimizer.init(inner_params)
            (params, _), _ = lax.scan(one, start, None, length=steps)
            loss = problem.outer(params, meta_params, batches[1], set_sum=set_sum)
            return loss, params

        grads, params = jax.grad(outer_after, has_aux=True)(meta_params)
        left = jax.grad(inner)(params, meta_params, batch)
        diagnostics = {"inner_grad_norm": trees.norm(left), "steps": jnp.int32(steps)}
        return Hypergrad(grads, state, diagnostics)

    return Estimator(lambda inner_params, meta_params: (), hypergrad)


def mixed_mode_grad(inner: Callable[..., jax.Array]) -> Callable[..., PyTree]:
    """Return ∂g/∂θ whose derivative is formed forward over reverse.

    Its VJP with u is (H u, (∂²g/∂λ∂θ) u): one `jvp` of the gradient of both along u,
    since second derivatives are symmetric.

    Args:
        inner: `(inner_params, meta_params, batch) -> scalar`; the batch has no
            gradient.
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
