"""Evaluation of a trained workdir on a benchmark.

The row of a data set is appended to `<workdir>/<benchmark>.jsonl` when it is computed,
so a stopped run resumes with the next data set.
"""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from lite_jax import errors
from lite_jax.apps.evaluations.jobs import learner_of, run_jobs
from lite_jax.apps.evaluations.orbit import plan_orbit, report_orbit
from lite_jax.apps.evaluations.vtab_md import (
    plan_meta_dataset,
    plan_vtab_md,
    report_vtab_md,
)
from lite_jax.run import build_gradient, build_learner, memory_budget
from lite_jax.run.configs import names_of, read_settings, settings_named
from lite_jax.run.evaluate import fitting_chunk
from lite_jax.run.restore import open_run
from lite_jax.run.settings import Settings
from lite_jax.types import Examples, Params, Task


def run_benchmark(config: ConfigDict | Settings, folder: Path) -> str:
    """Test the best parameters of a workdir on the benchmark `benchmark.name`.

    Returns:
        The table of results beside reported ones.

    Raises:
        UserError: An unknown benchmark, missing data (all data are opened before any
            computation), no checkpoint, or rows of other settings in the workdir.
    """
    config = read_settings(config, Settings)
    name = config.benchmark.name
    plan, report = errors.pick("benchmark.name", name, _BENCHMARKS)
    run = open_run(folder, config)
    config, params = run.config, run.params
    shape = _images_spec(config, ()).shape
    run.check_fits(build_learner.params_shape(learner_of(config, _WAY), shape))
    with memory_budget.out_of_memory_explained(config):
        config = build_gradient.resolve_chunk_size(
            config, functools.partial(_fitting_chunk, config, params)
        )
        with settings_named(names_of("data")):
            jobs = plan(config, params)
        rows = run_jobs(jobs, folder / f"{name}.jsonl")
    return report(config, rows)


_BENCHMARKS = {
    "meta_dataset": (plan_meta_dataset, report_vtab_md),
    "orbit": (plan_orbit, report_orbit),
    "vtab_md": (plan_vtab_md, report_vtab_md),
}


def _fitting_chunk(config: Settings, params: Params) -> int:
    """Return the largest chunk size with which the largest tasks fit into memory."""
    label_dtype = jnp.int32
    examples = Examples(
        _images_spec(config, (_MOST,)),
        jax.ShapeDtypeStruct((_MOST,), label_dtype),
        jax.ShapeDtypeStruct((_MOST,), jnp.bool_),
    )
    learner = learner_of(config, _WAY)
    return fitting_chunk(config, learner, params, [Task(examples, examples)])


def _images_spec(config: Settings, lead: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    """Return the spec of images or clips with leading axes `lead`."""
    side, length = config.data.image_size, build_learner.clip_length(config)
    clip = () if length is None else (length,)
    return jax.ShapeDtypeStruct((*lead, *clip, side, side, 3), jnp.uint8)


_WAY = 50  # of Meta-Dataset's largest tasks
_MOST = 512  # images of the sets that the chunk size is fitted to
