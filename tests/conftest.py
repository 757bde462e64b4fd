"""Make JAX strict, so that a silent slip becomes a failure."""

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)  # for what shares work out among devices
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_debug_key_reuse", True)


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(scope="module")
def as_users_run_it():
    """Single precision and ordinary promotion, as the command line has them."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        yield
