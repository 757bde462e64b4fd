"""Means with confidence intervals, and the writer of a run's metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tensorboardX import SummaryWriter

from lite_jax.files import append_row, keep_rows


class Interval(NamedTuple):
    """A mean, half the width of its 95 % interval, and the number of tasks."""

    mean: float
    half_width: float
    num_tasks: int

    def percent(self) -> str:
        """Return text such as `97.31 ± 0.25 %`."""
        return f"{100 * self.mean:.2f} ± {100 * self.half_width:.2f} %"


def interval(values: Iterable[float]) -> Interval:
    """Return the mean ± 1.96 σ/√n, with denominator n in σ.

    Meta-Dataset and LITE report the same interval.

    >>> interval([0.0, 1.0, 1.0, 1.0]).percent()
    '75.00 ± 42.44 %'
    """
    array = np.asarray(list(values), np.float64)
    half = 1.96 * array.std() / np.sqrt(array.size)
    return Interval(float(array.mean()), float(half), array.size)


class MetricsWriter:
    """Write metrics to `metrics.jsonl` and to TensorBoard.

    `metrics.jsonl` holds only what the seed determines, so equal runs write equal
    files. Rates and times go to TensorBoard only.
    """

    def __init__(self, workdir: Path, last_step: int):
        """Open the files, and drop rows after `last_step` and rows of test results."""
        self._path = workdir / "metrics.jsonl"
        keep_rows(self._path, lambda r: r["step"] <= last_step and r["split"] != "test")
        self._events = SummaryWriter(
            str(workdir / "tensorboard"), purge_step=last_step + 1
        )

    def write(
        self,
        split: str,
        step: int,
        values: Mapping[str, Any],
        rates: Mapping[str, float] | None = None,
    ) -> None:
        """Write one row; floats of `values` and `rates` become TensorBoard curves.

        Args:
            split: "train", "valid" or "test".
            step: Steps taken so far.
            values: Name → value, for both files.
            rates: Name → value, for TensorBoard only.
        """
        append_row(self._path, {"split": split, "step": step, **values})
        for name, value in {**values, **(rates or {})}.items():
            if isinstance(value, float):
                self._events.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        """Flush and close the event file."""
        self._events.close()
