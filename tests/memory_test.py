"""The claim in LITE's title, as compile-time facts: bytes that do not grow with N."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.memory import make_inputs, temporary_bytes
from lite_jax import episode_grad, lite_sum, nn, simple_cnaps
from lite_jax.run import memory_budget

pytestmark = [pytest.mark.usefixtures("as_users_run_it"), pytest.mark.optimised]


@pytest.mark.parametrize("operator", ["lite", "exact, chunked"])
def test_temporary_bytes_do_not_grow_with_the_support(operator):
    """From a hundred images to ten thousand; images themselves are inputs."""
    small, large = temporary_bytes(operator, 100), temporary_bytes(operator, 10_000)
    assert large < 1.05 * small


@pytest.mark.parametrize("operator", ["lite", "exact, chunked"])
def test_temporary_bytes_are_under_a_tenth_of_plain_differentiation(operator):
    plain = temporary_bytes("plain jax.grad", 1024)
    assert temporary_bytes(operator, 1024) < 0.1 * plain
    assert plain > 8 * temporary_bytes("plain jax.grad", 64)


def test_a_draw_of_one_chunk_takes_no_more_than_one_of_two():
    """It stands in no loop, and still waits for its cotangent.

    Simple CNAPs has two sums; ahead of time, the set encoder's activations would be
    held during the backbone's passes.
    """

    def bytes_of(num_backprop):
        gradient = episode_grad(
            learner, lite_sum(num_backprop, 20), query_chunk_size=20
        )
        program = jax.jit(gradient).lower(params, task, key).compile()
        return memory_budget.temporary_bytes(program)

    learner = simple_cnaps(nn.conv4(16), way=5)
    _, task, key = jax.eval_shape(lambda: make_inputs(100, 64))
    image = jax.ShapeDtypeStruct((64, 64, 3), jnp.uint8)
    params = jax.eval_shape(lambda key: learner.init(key, image), key)
    assert bytes_of(20) < 1.05 * bytes_of(40)
