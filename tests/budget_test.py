"""Chunks chosen by what compiled programs need, and running out explained."""

import json
import types

import jax
import jax.numpy as jnp
import pytest
from runs import load_config, tiny_config

from lite_jax import UserError, budget, factory, train
from lite_jax.evaluate import evaluate_checkpoint
from lite_jax.feed import Feed
from lite_jax.train import train_and_evaluate

GRID = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 50]


def program(num_bytes):
    """A compiled program that needs so many bytes, a quarter of them given back."""
    told = types.SimpleNamespace(
        argument_size_in_bytes=num_bytes // 4,
        output_size_in_bytes=num_bytes // 4,
        alias_size_in_bytes=num_bytes // 4,
        temp_size_in_bytes=num_bytes - num_bytes // 4,
    )
    return types.SimpleNamespace(memory_analysis=lambda: told)


def built(sizes):
    """Programs of 1 MB and 100 MB an image; `sizes` hears what is compiled."""

    def build(size):
        sizes.append(size)
        return program(10**6 + size * 10**8)

    return build


@pytest.mark.parametrize("place", range(len(GRID)))
def test_the_largest_that_fits_is_found(place):
    asked = []
    size = GRID[place]
    fit = budget.largest_chunk(built(asked), 50, (1 + 100 * size) / 1000)
    assert fit.chunk_size == size
    assert budget.program_bytes(fit.program) == fit.num_bytes == 10**6 + size * 10**8
    assert len(asked) <= 5 and max(asked) <= 50


def test_a_budget_below_one_image_is_refused():
    with pytest.raises(UserError, match=r"0\.05: images one at a time need 0\.101 GB"):
        budget.largest_chunk(built([]), 50, 0.05)


def test_without_a_budget_the_device_decides(monkeypatch):
    def device(stats):
        return types.SimpleNamespace(
            memory_stats=lambda: stats, device_kind="made-up device"
        )

    monkeypatch.setattr(jax, "local_devices", lambda: [device({"bytes_limit": 1000})])
    assert budget.budget_bytes(0.0) == 900
    for stats in (None, {}):
        monkeypatch.setattr(jax, "local_devices", lambda stats=stats: [device(stats)])
        with pytest.raises(UserError, match=r"made-up device .*memory_budget_gb"):
            budget.budget_bytes(0.0)
    with pytest.raises(UserError, match="memory_budget_gb=-1.0: expected 0 or more"):
        budget.budget_bytes(-1.0)


@pytest.mark.parametrize("value", [0, -3, 2.5, True, "large", None])
def test_chunk_sizes_that_are_none(value):
    config = load_config(gradient__chunk_size=value)
    with pytest.raises(UserError, match=r"gradient\.chunk_size=.*whole number from 1"):
        factory.make_set_sum(config)


def needs(config, chunk_size):
    """Bytes of the training step at a chunk size."""
    sources = factory.make_sources(config)
    learner = train.models.make_learners(config, sources).trained
    config = factory.with_chunk_size(config, chunk_size)
    optimizer = factory.make_optimizer(config)
    params = train.models.init_params(config, learner, sources)
    step = train.make_train_step(factory.make_grad_fn(config, learner), optimizer)
    state = train.init_state(optimizer, params, learner.frozen)
    tasks = Feed(config, sources("train")).step(1)
    lowered = step.lower(state, tasks, jax.random.key(config.seed))
    return budget.program_bytes(lowered.compile())


@pytest.mark.usefixtures("as_users_run_it")
def test_a_run_takes_the_largest_chunk_within_its_budget(tmp_path, caplog):
    config = tiny_config(gradient__chunk_size="auto", backbone__width=32)
    sizes = {size: needs(config, size) for size in (4, 6)}
    assert sizes[4] < sizes[6]
    config.gradient.memory_budget_gb = (sizes[4] + sizes[6]) / 2 / budget.GB
    with caplog.at_level("INFO", "lite_jax"):
        results = train_and_evaluate(config, tmp_path / "run")
    assert f"chunks of 4 images, a step of which needs {sizes[4] / 1e9:.3g} GB" in (
        caplog.text
    )
    saved = json.loads((tmp_path / "run/config.json").read_text())
    assert saved["gradient"]["chunk_size"] == "auto"
    assert evaluate_checkpoint(config, tmp_path / "run").keys() == results.keys()


@pytest.mark.usefixtures("as_users_run_it")
def test_a_budget_that_nothing_fits_stops_before_the_workdir(tmp_path):
    config = tiny_config(gradient__chunk_size="auto", gradient__memory_budget_gb=1e-6)
    with pytest.raises(UserError, match="images one at a time need"):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("estimator", "mend"),
    [("lite", r"lower gradient\.chunk_size=8"), ("plain", "gradient.estimator=lite")],
)
def test_running_out_of_memory_names_what_to_lower(
    estimator, mend, tmp_path, monkeypatch
):
    def greedy(*args):
        jax.block_until_ready(jnp.zeros(2**55, jnp.uint8))

    monkeypatch.setattr(train, "make_train_step", lambda *args: greedy)
    config = tiny_config(gradient__estimator=estimator)
    with pytest.raises(UserError, match=f"out of memory on .*: .*{mend}"):
        train_and_evaluate(config, tmp_path / "run")


def test_other_errors_of_the_device_stay_what_they_are():
    with (
        pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"),
        budget.out_of_memory_explained(load_config()),
    ):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")
