import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lite_jax import UserError
from lite_jax.heads.class_means import (
    ClassSums,
    LinearClassifier,
    check_labels,
    class_means,
    class_sums,
    classes_present,
    euclidean_logits,
    linear_logits,
)


@pytest.mark.parametrize("features", [3, 30_000])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_class_sums_are_weighted_sums_within_classes(features, dtype):
    rng = np.random.default_rng(0)
    values = jnp.array(rng.random((25, features)), dtype)
    labels, weights = rng.integers(-1, 6, 25), rng.random(25)
    compiled = jax.jit(class_sums, static_argnums=3)
    found = compiled(values, jnp.array(labels), jnp.array(weights), 5)
    for c in range(5):
        mine, share = np.asarray(values, np.float64)[labels == c], weights[labels == c]
        np.testing.assert_allclose(found.features[c], share @ mine, rtol=1e-4)
        np.testing.assert_allclose(found.counts[c], share.sum(), rtol=1e-6)
    assert found.features.dtype == found.counts.dtype == jnp.float32


def test_class_means_of_an_absent_class_are_zero():
    sums = ClassSums(jnp.array([[2.0, 4.0], [0.0, 0.0]]), jnp.array([2.0, 0.0]))
    np.testing.assert_array_equal(class_means(sums), [[1, 2], [0, 0]])


@pytest.mark.parametrize("features", [2, 30_000])
def test_euclidean_logits_are_negative_squared_distances(features):
    rng = np.random.default_rng(0)
    points, prototypes = rng.random((7, features)), rng.random((3, features))
    present = jnp.array([True, False, True])
    found = jax.jit(euclidean_logits)(
        jnp.float32(points), jnp.float32(prototypes), present
    )
    expected = -((points[:, None] - prototypes[None]) ** 2).sum(-1)
    kept = [0, 2]
    np.testing.assert_allclose(found[:, kept], expected[:, kept], rtol=1e-3, atol=1e-5)
    assert jnp.all(found[:, 1] == -jnp.inf)


@pytest.mark.parametrize("bad, told", [(3, 3), (-1, -1)])
def test_labels_beyond_the_way_are_refused_where_they_can_be_seen(bad, told):
    labels, mask = jnp.array([0, 2, bad]), jnp.array([True, True, True])
    with pytest.raises(UserError, match=f"class {told} is outside 0 … 2"):
        check_labels(labels, mask, 3)
    check_labels(labels, mask.at[2].set(False), 3)  # padding may hold anything
    jax.jit(lambda labels: check_labels(labels, mask, 3))(labels)


def test_classes_present_are_those_of_real_examples():
    labels, mask = jnp.array([0, 2, 1]), jnp.array([True, True, False])
    assert classes_present(labels, mask, 4).tolist() == [True, False, True, False]


def test_linear_logits_are_the_formula_and_minus_infinity_where_absent():
    weights = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    classifier = LinearClassifier(
        weights, jnp.array([0.5, 0.0, 0.0]), jnp.array([True, True, False])
    )
    found = linear_logits(classifier, jnp.array([[1.0, -1.0]]))
    assert found.tolist() == [[-0.5, -1.0, -jnp.inf]]
