"""Reports of training: metrics, rates, and errors for numbers that are not finite."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator

import jax
from tqdm import tqdm

from lite_jax.errors import UserError
from lite_jax.run.metrics import MetricsWriter

_logger = logging.getLogger(__name__)
_SHOWN = ("loss", "accuracy", "return")  # shown in the progress bar


class Reporter:
    """Write each step's metrics one step late, without waiting for the device."""

    def __init__(
        self,
        writer: MetricsWriter,
        bar: tqdm,
        tasks_per_step: int,
        tolerated: int = 0,
    ):
        """Start to measure time.

        Args:
            writer: Writes the metrics.
            bar: Progress bar, which counts tasks.
            tasks_per_step: Tasks that a step adds to the bar.
            tolerated: Steps in a row whose metrics may be not finite.
        """
        self._writer, self._bar, self._width = writer, bar, tasks_per_step
        self._tolerated, self._skipped = tolerated, 0
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self._time = time.perf_counter()
        self._waited = self._all_waited = self._all_time = 0.0
        self._notes: dict[str, str] = {}

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Add the time spent inside to the time of waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def later(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Store a step's metrics, and write those of the step before."""
        self.now()
        self._pending = step, metrics

    def now(self) -> None:
        """Write the metrics stored by `later`.

        Raises:
            UserError: Metrics were not finite in more steps in a row than tolerated.
        """
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = {name: float(value) for name, value in metrics.items()}
        finite = all(map(math.isfinite, values.values()))
        self._skipped = 0 if finite else self._skipped + 1
        if self._skipped > self._tolerated:
            first = (step - 1) * self._width
            raise UserError(
                f"step {step}, of the training tasks {first} to "
                f"{first + self._width - 1}: not finite ({_metrics_text(values)}); the "
                "checkpoints are those of the last validation. Lower "
                "optimizer.learning_rate, or set optimizer.clip_norm or "
                "optimizer.skip_not_finite"
            )
        elapsed, self._time = time.perf_counter() - self._time, time.perf_counter()
        rates = {
            "tasks_per_second": self._width / elapsed,
            "share_of_time_waiting_for_data": self._waited / elapsed,
        }
        self._all_waited += self._waited
        self._all_time += elapsed
        self._waited = 0.0
        self._bar.update(self._width)
        if not finite:
            self._writer.write("train", step, {"skipped": True}, rates)
            _logger.warning(
                "step %d skipped: not finite (%s)", step, _metrics_text(values)
            )
            return
        self._writer.write("train", step, values, rates)
        self.note(**{k: f"{values[k]:.3f}" for k in _SHOWN if k in values})

    def log_total(self) -> None:
        """Log the time of all steps, and the share of it spent on waiting for data."""
        if self._all_time:
            _logger.info(
                "training took %.0f s with validation; waiting for data: %.1f %% of it",
                self._all_time, 100 * self._all_waited / self._all_time,
            )  # fmt: skip

    def note(self, **notes: str) -> None:
        """Show `name=text` in the progress bar."""
        self._notes |= notes
        self._bar.set_postfix(self._notes, refresh=False)


def _metrics_text(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items())
