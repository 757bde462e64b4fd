"""SAMA: the inner Hessian is the identity, seen through the inner optimiser."""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from lite_jax import trees
from lite_jax.errors import UserError, unknown_name
from lite_jax.hypergrad.implicit import _WHOLE
from lite_jax.hypergrad.problem import (
    Estimator,
    Hypergrad,
    InnerStep,
    Problem,
    check_problem,
)
from lite_jax.hypergrad.products import Products
from lite_jax.types import PyTree, SetSum

Mixed = Literal["exact", "finite_difference"]
Vector = Literal["global", "local"]
_MIXED = ("exact", "finite_difference")
_VECTORS = ("global", "local")


def sama(
    optimizer: optax.GradientTransformation | None = None,
    adaptation: bool = True,
    mixed: Mixed = "exact",
    nudge_base: bool = False,
    *,
    radius: float = 1.0,
    set_sum: SetSum = _WHOLE,
    axis_name: str | None = None,
    vector: Vector = "global",
) -> Estimator:
    """Return the estimator of SAMA: v = −(∂u/∂g)ᵀ ∂f/∂θ, u the optimiser's update.

    Three backward passes, no solve and no second-order graph. The adaptation is the VJP
    of the update of any optax transform, with bias correction, clipping, schedules and
    weight decay as they are; where the last gradient is exactly zero, v is zero too
    (the mixed product of such a coordinate is, and Adam's derivative at zero moments is
    not finite).

    Guarantees:
        The direction is that of the exact hypergradient only where the inner Hessian is
        near a multiple of the identity (after the optimiser's preconditioning); on
        digits hyper-cleaning its cosine to the exact one is 0.48. Never NaN where the
        update's derivative is finite at gradients that are not zero.

    Args:
        optimizer: What updates the inner parameters; needed for the adaptation.
        adaptation: Without, v = ∂f/∂θ.
        mixed: "exact", or the paper's "finite_difference", which fails in bfloat16 and
            is biased where a stop-gradient stands between θ and λ.
        nudge_base: Return −radius · v / ‖v‖ as the state, for the caller to add to the
            inner parameters: the released code leaves them there in its published
            settings. Otherwise the state is empty.
        radius: Step of the finite difference and of the nudge; 1 in the paper's code.
        set_sum: What the losses form their sums with.
        axis_name: Inside `jax.shard_map`, the axis of the mesh that shares the batches
            out.
        vector: Under data parallelism, "global" averages v over the devices before the
            mixed product, which is that of one device; "local" does not, and saves a
            mean of θ's size: the paper's.

    Raises:
        UserError: Adaptation without an optimiser, or through one whose update has no
            useful derivative, as those by the gradient's sign.
    """
    if mixed not in _MIXED:
        raise unknown_name("mixed", mixed, _MIXED)
    if vector not in _VECTORS:
        raise unknown_name("vector", vector, _VECTORS)
    if not radius > 0:
        raise UserError(f"radius={radius}: expected a positive number")
    if adaptation:
        if optimizer is None:
            raise UserError(
                "sama(adaptation=True) needs the optimizer of the inner parameters: "
                "give it, or set adaptation=False"
            )
        check_adaptation(optimizer)

    def init(inner_params: PyTree, meta_params: PyTree) -> Any:
        return trees.zeros(inner_params) if nudge_base else ()

    make_products = functools.partial(Products, set_sum=set_sum, axis_name=axis_name)

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
        target = products.mean(target) if vector == "global" else target
        if adaptation:
            assert optimizer is not None
            target = adapted(optimizer, _given(inner_step), target)
        if mixed == "exact":
            product = products.mixed(target)
        else:
            product = products.mixed_by_differences(target, radius)
        grads = products.mean(trees.add(direct, product, -1.0))
        length = trees.norm(target)
        if nudge_base:
            state = trees.times(target, -radius / jnp.maximum(length, 1e-30))
        diagnostics = {
            "vector_norm": length,
            "inner_grad_norm": products.inner_grad_norm(target, inner_step),
        }
        return Hypergrad(grads, state, diagnostics)

    return Estimator(init, hypergrad)


def adapted(
    optimizer: optax.GradientTransformation, step: InnerStep, vector: PyTree
) -> PyTree:
    """Return −(∂u/∂g)ᵀ v at an update, and 0 where its gradient is exactly 0.

    Gradients of zero are moved off it first, where Adam's square root has no
    derivative.
    """
    moved = jax.tree.map(lambda g: jnp.where(g == 0, _tiny(g), g), step.grads)

    def update(grads: PyTree) -> PyTree:
        return optimizer.update(grads, step.opt_state, step.params)[0]

    _, pull = jax.vjp(update, moved)
    (pulled,) = pull(vector)
    return jax.tree.map(
        lambda g, x: jnp.where(g == 0, jnp.zeros_like(x), -x), step.grads, pulled
    )


def _tiny(x: jax.Array) -> jax.Array:
    return jnp.asarray(1e-12, x.dtype)  # its square is still a float32


def _given(step: InnerStep | None) -> InnerStep:
    if step is None:
        raise UserError(
            "sama(adaptation=True) needs inner_step=InnerStep(grads, opt_state, "
            "params) of the last update of the inner parameters: hand it in, or set "
            "adaptation=False"
        )
    return step


def check_adaptation(optimizer: optax.GradientTransformation) -> None:
    """Raise a `UserError` unless the derivative of an update is something."""
    params = jnp.linspace(-1, 1, 5, dtype=jnp.float32)
    grads = jnp.array([0.3, -0.2, 0.5, 0.7, -0.4], jnp.float32)
    probe = InnerStep(grads, optimizer.init(params), params)
    found = adapted(
        optimizer, probe, jnp.array([1.0, 2.0, -1.0, 0.5, 3.0], jnp.float32)
    )
    if not jnp.any(found != 0):
        raise UserError(
            "the update of this optimizer does not change with small changes of the "
            "gradient (it goes by the sign, as lion does), so adaptation would make "
            "every hypergradient zero: leave it out, or use another optimizer"
        )
