"""The page made of rows: complete, self-contained, and safe with what rows hold."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import report

ROOT = Path(__file__).parents[1]


def test_page_of_the_committed_rows_needs_nothing_else(tmp_path):
    found = report.page(report.RESULTS, tmp_path)
    for section in report.SECTIONS:
        assert section.title in found and report.html.escape(section.command) in found
    assert not re.search(r"(src|href)=(?!\"data:)", found)
    assert "http" not in found and "<script" not in found
    drawn = sum(section.draw is not None for section in report.SECTIONS)
    written = list(tmp_path.glob("*.png"))
    assert len(written) == found.count("data:image/png;base64,") <= drawn
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


def test_a_section_without_rows_says_so(tmp_path):
    assert report.page(tmp_path).count("No rows yet.") == len(report.SECTIONS)


def test_what_rows_hold_is_escaped(tmp_path):
    row = {
        "experiment": "cost",
        "learner": "<b>",
        "device": "<i>",
        "versions": {"jax": 1},
    }
    (tmp_path / "cost.jsonl").write_text(json.dumps(row) + "\n")
    found = report.page(tmp_path)
    assert "&lt;b&gt;" in found and "&lt;i&gt;" in found
    assert "<b>" not in found and "<i>" not in found


def test_bias_drawn_is_the_upper_end_of_its_interval():
    row = {"part": "draws", "state": "trained", "learner": "protonets", "group": "a",
           "estimator": "no factor", "bias_squared": 0.05,
           "bias_squared_half_width": 0.04}  # fmt: skip
    figure = report.draw_bias([row | {"num_backprop": h} for h in (1, 10)])
    line = next(x for x in figure.axes[0].lines if len(x.get_xdata()))
    assert list(line.get_xdata()) == [1, 10]
    assert line.get_ydata() == pytest.approx([0.3, 0.3])


def test_a_missing_folder_is_named(tmp_path):
    command = [sys.executable, "-m", "experiments.report", f"--results={tmp_path}/none"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 2 and "none: no such folder" in found.stderr
    assert not Path("report.html").exists()
