"""iMAML: adaptation near a learned start, with implicit gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from lite_jax import trees
from lite_jax.errors import check_number, check_whole
from lite_jax.hypergrad import Estimator, InnerStep, conjugate_gradient, solve_of
from lite_jax.learners.inner_model import AdaptedState, InnerModel
from lite_jax.types import Examples, Key, Learner, Network, Params, PyTree, SetSum

_CONJUGATE_GRADIENT = conjugate_gradient(5)


def imaml(
    backbone: Network,
    *,
    way: int,
    steps: int = 16,
    optimizer: optax.GradientTransformation | None = None,
    proximity: float = 1.0,
    solver: Estimator = _CONJUGATE_GRADIENT,
    learned_head: bool = False,
) -> Learner:
    """Return iMAML, which adapts the whole network near a learned start λ.

    θ*(λ) = argmin_θ (1/N) Σ_n ℓ(θ; x_n, y_n) + (β/2) ‖θ - λ‖²

    θ* is computed by K steps of an optimiser, whose trajectory is not stored. The
    gradient of the query loss f by λ is β v, with (H + β I) v = ∂f/∂θ and H the Hessian
    of the support's mean loss. Products of H with vectors are sums over the support,
    formed chunk by chunk.

    Guarantees:
        At an inner solution, and with a solver that converges (`conjugate_gradient`,
        `neumann`), the gradient is the hypergradient up to the solver's residual. No
        gradient passes through the set sums. So every operator whose values are exact
        (`exact_sum`, `lite_sum`) gives the same gradient, whatever H. Memory: one chunk
        and a few copies of the parameters, whatever the number of steps.

    Args:
        backbone: The feature extractor.
        way: Static maximum of classes in a task; a task may have fewer.
        steps: K, the number of inner steps, 1 or more.
        optimizer: Optimiser of the inner steps; by default `optax.sgd(0.01)`.
        proximity: β > 0. A larger value keeps θ* nearer to λ and makes the inner
            problem better conditioned.
        solver: The estimator of `lite_jax.hypergrad` whose `solve` gives v; by default
            `conjugate_gradient(5)` (iMAML). The operator it is handed is H + β I, so
            `neumann` needs a step size below 2 / L, with L the largest eigenvalue of
            that. `identity()` gives β ∂f/∂θ, as first-order MAML with this inner loss
            does, times β.
            `sama(optimizer)` gives −β (∂u/∂g)ᵀ ∂f/∂θ, with u(g) the last update of the
            same optimiser (SAMA). Only `solve` is called: `set_sum`, `mode` and
            `axis_name` of an estimator have no effect here.
        learned_head: Learn the head's start; otherwise it is 0.

    Returns:
        A `Learner` with parameters "backbone", and "head" if its start is learned.

    Raises:
        UserError: `way` under 2, `steps` under 1, β that is not positive, or a solver
            without `solve`.

    References:
        Rajeswaran, Finn, Kakade, Levine, "Meta-Learning with Implicit Gradients",
        NeurIPS 2019, https://arxiv.org/abs/1909.04630; Choe et al., NeurIPS 2023, for
        SAMA.
    """
    check_whole("steps", steps)
    check_number("proximity", proximity, above=0)
    optimizer = optimizer or optax.sgd(0.01)
    solve = solve_of(solver, has_inner_step=True)
    model = InnerModel(backbone, way, learned_head=learned_head)

    def encode(args: PyTree, example: Examples) -> PyTree:
        one = jax.tree.map(lambda x: x[None], example)
        return _gradient(model, args, one, jnp.ones(1))

    def adapt(
        params: Params, support: Examples, key: Key, set_sum: SetSum
    ) -> AdaptedState:
        # Only the sums' values are used, which are exact: no draw of LITE matters, and
        # every sum may have the same words.
        words, to_key = _words_of(key)
        start, present = model.start_on(params, support)

        def steps_from(start: Params, task_data: Any) -> tuple[Params, InnerStep]:
            """Return θ after K steps, and the last update."""
            loss = _SupportLoss(model, set_sum, to_key, *task_data)

            def grads_at(inner: Params) -> Params:
                pull = trees.add(inner, start, -1.0)
                return trees.add(loss.gradient(inner), pull, proximity)

            def step(last: InnerStep, _: None) -> tuple[InnerStep, None]:
                inner, state = _updated(optimizer, last)
                return InnerStep(grads_at(inner), state, inner), None

            first = InnerStep(grads_at(start), optimizer.init(start), start)
            last, _ = lax.scan(step, first, length=steps - 1)
            return _updated(optimizer, last)[0], last

        @jax.custom_vjp
        def inner_solution(start: Params, task_data: Any) -> Params:
            return steps_from(start, task_data)[0]

        def forward(start: Params, task_data: Any) -> tuple[Params, Any]:
            inner, last = steps_from(start, task_data)
            return inner, (inner, last, task_data)

        def backward(residuals: Any, cotangent: Params) -> Any:
            inner, last, task_data = residuals
            loss = _SupportLoss(model, set_sum, to_key, *task_data)

            def operator(vector: Params) -> Params:
                return trees.add(loss.hessian(inner, vector), vector, proximity)

            solution = solve(operator, cotangent, inner_step=last)
            return trees.times(solution.vector, proximity), None

        inner_solution.defvjp(forward, backward)
        return AdaptedState(inner_solution(start, (support, present, words)), present)

    def predict(
        params: Params, task_state: AdaptedState, inputs: jax.Array
    ) -> jax.Array:
        del params
        return model.logits(task_state, inputs)

    return Learner(init=model.init, encode=encode, adapt=adapt, predict=predict)


class _SupportLoss(NamedTuple):
    """The mean loss of a support set, as sums over its examples.

    Attributes:
        model: The classifier.
        set_sum: The operator that forms the sums.
        to_key: Makes a key of the words.
        support: The examples.
        present: `[way]` bool, the classes that the support has examples of.
        words: The words of a key, or None.
    """

    model: InnerModel
    set_sum: SetSum
    to_key: Callable[[Any], Key]
    support: Examples
    present: jax.Array
    words: Any

    def gradient(self, inner: Params) -> Params:
        """Return the gradient at the inner parameters."""
        return self._mean(_gradient, (inner, self.present))

    def hessian(self, inner: Params, vector: Params) -> Params:
        """Return the Hessian at the inner parameters times a vector."""
        return self._mean(_hessian_product, (inner, vector, self.present))

    def _mean(self, additive: Callable[..., PyTree], args: PyTree) -> PyTree:
        """Return the mean over the support of `additive(model, args, …)`."""
        bound = functools.partial(additive, self.model)
        mask = self.support.mask
        total = self.set_sum(bound, args, self.support, self.to_key(self.words), mask)
        count = jnp.maximum(mask.sum(), 1)
        return jax.tree.map(lambda x: x / count.astype(x.dtype), total)


def _words_of(key: Key) -> tuple[Any, Callable[[Any], Key]]:
    """Return the words of a key of any type, and the function back to a key."""
    if key is None or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key, lambda words: words
    impl = jax.random.key_impl(key)
    return jax.random.key_data(key), functools.partial(
        jax.random.wrap_key_data, impl=impl
    )


def _gradient(
    model: InnerModel, args: PyTree, examples: Examples, weights: jax.Array
) -> PyTree:
    """Return the gradient of the weighted sum of the examples' losses."""
    inner, present = args
    return jax.grad(_weighted_loss(model, present, examples, weights))(inner)


def _hessian_product(
    model: InnerModel, args: PyTree, examples: Examples, weights: jax.Array
) -> PyTree:
    """Return the Hessian of the examples' weighted loss times a vector.

    It is formed in reverse over reverse mode.
    """
    inner, vector, present = args
    loss = _weighted_loss(model, present, examples, weights)
    point = trees.delay_until(inner, vector)
    _, pull = jax.vjp(jax.grad(loss), point)
    return pull(vector)[0]


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
