"""Make JAX strict, so that a silent slip becomes a failure; compile a program once."""

import os
import shutil
import tempfile

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)  # for what shares work out among devices
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_debug_key_reuse", True)

# Most tests build their functions anew, so JAX would compile equal programs many times.
# Each worker has a folder of its own, which its commands share: writes are not atomic.
COMPILED = tempfile.mkdtemp(prefix="lite_jax_compiled_")
CACHE = {
    "jax_compilation_cache_dir": COMPILED,
    "jax_persistent_cache_min_compile_time_secs": 0.05,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
for name, value in CACHE.items():
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)  # for commands that tests run


def pytest_unconfigure(config):
    shutil.rmtree(COMPILED, ignore_errors=True)


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(scope="module")
def as_users_run_it():
    """Single precision and ordinary promotion, as the command line has them."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        yield
