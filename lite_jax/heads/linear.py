"""Linear heads fitted by gradient descent to the feature table of a support set."""

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
from lite_jax.lite.additive import accumulation_dtype
from lite_jax.types import Examples, Key, Network, Params, PyTree, SetSum


class SupportLabels(NamedTuple):
    """Targets that a head is fitted to.

    Attributes:
        labels: `[n]` int class indices; those of padding are a class that is present.
        mask: `[n]` bool, True for real examples.
        present: `[way]` bool, classes in the support set.
    """

    labels: jax.Array
    mask: jax.Array
    present: jax.Array


Encode = Callable[[PyTree, Examples], jax.Array]
"""`(params, examples) -> features [n, d]`."""


def encoder_of(backbone: Network) -> Encode:
    """Return the encoder whose map over a support set is the table of features."""

    def encode(params: Params, examples: Examples) -> jax.Array:
        return backbone.apply(params, examples.inputs)

    return encode


def tabulate_support(
    encode: Encode,
    params: PyTree,
    support: Examples,
    key: Key,
    set_sum: SetSum,
    way: int,
) -> tuple[jax.Array, SupportLabels]:
    """Return the feature table of a support set and the targets of a head.

    Args:
        encode: From `encoder_of`.
        params: Its first argument.
        support: The support set of `n` examples.
        key: Key for `set_sum`.
        set_sum: Operator whose map is taken over the support set.
        way: Static number of classes.

    Returns:
        `(table [n, d], SupportLabels)`.

    Raises:
        UserError: A label outside `0 … way-1`, see `check_labels`.
    """
    check_labels(support.labels, support.mask, way)
    table = set_sum.map(encode, params, support, key, support.mask)
    table = table.astype(accumulation_dtype(table.dtype))
    present = classes_present(support.labels, support.mask, way)
    real_label = jnp.argmax(present).astype(support.labels.dtype)
    labels = jnp.where(support.mask, support.labels, real_label)
    return table, SupportLabels(labels, support.mask, present)


def zero_head(way: int, table: jax.Array) -> Params:
    """Return a head whose parameters are 0.

    Args:
        way: Number of classes.
        table: Features `[n, d]`, which give d and the dtype.

    Returns:
        `{"weights": [way, d], "biases": [way]}`.
    """
    zeros = {"weights": jnp.zeros((way, table.shape[1])), "biases": jnp.zeros(way)}
    return jax.tree.map(lambda x: x.astype(table.dtype), zeros)


def head_loss(
    head: Params, table: jax.Array, fit: SupportLabels, weight_decay: float = 0.0
) -> jax.Array:
    """Return the mean cross-entropy plus `weight_decay / 2 · ‖head‖²`.

    Args:
        head: `{"weights": [way, d], "biases": [way]}`.
        table: Features `[n, d]`.
        fit: The targets. The mean is over real examples.
        weight_decay: Coefficient of the squared norm of weights and biases.
    """
    logits = linear_logits(LinearClassifier(**head, present=fit.present), table)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, fit.labels)
    count = jnp.maximum(fit.mask.sum(), 1).astype(table.dtype)
    loss = jnp.where(fit.mask, losses, 0).sum() / count
    squares = sum((x**2).sum() for x in jax.tree.leaves(head))
    return loss + jnp.asarray(weight_decay / 2, table.dtype) * squares


def curvature_bound(
    table: jax.Array, fit: SupportLabels, weight_decay: float
) -> jax.Array:
    """Return an upper bound on the eigenvalues of the Hessian of `head_loss`.

    The bound holds for every head. The Hessian of the cross-entropy by one example's
    logits has eigenvalues of 1/2 or less. Those of the loss are therefore at most
    λ / 2 + weight_decay, where λ is the largest eigenvalue of the mean outer product of
    the features with a 1 appended. The Frobenius norm of that product bounds λ.

    Args:
        table: Features `[n, d]`.
        fit: The targets; only the mask is read.
        weight_decay: As in `head_loss`.
    """
    count = jnp.maximum(fit.mask.sum(), 1).astype(table.dtype)
    ones = jnp.ones((len(table), 1), table.dtype)
    rows = jnp.where(fit.mask[:, None], jnp.concatenate((table, ones), axis=1), 0)
    tall = rows if rows.shape[0] >= rows.shape[1] else rows.T
    frobenius_norm = jnp.linalg.norm(tall.T @ tall) / count
    return frobenius_norm / 2 + jnp.asarray(weight_decay, table.dtype)


def descend(
    loss: Callable[[Params], jax.Array],
    head: Params,
    optimizer: optax.GradientTransformation,
    steps: int,
) -> Params:
    """Return the head after `steps` steps of `optimizer` on `loss`."""

    def step(carry: PyTree, _: None) -> Any:
        head, state = carry
        updates, state = optimizer.update(jax.grad(loss)(head), state, head)
        return (optax.apply_updates(head, updates), state), None

    (head, _), _ = lax.scan(step, (head, optimizer.init(head)), length=steps)
    return head
