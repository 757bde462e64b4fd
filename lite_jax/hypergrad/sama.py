"""SAMA: a hypergradient estimator without a solve, adapted to the inner optimiser."""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from lite_jax import trees
from lite_jax.errors import UserError, check_number, unknown_name
from lite_jax.hypergrad.implicit import _EXACT_SUM
from lite_jax.hypergrad.problem import (
    Estimator,
    Hypergrad,
    InnerStep,
    Problem,
    check_problem,
)
from lite_jax.hypergrad.products import Products
from lite_jax.hypergrad.solvers import Operator, Solution, not_solved
from lite_jax.types import PyTree, SetSum

Mixed = Literal["exact", "finite_difference"]
Vector = Literal["global", "local"]
_MIXED = ("exact", "finite_difference")
_VECTORS = ("global", "local")
_PROBED_UPDATES = 128


def sama(
    optimizer: optax.GradientTransformation | None = None,
    adaptation: bool = True,
    mixed: Mixed = "exact",
    nudge_base: bool = False,
    *,
    radius: float = 1.0,
    set_sum: SetSum = _EXACT_SUM,
    axis_name: str | None = None,
    vector: Vector = "global",
) -> Estimator:
    """Return SAMA's estimator: v = −(∂u/∂g)ᵀ ∂f/∂θ, with u the optimiser's update.

    The inner Hessian is replaced by the identity, so nothing is solved. One call takes
    one outer gradient and one mixed product; by finite differences that product is two
    inner gradients. The adaptation is the VJP of the update of any optax transform,
    bias correction, clipping, schedules and weight decay included. At coordinates where
    that derivative is not finite, as Adam's is at a gradient and moments of 0, the
    adapted v is 0.

    Guarantees:
        The direction is that of the exact hypergradient only where the inner Hessian,
        after the optimiser's preconditioning, is near a multiple of the identity. On
        hyper-cleaning of digits its cosine to the exact hypergradient is 0.48. Never
        NaN where the update's derivative is finite at gradients that are not zero.

    Args:
        optimizer: Optimiser of the inner parameters. Needed with `adaptation`.
        adaptation: Multiply by the derivative of the optimiser's update. If false,
            v = ∂f/∂θ.
        mixed: "exact", or "finite_difference" as in the paper. The latter fails in
            bfloat16 and is biased if the inner loss stops gradients between θ and λ.
        nudge_base: Return −radius · v / ‖v‖ as the state, for the caller to add to the
            inner parameters. The authors' code moves them so in its published settings.
            If false, the state is empty.
        radius: Length of the finite difference's step and of the nudge, above 0; 1 in
            the authors' code.
        set_sum: Operator that the losses sum over examples with.
        axis_name: Mesh axis that the batches are split over, inside `jax.shard_map`.
            None for one device.
        vector: With `axis_name`, whether v is averaged over the devices before the
            mixed product. "global" averages, which gives the estimate of one device on
            the whole batch. "local", as in the paper, does not, and saves a mean of
            θ's size.

    Returns:
        The estimator. It has a `solve` without `nudge_base`.

    Raises:
        UserError: Adaptation without an optimiser, or with one whose update has no
            useful derivative, such as an update by the gradient's sign; an unknown
            `mixed` or `vector`; a radius that is not positive. When called, adaptation
            without `inner_step`.
    """
    if mixed not in _MIXED:
        raise unknown_name("mixed", mixed, _MIXED)
    if vector not in _VECTORS:
        raise unknown_name("vector", vector, _VECTORS)
    check_number("radius", radius, above=0)
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

    def solve(
        operator: Operator,
        target: PyTree,
        inner_step: InnerStep | None = None,
        **_: Any,
    ) -> Solution:
        if not adaptation:
            return not_solved(target)
        assert optimizer is not None
        return not_solved(adapted(optimizer, _required_step(inner_step), target))

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
        target = solve(products.hessian, target, inner_step).vector
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

    return Estimator(init, hypergrad, None if nudge_base else solve, adaptation)


def adapted(
    optimizer: optax.GradientTransformation, step: InnerStep, vector: PyTree
) -> PyTree:
    """Return −(∂u/∂g)ᵀ v at an update u(g), and 0 where that is not finite.

    It is not where Adam, with moments of 0, has a gradient of exactly 0.

    Args:
        optimizer: The optimiser.
        step: The update.
        vector: v, shaped like the inner parameters.
    """

    def update(grads: PyTree) -> PyTree:
        return optimizer.update(grads, step.opt_state, step.params)[0]

    _, pull = jax.vjp(update, step.grads)
    (pulled,) = pull(vector)
    return jax.tree.map(
        lambda x: jnp.where(jnp.isfinite(x), -x, jnp.zeros_like(x)), pulled
    )


def _required_step(step: InnerStep | None) -> InnerStep:
    if step is None:
        raise UserError(
            "sama(adaptation=True) needs inner_step=InnerStep(grads, opt_state, "
            "params) of the last update of the inner parameters: hand it in, or set "
            "adaptation=False"
        )
    return step


def check_adaptation(optimizer: optax.GradientTransformation) -> None:
    """Raise unless an optimiser's update changes with small changes of the gradient.

    Raises:
        UserError: The derivatives of the first updates are zero everywhere. Some of
            them may be, as in `optax.MultiSteps`.
    """
    params = jnp.linspace(-1, 1, 5, dtype=jnp.float32)
    grads = jnp.array([0.3, -0.2, 0.5, 0.7, -0.4], jnp.float32)
    vector = jnp.array([1.0, 2.0, -1.0, 0.5, 3.0], jnp.float32)

    def changes(state: Any, _: None) -> tuple[Any, jax.Array]:
        moved = adapted(optimizer, InnerStep(grads, state, params), vector)
        return optimizer.update(grads, state, params)[1], jnp.any(moved != 0)

    _, found = jax.lax.scan(changes, optimizer.init(params), length=_PROBED_UPDATES)
    if not jnp.any(found):
        raise UserError(
            "the update of this optimizer does not change with small changes of the "
            "gradient (it goes by the sign, as lion does), so adaptation would make "
            "every hypergradient zero: leave it out, or use another optimizer"
        )
