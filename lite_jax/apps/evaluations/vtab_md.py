"""Evaluation on Meta-Dataset's test sources and VTAB's 18 tasks."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from lite_jax import data
from lite_jax.apps.evaluations import published
from lite_jax.apps.evaluations.jobs import (
    OVER_IMAGES,
    OVER_TASKS,
    Job,
    Row,
    learner_of,
    names_to_run,
    settings_row,
)
from lite_jax.data.episodes import VariableSpec, check_spec
from lite_jax.data.images import ImageSpec
from lite_jax.data.meta_dataset.source import find_meta_dataset_protocol, read_source
from lite_jax.data.vtab.rules import GROUPS, VTAB
from lite_jax.data.vtab.tasks import VtabTask, vtab_task
from lite_jax.errors import UserError
from lite_jax.run import build_gradient
from lite_jax.run.configs import settings_named
from lite_jax.run.evaluate import evaluate, format_table, make_scorer
from lite_jax.run.predictor import Predictor
from lite_jax.run.settings import Settings
from lite_jax.types import Params

_logger = logging.getLogger(__name__)

_PARTS = {"MD-v2": 8, "VTAB natural": 6, "VTAB specialized": 4, "VTAB structured": 8}


def plan_meta_dataset(config: Settings, params: Params) -> list[Job]:
    """Return a job for each test source of Meta-Dataset."""
    names = names_to_run(config, find_meta_dataset_protocol(config.data.protocol).test)
    return _meta_dataset_jobs(config, params, names)


def plan_vtab_md(config: Settings, params: Params) -> list[Job]:
    """Return a job for each test source of Meta-Dataset and each task of VTAB.

    Raises:
        UserError: Data are missing; all missing tasks of VTAB are named at once.
    """
    names = names_to_run(
        config, [*find_meta_dataset_protocol(config.data.protocol).test, *VTAB]
    )
    sources = [name for name in names if name not in VTAB]
    tasks = [name for name in names if name in VTAB]
    vtab = _vtab_jobs(config, params, tasks)
    return _meta_dataset_jobs(config, params, sources) + vtab


def _meta_dataset_jobs(
    config: Settings, params: Params, names: Sequence[str]
) -> list[Job]:
    settings, count, spec = config.data, config.benchmark.episodes, VariableSpec()
    image = ImageSpec(settings.image_size, settings.resize or "md")
    learner = learner_of(config, spec.way[1])
    scorer = make_scorer(learner, build_gradient.checked_chunk_size(config))

    def run(source: data.ClassSource, name: str) -> Row:
        def load(index: int) -> Any:
            stream = f"benchmark.{name}"
            return data.load_task(source, spec, config.seed, stream, index)

        tasks = data.run_ahead(load, range(count), depth=settings.prefetch)
        bar = tqdm(tasks, name, count, unit="task", leave=False)
        result = evaluate({"": (scorer, params)}, bar)[""]
        return {
            "accuracy": result.mean,
            "half_width": result.half_width,
            "interval": OVER_TASKS,
            "count": result.num_tasks,
        }

    jobs = []
    for name in names:
        hierarchy = find_meta_dataset_protocol(settings.protocol).hierarchy
        source = read_source(settings.root, name, "test", image, hierarchy)
        check_spec("benchmark", spec, source)
        row = settings_row(config, name, settings.protocol, image.resize)
        row |= {"part": "MD-v2", "episodes": count}
        jobs.append(Job(name, row, functools.partial(run, source, name)))
    return jobs


def _vtab_jobs(config: Settings, params: Params, names: Sequence[str]) -> list[Job]:
    settings, chunk_size = config.benchmark, build_gradient.checked_chunk_size(config)

    @functools.cache
    def predictor(way: int) -> Predictor:
        return Predictor(learner_of(config, way), chunk_size, [chunk_size])

    jobs = []
    for task in _vtab_tasks(config, names):
        way = _padded_way(task.num_classes)
        row = settings_row(config, task.name, settings.vtab_protocol, task.resize)
        row |= {
            "part": f"VTAB {GROUPS[task.name]}",
            "support": settings.vtab_support,
            "most_test_images": settings.most_test_images,
        }
        run = functools.partial(_run_vtab_task, config, params, task, predictor(way))
        jobs.append(Job(task.name, row, run))
    return jobs


def _padded_way(num_classes: int) -> int:
    """Return the way that a task of `num_classes` is padded to.

    Up to 64 classes it is the next power of two, which limits the number of compiled
    programs.
    """
    return num_classes if num_classes > 64 else 1 << (num_classes - 1).bit_length()


def _vtab_tasks(config: Settings, names: Sequence[str]) -> list[VtabTask]:
    settings = config.benchmark
    if names and not settings.vtab_root:
        raise UserError(
            "benchmark.vtab_root is empty: set --config.benchmark.vtab_root=FOLDER, "
            "the data_dir of tfds or the folder of VTAB's data sets"
        )
    tasks, missing = [], {}
    for name in names:
        try:
            with settings_named(_VTAB_SETTINGS):
                task = vtab_task(
                    settings.vtab_root,
                    name,
                    config.data.image_size,
                    protocol=settings.vtab_protocol,
                    resize=settings.vtab_resize,
                    num_support=settings.vtab_support,
                )
            tasks.append(task)
        except UserError as error:
            missing[name] = error
    if missing:
        raise UserError(
            f"{len(missing)} of {len(names)} VTAB tasks cannot be read "
            f"({', '.join(missing)}); the first: {next(iter(missing.values()))}. Or "
            "name the data sets to run in --config.benchmark.only"
        )
    return tasks


_VTAB_SETTINGS = {  # argument of `vtab_task` → setting
    "protocol": "benchmark.vtab_protocol",
    "resize": "benchmark.vtab_resize",
    "num_support": "benchmark.vtab_support",
}


def _run_vtab_task(
    config: Settings, params: Params, task: VtabTask, predictor: Predictor
) -> Row:
    """Adapt to the support set once, and return the accuracy on the test set."""
    images, labels = task.support.read(range(len(task.support)))
    absent = task.num_classes - len(np.unique(labels))
    if absent:
        _logger.warning(
            "%s: %d of %d classes have no support image, and are never predicted",
            task.name, absent, task.num_classes,
        )  # fmt: skip
    adapted = predictor.adapt(params, images, labels)
    count = min(len(task.test), config.benchmark.most_test_images or len(task.test))
    size = max(build_gradient.checked_chunk_size(config), 64)

    def read(start: int) -> tuple[np.ndarray, np.ndarray]:
        return task.test.read(range(start, min(start + size, count)))

    starts = range(0, count, size)
    batches = data.run_ahead(read, starts, depth=config.data.prefetch)
    bar = tqdm(batches, task.name, len(starts), unit="batch", leave=False)
    num_right = sum(int((predictor.predict(adapted, x) == y).sum()) for x, y in bar)
    accuracy = num_right / count
    return {
        "accuracy": accuracy,
        "half_width": 1.96 * float(np.sqrt(accuracy * (1 - accuracy) / count)),
        "interval": OVER_IMAGES,
        "count": count,
        "absent_classes": absent,
        "layout": task.layout,
    }


# --------------------------------------------------------------------------- the table


def report_vtab_md(config: Settings, rows: Sequence[Row]) -> str:
    """Return the table of results beside reported ones, with notes on its columns."""
    del config
    lines = []
    for row in rows:
        shown = f"{100 * row['accuracy']:.2f} ± {100 * row['half_width']:.2f}"
        count = str(row["count"])
        lines.append([row["dataset"], shown, count, row["resize"], row["protocol"]])
    for title, members in means(rows).items():
        mean = float(np.mean([row["accuracy"] for row in members]))
        lines.append([title, f"{100 * mean:.2f}", f"{len(members)} sets", "", ""])
    columns: dict[str, Mapping[str, published.Figure]] = {
        "LITE, paper": published.LITE_VTAB_MD,
        "RN-50 fine-tuned": published.FINE_TUNED_VTAB,
    }
    for line in lines:
        line += [str(table.get(line[0], "not verified")) for table in columns.values()]
    header = ["data set", "accuracy %", "n", "resize", "protocol", *columns]
    seeds = sorted({str(row["seed"]) for row in rows})
    return "\n".join(
        [
            format_table(header, lines),
            f"seed {', '.join(seeds)}",
            *[f"±: {formula}" for formula in sorted({row["interval"] for row in rows})],
            "LITE, paper: Simple CNAPs + LITE, EfficientNet-B0, 224 px; * from a "
            "secondary source",
            "RN-50 fine-tuned: Sup-100 % of VTAB's results.csv, official split, 224 px",
        ]
    )


def means(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each unweighted mean that papers report, by the mean's name.

    A mean is left out unless all its rows are present. The mean over VTAB is over its
    18 tasks, not over its three groups.
    """
    parts = {name: [row for row in rows if row["part"] == name] for name in _PARTS}
    complete = {name: x for name, x in parts.items() if len(x) == _PARTS[name]}
    vtab = [row for row in rows if row["part"] != "MD-v2"]
    return complete | ({"VTAB all": vtab} if len(vtab) == len(VTAB) else {})
