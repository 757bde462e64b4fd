"""Chunks chosen by what compiled programs need, and running out explained."""

import json
import types

import jax
import jax.numpy as jnp
import pytest
from runs import changed, load_config, tiny_config, use_one_block

from lite_jax import UserError
from lite_jax.run import (
    build_data,
    build_gradient,
    build_learner,
    configs,
    memory_budget,
    train,
)
from lite_jax.run.evaluate import evaluate_checkpoint
from lite_jax.run.feed import Feed
from lite_jax.run.train import train_and_evaluate

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
    fit = memory_budget.largest_chunk(built(asked), 50, (1 + 100 * size) / 1000)
    assert fit.chunk_size == size
    assert (
        memory_budget.program_bytes(fit.program)
        == fit.num_bytes
        == 10**6 + size * 10**8
    )
    assert len(asked) <= 5 and max(asked) <= 50


def test_a_budget_below_one_image_is_refused():
    with pytest.raises(UserError, match=r"0\.05: images one at a time need 0\.101 GB"):
        memory_budget.largest_chunk(built([]), 50, 0.05)


def test_without_a_budget_the_device_decides(monkeypatch):
    def device(stats):
        return types.SimpleNamespace(
            memory_stats=lambda: stats, device_kind="made-up device"
        )

    monkeypatch.setattr(jax, "local_devices", lambda: [device({"bytes_limit": 1000})])
    assert memory_budget.budget_bytes(0.0) == 900
    for stats in (None, {}):
        monkeypatch.setattr(jax, "local_devices", lambda stats=stats: [device(stats)])
        with pytest.raises(UserError, match=r"made-up device .*memory_budget_gb"):
            memory_budget.budget_bytes(0.0)
    with pytest.raises(UserError, match="memory_budget_gb=-1.0: expected 0 or more"):
        memory_budget.budget_bytes(-1.0)


@pytest.mark.parametrize("value", [0, -3, 2.5, True, "large", None])
def test_chunk_sizes_that_are_none(value):
    with pytest.raises(UserError, match=r"gradient\.chunk_size=.*whole number"):
        build_gradient.make_set_sum(load_config(gradient__chunk_size=value))


def needs(config, chunk_size):
    """Bytes of the training step at a chunk size."""
    sources = build_data.make_sources(config)
    learner = build_learner.make_learners(config, sources).trained
    config = config.with_chunk_size(chunk_size)
    optimizer = build_gradient.make_optimizer(config.optimizer, config.train.steps)
    params = build_learner.init_params(config, learner, sources)
    step = train.make_train_step(
        build_gradient.make_grad_fn(config, learner), optimizer
    )
    state = train.init_state(optimizer, params, learner.frozen)
    tasks = Feed(config, sources("train")).step(1)
    lowered = step.lower(state, tasks, jax.random.key(config.seed))
    return memory_budget.program_bytes(lowered.compile())


@pytest.fixture
def small_config(monkeypatch, as_users_run_it):
    """Chunks to be chosen among 1 to 3 images, for one block and small episodes."""
    use_one_block(monkeypatch)
    config = tiny_config(
        gradient__chunk_size="auto", gradient__num_backprop=2,
        train__episode=configs.episode((3, 3), (1, 1), 1), train__steps=1,
        valid__tasks=0, test__tasks=1,
    )  # fmt: skip
    return changed(config, test__episodes={"test": config.train.episode})


def test_a_run_takes_the_largest_chunk_within_its_budget(
    small_config, tmp_path, caplog
):
    config = small_config
    sizes = {size: needs(config, size) for size in (2, 3)}
    assert sizes[2] < sizes[3]
    middle = (sizes[2] + sizes[3]) / 2 / memory_budget.GB
    config = changed(config, gradient__memory_budget_gb=middle)
    with caplog.at_level("INFO", "lite_jax"):
        results = train_and_evaluate(config, tmp_path / "run")
    assert f"chunks of 2 images, a step of which needs {sizes[2] / 1e9:.3g} GB" in (
        caplog.text
    )
    saved = json.loads((tmp_path / "run/config.json").read_text())
    assert saved["gradient"]["chunk_size"] == "auto"
    assert evaluate_checkpoint(config, tmp_path / "run").keys() == results.keys()


def test_a_budget_that_nothing_fits_stops_before_the_workdir(small_config, tmp_path):
    config = changed(small_config, gradient__memory_budget_gb=1e-6)
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
        memory_budget.out_of_memory_explained(load_config()),
    ):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")
