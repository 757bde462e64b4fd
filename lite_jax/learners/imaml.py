"""iMAML: adaptation near a learned start, with implicit gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from lite_jax import trees
from lite_jax.errors import UserError, unknown_name
from lite_jax.hypergrad import InnerStep, adapted, check_adaptation, solvers
from lite_jax.learners.inner_model import AdaptedState, InnerModel
from lite_jax.types import Examples, Key, Learner, Network, Params, PyTree, SetSum

THROUGH = ("conjugate_gradient", "neumann", "identity", "sama")
"""The values of `through`: ways to differentiate the inner solution."""


def imaml(
    backbone: Network,
    *,
    way: int,
    steps: int = 16,
    optimizer: optax.GradientTransformation | None = None,
    proximity: float = 1.0,
    through: str = "conjugate_gradient",
    solver_steps: int = 5,
    step_size: float = 0.01,
    damping: float = 0.0,
    learned_head: bool = False,
) -> Learner:
    """Return iMAML, which adapts the whole network near a learned start λ.

    θ*(λ) = argmin_θ (1/N) Σ_n ℓ(θ; x_n, y_n) + (β/2) ‖θ - λ‖²

    θ* is computed by K steps of an optimiser, whose trajectory is not stored. The
    gradient of the query loss f by λ is β (H + β I)⁻¹ ∂f/∂θ, with H the Hessian of the
    support's mean loss. Products of H with vectors are sums over the support, formed
    chunk by chunk. With `through="sama"`, −(∂u/∂g)ᵀ takes the place of the inverse,
    with u(g) the optimiser's last update (SAMA).

    Guarantees:
        At an inner solution, and through a solver ("conjugate_gradient" or "neumann"),
        the gradient is the hypergradient up to the solver's residual. No gradient
        passes through the set sums. So every operator whose values are exact
        (`exact_sum`, `lite_sum`) gives the same gradient, whatever H. Memory: one chunk
        and a few copies of the parameters, whatever the number of steps.

    Args:
        backbone: The feature extractor.
        way: Static maximum of classes in a task; a task may have fewer.
        steps: K, the number of inner steps, 1 or more.
        optimizer: Optimiser of the inner steps; by default `optax.sgd(0.01)`.
        proximity: β > 0. A larger value keeps θ* nearer to λ and makes the inner
            problem better conditioned.
        through: How θ* is differentiated: "conjugate_gradient" (iMAML), "neumann",
            "identity" (the gradient is ∂f/∂θ, as in first-order MAML) or "sama".
        solver_steps: Iterations of conjugate gradients or terms of the Neumann series,
            1 or more.
        step_size: Step size of the Neumann series. It converges below 2 / L, with L the
            largest eigenvalue of H + β I.
        damping: Number added to the diagonal of H + β I for "conjugate_gradient", 0 or
            more.
        learned_head: Learn the head's start; otherwise it is 0.

    Returns:
        A `Learner` with parameters "backbone", and "head" if its start is learned.

    Raises:
        UserError: An unknown `through`, `way` under 2, `steps` or `solver_steps` under
            1, β or a step size that is not positive, negative damping, or "sama" with
            an optimiser whose update has no useful derivative.

    References:
        Rajeswaran, Finn, Kakade, Levine, "Meta-Learning with Implicit Gradients",
        NeurIPS 2019, https://arxiv.org/abs/1909.04630; Choe et al., NeurIPS 2023, for
        SAMA.
    """
    if through not in THROUGH:
        raise unknown_name("through", through, THROUGH)
    for name, value in (("steps", steps), ("solver_steps", solver_steps)):
        if value < 1:
            raise UserError(f"{name}={value}: expected 1 or more")
    positive = {"proximity": proximity, "step_size": step_size}
    for name, number in positive.items():
        if not number > 0:
            raise UserError(f"{name}={number}: expected > 0")
    if damping < 0:
        raise UserError(f"damping={damping}: expected 0 or more")
    optimizer = optimizer or optax.sgd(0.01)
    if through == "sama":
        check_adaptation(optimizer)
    model = InnerModel(backbone, way, learned_head=learned_head)

    def gradient(args: PyTree, examples: Examples, weights: jax.Array) -> PyTree:
        """Return the gradient of the weighted sum of the examples' losses."""
        inner, present = args
        loss = _weighted_loss(model, present, examples, weights)
        return jax.grad(loss)(inner)

    def hessian(args: PyTree, examples: Examples, weights: jax.Array) -> PyTree:
        """Return the Hessian of the examples' weighted loss times a vector.

        It is formed in reverse over reverse mode.
        """
        inner, vector, present = args
        loss = _weighted_loss(model, present, examples, weights)
        point = trees.delay_until(inner, vector)
        _, pull = jax.vjp(jax.grad(loss), point)
        return pull(vector)[0]

    def encode(args: PyTree, example: Examples) -> PyTree:
        return gradient(args, jax.tree.map(lambda x: x[None], example), jnp.ones(1))

    def adapt(
        params: Params, support: Examples, key: Key, set_sum: SetSum
    ) -> AdaptedState:
        # Only the sums' values are used, so nothing is drawn. An operator may still ask
        # for a key, and raw words may be used in several sums.
        words = None if key is None else jax.random.key_data(key)
        start, present = model.start_on(params, support)

        def mean(additive: Any, args: PyTree, support: Examples, words: Any) -> PyTree:
            total = set_sum(additive, args, support, words, support.mask)
            count = jnp.maximum(support.mask.sum(), 1)
            return jax.tree.map(lambda x: x / count.astype(x.dtype), total)

        def inner_gradient(inner: Params, start: Params, task_data: Any) -> Params:
            """Return the gradient of the inner loss, the pull to the start included."""
            support, present, words = task_data
            mean_gradient = mean(gradient, (inner, present), support, words)
            return trees.add(mean_gradient, trees.add(inner, start, -1.0), proximity)

        def solution_and_step(start: Params, task_data: Any) -> Any:
            """Return the inner parameters, and the last update as an `InnerStep`."""

            def step(carry: InnerStep, _: None) -> tuple[InnerStep, None]:
                params, state = _updated(optimizer, carry)
                grads = inner_gradient(params, start, task_data)
                return InnerStep(grads, state, params), None

            grads = inner_gradient(start, start, task_data)
            first = InnerStep(grads, optimizer.init(start), start)
            last, _ = lax.scan(step, first, length=steps - 1)
            return _updated(optimizer, last)[0], last

        def inverse_product(
            inner: Params, last: InnerStep, task_data: Any, target: Params
        ) -> Any:
            """Return an estimate of (H + β I)⁻¹ times the target."""
            if through == "sama":
                return adapted(optimizer, last, target)
            by_series = through == "neumann"
            shift = proximity if by_series else proximity + damping
            support, present, words = task_data

            def operator(vector: Params) -> Params:
                args = inner, vector, present
                return trees.add(mean(hessian, args, support, words), vector, shift)

            return solvers.reported(
                solvers.neumann_series(operator, target, solver_steps, step_size)
                if by_series
                else solvers.solve_by_conjugate_gradient(
                    operator, target, None, solver_steps, 0.0
                )
            )

        @jax.custom_vjp
        def inner_solution(start: Params, task_data: Any) -> Params:
            return solution_and_step(start, task_data)[0]

        def forward(start: Params, task_data: Any) -> tuple[Params, Any]:
            inner, last = solution_and_step(start, task_data)
            return inner, (inner, last if through == "sama" else None, task_data)

        def backward(residuals: Any, cotangent: Params) -> Any:
            inner, last, task_data = residuals
            if through == "identity":
                return cotangent, None
            product = inverse_product(inner, last, task_data, cotangent)
            return trees.times(product, proximity), None

        inner_solution.defvjp(forward, backward)
        return AdaptedState(inner_solution(start, (support, present, words)), present)

    def predict(
        params: Params, task_state: AdaptedState, inputs: jax.Array
    ) -> jax.Array:
        del params
        return model.logits(task_state, inputs)

    return Learner(init=model.init, encode=encode, adapt=adapt, predict=predict)


def _weighted_loss(
    model: InnerModel, present: jax.Array, examples: Examples, weights: jax.Array
) -> Any:
    """Return the function from inner parameters to the examples' weighted loss."""
    return lambda inner: model.loss(AdaptedState(inner, present), examples, weights)


def _updated(
    optimizer: optax.GradientTransformation, step: InnerStep
) -> tuple[Params, Any]:
    """Return the parameters and the optimiser's state after an update."""
    updates, state = optimizer.update(step.grads, step.opt_state, step.params)
    return optax.apply_updates(step.params, updates), state
