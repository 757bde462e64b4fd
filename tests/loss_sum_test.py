"""The sum of a loss: exact in value and gradient, and nothing is computed twice."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lite_jax import batched, exact_sum
from lite_jax.learners.loss_sum import loss_sum
from lite_jax.lite.chunks import Chunks

N = 7


def terms(args, examples):
    """A loss that depends on its arguments through a network of one layer."""
    hidden = jnp.tanh(examples @ args["weights"])
    return (hidden**3).sum(1) * args["steps"], {"accuracy": hidden[:, 0] ** 2}


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    weights = jnp.array(rng.normal(size=(3, 4)))
    return {"weights": weights, "steps": 5}, jnp.array(rng.normal(size=(N, 3)))


def objective(chunks, examples, mask=None):
    def loss(weights, args):
        total, aux = loss_sum(
            batched(terms), {**args, "weights": weights}, examples, mask, chunks
        )
        return jnp.sin(total), aux

    return loss


@pytest.mark.parametrize("size", [1, 3, N, 100])
@pytest.mark.parametrize("masked", [False, True])
def test_chunks_change_neither_value_nor_gradient(size, masked, problem):
    args, examples = problem
    mask = jnp.arange(N) % 3 != 1 if masked else None
    kept = examples[mask] if masked else examples
    found, expected = (
        jax.value_and_grad(objective(*options), has_aux=True)(args["weights"], args)
        for options in [(Chunks(size), examples, mask), (Chunks(), kept)]
    )
    chex.assert_trees_all_close(found, expected, rtol=1e-12)
    undifferentiated = objective(Chunks(size), examples, mask)(args["weights"], args)
    chex.assert_trees_all_close(undifferentiated, found[0], rtol=1e-12)


@pytest.mark.parametrize("chunks", [Chunks(), Chunks(3)])
def test_what_is_reported_has_no_gradient(chunks, problem):
    args, examples = problem

    def reported(weights):
        return objective(chunks, examples)(weights, args)[1]["accuracy"]

    assert reported(args["weights"]) > 0
    np.testing.assert_array_equal(jax.grad(reported)(args["weights"]), 0)


def test_padding_of_any_content_is_ignored(problem):
    args, examples = problem
    padded = jnp.concatenate([examples, jnp.full((2, 3), jnp.nan)])
    mask = jnp.arange(N + 2) < N
    found = jax.grad(objective(Chunks(2), padded, mask), has_aux=True)
    expected = jax.grad(objective(Chunks(2), examples), has_aux=True)
    chex.assert_trees_all_close(
        found(args["weights"], args), expected(args["weights"], args), rtol=1e-12
    )


def products(loss, weights, args):
    gradient = jax.grad(loss, has_aux=True)
    return str(jax.make_jaxpr(gradient)(weights, args)).count("tanh")


def test_no_example_is_computed_twice(problem):
    """The forward pass stands in the program once; computed again, it does twice."""
    args, examples = problem

    def recomputed(weights, args):
        return exact_sum(3)(
            batched(terms), {**args, "weights": weights}, examples, None
        )

    once = products(objective(Chunks(3), examples), args["weights"], args)
    assert once == products(objective(Chunks(), examples), args["weights"], args) == 1
    assert products(recomputed, args["weights"], args) == 2


def test_low_precision_gradients_are_summed_in_float32():
    """Each of 1,000 terms is lost where sums are kept in bfloat16."""
    one = jnp.ones((), jnp.bfloat16)
    examples = jnp.ones((1000, 1), jnp.bfloat16)

    def loss(a):
        scaled = batched(lambda a, x: (a * x[:, 0], {}))
        return loss_sum(scaled, a, examples, None, Chunks(1))[0]

    total, gradient = jax.value_and_grad(loss)(one)
    assert total == 1000 and total.dtype == jnp.float32
    assert gradient == one * 1000 and gradient.dtype == jnp.bfloat16


def test_a_mean_is_taken_before_the_gradient_is_cast():
    """The sum of 64 gradients of 2,000 is infinite in float16, their mean is not."""
    examples = jnp.full((64, 1), 2000.0, jnp.float16)

    def loss(a):
        scaled = batched(lambda a, x: ((a * x[:, 0]).astype(jnp.float32), {}))
        return loss_sum(scaled, a, examples, None, Chunks(8))[0] / 64

    gradient = jax.grad(loss)(jnp.ones((), jnp.float16))
    assert gradient == 2000 and gradient.dtype == jnp.float16


@pytest.mark.parametrize("chunks", [Chunks(), Chunks(3), Chunks(N)])
def test_values_that_the_loss_closes_over_are_differentiated(chunks, problem):
    _, examples = problem

    def loss(scale):
        additive = batched(lambda _, x: (scale * x[:, 0], {}))
        return loss_sum(additive, (), examples, None, chunks)[0] ** 2

    for scale in (0.5, 2.0):  # two functions of one code
        expected = 2 * scale * examples[:, 0].sum() ** 2
        np.testing.assert_allclose(jax.grad(loss)(scale), expected, rtol=1e-12)


def test_the_gradient_by_the_examples_is_exact(problem):
    args, examples = problem

    def loss(x, chunks):
        return objective(chunks, x)(args["weights"], args)[0]

    found, expected = (jax.grad(loss)(examples, c) for c in (Chunks(3), Chunks()))
    assert jnp.all(jnp.any(expected != 0, axis=1))
    chex.assert_trees_all_close(found, expected, rtol=1e-12)
