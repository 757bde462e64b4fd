"""Accuracy of learners over many tasks, the same tasks for each learner."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from lite_jax.data.loader import load_task, run_ahead
from lite_jax.data.sources import ClassSource
from lite_jax.run import (
    build_data,
    build_gradient,
    build_learner,
    memory_budget,
    parallel,
)
from lite_jax.run.build_data import Sources
from lite_jax.run.configs import read_settings
from lite_jax.run.metrics import Interval, interval
from lite_jax.run.predictor import Predictor
from lite_jax.run.restore import TrainedRun, open_run
from lite_jax.run.settings import AnyEpisode, Settings
from lite_jax.types import Learner, Params, Task

Scorer = Callable[[Params, Task], jax.Array]
Results = dict[str, dict[str, Interval]]


def make_scorer(learner: Learner, chunk_size: int | None = None) -> jax.stages.Wrapped:
    """Return the compiled `(params, task) -> accuracy` of the query set, in [0, 1]."""
    return Predictor(learner, chunk_size).accuracy


def evaluate(
    scorers: Mapping[str, tuple[Scorer, Params]], tasks: Iterable[Task]
) -> dict[str, Interval]:
    """Return each scorer's mean accuracy and 95 % interval over the tasks.

    Args:
        scorers: Name → (scorer, its parameters).
        tasks: Padded tasks.
    """
    accuracies: dict[str, list[float]] = {name: [] for name in scorers}
    for task in tasks:
        on_device = jax.device_put(task)
        for name, (score, params) in scorers.items():
            accuracies[name].append(float(score(params, on_device)))
    return {name: interval(x) for name, x in accuracies.items()}


def split_tasks(
    config: Settings,
    settings: AnyEpisode,
    source: ClassSource,
    stream: str,
    count: int,
) -> Iterable[Task]:
    """Return the first `count` tasks of a stream, loaded in background threads.

    Args:
        config: All settings.
        settings: The settings of the episodes.
        source: The split.
        stream: Names a sequence of episodes, such as "valid".
        count: Number of tasks.
    """
    spec = build_data.make_spec(settings)

    def load(index: int) -> Task:
        return load_task(source, spec, config.seed, stream, index)

    return run_ahead(load, range(count), depth=config.data.prefetch)


def run_tests(
    config: Settings, learner: Learner, params: Params, sources: Sources
) -> Results:
    """Return the accuracies of learner and raw pixels on each kind of test episode."""

    def fit() -> int:
        source = sources("test")
        first_tasks = [
            load_task(source, build_data.make_spec(x), config.seed, f"test.{name}", 0)
            for name, x in config.test.episodes.items()
        ]
        return fitting_chunk(config, learner, params, first_tasks)

    resolved = build_gradient.resolve_chunk_size(config, fit)
    chunk = build_gradient.checked_chunk_size(resolved)
    no_params: Params = {"backbone": {}}
    scorers = {
        config.learner: (make_scorer(learner, chunk), params),
        "raw pixels": (
            make_scorer(build_learner.make_baseline(config), chunk),
            no_params,
        ),
    }
    results: Results = {}
    for name, settings in config.test.episodes.items():
        tasks = split_tasks(
            config, settings, sources("test"), f"test.{name}", config.test.tasks
        )
        bar = tqdm(
            tasks,
            f"testing {name}",
            config.test.tasks,
            unit="task",
            leave=False,
            disable=not parallel.is_main(),
        )
        results[name] = evaluate(scorers, bar)
    return results


def evaluate_checkpoint(config: ConfigDict | Settings, folder: Path) -> Results:
    """Test the best parameters of a workdir; test settings may differ from the run's.

    Raises:
        UserError: The workdir has no checkpoint, or a run of other settings.
    """
    config = read_settings(config, Settings)
    learner, run, sources = restore_best(config, folder)
    build_data.check_episodes(config, sources, splits=("test",))
    with memory_budget.out_of_memory_explained(config):
        return run_tests(run.config, learner, run.params, sources)


def restore_best(config: Settings, folder: Path) -> tuple[Learner, TrainedRun, Sources]:
    """Return the tested learner of a workdir, the run, and the sources.

    Raises:
        UserError: The workdir has no checkpoint, or a run of other settings.
    """
    run = open_run(folder, config)
    sources = build_data.make_sources(run.config)
    learner = build_learner.make_learners(run.config, sources).tested
    shape = sources("test").image_shape
    run.check_fits(build_learner.params_shape(learner, shape))
    return learner, run, sources


def fitting_chunk(
    config: Settings, learner: Learner, params: Params, tasks: Iterable[Task]
) -> int:
    """Return the largest chunk size with which all tasks fit into memory.

    Args:
        config: All settings; `gradient.memory_budget_gb` is the budget.
        learner: The learner that is tested.
        params: Its parameters.
        tasks: A task of each padded size, as arrays or their specs.
    """

    def build(task: Task, chunk_size: int) -> jax.stages.Compiled:
        return make_scorer(learner, chunk_size).lower(params, task).compile()

    chunk_sizes = []
    for task in tasks:
        most = max(len(x.labels) for x in task)
        limit = config.gradient.memory_budget_gb
        fit = memory_budget.largest_chunk(functools.partial(build, task), most, limit)
        chunk_sizes.append(fit.chunk_size)
    return min(chunk_sizes)


def format_results(config: Settings, results: Results) -> str:
    """Return the table of test results, a row for each kind of episode."""
    names = list(next(iter(results.values())))
    rows = []
    for kind, intervals in results.items():
        spec = build_data.make_spec(config.test.episodes[kind])
        cells = [intervals[name].percent() for name in names]
        rows.append([spec.describe(), *cells, str(intervals[names[0]].num_tasks)])
    return format_table(["test episodes", *names, "tasks"], rows)


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a text table: aligned columns under an underlined header."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        return "  ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)).rstrip()

    rule = "  ".join("-" * w for w in widths)
    return "\n".join([line(header), rule, *map(line, rows)])
