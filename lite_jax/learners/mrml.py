"""MRML: a linear head fitted to each task, differentiated implicitly."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lite_jax import trees
from lite_jax.errors import check_number, check_whole
from lite_jax.heads.class_means import LinearClassifier, check_way, linear_logits
from lite_jax.heads.linear import (
    SupportLabels,
    curvature_bound,
    descend,
    encoder_of,
    head_loss,
    tabulate_support,
    zero_head,
)
from lite_jax.hypergrad import (
    Estimator,
    Problem,
    Products,
    SolveFn,
    conjugate_gradient,
    solve_of,
)
from lite_jax.lite import exact_sum
from lite_jax.lite.additive import row_of
from lite_jax.nn import feature_size
from lite_jax.types import Examples, Key, Learner, Network, Params, SetSum

_CONJUGATE_GRADIENT = conjugate_gradient(10)


def mrml(
    backbone: Network,
    *,
    way: int,
    steps: int = 100,
    learning_rate: float = 0.1,
    weight_decay: float = 1e-2,
    solver: Estimator | None = _CONJUGATE_GRADIENT,
    learned_head: bool = False,
) -> Learner:
    """Return MRML, which learns features f_x and fits a linear head y* to each task.

    y*(x) = argmin_y g(x, y),   g = (1/N) Σ_n -log p(y_n | f_x(x_n), y) + (decay/2) ‖y‖²

    y* is computed by K steps of gradient descent, whose trajectory is not stored. The
    gradient of the query loss f by x is the implicit one, with
    v = (∂²g/∂y²)⁻¹ ∂f/∂y solved by conjugate gradients.

    The head depends on the support through the table T of features `[n, d]` only. The
    table is computed once, and products of the Hessian need no images. What passes to
    the features is the table's cotangent −(∂²g/∂T∂y) v. The map back-propagates it by
    its own rule: `lite_sum(…).map` from H sampled examples.

    Guarantees:
        At an inner solution, and with a solver that converges (`conjugate_gradient`,
        `neumann`), the gradient by x is the hypergradient up to the solver's residual.
        With `lite_sum` it is unbiased for that over draws. Memory, unless unrolled,
        does not grow with the inner steps: one chunk of images, the table `[n, d]` and
        a few heads.

    Args:
        backbone: The feature extractor.
        way: Static maximum of classes in a task; a task may have fewer.
        steps: K, the number of inner steps, 1 or more.
        learning_rate: Largest step size of the inner gradient descent, above 0. The
            step size is 2 / (L + decay) if that is smaller, with L an upper bound on
            the curvature of g, decay included, from the task's features. Then the steps
            cannot overshoot, however large the features grow. With `solver=None` the
            step size is always `learning_rate`.
        weight_decay: Weight of the squared norm of the head in g, 0 or more. Without
            decay and damping the linear system has no solution in general.
        solver: The estimator of `lite_jax.hypergrad` whose `solve` gives v; by default
            `conjugate_gradient(10)` (MRML). `neumann` takes no longer steps than the
            descent. `identity()` replaces the Hessian by the identity. Only `solve` is
            called: `set_sum`, `mode` and `axis_name` of an estimator have no effect
            here. None differentiates through all K steps instead, on the cached table
            (ITD).
        learned_head: Meta-learn the head's start. Its gradient is ∂f/∂y at the inner
            solution, a first-order one, and exact when unrolled. If false, the start
            is 0.

    Returns:
        A `Learner` with parameters "backbone", and "head" if its start is learned.

    Raises:
        UserError: `way` under 2, `steps` under 1, a negative decay, a learning rate
            that is not positive, or a solver without `solve`.

    Reference: Yang, Ma and Yu, "Memory-Reduced Meta-Learning with Guaranteed
    Convergence", AAAI 2025, Algorithm 1.
    """
    check_way(way)
    check_whole("steps", steps)
    check_number("weight_decay", weight_decay)
    check_number("learning_rate", learning_rate, above=0)
    encode = encoder_of(backbone)

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

    def largest_step(table: jax.Array, fit: SupportLabels) -> jax.Array:
        return 2 / (curvature_bound(table, fit, weight_decay) + weight_decay)

    def descended(
        head: Params, table: jax.Array, fit: SupportLabels, step_size: Any
    ) -> Params:
        loss = functools.partial(inner, table=table, fit=fit)
        return descend(loss, head, optax.sgd(step_size), steps)

    solution: Callable[..., Params] = functools.partial(
        descended, step_size=learning_rate
    )
    if solver is not None:
        solution = _implicit_solution(
            descended,
            inner,
            solve_of(solver, has_inner_step=False),
            learning_rate,
            largest_step,
        )

    def adapt(
        params: Params, support: Examples, key: Key, set_sum: SetSum
    ) -> LinearClassifier:
        table, fit = tabulate_support(
            encode, params["backbone"], support, key, set_sum, way
        )
        start = params["head"] if learned_head else zero_head(way, table)
        start = jax.tree.map(lambda x: x.astype(table.dtype), start)
        head = solution(start, table, fit)
        return LinearClassifier(**head, present=fit.present)

    def predict(params: Params, task_state: LinearClassifier, inputs: jax.Array) -> Any:
        features = backbone.apply(params["backbone"], inputs)
        return linear_logits(task_state, features)

    return Learner(init, row_of(encode), adapt, predict, fixed_features=True)


def _implicit_solution(
    descended: Callable[..., Params],
    inner: Callable[..., jax.Array],
    solve: SolveFn,
    learning_rate: float,
    largest_step: Callable[..., jax.Array],
) -> Callable[..., Params]:
    """Return the solution `(start, table, fit) -> head`, with an implicit derivative.

    The derivative by the table is the implicit one. The derivative by the start is
    taken to be that by the solution, which is a first-order approximation.

    Args:
        descended: `(start, table, fit, step_size) -> head`.
        inner: `(head, table, fit) -> scalar`, the inner loss.
        solve: The solver's `solve`.
        learning_rate: Largest step size of the descent.
        largest_step: `(table, fit) -> scalar`, the step size that cannot overshoot.
    """
    problem = Problem(inner, inner)

    @jax.custom_vjp
    def solution(start: Params, table: jax.Array, fit: SupportLabels) -> Params:
        step_size = jnp.minimum(learning_rate, largest_step(table, fit))
        return descended(start, table, fit, step_size)

    def forward(
        start: Params, table: jax.Array, fit: SupportLabels
    ) -> tuple[Params, Any]:
        head = solution(start, table, fit)
        return head, (head, table, fit)

    def backward(residuals: Any, cotangent: Params) -> Any:
        head, table, fit = residuals
        products = Products(problem, head, table, (fit, fit), exact_sum())
        limit = largest_step(table, fit)
        solved = solve(products.hessian, cotangent, largest_step=limit)
        mixed = products.mixed(solved.vector)
        return cotangent, trees.times(mixed, -1.0), None

    solution.defvjp(forward, backward)
    return solution
