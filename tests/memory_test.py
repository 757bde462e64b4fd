"""The claim in LITE's title, as compile-time facts: bytes that do not grow with N."""

import pytest

from experiments.memory import temporary_bytes

pytestmark = pytest.mark.usefixtures("as_users_run_it")


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
