"""The claim in LITE's title, as compile-time facts: bytes that do not grow with N."""

import functools

import jax
import jax.numpy as jnp
import pytest

from lite_jax import Examples, Task, episode_loss, exact_sum, lite_sum, protonets
from lite_jax.nn import conv4

CHUNK, H, WAY, SIZE, NUM_QUERY = 16, 16, 16, 84, 16


@functools.cache
def temporary_bytes(operator, num_support):
    """Temporary bytes of the compiled ProtoNets gradient; Conv-4, 84 × 84 × 3."""
    make = {
        "plain": exact_sum,
        "exact": lambda: exact_sum(CHUNK),
        "lite": lambda: lite_sum(H, CHUNK),
    }
    learner = protonets(conv4(), way=WAY)
    loss_fn = episode_loss(learner, query_chunk_size=CHUNK)
    gradient = jax.grad(
        lambda *args: loss_fn(*args, set_sum=make[operator]()), has_aux=True
    )
    image = jax.ShapeDtypeStruct((SIZE, SIZE, 3), jnp.uint8)

    def examples(n):
        shapes = ((n, SIZE, SIZE, 3), jnp.uint8), ((n,), jnp.int32), ((n,), jnp.bool_)
        return Examples(*(jax.ShapeDtypeStruct(*s) for s in shapes))

    params = jax.eval_shape(lambda k: learner.init(k, image), jax.random.key(0))
    key = jax.eval_shape(lambda: jax.random.key(0))
    task = Task(examples(num_support), examples(NUM_QUERY))
    compiled = jax.jit(gradient).lower(params, task, key).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("operator", ["lite", "exact"])
def test_temporary_bytes_do_not_grow_with_the_support(operator):
    small, large = temporary_bytes(operator, 64), temporary_bytes(operator, 1024)
    assert large < 1.05 * small


@pytest.mark.parametrize("operator", ["lite", "exact"])
def test_temporary_bytes_are_under_a_tenth_of_plain_differentiation(operator):
    assert temporary_bytes(operator, 1024) < 0.1 * temporary_bytes("plain", 1024)
    assert temporary_bytes("plain", 1024) > 8 * temporary_bytes("plain", 64)
