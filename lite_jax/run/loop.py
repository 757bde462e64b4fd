"""The loop that all programs train in: resume, report, save, stop on SIGTERM."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from lite_jax.run import parallel, workdir
from lite_jax.run.checkpoint import Slot
from lite_jax.run.metrics import MetricsWriter
from lite_jax.run.preemption import Preempted, noticed
from lite_jax.run.progress import Reporter
from lite_jax.types import PyTree

_logger = logging.getLogger(__name__)


class Folder:
    """A run's folder while the run is at work in it.

    Attributes:
        path: The folder.
        last: The checkpoint that a stopped run goes on from.
        best: The checkpoint that is tested.
        saved: What `last` holds, or what the run starts from.
        writer: Of `metrics.jsonl` and TensorBoard.
    """

    def __init__(
        self, path: Path, saved: PyTree, step_of: Callable[[PyTree], Any], slots: Any
    ):
        """Restore what was saved, and open the files; see `open_folder`."""
        self.path = path
        self.last, self.best = slots
        if self.last.step() is not None:
            saved = self.last.restore(saved)
            _logger.info("resumed after step %d", step_of(saved))
        self.saved = parallel.from_main(saved)
        self.writer = MetricsWriter(path, int(step_of(self.saved)))


@contextlib.contextmanager
def open_folder(
    path: Path, config: ConfigDict, start: PyTree, step_of: Callable[[PyTree], Any]
) -> Iterator[Folder]:
    """Keep other runs out of a folder, restore what it holds, and close it at the end.

    Args:
        path: The workdir.
        config: The run's, which the folder has to belong to.
        start: What the run starts from, of the structure of its checkpoints.
        step_of: `saved -> steps taken`.

    Raises:
        UserError: See `lite_jax.run.workdir.occupied`.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(workdir.occupied(path, config))
        slots = [
            stack.enter_context(closing(Slot(path / "checkpoints" / name)))
            for name in ("last", "best")
        ]
        folder = Folder(path, start, step_of, slots)
        stack.enter_context(closing(folder.writer))
        yield folder


def take_steps(
    steps: range,
    writer: MetricsWriter,
    *,
    take: Callable[[int, Reporter], dict[str, Any]],
    save: Callable[[int, bool, Reporter], None],
    every: int,
    unit: str = "task",
    width: int = 1,
    tolerated: int = 0,
) -> None:
    """Take steps, write their metrics, and save every so many and at the end.

    Args:
        steps: Those that are left, up to the run's last.
        writer: Of metrics.
        take: `(step, report) -> metrics` of one step.
        save: `(step, due, report)`. `due` is False where SIGTERM came between two
            saves.
        every: Steps between two saves.
        unit: What the bar counts.
        width: How many of these a step has.
        tolerated: Steps in a row whose metrics may not be finite.

    Raises:
        Preempted: SIGTERM came, and the step it came in is saved.
        UserError: Metrics that are not finite.
    """
    total = steps.stop - 1
    bar = tqdm(
        total=total * width,
        initial=(steps.start - 1) * width,
        unit=unit,
        disable=not parallel.is_main(),
    )
    with noticed() as sigterm, bar:
        report = Reporter(writer, bar, width, tolerated)
        for step in steps:
            report.later(step, take(step, report))
            due = step % every == 0 or step == total
            stop = _all_stop(sigterm, due)
            if not due and not stop:
                continue
            report.now()
            save(step, due, report)
            if stop and step < total:
                raise Preempted(f"stopped after step {step} of {total}, which is saved")
        report.log_total()


def _all_stop(sigterm: Callable[[], bool], due: bool) -> bool:
    """Return whether to stop here; several processes agree where they save anyway."""
    if jax.process_count() == 1:
        return sigterm()
    return due and any(parallel.gather(sigterm()))
