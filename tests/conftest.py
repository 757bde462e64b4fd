"""Make JAX strict, so that a silent slip becomes a failure, and quick to compile."""

import gc
import os

import jax
import pytest

# XLA's cheapest code: it takes a tenth of the time to compile, and longer to run. What
# the environment sets comes last and wins. Processes that tests start inherit it.
CHEAP_CODE = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)
os.environ["XLA_FLAGS"] = " ".join([*CHEAP_CODE, os.environ.get("XLA_FLAGS", "")])

jax.config.update("jax_num_cpu_devices", 8)  # for what shares work out among devices
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_debug_key_reuse", True)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give each worker a run of neighbours, which share fixtures and programs."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


def pytest_collection_finish():
    """Leave out of every later collection of garbage what imports have made."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(scope="module")
def as_users_run_it():
    """Single precision and ordinary promotion, as the command line has them."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        yield
