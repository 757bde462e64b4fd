"""MRML: a head solved for each task, features learned through its implicit gradient."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lite_jax import trees
from lite_jax.errors import UserError, unknown_name
from lite_jax.heads.class_means import LinearClassifier, check_way, linear_logits
from lite_jax.heads.linear import (
    Fit,
    curvature_bound,
    descend,
    features_of,
    head_loss,
    read_support,
    zero_head,
)
from lite_jax.hypergrad import Problem, Products, solvers
from lite_jax.lite import exact_sum
from lite_jax.nn import feature_size
from lite_jax.types import Examples, Key, Learner, Network, Params, SetSum

_logger = logging.getLogger(__name__)

THROUGH = ("conjugate_gradient", "neumann", "identity", "unrolled")
"""How the gradient passes the inner problem."""


def mrml(
    backbone: Network,
    *,
    way: int,
    steps: int = 100,
    learning_rate: float = 0.1,
    weight_decay: float = 1e-2,
    through: str = "conjugate_gradient",
    solver_steps: int = 10,
    damping: float = 0.0,
    learned_head: bool = False,
) -> Learner:
    """Return MRML: features f_x, and per task a regularised linear head y*(x).

    y* minimises g(x, y) = (1/N) Σ_n -log p(y_n | f_x(x_n), y) + (decay/2) ‖y‖² on the
    support, by K steps of gradient descent without a graph. The gradient of the query
    loss over x is the implicit one, in which v = (∂²g/∂y²)⁻¹ ∂f/∂y is found by
    conjugate gradients.

    The head sees the support through the table of its features alone, a direct sum over
    examples. So v and Hessian products are of the table, computed once, and what passes
    on to the features is the table's cotangent −(∂²g/∂T∂y) v: any set sum
    back-propagates it in its own way, `lite_sum` from H sampled examples.

    Guarantees:
        At an inner solution the gradient over x is the hypergradient, up to the
        solver's residual, and with `lite_sum` unbiased for it over draws. Memory does
        not grow with the inner steps: one chunk of images, the table `[n, d]` and a few
        heads.

    Args:
        backbone: The feature extractor.
        way: Static maximum of classes in a task; a task may have fewer.
        steps: K, inner steps, 1 or more.
        learning_rate: Of the inner steps. At most, save when unrolled: their rate is
            2 / (L + decay) where that is less, with L a bound on the curvature of the
            inner loss, from the task's features; so they cannot overshoot, however
            large the features grow.
        weight_decay: Curvature of the inner problem; without any (and no damping) the
            linear system has no solution in general.
        through: "conjugate_gradient" (MRML), "neumann" (the series with the rate of the
            inner steps), "identity" (first order in the Hessian) or "unrolled" (through
            all K steps, features cached: ITD; the features learn to suit the rate).
        solver_steps: Iterations of conjugate gradients, or terms of the series.
        damping: Added to the Hessian, under "conjugate_gradient".
        learned_head: Meta-learn the head's start, by the gradient at the inner solution
            (first order; exact when unrolled). Otherwise it is 0.

    Returns:
        A `Learner` with parameters "backbone", and "head" where its start is learned.

    Raises:
        UserError: An unknown way through, `way` under 2, steps under 1, or negative
            decay or damping.

    Reference: Yang, Ma and Yu, "Memory-Reduced Meta-Learning with Guaranteed
    Convergence", AAAI 2025, Algorithm 1.
    """
    check_way(way)
    if through not in THROUGH:
        raise unknown_name("through", through, THROUGH)
    for name, value in (("steps", steps), ("solver_steps", solver_steps)):
        if value < 1:
            raise UserError(f"{name}={value}: expected 1 or more")
    for name, number in (("weight_decay", weight_decay), ("damping", damping)):
        if number < 0:
            raise UserError(f"{name}={number}: expected 0 or more")
    if not learning_rate > 0:
        raise UserError(f"learning_rate={learning_rate}: expected > 0")
    additive = features_of(backbone)

    def init(key: Key, example_spec: Any) -> Params:
        params = {"backbone": backbone.init(key, example_spec)}
        if not learned_head:
            return params
        size = feature_size(backbone, params["backbone"], example_spec)
        return params | {"head": zero_head(way, jnp.zeros((1, size), jnp.float32))}

    def inner(head: Params, table: jax.Array, fit: Fit, **_: Any) -> jax.Array:
        return head_loss(head, table, fit, weight_decay)

    def rate(table: jax.Array, fit: Fit) -> jax.Array:
        if through == "unrolled":
            return jnp.asarray(learning_rate, table.dtype)
        largest = curvature_bound(table, fit, weight_decay)
        return jnp.minimum(learning_rate, 2 / (largest + weight_decay))

    def solve(head: Params, table: jax.Array, fit: Fit) -> Params:
        optimizer = optax.sgd(rate(table, fit))
        return descend(lambda head: inner(head, table, fit), head, optimizer, steps)

    def inverse(
        operator: solvers.Operator, target: Params, table: jax.Array, fit: Fit
    ) -> Params:
        if through == "identity":
            return target
        if through == "neumann":
            return solvers.reported(
                solvers.neumann_series(operator, target, solver_steps, rate(table, fit))
            )

        def damped(vector: Params) -> Params:
            return trees.add(operator(vector), vector, damping)

        return solvers.reported(
            solvers.conjugate_gradient(damped, target, None, solver_steps, 0.0)
        )

    solve_head = solve if through == "unrolled" else _implicit(solve, inner, inverse)

    def adapt(
        params: Params, support: Examples, key: Key, set_sum: SetSum
    ) -> LinearClassifier:
        table, fit = read_support(
            additive, params["backbone"], support, key, set_sum, way
        )
        start = params["head"] if learned_head else zero_head(way, table)
        start = jax.tree.map(lambda x: x.astype(table.dtype), start)
        head = solve_head(start, table, fit)
        return LinearClassifier(**head, present=fit.present)

    def predict(params: Params, task_state: LinearClassifier, inputs: jax.Array) -> Any:
        features = backbone.apply(params["backbone"], inputs)
        return linear_logits(task_state, features)

    return Learner(init, additive.term, adapt, predict, fixed_features=True)


def _implicit(
    solve: Callable[..., Params],
    inner: Callable[..., jax.Array],
    inverse: Callable[..., Any],
) -> Callable[..., Params]:
    """Return `solve(head, table, fit)` with the implicit derivative over the table.

    The start has the derivative of the solution's own place: that of first order.
    """
    problem = Problem(inner, inner)

    @jax.custom_vjp
    def solved(start: Params, table: jax.Array, fit: Fit) -> Params:
        return solve(start, table, fit)

    def forward(start: Params, table: jax.Array, fit: Fit) -> tuple[Params, Any]:
        head = solve(start, table, fit)
        return head, (head, table, fit)

    def backward(kept: Any, cotangent: Params) -> Any:
        head, table, fit = kept
        products = Products(problem, head, table, (fit, fit), exact_sum())
        solution = inverse(products.hessian, cotangent, table, fit)
        mixed = products.mixed(solution)
        return cotangent, trees.times(mixed, -1.0), None

    solved.defvjp(forward, backward)
    return solved
