"""Squared Mahalanobis distances to class means (Simple CNAPs), without inverses.

    Q_k = λ_k S_k + (1 - λ_k) S + I,   λ_k = n_k / (n_k + 1)
    d_k(q)² = (q - μ_k)ᵀ Q_k⁻¹ (q - μ_k)

S_k is the covariance of class k (0 for a class of one example), and S is that of the
whole support set; both are unbiased. The two covariances are written as
B_kᵀ B_k = Q_k - I. The matrix to factorise is Q_k, or I + B_k B_kᵀ if d > N: a support
set of N = 100 images with d = 1280 features needs 101 × 101 matrices.

References:
    Bateni et al., "Improved Few-Shot Visual Classification", CVPR 2020, eq. 2.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve, solve_triangular

from lite_jax.lite.additive import accumulation_dtype

_matmul = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)


class MahalanobisState(NamedTuple):
    """A fitted Mahalanobis classifier.

    Attributes:
        rows: `[n, d]`, the support's features minus `centre`; 0 for padding.
        centre: `[d]`, the mean of the support's features.
        members: `[way, n]`, 1 where an example belongs to a class, else 0.
        means: `[way, d]`, class means minus `centre`; 0 for a class without examples.
        factors: Lower Cholesky factors: of `Q_k` `[way, d, d]` if d ≤ n, else of
            `I + B_k B_kᵀ` `[way, n + 1, n + 1]`.
        present: `[way]` bool, classes with examples; others have logit −inf.
    """

    rows: jax.Array
    centre: jax.Array
    members: jax.Array
    means: jax.Array
    factors: jax.Array
    present: jax.Array


class _Class(NamedTuple):
    """One class of a `MahalanobisState`, and the factors of the rows of B_k.

    B_k has n + 1 rows. Row n is inside · (f_n - μ_k) for an example of the class, and
    outside · (f_n - μ) for another one. The last row is last · (μ_k - μ).

    Attributes:
        members: `[n]`, 1 where an example belongs to the class, else 0.
        mean: `[d]`, the class mean minus the centre, μ_k - μ.
        inside: Scalar factor of the rows of the class's examples.
        outside: Scalar factor of the rows of the other examples.
        last: Scalar factor of the last row.
    """

    members: jax.Array
    mean: jax.Array
    inside: jax.Array
    outside: jax.Array
    last: jax.Array


def fit_mahalanobis(
    features: jax.Array, labels: jax.Array, mask: jax.Array, way: int
) -> MahalanobisState:
    """Return the class means and factorised covariances of a support set.

    Args:
        features: `[n, d]`; rows of padding may hold any finite numbers.
        labels: `[n]` int in `0 … way-1`.
        mask: `[n]` bool, True for real examples.
        way: Static number of classes.

    Returns:
        The state, in float32 at least. Memory: `way · min(n + 1, d)²` numbers.
    """
    features = features.astype(accumulation_dtype(features.dtype))
    weights = mask.astype(features.dtype)
    members = jax.nn.one_hot(labels, way, dtype=features.dtype).T * weights[None, :]
    centre = _matmul(weights, features) / jnp.maximum(weights.sum(), 1)
    rows = (features - centre[None, :]) * weights[:, None]
    counts = members.sum(1)
    means = _matmul(members, rows) / jnp.maximum(counts, 1)[:, None]
    classes = _classes(members, means)
    if _is_direct(rows):
        matrices = jax.vmap(_regularised_covariance, (0, None))(classes, rows)
    else:
        gram = _matmul(rows, rows.T)
        matrices = jax.vmap(_dual_matrix, (0, None))(classes, gram)
    factors = jnp.linalg.cholesky(matrices)
    return MahalanobisState(rows, centre, members, means, factors, counts > 0)


def mahalanobis_logits(state: MahalanobisState, features: jax.Array) -> jax.Array:
    """Return the logits `-d_k(q)²` `[m, way]`; −inf for classes without examples.

    Args:
        state: From `fit_mahalanobis`.
        features: `[m, d]`, those of the queries.

    >>> features, mask = jnp.array([[0.0], [2.0], [5.0], [7.0]]), jnp.ones(4, bool)
    >>> state = fit_mahalanobis(features, jnp.array([0, 0, 1, 1]), mask, way=2)
    >>> print(mahalanobis_logits(state, jnp.array([[1.0], [3.5]])).round(3))
    [[-0.    -4.5  ]
     [-1.125 -1.125]]
    """
    centred = features.astype(state.centre.dtype) - state.centre[None, :]
    classes = _classes(state.members, state.means)
    if _is_direct(state.rows):
        distances = jax.vmap(_direct_distances, (0, 0, None))(
            classes, state.factors, centred
        )
    else:
        products = _matmul(state.rows, centred.T)
        distances = jax.vmap(_dual_distances, (0, 0, None, None, None))(
            classes, state.factors, state.rows, products, centred
        )
    return jnp.where(state.present[None, :], -distances.T, -jnp.inf)


def _is_direct(rows: jax.Array) -> bool:
    """Return whether `Q_k` itself is factorised: d ≤ n, for rows `[n, d]`."""
    return rows.shape[1] <= rows.shape[0]


def _classes(members: jax.Array, means: jax.Array) -> _Class:
    """Return all classes as one `_Class`, whose arrays have a leading axis `way`."""
    counts, total = members.sum(1), members.sum()
    class_share = counts / (counts + 1) / jnp.maximum(counts - 1, 1)
    task_share = 1 / (counts + 1) / jnp.maximum(total - 1, 1)
    inside = jnp.sqrt(class_share + task_share)
    last = jnp.sqrt(task_share * counts)
    return _Class(members, means, inside, jnp.sqrt(task_share), last)


def _scales(k: _Class) -> jax.Array:
    """Return the factors `[n]` of the examples' rows of B_k."""
    return jnp.where(k.members > 0, k.inside, k.outside)


