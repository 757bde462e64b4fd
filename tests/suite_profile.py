"""Measure where the suite's seconds go: a pytest plugin, and a command that runs it.

    python -m tests.suite_profile [PYTEST'S ARGUMENTS]

runs the README's test command, and writes a row for each file of tests and for each of
the slowest tests to `tests/suite.jsonl`, and the page `docs/suite.md` from these rows.
With arguments, such as a file of tests, it prints the page and writes nothing.

JAX reports the phases of a test through `jax.monitoring`: tracing, lowering to MLIR,
compiling in XLA. To these come waiting for other processes, and the rest, which runs
Python and compiled programs. They add up to the test's wall time. Phases nest: tracing
a function traces those that it calls. The time of an inner phase counts for it alone.
"""

from __future__ import annotations

import collections
import datetime
import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[1]
ROWS, PAGE = ROOT / "tests/suite.jsonl", ROOT / "docs/suite.md"
SLOWEST = 30
PHASES = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile",
}
CACHE_HIT = "/jax/compilation_cache/cache_hits"


class Phases:
    """Seconds and counts by phase since the last `take`."""

    def __init__(self):
        self.seconds = collections.Counter()
        self.counts = collections.Counter()
        self._ended = []  # (start, end) of the phases that ended, outermost ones only

    def ended(self, phase, duration, end=None):
        """Count a phase that ended now; what ended inside of it is not its own."""
        self.counts[phase] += 1
        if threading.current_thread() is not threading.main_thread():
            return
        end = time.perf_counter() if end is None else end
        start, inner = end - duration, 0.0
        while self._ended and self._ended[-1][0] >= start:
            inner_start, inner_end = self._ended.pop()
            inner += inner_end - inner_start
        self._ended.append((start, end))
        self.seconds[phase] += max(0.0, duration - inner)

    def take(self):
        """Return (seconds, counts), and begin anew."""
        taken = self.seconds, self.counts
        self.seconds, self.counts = collections.Counter(), collections.Counter()
        self._ended.clear()
        return taken


class Profile:
    """The plugin: in a worker it measures, in the controller it writes."""

    def __init__(self, config):
        self.config, self.phases = config, Phases()
        self.imports = collections.Counter()
        self.seconds = collections.defaultdict(float)
        jax.monitoring.register_event_duration_secs_listener(
            lambda event, duration, **_: (
                self.phases.ended(PHASES[event], duration) if event in PHASES else None
            )
        )
        jax.monitoring.register_event_listener(
            lambda event, **_: (
                self.phases.counts.update(["cached"]) if event == CACHE_HIT else None
            )
        )
        for name in ("wait", "communicate"):
            waits = getattr(subprocess.Popen, name)
            setattr(subprocess.Popen, name, self._timed(waits))

    def _timed(self, waits):
        @functools.wraps(waits)
        def timed(*args, **kwargs):
            start = time.perf_counter()
            try:
                return waits(*args, **kwargs)
            finally:
                self.phases.ended("wait", time.perf_counter() - start)

        return timed

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self, collector):
        """Take the seconds that importing a file of tests takes."""
        start = time.perf_counter()
        report = yield
        if isinstance(collector, pytest.File):
            self.imports[collector.nodeid] += time.perf_counter() - start
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        """Begin a test's phases anew, and hand them on with its report."""
        self.phases.take()
        self.started = cpu_seconds()
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item, call):
        """Add the phases of a test to its last report."""
        if call.when == "teardown":
            seconds, counts = self.phases.take()
            cpu = cpu_seconds() - self.started
            item.user_properties += [
                ("cpu", cpu), ("seconds", dict(seconds)), ("counts", dict(counts)),
            ]  # fmt: skip
        return (yield)

    def pytest_runtest_logreport(self, report):
        """Write the row of a test that ended; only the controller has a file."""
        if hasattr(self.config, "workerinput"):
            return
        self.seconds[report.nodeid] += report.duration
        if report.when == "teardown":
            wall = self.seconds.pop(report.nodeid)
            self._write(test=report.nodeid, wall=wall, **dict(report.user_properties))

    def pytest_sessionfinish(self, session):
        """Hand the imports' seconds to the controller, or write them."""
        if hasattr(self.config, "workerinput"):
            self.config.workeroutput["imports"] = dict(self.imports)
        elif self.config.getoption("numprocesses", None) is None:
            self._write_imports("main", self.imports)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node, error):
        """Write the imports' seconds of a worker that ended."""
        del error
        self._write_imports(node.gateway.id, node.workeroutput["imports"])

    def _write_imports(self, worker, imports):
        for name, seconds in imports.items():
            self._write(file=name, worker=worker, wall=seconds)

    def _write(self, **row):
        rounded = json.loads(json.dumps(row), parse_float=lambda x: round(float(x), 4))
        with open(self.config.getoption("profile"), "a") as file:
            file.write(json.dumps(rounded) + "\n")


