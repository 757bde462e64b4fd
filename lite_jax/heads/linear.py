"""A linear classifier fitted to a table of the support's features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from lite_jax.heads.class_means import (
    LinearClassifier,
    check_labels,
    classes_present,
    linear_logits,
)
from lite_jax.lite.additive import Pooled
from lite_jax.lite.feature_table import Slotted, add_rows, with_slots
from lite_jax.types import Examples, Key, Network, Params, PyTree, SetSum


class Fit(NamedTuple):
    """What a head is fitted to, besides the features.

    Attributes:
        labels: `[n]` int32; of padding, some class that is present.
        mask: `[n]` bool.
        present: `[way]` bool, the classes of the support.
    """

    labels: jax.Array
    mask: jax.Array
    present: jax.Array


def features_of(backbone: Network) -> Pooled:
    """Return the additive function whose set sum is the table of features `[n, d]`."""

    def features(params: Params, examples: Slotted) -> jax.Array:
        return backbone.apply(params, examples.inputs)

    def pool(features: jax.Array, examples: Slotted, weights: jax.Array) -> jax.Array:
        return add_rows(features, examples.slot, weights)

    return Pooled(features, pool)


def read_support(
    additive: Pooled,
    params: PyTree,
    support: Examples,
    key: Key,
    set_sum: SetSum,
    way: int,
) -> tuple[jax.Array, Fit]:
    """Return the table of the support's features, and what to fit to it."""
    check_labels(support.labels, support.mask, way)
    table = set_sum(additive, params, with_slots(support), key, support.mask)
    present = classes_present(support.labels, support.mask, way)
    real_label = jnp.argmax(present).astype(support.labels.dtype)
    labels = jnp.where(support.mask, support.labels, real_label)
    return table, Fit(labels, support.mask, present)


def no_head(way: int, table: jax.Array) -> Params:
    """Return the head of zeros."""
    zeros = {"weights": jnp.zeros((way, table.shape[1])), "biases": jnp.zeros(way)}
    return jax.tree.map(lambda x: x.astype(table.dtype), zeros)


def head_loss(
    head: Params, table: jax.Array, fit: Fit, weight_decay: float = 0.0
) -> jax.Array:
    """Return the mean cross-entropy, and half the weight decay times the squares."""
    found = linear_logits(LinearClassifier(**head, present=fit.present), table)
    losses = optax.softmax_cross_entropy_with_integer_labels(found, fit.labels)
    count = jnp.maximum(fit.mask.sum(), 1).astype(table.dtype)
    loss = jnp.where(fit.mask, losses, 0).sum() / count
    squares = sum((x**2).sum() for x in jax.tree.leaves(head))
    return loss + jnp.asarray(weight_decay / 2, table.dtype) * squares


def curvature_bound(table: jax.Array, fit: Fit, weight_decay: float) -> jax.Array:
    """Return a bound on the largest eigenvalue of the Hessian of `head_loss`, anywhere.

    The cross-entropy's Hessian over one example's logits is at most 1/2, so that of the
    loss at most half the largest eigenvalue of the mean outer product of the features
    with a one appended, plus the decay. The Frobenius norm bounds the eigenvalue.
    """
    count = jnp.maximum(fit.mask.sum(), 1).astype(table.dtype)
    ones = jnp.ones((len(table), 1), table.dtype)
    rows = jnp.where(fit.mask[:, None], jnp.concatenate((table, ones), axis=1), 0)
    narrow = rows if rows.shape[0] >= rows.shape[1] else rows.T
    largest = jnp.linalg.norm(narrow.T @ narrow) / count
    return largest / 2 + jnp.asarray(weight_decay, table.dtype)


def descend(
    loss: Callable[[Params], jax.Array],
    head: Params,
    optimizer: optax.GradientTransformation,
    steps: int,
) -> Params:
    """Return the head after steps of an optimiser."""

    def step(carry: PyTree, _: None) -> Any:
        head, state = carry
        updates, state = optimizer.update(jax.grad(loss)(head), state, head)
        return (optax.apply_updates(head, updates), state), None

    (head, _), _ = lax.scan(step, (head, optimizer.init(head)), length=steps)
    return head
