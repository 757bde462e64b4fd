"""Mahalanobis distances against NumPy in float64, at both shapes of factor."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lite_jax.heads.mahalanobis import fit_mahalanobis, mahalanobis_logits

WAY = 5  # class 1 has one example, class 2 none
SHAPES = {  # (examples, features, scale, offset)
    "few features": (40, 12, 1, 0),
    "many features": (14, 40, 1, 0),
    "as many as examples": (20, 20, 1, 0),
    "EfficientNet's 1280": (60, 1280, 0.3, 0.5),
    "far from the origin": (60, 200, 1, 50),
    "unequal scales": (60, 200, 30, 5),
}


@functools.partial(jax.jit, static_argnums=4)
def logits_of(features, labels, mask, queries, way=WAY):
    return mahalanobis_logits(fit_mahalanobis(features, labels, mask, way), queries)


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
    found = np.asarray(logits_of(*map(jnp.array, (features, labels, mask, queries))))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["few features", "many features"])
def test_gradient_is_that_of_the_formula(name):
    features, labels, mask, queries = problem(*SHAPES[name], dtype=np.float64)
    real = jnp.array([0, 1, 3, 4])

    def formula(features, queries):
        found = by_inverses(jnp, features, labels, mask, queries, jnp.linalg.inv)
        return jnp.sin(found[:, real]).sum()

    def ours(features, queries):
        found = logits_of(features, jnp.array(labels), jnp.array(mask), queries)
        return jnp.sin(found[:, real]).sum()

    @jax.jit
    def gradients(features, queries):
        return [jax.grad(way, (0, 1))(features, queries) for way in (ours, formula)]

    # sines of moderate distances
    found, expected = gradients(jnp.array(features / 30), jnp.array(queries / 30))
    chex.assert_trees_all_close(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["few features", "many features"])
def test_an_absent_class_never_wins_and_leaves_no_nan(name):
    features, *others = map(jnp.array, problem(*SHAPES[name]))

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(features, others):
        found = logits_of(features, *others)
        return jax.nn.logsumexp(found / 100, axis=1).sum(), found

    (_, found), gradient = jax.tree.map(np.asarray, loss(features, others))
    assert np.all(found[:, 2] == -np.inf)
    assert np.all(np.isfinite(gradient)) and np.any(gradient != 0)


@pytest.mark.parametrize("size", [3, 30])
def test_a_class_of_one_example_has_the_task_covariance_alone(size):
    """Published code spreads the variance across its features over the matrix."""
    rng = np.random.default_rng(1)
    features, labels = rng.normal(size=(7, size)), np.array([0, 1, 1, 1, 1, 1, 1])
    query = rng.normal(size=(1, size))
    precision = np.linalg.inv(0.5 * np.cov(features.T) + np.eye(size))
    apart = query[0] - features[0]
    given = map(jnp.array, (features, labels, np.ones(7, bool), query))
    found = float(logits_of(*given, 2)[0, 0])
    assert found == pytest.approx(-apart @ precision @ apart, rel=1e-10)


def test_factors_are_as_small_as_they_can_be():
    shapes = {}
    for name in ("few features", "many features"):
        given = map(jnp.array, problem(*SHAPES[name])[:3])
        fit = functools.partial(fit_mahalanobis, way=WAY)
        shapes[name] = jax.eval_shape(fit, *given).factors.shape
    assert shapes == {"few features": (5, 12, 12), "many features": (5, 15, 15)}


def loss_of_itself(features, labels, mask):
    """The loss of a support's own classes, each of one image."""
    found = logits_of(features, labels, mask, features, 50)
    likelihood = jax.nn.log_softmax(found)
    return -jnp.take_along_axis(likelihood, labels[:, None], 1).mean()


graded = jax.jit(jax.value_and_grad(loss_of_itself))


@pytest.mark.parametrize(
    ("scale", "tolerance"),
    [(0.01, 1e-5), (1.0, 2e-3), (100.0, 0.1)],  # condition 1e0, 1e3, 1e7
)
def test_one_image_of_fifty_classes_in_bfloat16(scale, tolerance):
    """A covariance of rank 3 and rounding, far from the origin."""
    rng = np.random.default_rng(2)
    directions = rng.normal(size=(3, 640))

    def drawn(count):
        found = 5 + rng.normal(size=(count, 3)) @ directions
        return jnp.asarray(scale * found, jnp.bfloat16)

    features, queries = drawn(50), drawn(8)
    labels, mask = jnp.arange(50, dtype=jnp.int32), jnp.ones(50, bool)

    found = logits_of(features, labels, mask, queries, 50)
    assert found.dtype == jnp.float32
    own, asked = (np.asarray(x, np.float64) for x in (features, queries))
    precision = np.linalg.inv(0.5 * np.cov(own.T) + np.eye(640))
    apart = asked[:, None] - own[None]
    expected = -np.einsum("qkd,qkd->qk", apart @ precision, apart)
    np.testing.assert_allclose(found, expected, rtol=tolerance)
    best = expected[np.arange(8), np.asarray(found.argmax(1))]
    np.testing.assert_allclose(best, expected.max(1), rtol=tolerance)

    loss, gradient = graded(features, labels, mask)
    assert np.isfinite(loss) and np.isfinite(np.asarray(gradient, np.float32)).all()
