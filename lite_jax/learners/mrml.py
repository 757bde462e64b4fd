"""MRML: a linear head fitted to each task, differentiated implicitly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lite_jax import trees
from lite_jax.errors import UserError, unknown_name
from lite_jax.heads.class_means import LinearClassifier, check_way, linear_logits
from lite_jax.heads.linear import (
    SupportLabels,
    curvature_bound,
    descend,
    head_loss,
    stacked_features,
    tabulate_support,
    zero_head,
)
from lite_jax.hypergrad import Problem, Products, solvers
from lite_jax.lite import exact_sum
from lite_jax.nn import feature_size
from lite_jax.types import Examples, Key, Learner, Network, Params, SetSum

THROUGH = ("conjugate_gradient", "neumann", "identity", "unrolled")
"""The values of `through`: ways to differentiate the inner solution."""


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
    """Return MRML, which learns features f_x and fits a linear head y* to each task.

    y*(x) = argmin_y g(x, y),   g = (1/N) Σ_n -log p(y_n | f_x(x_n), y) + (decay/2) ‖y‖²

    y* is computed by K steps of gradient descent, whose trajectory is not stored. The
    gradient of the query loss f by x is the implicit one, with
    v = (∂²g/∂y²)⁻¹ ∂f/∂y solved by conjugate gradients.

    The head depends on the support through the table T of stacked features `[n, d]`
    only. The table is computed once, and products of the Hessian need no images. What
    passes to the features is the table's cotangent −(∂²g/∂T∂y) v. The set sum
    back-propagates it by its own rule: `lite_sum` from H sampled examples.

    Guarantees:
        At an inner solution, and through a solver ("conjugate_gradient" or "neumann"),
        the gradient by x is the hypergradient up to the solver's residual. With
        `lite_sum` it is unbiased for that over draws. Memory, unless unrolled, does not
        grow with the inner steps: one chunk of images, the table `[n, d]` and a few
        heads.

    Args:
        backbone: The feature extractor.
        way: Static maximum of classes in a task; a task may have fewer.
        steps: K, the number of inner steps, 1 or more.
        learning_rate: Largest step size of the inner gradient descent, above 0. The
            step size is 2 / (L + decay) if that is smaller, with L an upper bound on
            the curvature of g, decay included, from the task's features. Then the steps
            cannot overshoot, however large the features grow. With
            `through="unrolled"` the step size is always `learning_rate`.
        weight_decay: Weight of the squared norm of the head in g, 0 or more. Without
            decay and damping the linear system has no solution in general.
        through: How y* is differentiated: "conjugate_gradient" (MRML), "neumann" (the
            series, at the inner step size), "identity" (the Hessian replaced by the
            identity) or "unrolled" (ITD: through all K steps, on the cached table).
        solver_steps: Iterations of conjugate gradients or terms of the Neumann series,
            1 or more.
        damping: Number added to the Hessian's diagonal for "conjugate_gradient", 0 or
            more.
        learned_head: Meta-learn the head's start. Its gradient is ∂f/∂y at the inner
            solution, a first-order one, and exact when unrolled. If false, the start
            is 0.

    Returns:
        A `Learner` with parameters "backbone", and "head" if its start is learned.

    Raises:
        UserError: An unknown `through`, `way` under 2, `steps` or `solver_steps` under
            1, a negative decay or damping, or a learning rate that is not positive.

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
    additive = stacked_features(backbone)

    def init(key: Key, example_spec: Any) -> Params:
        params = {"backbone": backbone.init(key, example_spec)}
        if not learned_head:
            return params
        size = feature_size(backbone, params["backbone"], example_spec)
        return params | {"head": zero_head(way, jnp.zeros((1, size), jnp.float32))}

    def inner(
        head: Params, table: jax.Array, fit: SupportLabels, **_: Any
    ) -> jax.Array:
        return head_loss(head, table, fit, weight_decay)

    def rate(table: jax.Array, fit: SupportLabels) -> jax.Array:
        if through == "unrolled":
            return jnp.asarray(learning_rate, table.dtype)
        largest = curvature_bound(table, fit, weight_decay)
        return jnp.minimum(learning_rate, 2 / (largest + weight_decay))

    def solve(head: Params, table: jax.Array, fit: SupportLabels) -> Params:
        optimizer = optax.sgd(rate(table, fit))
        return descend(lambda head: inner(head, table, fit), head, optimizer, steps)

    def inverse_product(
        operator: solvers.Operator, target: Params, table: jax.Array, fit: SupportLabels
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
            solvers.solve_by_conjugate_gradient(damped, target, None, solver_steps, 0.0)
        )

    if through == "unrolled":
        solve_head = solve
    else:
        solve_head = _implicit_solve(solve, inner, inverse_product)

    def adapt(
        params: Params, support: Examples, key: Key, set_sum: SetSum
    ) -> LinearClassifier:
        table, fit = tabulate_support(
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


def _implicit_solve(
    solve: Callable[..., Params],
    inner: Callable[..., jax.Array],
    inverse_product: Callable[..., Any],
) -> Callable[..., Params]:
    """Return `solve` with the implicit derivative by the table.

    The derivative by the start is that by the solution, to first order.

    Args:
        solve: `(start, table, fit) -> head`.
        inner: `(head, table, fit) -> scalar`, the inner loss.
        inverse_product: `(operator, target, table, fit) -> v`, the solution of
            operator(v) = target.
    """
    problem = Problem(inner, inner)

    @jax.custom_vjp
    def solved_head(start: Params, table: jax.Array, fit: SupportLabels) -> Params:
        return solve(start, table, fit)

    def forward(
        start: Params, table: jax.Array, fit: SupportLabels
    ) -> tuple[Params, Any]:
        head = solve(start, table, fit)
        return head, (head, table, fit)

    def backward(residuals: Any, cotangent: Params) -> Any:
        head, table, fit = residuals
        products = Products(problem, head, table, (fit, fit), exact_sum())
        vector = inverse_product(products.hessian, cotangent, table, fit)
        mixed = products.mixed(vector)
        return cotangent, trees.times(mixed, -1.0), None

    solved_head.defvjp(forward, backward)
    return solved_head
