"""Running hypergradient estimators in tests, and how far they are off."""

import functools

import jax
import jax.numpy as jnp

from lite_jax import exact_sum
from lite_jax.hypergrad import Products


@functools.cache
def program(estimator, problem):
    """The estimator's program for a problem; all else is an argument."""

    def hypergrad(solution, meta, batches, state, options):
        return estimator.hypergrad(problem, solution, meta, batches, state, **options)

    return jax.jit(hypergrad)


def estimate(estimator, problem, solution, meta, batches, state=None, **options):
    state = estimator.init(solution, meta) if state is None else state
    return program(estimator, problem)(solution, meta, batches, state, options)


def relative_error(found, exact):
    return float(jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact))


def cosine(found, exact):
    return float(found @ exact / jnp.linalg.norm(found) / jnp.linalg.norm(exact))


def products_of(problem, solution, meta, batches, **options):
    options = {"set_sum": exact_sum()} | options
    return Products(problem, solution, meta, batches, **options)
