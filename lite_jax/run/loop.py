"""The training loop of all programs: resume, report, save, stop on SIGTERM."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from lite_jax.run import parallel, workdir
from lite_jax.run.checkpoint import Slot
from lite_jax.run.metrics import MetricsWriter
from lite_jax.run.preemption import Preempted, watched_sigterm
from lite_jax.run.progress import Reporter
from lite_jax.run.settings import ProgramSettings
from lite_jax.types import PyTree

_logger = logging.getLogger(__name__)


class Folder:
    """The open folder of a run.

    Attributes:
        path: The folder.
        last: The checkpoint that a stopped run resumes from.
        best: The checkpoint that is tested.
        saved: The tree that `last` held at the start, or the start of the run.
        writer: Writes `metrics.jsonl` and TensorBoard events.
    """

    def __init__(
        self, path: Path, saved: PyTree, step_of: Callable[[PyTree], Any], slots: Any
    ):
        """Restore the last checkpoint, and open the files; see `open_folder`."""
        self.path = path
        self.last, self.best = slots
        if self.last.step() is not None:
            saved = self.last.restore(saved)
            _logger.info("resumed after step %d", step_of(saved))
        self.saved = parallel.from_main(saved)
        self.writer = MetricsWriter(path, int(step_of(self.saved)))


@contextlib.contextmanager
def open_folder(
    path: Path, config: ProgramSettings, start: PyTree, step_of: Callable[[PyTree], Any]
) -> Iterator[Folder]:
    """Lock a run's folder, restore its last checkpoint, and close it at the end.

    Args:
        path: The workdir.
        config: The run's settings; those in the folder must be equal.
        start: The tree before the first step, of the structure of the checkpoints.
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
    """Take steps, write their metrics, and save every `every` steps and at the end.

    Args:
        steps: The steps left, up to the last step of the run.
        writer: Writes the metrics.
        take: `(step, report) -> metrics`; takes one step.
        save: `(step, due, report)`; saves a checkpoint. `due` is False where SIGTERM
            came between two regular saves.
        every: Steps between two saves.
        unit: What the progress bar counts, such as tasks.
        width: Units in a step.
        tolerated: Steps in a row whose metrics may be not finite.

    Raises:
        Preempted: SIGTERM came, and a checkpoint of that step is saved.
        UserError: Metrics were not finite in more steps in a row than tolerated.
    """
    total = steps.stop - 1
    bar = tqdm(
        total=total * width,
        initial=(steps.start - 1) * width,
        unit=unit,
        disable=not parallel.is_main(),
    )
    with watched_sigterm() as sigterm, bar:
        report = Reporter(writer, bar, width, tolerated)
        for step in steps:
            report.later(step, take(step, report))
            due = step % every == 0 or step == total
            stop = _should_stop(sigterm, due)
            if not due and not stop:
                continue
            report.now()
            save(step, due, report)
            if stop and step < total:
                raise Preempted(f"stopped after step {step} of {total}, which is saved")
        report.log_total()


def _should_stop(sigterm: Callable[[], bool], due: bool) -> bool:
    """Return whether to stop after this step.

    Several processes stop only at a regular save, and all of them if any received
    SIGTERM.
    """
    if jax.process_count() == 1:
        return sigterm()
    return due and any(parallel.gather(sigterm()))