def _regularised_covariance(k: _Class, rows: jax.Array) -> jax.Array:
    """Return `Q_k` `[d, d]`."""
    scaled = (rows - k.members[:, None] * k.mean[None, :]) * _scales(k)[:, None]
    last = k.last * k.mean
    matrix = _matmul(scaled.T, scaled) + last[:, None] * last[None, :]
    return matrix + jnp.eye(k.mean.size, dtype=matrix.dtype)


def _direct_distances(k: _Class, factor: jax.Array, queries: jax.Array) -> jax.Array:
    """Return `d_k²` `[m]` of queries `[m, d]` from the Cholesky factor of `Q_k`."""
    solved = solve_triangular(factor, (queries - k.mean[None, :]).T, lower=True)
    return (solved**2).sum(0)


def _dual_matrix(k: _Class, gram: jax.Array) -> jax.Array:
    """Return `I + B_k B_kᵀ` `[n + 1, n + 1]` from `gram` = rows · rowsᵀ `[n, n]`."""
    share = k.members / jnp.maximum(k.members.sum(), 1)
    with_mean = _matmul(gram, share)
    norm = _matmul(share, with_mean)
    cross = k.members[:, None] * with_mean[None, :]
    pairs = k.members[:, None] * k.members[None, :]
    inner = gram - cross - cross.T + norm * pairs
    border = (with_mean - norm * k.members)[:, None]
    corner = norm.reshape(1, 1)
    products = jnp.block([[inner, border], [border.T, corner]])
    scales = jnp.append(_scales(k), k.last)
    products = products * scales[:, None] * scales[None, :]
    return products + jnp.eye(scales.size, dtype=products.dtype)


def _dual_distances(
    k: _Class,
    factor: jax.Array,
    rows: jax.Array,
    products: jax.Array,
    queries: jax.Array,
) -> jax.Array:
    """Return `d_k²` `[m]` as min_y ‖δ - B_kᵀ y‖² + ‖y‖², where δ = q - μ_k.

    This sum has no cancellation. The usual difference of two norms would lose the
    digits of small distances.

    Args:
        k: The class.
        factor: Lower Cholesky factor of `I + B_k B_kᵀ` `[n + 1, n + 1]`.
        rows: `[n, d]`, as in `MahalanobisState`.
        products: rows · queriesᵀ `[n, m]`.
        queries: `[m, d]`, features minus the centre.
    """
    count = jnp.maximum(k.members.sum(), 1)
    offsets = queries - k.mean[None, :]
    along = products - _matmul(rows, k.mean)[:, None]
    to_mean = _matmul(k.members, along) / count
    inner = along - k.members[:, None] * to_mean[None, :]
    scales = jnp.append(_scales(k), k.last)[:, None]
    y = cho_solve((factor, True), jnp.concatenate([inner, to_mean[None, :]]) * scales)
    scaled = y * scales
    lifted, last = scaled[:-1], scaled[-1]
    shared = (last - _matmul(k.members, lifted)) / count
    mixture = lifted + k.members[:, None] * shared[None, :]
    residual = offsets - _matmul(mixture.T, rows)
    return (residual**2).sum(1) + (y**2).sum(0)
