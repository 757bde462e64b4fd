"""Every experiment runs in its smoke size and leaves rows with their origin."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = [p.stem for p in ROOT.glob("experiments/*.py") if "__main__" in p.read_text()]


@pytest.mark.parametrize("name", NAMES)
def test_smoke_run_leaves_rows(name, tmp_path):
    out = tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", f"experiments.{name}", "--smoke", f"--out={out}"]
    found = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert found.returncode == 0, found.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == len(found.stdout.splitlines()) > 1
    assert all(row["experiment"] == name and row["device"] for row in rows)
    assert all(row["versions"]["jax"] for row in rows)


def test_committed_rows_are_json_of_known_experiments():
    files = list(ROOT.glob("experiments/results/*.jsonl"))
    assert files
    for path in files:
        for line in path.read_text().splitlines():
            row = json.loads(line)
            assert row["experiment"] in NAMES and row["versions"]["jax"]
