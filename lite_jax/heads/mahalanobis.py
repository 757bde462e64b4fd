"""Squared Mahalanobis distances to class means (Simple CNAPs), without inverses.

    Q_k = λ_k S_k + (1 - λ_k) S + I,   λ_k = n_k / (n_k + 1)
    d_k(q)² = (q - μ_k)ᵀ Q_k⁻¹ (q - μ_k)

with S_k the covariance within class k (0 for a class of one example) and S that of the
whole support, both unbiased. With rows B_k that carry the two covariances,
Q_k = I + B_kᵀ B_k, and the matrix to factorise is that or I + B_k B_kᵀ, whichever is
smaller: a support of N = 100 images with d = 1280 features costs 101 × 101 matrices.

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
    """The fitted classifier.

    Attributes:
        rows: `[n, d]`, the support's features about their mean; 0 for padding.
        centre: `[d]`, that mean.
        members: `[way, n]`, 1 where an example belongs to a class.
        means: `[way, d]`, class means about the centre.
        factors: Lower Cholesky factors, of `Q_k` `[way, d, d]` where d ≤ n, else of
            `I + B_k B_kᵀ` `[way, n + 1, n + 1]`.
        present: `[way]` bool, classes with examples.
    """

    rows: jax.Array
    centre: jax.Array
    members: jax.Array
    means: jax.Array
    factors: jax.Array
    present: jax.Array


class _Class(NamedTuple):
    """What the rows B_k are made of: one class of a `MahalanobisState`.

    B_k has a row for each example, within · (f_n - μ_k) in the class and
    across · (f_n - μ) outside, and a last one, apart · (μ_k - μ).
    """

    members: jax.Array
    mean: jax.Array
    within: jax.Array
    across: jax.Array
    apart: jax.Array


def fit_mahalanobis(
    features: jax.Array, labels: jax.Array, mask: jax.Array, way: int
) -> MahalanobisState:
    """Return the class means and factorised covariances of a support set.

    Args:
        features: `[n, d]`; rows of padding may hold anything finite.
        labels: `[n]` int in `0 … way-1`.
        mask: `[n]` bool, real examples.
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
        matrices = jax.vmap(_precision_inverse, (0, None))(classes, rows)
    else:
        gram = _matmul(rows, rows.T)
        matrices = jax.vmap(_dual, (0, None))(classes, gram)
    factors = jnp.linalg.cholesky(matrices)
    return MahalanobisState(rows, centre, members, means, factors, counts > 0)


def mahalanobis_logits(state: MahalanobisState, features: jax.Array) -> jax.Array:
    """Return `-d_k(q)²` for every query and class, `[m, way]`; −inf where absent.

    Args:
        state: From `fit_mahalanobis`.
        features: `[m, d]`.

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
    """Say whether `Q_k` itself is factorised: the features are as few as examples."""
    return rows.shape[1] <= rows.shape[0]


def _classes(members: jax.Array, means: jax.Array) -> _Class:
    counts, total = members.sum(1), members.sum()
    own = counts / (counts + 1) / jnp.maximum(counts - 1, 1)
    whole = 1 / (counts + 1) / jnp.maximum(total - 1, 1)
    apart = jnp.sqrt(whole * counts)
    return _Class(members, means, jnp.sqrt(own + whole), jnp.sqrt(whole), apart)


def _scales(k: _Class) -> jax.Array:
    """Return the factor of each example's row, `[n]`."""
    return jnp.where(k.members > 0, k.within, k.across)


def _precision_inverse(k: _Class, rows: jax.Array) -> jax.Array:
    """Return `Q_k` `[d, d]`."""
    about = (rows - k.members[:, None] * k.mean[None, :]) * _scales(k)[:, None]
    apart = k.apart * k.mean
    matrix = _matmul(about.T, about) + apart[:, None] * apart[None, :]
    return matrix + jnp.eye(k.mean.size, dtype=matrix.dtype)


def _direct_distances(k: _Class, factor: jax.Array, queries: jax.Array) -> jax.Array:
    solved = solve_triangular(factor, (queries - k.mean[None, :]).T, lower=True)
    return (solved**2).sum(0)


def _dual(k: _Class, gram: jax.Array) -> jax.Array:
    """Return `I + B_k B_kᵀ` `[n + 1, n + 1]` from the rows' products `[n, n]`."""
    share = k.members / jnp.maximum(k.members.sum(), 1)
    with_mean = _matmul(gram, share)
    norm = _matmul(share, with_mean)
    cross = k.members[:, None] * with_mean[None, :]
    pairs = k.members[:, None] * k.members[None, :]
    inner = gram - cross - cross.T + norm * pairs
    border = (with_mean - norm * k.members)[:, None]
    corner = norm.reshape(1, 1)
    products = jnp.block([[inner, border], [border.T, corner]])
    scales = jnp.append(_scales(k), k.apart)
    products = products * scales[:, None] * scales[None, :]
    return products + jnp.eye(scales.size, dtype=products.dtype)


def _dual_distances(
    k: _Class,
    factor: jax.Array,
    rows: jax.Array,
    products: jax.Array,
    queries: jax.Array,
) -> jax.Array:
    """Return `d_k²` `[m]` as min_y ‖δ - B_kᵀ y‖² + ‖y‖², a sum without cancellation.

    The usual difference of two norms would lose the digits of small distances.
    """
    count = jnp.maximum(k.members.sum(), 1)
    apart = queries - k.mean[None, :]
    along = products - _matmul(rows, k.mean)[:, None]
    to_mean = _matmul(k.members, along) / count
    inner = along - k.members[:, None] * to_mean[None, :]
    scales = jnp.append(_scales(k), k.apart)[:, None]
    y = cho_solve((factor, True), jnp.concatenate([inner, to_mean[None, :]]) * scales)
    scaled = y * scales
    lifted, last = scaled[:-1], scaled[-1]
    shared = (last - _matmul(k.members, lifted)) / count
    mixture = lifted + k.members[:, None] * shared[None, :]
    residual = apart - _matmul(mixture.T, rows)
    return (residual**2).sum(1) + (y**2).sum(0)
