"""The bilevel loop: steps on weighted examples, and steps on the weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from lite_jax.apps.reweight.sets import LabelledSet
from lite_jax.apps.reweight.weightings import Weighting
from lite_jax.hypergrad import Estimator, InnerStep, Problem
from lite_jax.types import Key, Params, PyTree

Logits = Callable[[Params, Any], jax.Array]
"""`(params, inputs [n, …]) -> [n, classes]`."""


class State(NamedTuple):
    """All that the next round depends on, besides the seed.

    Attributes:
        step: int32, rounds taken.
        params: Of the classifier.
        opt_state: Of its optimiser.
        meta_params: Of the weighting.
        meta_opt_state: Of its optimiser.
        estimator_state: Of the hypergradient's estimator.
        weight_sums: `[n]`, the weights that each training example was given, summed.
        counts: `[n]`, how often it was given one.
    """

    step: jax.Array
    params: Params
    opt_state: Any
    meta_params: PyTree
    meta_opt_state: Any
    estimator_state: Any
    weight_sums: jax.Array
    counts: jax.Array

    def importance(self) -> jax.Array:
        """Return each example's mean weight in training; of those not met, the mean."""
        met = self.counts > 0
        means = self.weight_sums / jnp.maximum(self.counts, 1)
        overall = jnp.where(met, means, 0).sum() / jnp.maximum(met.sum(), 1)
        return jnp.where(met, means, overall)


def cross_entropies(
    logits: Logits, params: Params, inputs: Any, labels: jax.Array
) -> jax.Array:
    """Return the loss of each example, `[n]`."""
    found = logits(params, inputs)
    return optax.softmax_cross_entropy_with_integer_labels(found, labels)


def reweighting_problem(logits: Logits, weighting: Weighting) -> Problem:
    """Return the problem: weighted training loss inside, clean loss outside.

    Inner batches are `(inputs, labels, rows)`, outer ones `(inputs, labels)`. A batch's
    weights are divided by their sum: otherwise all of them first grow, since early on
    a longer step on anything lowers the clean loss, and they stay where they saturate.
    They act on losses, after the network, so that mixed products take one forward pass.
    """

    def outputs(params: Params, batch: Any) -> jax.Array:
        return cross_entropies(logits, params, batch[0], batch[1])

    def combine(meta_params: PyTree, losses: jax.Array, batch: Any) -> jax.Array:
        weights = weighting.weights(meta_params, losses, batch[2])
        return (weights * losses).sum() / jnp.maximum(weights.sum(), 1e-6)

    def inner(
        params: Params, meta_params: PyTree, batch: Any, *, set_sum: Any
    ) -> jax.Array:
        return combine(meta_params, outputs(params, batch), batch)

    def outer(
        params: Params, meta_params: PyTree, batch: Any, *, set_sum: Any
    ) -> jax.Array:
        return outputs(params, batch).mean()

    return Problem(inner, outer, outputs, combine)


def make_round(
    logits: Logits,
    weighting: Weighting,
    estimator: Estimator,
    optimizer: optax.GradientTransformation,
    meta_optimizer: optax.GradientTransformation,
    *,
    unroll: int,
    batch_size: int,
    meta_batch_size: int,
) -> Callable[[State, LabelledSet, LabelledSet, Key], tuple[State, dict[str, Any]]]:
    """Return the compiled round `(state, train, meta, seed_key) -> (state, metrics)`.

    `unroll` steps of the classifier on weighted batches, then one of the weights, by
    the hypergradient at the last of these batches and one clean batch. Batches are
    drawn without replacement, by the seed's key and the round. `state` is donated.
    """
    problem = reweighting_problem(logits, weighting)

    @functools.partial(jax.jit, donate_argnums=0)
    def run(
        state: State, train: LabelledSet, meta: LabelledSet, seed_key: Key
    ) -> tuple[State, dict[str, Any]]:
        key = jax.random.fold_in(seed_key, state.step)
        key, last_key, meta_key = jax.random.split(key, 3)

        def step(carry: Any, key: Key) -> Any:
            (params, opt_state), rows = carry, _rows(key, train, batch_size)
            batch = train.inputs[rows], train.labels[rows], rows
            loss, grads = jax.value_and_grad(problem.inner)(
                params, state.meta_params, batch, set_sum=None
            )
            updates, after = optimizer.update(grads, opt_state, params)
            last = InnerStep(grads, opt_state, params)
            return (optax.apply_updates(params, updates), after), (loss, last, batch)

        def loss_alone(carry: Any, key: Key) -> Any:
            carry, (loss, _, _) = step(carry, key)
            return carry, loss

        keys = jax.random.split(key, unroll - 1)
        carry, losses = lax.scan(loss_alone, state[1:3], keys)
        (params, opt_state), (loss, last, batch) = step(carry, last_key)
        rows = _rows(meta_key, meta, meta_batch_size)
        clean = meta.inputs[rows], meta.labels[rows]
        found = estimator.hypergrad(
            problem, params, state.meta_params, (batch, clean), state.estimator_state,
            inner_step=last,
        )  # fmt: skip
        updates, meta_opt_state = meta_optimizer.update(
            found.grads, state.meta_opt_state, state.meta_params
        )
        meta_params = optax.apply_updates(state.meta_params, updates)
        own = problem.outputs(params, batch)  # type: ignore[misc]
        weights = weighting.weights(meta_params, own, batch[2])
        predicted = logits(params, clean[0]).argmax(1)
        metrics = {
            "loss": (losses.sum() + loss) / unroll,
            "accuracy": (predicted == clean[1]).mean(),
            "weight": weights.mean(),
            "hypergrad_norm": optax.tree.norm(found.grads),
        }
        state = State(
            state.step + 1, params, opt_state, meta_params, meta_opt_state, found.state,
            state.weight_sums.at[batch[2]].add(weights),
            state.counts.at[batch[2]].add(1.0),
        )  # fmt: skip
        return state, metrics

    return run


def make_plain_training(
    logits: Logits,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    batch_size: int,
) -> Callable[[Params, LabelledSet, Key], Params]:
    """Return the compiled ordinary training `(params, train, key) -> params`."""

    @jax.jit
    def run(params: Params, train: LabelledSet, key: Key) -> Params:
        def step(carry: Any, key: Key) -> Any:
            params, opt_state = carry
            rows = _rows(key, train, batch_size)

            def loss(params: Params) -> jax.Array:
                inputs, labels = train.inputs[rows], train.labels[rows]
                return cross_entropies(logits, params, inputs, labels).mean()

            updates, opt_state = optimizer.update(
                jax.grad(loss)(params), opt_state, params
            )
            return (optax.apply_updates(params, updates), opt_state), None

        start = params, optimizer.init(params)
        (params, _), _ = lax.scan(step, start, jax.random.split(key, steps))
        return params

    return run


def _rows(key: Key, examples: LabelledSet, batch_size: int) -> jax.Array:
    """Return the rows of a batch, all different; a small set is a batch itself."""
    count = examples.labels.shape[0]
    rows = jax.random.permutation(key, jnp.arange(count, dtype=jnp.int32))
    return rows[: min(batch_size, count)]
