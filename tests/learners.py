"""Gradients of learners in tests, and the bytes that their programs take."""

import jax
import jax.numpy as jnp
import numpy as np

from lite_jax import Examples, Task, budget, episode_grad, exact_sum
from tests import toys


def params_of(learner):
    spec = jax.ShapeDtypeStruct((2, 2, 1), jnp.float64)
    return learner.init(jax.random.key(7), spec)


def gradient(learner, params, set_sum=None, task=None):
    run = jax.jit(episode_grad(learner, set_sum or exact_sum()))
    return run(params, task or toys.task(), jax.random.key(0))[1]


def task_of_images(count, size=16):
    rng = np.random.default_rng(0)

    def examples(count):
        images = jnp.array(rng.integers(0, 256, (count, size, size, 3)), jnp.uint8)
        return Examples(images, jnp.arange(count) % 5, jnp.ones(count, bool))

    return Task(examples(count), examples(10))


def temporary_bytes(learner, count=25):
    spec = jax.ShapeDtypeStruct((16, 16, 3), jnp.uint8)
    params = learner.init(jax.random.key(0), spec)
    run = jax.jit(episode_grad(learner, exact_sum(5), query_chunk_size=5))
    inputs = params, task_of_images(count), jax.random.key(0)
    return budget.temporary_bytes(run.lower(*inputs).compile())
