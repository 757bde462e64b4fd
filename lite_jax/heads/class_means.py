"""Per-class sums over a support set, and classifiers made from them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lite_jax.errors import UserError
from lite_jax.lite.additive import accumulation_dtype
from lite_jax.types import Key, Params


def check_way(way: int) -> None:
    """Raise unless there are classes to tell apart."""
    if way < 2:
        raise UserError(f"way={way}: a classifier needs 2 classes or more")


def check_labels(labels: jax.Array, mask: jax.Array, way: int) -> None:
    """Raise where a real example's label is outside `0 … way-1`.

    Under `jax.jit` labels cannot be seen, and such an example belongs to no class.
    """
    real = jnp.where(mask, labels, 0)
    try:
        least, most = int(real.min()), int(real.max())
    except jax.errors.ConcretizationTypeError:
        return
    if least < 0 or most >= way:
        raise UserError(
            f"labels: class {least if least < 0 else most} is outside 0 … {way - 1}: "
            "number the classes of a task from 0, and give the learner a way of "
            "at least their number"
        )


def classes_present(labels: jax.Array, mask: jax.Array, way: int) -> jax.Array:
    """Return `[way]` bool: which classes have real examples."""
    classes = jnp.arange(way, dtype=labels.dtype)
    return ((labels[None, :] == classes[:, None]) & mask[None, :]).any(1)


class ClassSums(NamedTuple):
    """What class means are made of; additive over examples.

    Attributes:
        features: `[way, d]`, the sum of each class's features.
        counts: `[way]`, the sum of each class's weights.
    """

    features: jax.Array
    counts: jax.Array


def class_sums(
    features: jax.Array, labels: jax.Array, weights: jax.Array, way: int
) -> ClassSums:
    """Return the weighted sums of features and of ones within each class.

    Args:
        features: `[n, d]`.
        labels: `[n]` int in `0 … way-1`; a label outside belongs to no class.
        weights: `[n]`.
        way: Static number of classes.

    Returns:
        Sums in float32 at least, with full-precision products.
    """
    features = features.astype(accumulation_dtype(features.dtype))
    members = jax.nn.one_hot(labels, way, dtype=features.dtype)
    members = members * weights.astype(features.dtype)[:, None]
    totals = jnp.matmul(members.T, features, precision=lax.Precision.HIGHEST)
    return ClassSums(totals, members.sum(0))


def class_means(totals: ClassSums) -> jax.Array:
    """Return `[way, d]` class means; 0 for a class without examples."""
    return totals.features / jnp.maximum(totals.counts, 1)[:, None]


class LinearClassifier(NamedTuple):
    """A linear classifier over the classes that a support holds.

    Attributes:
        weights: `[way, d]`.
        biases: `[way]`.
        present: `[way]` bool; other classes get −inf.
    """

    weights: jax.Array
    biases: jax.Array
    present: jax.Array


def draw_linear(key: Key, outputs: int, size: int) -> Params:
    """Return the start of a linear layer, `{"weights" [outputs, size], "biases"}`."""
    weights = jax.random.normal(key, (outputs, size)) / size**0.5
    return {"weights": weights, "biases": jnp.zeros(outputs)}


def linear_logits(classifier: LinearClassifier, features: jax.Array) -> jax.Array:
    """Return `w_kᵀ f_m + b_k`, `[m, way]`, float32 at least; −∞ where not present."""
    logits = linear_products(classifier.weights, classifier.biases, features)
    return jnp.where(classifier.present[None, :], logits, -jnp.inf)


def linear_products(
    weights: jax.Array, biases: jax.Array, features: jax.Array
) -> jax.Array:
    """Return `w_kᵀ f_m + b_k`, `[m, way]`, in float32 at least."""
    dtype = accumulation_dtype(features.dtype)
    features, weights = features.astype(dtype), weights.astype(dtype)
    rows = (((1,), (1,)), ((), ()))  # weights.T would be kept as a copy
    products = lax.dot_general(features, weights, rows, precision=lax.Precision.HIGHEST)
    return products + biases.astype(dtype)[None, :]


def euclidean_logits(
    features: jax.Array, prototypes: jax.Array, present: jax.Array
) -> jax.Array:
    """Return the negative squared distances `-‖f_m - c_k‖²`.

    Args:
        features: `[m, d]`.
        prototypes: `[way, d]`.
        present: `[way]` bool; other classes get −inf.

    Returns:
        Logits `[m, way]`, float32 at least, with full-precision products.
    """
    dtype = accumulation_dtype(features.dtype)
    features, prototypes = features.astype(dtype), prototypes.astype(dtype)
    products = jnp.matmul(features, prototypes.T, precision=lax.Precision.HIGHEST)
    squares = jnp.sum(features**2, -1)[:, None] + jnp.sum(prototypes**2, -1)[None, :]
    return jnp.where(present[None, :], 2 * products - squares, -jnp.inf)
