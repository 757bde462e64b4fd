"""iMAML: a network kept near a learned start, and the implicit gradient of that."""

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
"""How the gradient passes the inner problem."""


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
    """Return iMAML: the whole network adapted near its start, without a trajectory.

    θ*(λ) = argmin_θ (1/N) Σ_n ℓ(θ; x_n, y_n) + (β/2) ‖θ - λ‖²

    by K steps of an optimiser, which keep nothing for the way back. There λ gets
    β (H + β I)⁻¹ ∂f/∂θ, with H the Hessian of the support's mean loss; its products are
    sums over the support, formed chunk by chunk. With `through="sama"` the inverse is
    left out and the optimiser's update derived instead (SAMA).

    Guarantees:
        At an inner solution the gradient is the hypergradient up to the solver's
        residual. Sums enter by their values alone, so any operator whose values are
        exact (`exact_sum`, `lite_sum`) gives the same gradient, whatever H. Memory: one
        chunk, and a few copies of the parameters, whatever the number of steps.

    Args:
        backbone: The feature extractor.
        way: Static maximum of classes in a task; a task may have fewer.
        steps: K, inner steps, 1 or more.
        optimizer: What takes them; by default `optax.sgd(0.01)`.
        proximity: β > 0; the larger, the nearer tasks stay to the start, and the better
            conditioned the inner problem is.
        through: "conjugate_gradient" (iMAML), "neumann", "identity" (λ gets ∂f/∂θ, as
            in first-order MAML) or "sama".
        solver_steps: Iterations of conjugate gradients, or terms of the series.
        step_size: Of the series, below 2 / L, L the largest curvature.
        damping: Added to H + β I, under "conjugate_gradient".
        learned_head: Learn the head's start; otherwise it is 0.

    Returns:
        A `Learner` with parameters "backbone", and "head" where its start is learned.

    Raises:
        UserError: An unknown way through, `way` under 2, steps under 1, β or step size
            that is not positive, negative damping, or SAMA through an optimiser whose
            update has no useful derivative.

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
        loss = _loss_of(model, present, examples, weights)
        return jax.grad(loss)(inner)

    def hessian(args: PyTree, examples: Examples, weights: jax.Array) -> PyTree:
        """Return that sum's Hessian times a vector, in reverse over reverse mode."""
        inner, vector, present = args
        loss = _loss_of(model, present, examples, weights)
        point = trees.delay_until(inner, vector)
        _, pull = jax.vjp(jax.grad(loss), point)
        return pull(vector)[0]

    def encode(args: PyTree, example: Examples) -> PyTree:
        return gradient(args, jax.tree.map(lambda x: x[None], example), jnp.ones(1))

    def adapt(
        params: Params, support: Examples, key: Key, set_sum: SetSum
    ) -> AdaptedState:
        # The values of the sums need no draw; an operator may ask for a key all the
        # same, and one in raw words may serve all of them.
        words = None if key is None else jax.random.key_data(key)
        start, present = model.start_on(params, support)

        def mean(additive: Any, args: PyTree, support: Examples, words: Any) -> PyTree:
            total = set_sum(additive, args, support, words, support.mask)
            count = jnp.maximum(support.mask.sum(), 1)
            return jax.tree.map(lambda x: x / count.astype(x.dtype), total)

        def slope(inner: Params, start: Params, given: Any) -> Params:
            """Return the gradient of the inner problem."""
            support, present, words = given
            own = mean(gradient, (inner, present), support, words)
            return trees.add(own, trees.add(inner, start, -1.0), proximity)

        def solve(start: Params, given: Any) -> tuple[Params, InnerStep]:
            def step(carry: InnerStep, _: None) -> tuple[InnerStep, None]:
                params, state = _updated(optimizer, carry)
                return InnerStep(slope(params, start, given), state, params), None

            first = InnerStep(slope(start, start, given), optimizer.init(start), start)
            last, _ = lax.scan(step, first, length=steps - 1)
            return _updated(optimizer, last)[0], last

        def inverse(inner: Params, last: InnerStep, given: Any, target: Params) -> Any:
            """Return (an estimate of) the inverse of H + β I times the target."""
            if through == "sama":
                return adapted(optimizer, last, target)
            by_series = through == "neumann"
            shift = proximity if by_series else proximity + damping
            support, present, words = given

            def operator(vector: Params) -> Params:
                args = inner, vector, present
                return trees.add(mean(hessian, args, support, words), vector, shift)

            return solvers.reported(
                solvers.neumann_series(operator, target, solver_steps, step_size)
                if by_series
                else solvers.conjugate_gradient(
                    operator, target, None, solver_steps, 0.0
                )
            )

        @jax.custom_vjp
        def solved(start: Params, given: Any) -> Params:
            return solve(start, given)[0]

        def forward(start: Params, given: Any) -> tuple[Params, Any]:
            inner, last = solve(start, given)
            return inner, (inner, last if through == "sama" else None, given)

        def backward(kept: Any, cotangent: Params) -> Any:
            inner, last, given = kept
            if through == "identity":
                return cotangent, None
            found = inverse(inner, last, given, cotangent)
            return trees.times(found, proximity), None

        solved.defvjp(forward, backward)
        return AdaptedState(solved(start, (support, present, words)), present)

    def predict(
        params: Params, task_state: AdaptedState, inputs: jax.Array
    ) -> jax.Array:
        del params
        return model.logits(task_state, inputs)

    return Learner(init=model.init, encode=encode, adapt=adapt, predict=predict)


def _loss_of(
    model: InnerModel, present: jax.Array, examples: Examples, weights: jax.Array
) -> Any:
    return lambda inner: model.loss(AdaptedState(inner, present), examples, weights)


def _updated(
    optimizer: optax.GradientTransformation, step: InnerStep
) -> tuple[Params, Any]:
    """Return the parameters and the optimiser's state after a step."""
    updates, state = optimizer.update(step.grads, step.opt_state, step.params)
    return optax.apply_updates(step.params, updates), state
