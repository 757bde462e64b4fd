"""Measure where the suite's seconds go: a pytest plugin, and a command that runs it.

    python -m tests.suite_profile

runs the suite and writes a row for each test to `experiments/results/suite.jsonl`. As
a plugin, `-p tests.suite_profile --profile=FILE` does the same for any selection.

JAX reports the phases of a test through `jax.monitoring`: tracing, lowering to MLIR,
compiling in XLA. To these come waiting for other processes, and the rest, which runs
Python and compiled programs. They add up to the test's wall time. Phases nest: tracing
a function traces those that it calls. The time of an inner phase counts for it alone.
"""

from __future__ import annotations

import collections
import functools
import json
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import pytest

ROWS = Path(__file__).parents[1] / "experiments/results/suite.jsonl"
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

    def ended(self, phase, duration):
        """Count a phase that ended now; what ended inside of it is not its own."""
        self.counts[phase] += 1
        if threading.current_thread() is not threading.main_thread():
            return
        end = time.perf_counter()
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
    parser.addoption("--profile", default=str(ROWS), help="the file to append rows to")


def pytest_configure(config):
    """Begin to measure."""
    config.pluginmanager.register(Profile(config), "suite-profile")


def main():
    """Profile the whole suite; further arguments go to pytest."""
    ROWS.unlink(missing_ok=True)
    pytest_command = [sys.executable, "-m", "pytest", "-n", "2"]
    plugin = ["-p", "tests.suite_profile", f"--profile={ROWS}"]
    sys.exit(subprocess.run([*pytest_command, *plugin, *sys.argv[1:]]).returncode)


if __name__ == "__main__":
    main()
