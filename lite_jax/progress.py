"""What training tells on its way: metrics, rates, and a number that is not finite."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator

import jax
from tqdm import tqdm

from lite_jax.errors import UserError
from lite_jax.metrics import MetricsWriter

_logger = logging.getLogger(__name__)
_SHOWN = ("loss", "accuracy", "return")  # beside the bar


class Reporter:
    """Writes each step's metrics one step late, so that reading never waits."""

    def __init__(self, writer: MetricsWriter, bar: tqdm, tasks_per_step: int):
        self._writer, self._bar, self._width = writer, bar, tasks_per_step
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self._time = time.perf_counter()
        self._waited = self._all_waited = self._all_time = 0.0
        self._notes: dict[str, str] = {}

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def later(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Keep a step's metrics until the next call, and write those kept before."""
        self.now()
        self._pending = step, metrics

    def now(self) -> None:
        """Write what is kept; raise if one of its numbers is not finite."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = {name: float(value) for name, value in metrics.items()}
        if not all(map(math.isfinite, values.values())):
            raise UserError(
                f"step {step}: not finite ({_listed(values)}); the checkpoints are "
                "those of the last validation. Lower optimizer.learning_rate or set "
                "optimizer.clip_norm"
            )
        elapsed, self._time = time.perf_counter() - self._time, time.perf_counter()
        rates = {
            "tasks_per_second": self._width / elapsed,
            "share_of_time_waiting_for_data": self._waited / elapsed,
        }
        self._all_waited += self._waited
        self._all_time += elapsed
        self._waited = 0.0
        self._writer.write("train", step, values, rates)
        self._bar.update(self._width)
        self.note(**{k: f"{values[k]:.3f}" for k in _SHOWN if k in values})

    def log_total(self) -> None:
        """Log how long all steps took, and the share of it spent on waiting."""
        if self._all_time:
            _logger.info(
                "training took %.0f s with validation; waiting for data: %.1f %% of it",
                self._all_time, 100 * self._all_waited / self._all_time,
            )  # fmt: skip

    def note(self, **notes: str) -> None:
        """Show something beside the bar."""
        self._notes |= notes
        self._bar.set_postfix(self._notes, refresh=False)


def _listed(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items())
