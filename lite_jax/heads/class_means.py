"""Per-class sums over a support set, and linear and Euclidean classifiers."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lite_jax.errors import UserError
from lite_jax.lite.additive import accumulation_dtype
from lite_jax.types import Key, Params


def check_way(way: int) -> None:
    """Raise a `UserError` unless `way` is 2 or more."""
    if way < 2:
        raise UserError(f"way={way}: a classifier needs 2 classes or more")


def check_labels(labels: jax.Array, mask: jax.Array, way: int) -> None:
    """Raise a `UserError` if a real example's label is outside `0 … way-1`.

    Under `jax.jit` the labels are unknown and nothing is raised: an example with such a
    label belongs to no class.

    Args:
        labels: `[n]` int.
        mask: `[n]` bool, True for real examples.
        way: Number of classes.
    """
    real_labels = jnp.where(mask, labels, 0)
    try:
        least, most = int(real_labels.min()), int(real_labels.max())
    except jax.errors.ConcretizationTypeError:
        return
    if least < 0 or most >= way:
        raise UserError(
            f"labels: class {least if least < 0 else most} is outside 0 … {way - 1}: "
            "number the classes of a task from 0, and give the learner a way of "
            "at least their number"
        )


def classes_present(labels: jax.Array, mask: jax.Array, way: int) -> jax.Array:
    """Return `[way]` bool, True for classes that have real examples."""
    classes = jnp.arange(way, dtype=labels.dtype)
    return ((labels[None, :] == classes[:, None]) & mask[None, :]).any(1)


class ClassSums(NamedTuple):
    """Weighted sums within each class, additive over examples.

    Attributes:
        features: `[way, d]`, the weighted sum of each class's features.
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
        labels: `[n]` int in `0 … way-1`; an example with another label belongs to no
            class.
        weights: `[n]`, one for each example.
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
    """Return the class means `[way, d]`; 0 for a class without examples."""
    return totals.features / jnp.maximum(totals.counts, 1)[:, None]


class LinearClassifier(NamedTuple):
    """A linear classifier over the classes of a support set.

    Attributes:
        weights: `[way, d]`.
        biases: `[way]`.
        present: `[way]` bool, classes in the support set; others have logit −inf.
    """

    weights: jax.Array
    biases: jax.Array
    present: jax.Array


def draw_linear(key: Key, outputs: int, size: int) -> Params:
    """Return initial parameters of a linear layer.

    Returns:
        `{"weights": [outputs, size], "biases": [outputs]}`: weights drawn from
        N(0, 1/size), biases 0.
    """
    weights = jax.random.normal(key, (outputs, size)) / size**0.5
    return {"weights": weights, "biases": jnp.zeros(outputs)}


def linear_logits(classifier: LinearClassifier, features: jax.Array) -> jax.Array:
    """Return the logits `w_kᵀ f_m + b_k`; −inf for classes that are not present.

    Args:
        classifier: A `LinearClassifier`.
        features: `[m, d]`.

    Returns:
        Logits `[m, way]`, float32 at least, with full-precision products.
    """
    logits = linear_products(classifier.weights, classifier.biases, features)
    return jnp.where(classifier.present[None, :], logits, -jnp.inf)


def linear_products(
    weights: jax.Array, biases: jax.Array, features: jax.Array
) -> jax.Array:
    """Return `w_kᵀ f_m + b_k`.

    Args:
        weights: `[way, d]`.
        biases: `[way]`.
        features: `[m, d]`.

    Returns:
        `[m, way]`, float32 at least, with full-precision products.
    """
    dtype = accumulation_dtype(features.dtype)
    features, weights = features.astype(dtype), weights.astype(dtype)
    axes = (((1,), (1,)), ((), ()))  # a transposed copy of `weights` would be kept
    products = lax.dot_general(features, weights, axes, precision=lax.Precision.HIGHEST)
    return products + biases.astype(dtype)[None, :]


def euclidean_logits(
    features: jax.Array, prototypes: jax.Array, present: jax.Array
) -> jax.Array:
    """Return the negative squared distances `-‖f_m - c_k‖²`.

    Args:
        features: `[m, d]`.
        prototypes: `[way, d]`.
        present: `[way]` bool, classes in the support set; others have logit −inf.

    Returns:
        Logits `[m, way]`, float32 at least, with full-precision products. Distances are
        taken from the mean prototype, so a common offset costs no precision.
    """
    dtype = accumulation_dtype(features.dtype)
    features, prototypes = features.astype(dtype), prototypes.astype(dtype)
    shares = present.astype(dtype) / jnp.maximum(present.sum(), 1).astype(dtype)
    middle = jnp.where(present[:, None], prototypes, 0).T @ shares
    features, prototypes = features - middle[None], prototypes - middle[None]
    products = jnp.matmul(features, prototypes.T, precision=lax.Precision.HIGHEST)
    squares = jnp.sum(features**2, -1)[:, None] + jnp.sum(prototypes**2, -1)[None, :]
    return jnp.where(present[None, :], 2 * products - squares, -jnp.inf)
