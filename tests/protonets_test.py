"""Tests of prototypical networks beyond the contract of all learners."""

import jax
import numpy as np
import pytest

from lite_jax import UserError, exact_sum, protonets
from tests import toys


def predictions(scale):
    learner = protonets(toys.network(), way=3, scale=scale)
    task = toys.task(way=3, num_support=6)
    params = learner.init(jax.random.key(0), task.support.inputs[0])
    state = learner.adapt(params, task.support, None, exact_sum())
    return learner.predict(params, state, task.query.inputs)


def test_scale_multiplies_distances():
    np.testing.assert_allclose(predictions(0.02), 0.02 * predictions(1.0), rtol=1e-12)


@pytest.mark.parametrize("scale", [0, -1.0, float("inf"), float("nan")])
def test_scale_must_be_positive(scale):
    with pytest.raises(UserError, match=f"scale={scale}: .* positive"):
        predictions(scale)
