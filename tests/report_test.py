"""The page made of rows: complete, self-contained, and safe with what rows hold."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from experiments import report, unbiasedness_sections

ROOT = Path(__file__).parents[1]
OTHER_EXTRAS = ("atheris", "gymnasium", "h5py", "hypothesis", "mujoco", "timm", "torch")


def test_page_of_the_committed_rows_needs_nothing_else(tmp_path):
    page = report.page(report.RESULTS, tmp_path)
    for section in report.SECTIONS:
        assert section.title in page and report.html.escape(section.command) in page
    assert not re.search(r"(src|href)=(?!\"data:)", page)
    assert "http" not in page and "<script" not in page
    drawn = sum(section.draw is not None for section in report.SECTIONS)
    written = list(tmp_path.glob("*.png"))
    assert len(written) == page.count("data:image/png;base64,") <= drawn
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


def test_the_page_has_every_section_once_and_all_rows():
    modules = [x for x in vars(report).values() if isinstance(x, ModuleType)]
    defined = [s for x in modules for s in getattr(x, "SECTIONS", ())]
    assert sorted(s.title for s in report.SECTIONS) == sorted(s.title for s in defined)
    rows = {path.stem for path in report.RESULTS.glob("*.jsonl")}
    assert rows == {section.experiment for section in report.SECTIONS}


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
    page = report.page(tmp_path)
    assert "&lt;b&gt;" in page and "&lt;i&gt;" in page
    assert "<b>" not in page and "<i>" not in page


def test_bias_drawn_is_the_upper_end_of_its_interval():
    row = {"part": "draws", "state": "trained", "learner": "protonets", "group": "a",
           "estimator": "no factor", "bias_squared": 0.05,
           "bias_squared_half_width": 0.04}  # fmt: skip
    rows = [row | {"num_backprop": h} for h in (1, 10)]
    figure = unbiasedness_sections.draw_bias(rows)
    line = next(x for x in figure.axes[0].lines if len(x.get_xdata()))
    assert list(line.get_xdata()) == [1, 10]
    assert line.get_ydata() == pytest.approx([0.3, 0.3])


def test_a_missing_folder_is_named(tmp_path):
    command = [sys.executable, "-m", "experiments.report", f"--results={tmp_path}/none"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 2 and "none: no such folder" in run.stderr
    assert not Path("report.html").exists()


def test_a_figure_alone_loads_matplotlib_and_the_page_no_other_extra(tmp_path):
    program = """
import sys
from experiments import report
assert "matplotlib" not in sys.modules
report.page(report.Path(sys.argv[1]))
assert "matplotlib" in sys.modules
assert not set(sys.argv[2:]) & set(sys.modules)
"""
    shutil.copy(report.RESULTS / "soak.jsonl", tmp_path)
    command = [sys.executable, "-c", program, str(tmp_path), *OTHER_EXTRAS]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
