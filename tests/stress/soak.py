"""Ten thousand tiny steps: does anything grow?

    python -m tests.stress.soak [--steps=10000] [--smoke]
        [--out=experiments/results/soak.jsonl]

One run in this process, looked at twenty times: resident memory, open files, threads,
and programs compiled so far. Fails where one of them grew after the first tenth.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from experiments.rows import emit, parser
from experiments.sections import Row, Section, columns, panels
from lite_jax.files import read_rows
from lite_jax.run.train import train_and_evaluate
from tests import toys

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLES = 20
COUNTED = ("programs", "open_files", "threads")
_COMPILED = "/jax/core/compile/backend_compile_duration"


def main(argv: Sequence[str] | None = None) -> None:
    """Emit a row a sample."""
    found = parser("does anything grow in a long run")
    found.add_argument("--steps", type=int, default=10_000)
    arguments = found.parse_args(argv)
    steps = 40 if arguments.smoke else arguments.steps
    compiled: list[float] = []

    def count(event: str, duration_secs: float, **_: Any) -> None:
        if event == _COMPILED:
            compiled.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(count)
    with tempfile.TemporaryDirectory() as name:
        rows = watched(steps, Path(name), compiled)
    for row in rows:
        emit(arguments.out, {"experiment": "soak", "steps": steps} | row)
    check_flat(rows)


def check_flat(rows: list[dict[str, Any]]) -> None:
    """Raise where something grew after the first tenth of a run.

    Raises:
        AssertionError: One more program, ten more files or threads, or a fifth more
            memory at the end.
    """
    early, last = rows[max(1, len(rows) // 10)], rows[-1]
    allowed = {
        "programs": early["programs"],
        "resident_mb": 1.2 * early["resident_mb"],
        "open_files": early["open_files"] + 10,
        "threads": early["threads"] + 10,
    }
    for name, most in allowed.items():
        assert last[name] <= most, f"{name} grew from {early[name]} to {last[name]}"


def watched(steps: int, folder: Path, compiled: list[float]) -> list[dict[str, Any]]:
    """Return what a run of that many steps uses, at moments spread over it."""
    config = toys.run_config(steps, valid_every=max(1, steps // SAMPLES))
    rows: list[dict[str, Any]] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            path = folder / "checkpoints/last"
            saved = [int(p.name) for p in path.glob("*") if p.name.isdigit()]
            if saved and (not rows or max(saved) > rows[-1]["step"]):
                row = {"step": max(saved), "programs": len(compiled)}
                rows.append(row | usage())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        train_and_evaluate(config, folder)
    finally:
        ended.set()
        watcher.join()
    assert len(read_rows(folder / "metrics.jsonl")) >= steps
    return rows


def usage() -> dict[str, Any]:
    """Return this process's memory, open files and threads, as Linux tells them."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "resident_mb": pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
        "open_files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
    }


def draw_growth(rows: list[Row]) -> Figure:
    """Draw memory, and what else could grow, against steps."""
    figure, axes = panels(2)
    steps = [row["step"] for row in rows]
    axes[0].plot(steps, [row["resident_mb"] for row in rows])
    axes[0].set(title="resident memory, MB", xlabel="steps", ylim=(0, None))
    for name in COUNTED:
        axes[1].plot(steps, [row[name] for row in rows], label=name.replace("_", " "))
    axes[1].set(title="numbers of", xlabel="steps", ylim=(0, None))
    axes[1].legend()
    return figure


SECTIONS = (
    Section(
        "A long run",
        "soak",
        "python -m tests.stress.soak",
        "Ten thousand tiny steps in one process, checkpoints and validation included.",
        lambda rows: columns(rows[:1] + rows[-1:], "step", "resident_mb", *COUNTED),
        draw_growth,
    ),
)


if __name__ == "__main__":
    main()
