"""Bilevel training: steps of a classifier on weighted examples, and of the weights."""

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


class ReweightingState(NamedTuple):
    """The state of training; with the seed it determines the next round.

    Attributes:
        step: int32 scalar, the number of rounds so far.
        params: Parameters of the classifier.
        opt_state: State of the classifier's optimiser.
        meta_params: Parameters of the weighting.
        meta_opt_state: State of the weighting's optimiser.
        estimator_state: State of the estimator of hypergradients.
        weight_sums: `[n]`, the sum of the weights of each training example.
        counts: `[n]`, the number of weights in each of these sums.
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
        """Return each example's mean weight, `[n]`.

        Examples that were in no batch have the mean over all others.
        """
        drawn = self.counts > 0
        means = self.weight_sums / jnp.maximum(self.counts, 1)
        overall = jnp.where(drawn, means, 0).sum() / jnp.maximum(drawn.sum(), 1)
        return jnp.where(drawn, means, overall)


def cross_entropies(
    logits: Logits, params: Params, inputs: Any, labels: jax.Array
) -> jax.Array:
    """Return the cross-entropy of each example, `[n]`."""
    outputs = logits(params, inputs)
    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels)


def reweighting_problem(logits: Logits, weighting: Weighting) -> Problem:
    """Return the problem: weighted training loss inside, clean loss outside.

    Inner batches are `(inputs, labels, rows)`, outer ones `(inputs, labels)`. Weights
    multiply losses, after the network, so mixed products take one forward pass.

    The weights of a batch are divided by their sum. Without this all weights grow
    early in training, when longer steps on any example lower the clean loss, and then
    stay saturated.
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
) -> Callable[
    [ReweightingState, LabelledSet, LabelledSet, Key],
    tuple[ReweightingState, dict[str, Any]],
]:
    """Return the compiled round `(state, train, meta, seed_key) -> (state, metrics)`.

    A round takes `unroll` steps of the classifier on weighted batches, then one step of
    the weights by the hypergradient at the last of these batches and a clean batch.
    The examples of a batch are drawn without replacement, by the seed's key and the
    round. `state` is donated.
    """
    problem = reweighting_problem(logits, weighting)

    @functools.partial(jax.jit, donate_argnums=0)
    def run(
        state: ReweightingState, train: LabelledSet, meta: LabelledSet, seed_key: Key
    ) -> tuple[ReweightingState, dict[str, Any]]:
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

        def step_loss(carry: Any, key: Key) -> Any:
            carry, (loss, _, _) = step(carry, key)
            return carry, loss

        keys = jax.random.split(key, unroll - 1)
        carry, losses = lax.scan(step_loss, state[1:3], keys)
        (params, opt_state), (loss, last, batch) = step(carry, last_key)
        rows = _rows(meta_key, meta, meta_batch_size)
        clean = meta.inputs[rows], meta.labels[rows]
        hypergradient = estimator.hypergrad(
            problem, params, state.meta_params, (batch, clean), state.estimator_state,
            inner_step=last,
        )  # fmt: skip
        updates, meta_opt_state = meta_optimizer.update(
            hypergradient.grads, state.meta_opt_state, state.meta_params
        )
        meta_params = optax.apply_updates(state.meta_params, updates)
        outputs = problem.outputs(params, batch)  # type: ignore[misc]
        weights = weighting.weights(meta_params, outputs, batch[2])
        predicted = logits(params, clean[0]).argmax(1)
        metrics = {
            "loss": (losses.sum() + loss) / unroll,
            "accuracy": (predicted == clean[1]).mean(),
            "weight": weights.mean(),
            "hypergrad_norm": optax.tree.norm(hypergradient.grads),
        }
        state = ReweightingState(
            state.step + 1, params, opt_state, meta_params, meta_opt_state,
            hypergradient.state,
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
    """Return compiled training with equal weights, `(params, train, key) -> params`."""

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
    """Return the rows of a batch, all different; all rows if there are fewer."""
    count = examples.labels.shape[0]
    rows = jax.random.permutation(key, jnp.arange(count, dtype=jnp.int32))
    return rows[: min(batch_size, count)]
