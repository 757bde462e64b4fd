"""The rows that experiments leave: JSON lines that say where they come from."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import sys
from pathlib import Path
from typing import Any

import jax

from lite_jax import files

PACKAGES = ("lite_jax", "jax", "flax", "optax", "numpy")


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with what every experiment takes."""
    found = argparse.ArgumentParser(description=description)
    found.add_argument("--smoke", action="store_true", help="end within a minute")
    found.add_argument("--out", type=Path, help="append the rows to this file as well")
    return found


def read_rows(folder: Path, experiment: str) -> list[dict[str, Any]]:
    """Return the rows of an experiment's results, none where there is no file."""
    return files.read_rows(folder / f"{experiment}.jsonl")


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with its numbers rounded to four digits."""
    return {
        name: float(f"{value:.4g}") if isinstance(value, float) else value
        for name, value in row.items()
    }


def emit(out: Path | None, row: dict[str, Any]) -> None:
    """Print a row, and append it to `out` with date, device and versions."""
    print(files.format_row(row), flush=True)
    if out is None:
        return
    origin = {
        "date": datetime.date.today().isoformat(),
        "device": jax.devices()[0].device_kind,
        "python": sys.version.split()[0],
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    files.append_row(out, row | origin)