def cpu_seconds():
    """Return the CPU seconds of this process, and of those that it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def pytest_addoption(parser):
    """Add the option that names the file of rows."""
    parser.addoption("--profile", required=True, help="the file to append rows to")


def pytest_configure(config):
    """Begin to measure."""
    config.pluginmanager.register(Profile(config), "suite-profile")


# ---------------------------------------------------------------------------- page


def summary(measured, load):
    """Return the rows to commit: the run, its files of tests, its slowest tests.

    `load` is that of the machine when the run began, 0 where it did nothing else.
    """
    tests = [row for row in measured if "test" in row]
    imports = [row for row in measured if "file" in row]
    workers = len({row["worker"] for row in imports})
    files = collections.defaultdict(collections.Counter)
    for row in imports:
        files[row["file"]]["import"] += row["wall"] / workers
    for row in tests:
        of_file = files[row["test"].split("::")[0]]
        of_file.update(numbers_of(row), tests=1)
    files = {name: row for name, row in files.items() if row["tests"]}
    slowest = sorted(tests, key=lambda row: -row["wall"])[:SLOWEST]
    return [
        {"date": datetime.date.today().isoformat(), "jax": jax.__version__,
         "cores": os.cpu_count(), "workers": workers, "load": load},
        *({"file": name, **rounded(files[name])} for name in by_wall(files)),
        *({"test": row["test"], **rounded(numbers_of(row))} for row in slowest),
    ]  # fmt: skip


def numbers_of(row):
    """Return a test's seconds by phase, which add up to `wall`, and its counts."""
    seconds, counts = row["seconds"], row["counts"]
    rest = max(0.0, row["wall"] - sum(seconds.values()))
    compiled = counts.get("compile", 0) - counts.get("cached", 0)
    numbers = {"wall": row["wall"], "cpu": row["cpu"], **seconds, "rest": rest}
    return collections.Counter(numbers, compilations=compiled)


def by_wall(files):
    """Return the names of the files, the slowest first."""
    return sorted(files, key=lambda name: -files[name]["wall"])


def rounded(numbers):
    """Return numbers with two digits after the point."""
    return {name: round(value, 2) for name, value in numbers.items()}


def page(rows):
    """Return the page of the committed rows."""
    run, *rows = rows
    files = [row for row in rows if "file" in row]
    tests = [row for row in rows if "test" in row]
    columns = ("tests", "wall", "cpu", "import", "trace", "lower", "compile", "wait",
               "rest", "compilations")  # fmt: skip
    total = collections.Counter()
    for row in files:
        total.update({name: row.get(name, 0) for name in columns})
    return PAGE_TEXT.format(
        **run, count=total["tests"], minutes=total["wall"] / run["workers"] / 60,
        files=table("file", columns, [{"file": "all", **total}, *files]),
        slowest=table("test", [*columns[1:3], *columns[4:]], tests),
    )  # fmt: skip


PAGE_TEXT = """# Where the tests' time goes

This page is for contributors. `python -m tests.suite_profile` runs the README's test
command and writes the page anew. The run shown: {date}, {cores} cores, jax {jax},
{count} tests in {workers} workers, {minutes:.1f} minutes of tests in each. Other
programs loaded the machine by {load:.1f} when it began: seconds grow with that, `cpu`
hardly.

`wall` is the sum of the next phases, in seconds. JAX reports `trace`, `lower` and
`compile`; `wait` is for other processes; `rest` is Python and running programs.
`import` is the time of importing the file, as the mean of the workers. `cpu` counts all
threads, and child processes that have ended. `compilations` counts programs of XLA: an
eager operation on a new shape is one, too.

A slow test is a design fault. What helps, in this order:

1. Hand what varies to a compiled function as an argument: parameters, images, masks,
   keys. What it closes over is a constant, which XLA folds for seconds.
2. Let properties share programs, as `tests/learner_contract_test.py` does.
3. Take the least network, image and way that show the property.
4. Where only shapes or dtypes matter, `jax.eval_shape` compiles nothing.
5. Call a program's `main` in the test's own process.

The tests run XLA's cheapest code (`tests/conftest.py`), which takes a tenth of the time
to compile. Tests of compiled code itself are marked `optimised`: of the gradient's
operators, of memory, of precision. CI runs them again in optimised code, with
`XLA_FLAGS="--xla_backend_optimization_level=3 --xla_cpu_use_fusion_emitters=true"`.
Tests marked `slow` run in CI's second step, by `python -m pytest -n 2 -m slow`:
browsers, kills, fuzzing, and parity with other libraries where these are installed.

## By file

{files}

## The slowest tests

{slowest}
"""


def table(name, columns, rows):
    """Return a Markdown table, with names in code."""
    lines = [f"| {name} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        cells = [written(row.get(column, 0)) for column in columns]
        lines.append(f"| `{row[name].removeprefix('tests/')}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def written(number):
    """Return a number as the page shows it: whole, or with one digit."""
    return str(number) if isinstance(number, int) else f"{number:.1f}"


def read(path):
    """Return the rows of a file."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def main():
    """Profile the suite and write the rows and the page; return pytest's status."""
    load = round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory() as folder:
        measured = Path(folder) / "tests.jsonl"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-n",
            "2",
            "-p",
            "tests.suite_profile",
        ]
        found = subprocess.run(
            [*command, f"--profile={measured}", *sys.argv[1:]], cwd=ROOT
        )
        rows = summary(read(measured), load)
    if sys.argv[1:]:
        print(page(rows))
        return found.returncode
    ROWS.write_text("".join(json.dumps(row) + "\n" for row in rows))
    PAGE.write_text(page(rows))
    return found.returncode


if __name__ == "__main__":
    sys.exit(main())
