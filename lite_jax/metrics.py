"""Means with intervals, and the files that a run's numbers go to."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tensorboardX import SummaryWriter


class Interval(NamedTuple):
    """A mean, half the width of its 95 % interval, and the number of tasks."""

    mean: float
    half_width: float
    num_tasks: int

    def percent(self) -> str:
        """Return a phrase such as `97.31 ± 0.25 %`."""
        return f"{100 * self.mean:.2f} ± {100 * self.half_width:.2f} %"


def interval(values: Iterable[float]) -> Interval:
    """Return the mean ± 1.96 σ/√n, σ with denominator n, as Meta-Dataset and LITE do.

    >>> interval([0.0, 1.0, 1.0, 1.0]).percent()
    '75.00 ± 42.44 %'
    """
    array = np.asarray(list(values), np.float64)
    half = 1.96 * array.std() / np.sqrt(array.size)
    return Interval(float(array.mean()), float(half), array.size)


def format_row(row: Mapping[str, Any]) -> str:
    """Return a row as one line of JSON; numbers that are not finite are refused."""
    return json.dumps(row, allow_nan=False)


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append one JSON line to a file, in a single write."""
    with path.open("a", encoding="utf-8") as file:
        file.write(format_row(row) + "\n")


def keep_rows(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Drop the rows of a JSON-lines file that are not `wanted`, or are cut short."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    kept = [line for line in whole if wanted(json.loads(line))]
    if kept != lines:
        write_atomically(path, "".join(kept))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON-lines file, none where there is none.

    A last line that was cut short is dropped from the file.
    """
    if not path.exists():
        return []
    keep_rows(path, lambda row: True)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file whole: a reader, or a crash, never meets half of it."""
    draft = path.with_name(path.name + ".part")
    try:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(draft, path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


class MetricsWriter:
    """Rows for `metrics.jsonl` and TensorBoard events, in one call.

    `metrics.jsonl` holds only what the seed determines, so that equal runs leave
    equal files; rates and times go to TensorBoard alone.
    """

    def __init__(self, workdir: Path, last_step: int):
        """Open the files, dropping what came after `last_step`, and test results."""
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
        """Write one row; numbers among `values` and `rates` are drawn as curves."""
        append_row(self._path, {"split": split, "step": step, **values})
        for name, value in {**values, **(rates or {})}.items():
            if isinstance(value, float):
                self._events.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        """Flush and close the event file."""
        self._events.close()
