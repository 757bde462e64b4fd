"""The jobs of a benchmark, one for each data set, and the rows that they write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from lite_jax.errors import UserError, unknown_name
from lite_jax.files import append_row, read_rows
from lite_jax.run import build_learner
from lite_jax.run.settings import Settings
from lite_jax.types import Learner

Row = dict[str, Any]
OVER_TASKS = "1.96 σ/√n over tasks, σ with denominator n"
OVER_IMAGES = "1.96 √(p(1-p)/n) over test images, of one support set"


class Job(NamedTuple):
    """The evaluation on one data set.

    Attributes:
        dataset: Name of the data set.
        settings: The settings that its row records.
        run: Computes the scores of its row.
    """

    dataset: str
    settings: Row
    run: Callable[[], Row]


def run_jobs(jobs: Sequence[Job], path: Path) -> list[Row]:
    """Run the jobs without a row in a file, append their rows, and return all rows.

    Args:
        jobs: The jobs; their rows are returned in this order.
        path: A file of JSON lines; made if it does not exist.

    Raises:
        UserError: The file has a row of a job with other settings.
    """
    rows = _rows_of(jobs, path)
    bar = tqdm(jobs, path.stem, unit="data set")
    for job in bar:
        bar.set_postfix_str(job.dataset)
        if job.dataset not in rows:
            rows[job.dataset] = job.settings | job.run()
            append_row(path, rows[job.dataset])
    return [rows[job.dataset] for job in jobs]


def _rows_of(jobs: Sequence[Job], path: Path) -> dict[str, Row]:
    """Return the rows of a file, by data set; raise if settings of a job differ."""
    rows = {row["dataset"]: row for row in read_rows(path)}
    for job in jobs:
        row = rows.get(job.dataset, job.settings)
        saved = {k: row.get(k) for k, v in job.settings.items() if row.get(k) != v}
        if saved:
            current = {name: job.settings[name] for name in saved}
            raise UserError(
                f"{path} has results of {job.dataset} under {saved}, and this run has "
                f"{current}: restore those settings, or move the file away"
            )
    return rows


def settings_row(config: Settings, dataset: str, protocol: str, resize: str) -> Row:
    """Return the settings that every row of a benchmark records."""
    return {
        "benchmark": config.benchmark.name,
        "dataset": dataset,
        "learner": config.learner,
        "backbone": config.backbone.name,
        "image_size": config.data.image_size,
        "protocol": protocol,
        "resize": resize,
        "seed": config.seed,
    }


def names_to_run(config: Settings, known: Iterable[str]) -> list[str]:
    """Return those of the known data sets that `benchmark.only` names; all if empty.

    Raises:
        UserError: It names a data set that the benchmark does not have.
    """
    known = list(known)
    only = [x.strip() for x in config.benchmark.only.split(",") if x.strip()]
    for name in only:
        if name not in known:
            raise unknown_name("data set in benchmark.only", name, known)
    return [name for name in known if not only or name in only]


def learner_of(config: Settings, way: int) -> Learner:
    """Return the learner that is tested, for tasks of at most `way` classes."""
    return build_learner.make_tested_learner(config, way)
