"""Mahalanobis distances against NumPy in float64, at both shapes of factor."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lite_jax.mahalanobis import fit_mahalanobis, mahalanobis_logits

WAY = 5  # class 1 has one example, class 2 none
SHAPES = {  # (examples, features, scale, offset)
    "few features": (40, 12, 1, 0),
    "many features": (14, 40, 1, 0),
    "as many as examples": (20, 20, 1, 0),
    "EfficientNet's 1280": (60, 1280, 0.3, 0.5),
    "far from the origin": (60, 200, 1, 50),
    "unequal scales": (60, 200, 30, 5),
}


def problem(num_support, size, scale, offset, dtype=np.float32):
    rng = np.random.default_rng(0)
    spread = scale * np.exp(rng.normal(size=size))
    features = rng.normal(size=(num_support, size)) * spread + offset
    labels = rng.choice([0, 3, 4], num_support).astype(np.int32)
    labels[:3] = 1, 0, 0
    mask = np.arange(num_support) < num_support - 2
    queries = features[rng.integers(0, num_support, 9)] + rng.normal(size=(9, size))
    features[~mask] = 1e3
    return features.astype(dtype), labels, mask, queries.astype(dtype)


def by_inverses(xp, features, labels, mask, queries, inverse):
    """The formula as printed, with explicit inverses, in the arithmetic of `xp`."""
    features = features[np.asarray(mask)]
    labels = np.asarray(labels)[np.asarray(mask)]
    size = features.shape[1]
    task = xp.cov(features.T)
    columns = []
    for k in range(WAY):
        own = features[labels == k]
        if not len(own):
            columns.append(xp.full(len(queries), -xp.inf))
            continue
        within = xp.cov(own.T) if len(own) > 1 else xp.zeros((size, size))
        share = len(own) / (len(own) + 1)
        matrix = share * within + (1 - share) * task + xp.eye(size)
        apart = queries - own.mean(0)[None, :]
        columns.append(-((apart @ inverse(matrix)) * apart).sum(1))
    return xp.stack(columns, 1)


@pytest.mark.parametrize("name", SHAPES)
def test_single_precision_agrees_with_double(name):
    features, labels, mask, queries = problem(*SHAPES[name])
    expected = by_inverses(
        np, features.astype(float), labels, mask, queries.astype(float), np.linalg.inv
    )
    state = fit_mahalanobis(*map(jnp.array, (features, labels, mask)), WAY)
    found = np.asarray(mahalanobis_logits(state, jnp.array(queries)))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["few features", "many features"])
def test_gradient_is_that_of_the_formula(name):
    features, labels, mask, queries = problem(*SHAPES[name], dtype=np.float64)
    real = [0, 1, 3, 4]

    def formula(features, queries):
        found = by_inverses(jnp, features, labels, mask, queries, jnp.linalg.inv)
        return jnp.sin(found[:, real]).sum()

    def ours(features, queries):
        state = fit_mahalanobis(features, jnp.array(labels), jnp.array(mask), WAY)
        return jnp.sin(mahalanobis_logits(state, queries)[:, real]).sum()

    features, queries = features / 30, queries / 30  # sines of moderate distances
    args = jnp.array(features), jnp.array(queries)
    chex.assert_trees_all_close(
        jax.jit(jax.grad(ours, (0, 1)))(*args),
        jax.grad(formula, (0, 1))(*args),
        rtol=1e-8, atol=1e-10,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["few features", "many features"])
def test_an_absent_class_never_wins_and_leaves_no_nan(name):
    features, labels, mask, queries = map(jnp.array, problem(*SHAPES[name]))

    def loss(features):
        state = fit_mahalanobis(features, labels, mask, WAY)
        return jax.nn.logsumexp(mahalanobis_logits(state, queries) / 100, axis=1).sum()

    state = fit_mahalanobis(features, labels, mask, WAY)
    assert jnp.all(mahalanobis_logits(state, queries)[:, 2] == -jnp.inf)
    assert jnp.all(jnp.isfinite(jax.grad(loss)(features)))


@pytest.mark.parametrize("size", [3, 30])
def test_a_class_of_one_example_has_the_task_covariance_alone(size):
    """Published code spreads the variance across its features over the matrix."""
    rng = np.random.default_rng(1)
    features, labels = rng.normal(size=(7, size)), np.array([0, 1, 1, 1, 1, 1, 1])
    query = rng.normal(size=(1, size))
    precision = np.linalg.inv(0.5 * np.cov(features.T) + np.eye(size))
    apart = query[0] - features[0]
    state = fit_mahalanobis(
        jnp.array(features), jnp.array(labels), jnp.ones(7, bool), way=2
    )
    found = mahalanobis_logits(state, jnp.array(query))[0, 0]
    assert found == pytest.approx(-apart @ precision @ apart, rel=1e-10)


def test_factors_are_as_small_as_they_can_be():
    shapes = {}
    for name in ("few features", "many features"):
        features, labels, mask, _ = map(jnp.array, problem(*SHAPES[name]))
        shapes[name] = fit_mahalanobis(features, labels, mask, WAY).factors.shape
    assert shapes == {"few features": (5, 12, 12), "many features": (5, 15, 15)}


@pytest.mark.parametrize(
    ("scale", "tolerance"),
    [(0.01, 1e-5), (1.0, 2e-3), (100.0, 0.1)],  # condition 1e0, 1e3, 1e7
)
def test_one_image_of_fifty_classes_in_bfloat16(scale, tolerance):
    """A covariance of rank 3 and rounding, far from the origin."""
    rng = np.random.default_rng(2)
    directions = rng.normal(size=(3, 1280))

    def drawn(count):
        found = 5 + rng.normal(size=(count, 3)) @ directions
        return jnp.asarray(scale * found, jnp.bfloat16)

    features, queries = drawn(50), drawn(20)
    labels, mask = jnp.arange(50, dtype=jnp.int32), jnp.ones(50, bool)

    def logits(features, queries):
        state = fit_mahalanobis(features, labels, mask, 50)
        return mahalanobis_logits(state, queries)

    found = logits(features, queries)
    assert found.dtype == jnp.float32
    own, asked = (np.asarray(x, np.float64) for x in (features, queries))
    precision = np.linalg.inv(0.5 * np.cov(own.T) + np.eye(1280))
    apart = asked[:, None] - own[None]
    expected = -np.einsum("qkd,qkd->qk", apart @ precision, apart)
    np.testing.assert_allclose(found, expected, rtol=tolerance)
    best = expected[np.arange(20), np.asarray(found.argmax(1))]
    np.testing.assert_allclose(best, expected.max(1), rtol=tolerance)

    def loss(features):
        likelihood = jax.nn.log_softmax(logits(features, features))
        return -jnp.take_along_axis(likelihood, labels[:, None], 1).mean()

    assert jnp.isfinite(loss(features)) and jnp.isfinite(jax.grad(loss)(features)).all()
