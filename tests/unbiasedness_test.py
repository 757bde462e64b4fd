"""The statistics of the unbiasedness experiment, on draws whose truth is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.responses import Responses, draw_weights, in_turn, sketched_grad
from experiments.unbiasedness import errors, squared_bias
from lite_jax import exact_sum, lite_sum
from lite_jax.lite.sampling import SAMPLERS, Draw, Population, Sampler
from tests import toys


@pytest.mark.parametrize("bias", [0.0, 0.3])
def test_interval_of_the_squared_bias_covers_it(bias):
    """About 95 of 100 intervals do, whether there is a bias or not."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        off = rng.normal(size=(200, 30)) + bias / np.sqrt(30)
        estimate, half_width = squared_bias(off)
        covered += abs(estimate - bias**2) <= half_width
    assert 88 <= covered <= 100


def test_errors_are_relative_to_the_exact_gradient():
    rng = np.random.default_rng(0)
    exact = np.array([3.0, 4.0])
    found = errors(2 * exact + rng.normal(size=(4000, 2)), exact)
    assert found["draws"] == 4000
    assert found["bias"] == pytest.approx(1, rel=0.02)
    assert found["sd"] == pytest.approx(np.sqrt(2) / 5, rel=0.05)
    assert found["rmse"] == pytest.approx(np.sqrt(1 + 2 / 25), rel=0.02)
    assert found["rmse_of_16"] == pytest.approx(np.sqrt(1 + 2 / 25 / 16), rel=0.02)


@pytest.mark.parametrize("name", ["protonets", "simple_cnaps"])
def test_responses_predict_the_gradient_of_any_draw(name):
    """A draw of its own for each sum, back-propagated by `lite_sum` itself."""
    learner, params = toys.make_learner(name)
    task = toys.task(6)
    responses = Responses(learner, params, task)
    rng = np.random.default_rng(0)
    rows = [rng.choice(6, 3, replace=False) for _ in responses.populations]
    drawn = [rng.random(3) for _ in rows]
    weights = [np.zeros((1, 6)) for _ in rows]
    for own, chosen, values in zip(weights, rows, drawn, strict=True):
        own[0, chosen] = values

    def fixed(chosen, values):
        draw = Draw(jnp.array(chosen, jnp.int32), jnp.array(values), jnp.int32(3))
        return lite_sum(3, 2, Sampler(lambda key, population, size: draw))

    operators = [fixed(*pair) for pair in zip(rows, drawn, strict=True)]
    gradient = jax.jit(sketched_grad(learner, in_turn(operators)))
    found = gradient(params, task, jax.random.key(0))
    expected = responses.gradients(weights)
    assert set(found) == set(expected) == set(responses.groups)
    for group, values in expected.items():
        np.testing.assert_allclose(found[group], values[0], rtol=1e-6, atol=1e-9)
    exact = sketched_grad(learner, exact_sum())(params, task, jax.random.key(0))
    ones = responses.gradients([np.ones((1, 6)) for _ in rows])
    for group, values in exact.items():
        np.testing.assert_allclose(ones[group][0], values, rtol=1e-6, atol=1e-9)


def test_weights_of_draws_add_up_to_n_on_average():
    population = Population(jnp.ones(6, bool))
    found = draw_weights(SAMPLERS["with_replacement"], population, 4, 500, 0)
    assert found.shape == (500, 6)
    np.testing.assert_allclose(found.sum(1), 6)
    assert set(np.unique(found)) <= {0, 1.5, 3.0, 4.5, 6.0}
