"""The profile of the suite: its phases, and the page made of its rows."""

import jax
import jax.numpy as jnp

from tests import suite_profile


def test_inner_phases_do_not_count_twice():
    phases = suite_profile.Phases()
    phases.ended("trace", 1.0, end=5.0)
    phases.ended("lower", 3.0, end=6.0)  # began before, and ended after it
    seconds, counts = phases.take()
    assert counts == {"trace": 1, "lower": 1}
    assert seconds == {"trace": 1.0, "lower": 2.0}
    assert phases.take() == ({}, {})


def test_jax_reports_the_phases():
    phases = suite_profile.Phases()

    def listen(event, duration, **_):
        if event in suite_profile.PHASES:
            phases.ended(suite_profile.PHASES[event], duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        jax.jit(lambda x: jnp.sin(x) * 3.25)(1.0)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    seconds, counts = phases.take()
    assert counts["compile"] >= 1
    assert all(seconds[phase] > 0 for phase in ("trace", "lower", "compile"))


def test_page_is_made_of_the_committed_rows():
    """`python -m tests.suite_profile` writes both."""
    rows = suite_profile.read(suite_profile.ROWS)
    assert suite_profile.PAGE.read_text() == suite_profile.page(rows)
    assert sum("test" in row for row in rows) == suite_profile.SLOWEST


def test_rest_is_what_no_phase_took():
    measured = [
        {"file": "tests/a_test.py", "worker": "gw0", "wall": 1.0},
        {"file": "tests/a_test.py", "worker": "gw1", "wall": 2.0},
        {"test": "tests/a_test.py::one", "wall": 5.0, "cpu": 6.0,
         "seconds": {"trace": 1.0, "compile": 2.5}, "counts": {"compile": 3}},
        {"test": "tests/a_test.py::two", "wall": 1.0, "cpu": 1.0, "seconds": {},
         "counts": {"compile": 2, "cached": 1}},
    ]  # fmt: skip
    run, of_file, slowest, _ = suite_profile.summary(measured, 0.5)
    assert (run["workers"], run["load"]) == (2, 0.5)
    assert slowest["test"] == "tests/a_test.py::one"
    assert of_file == {
        "file": "tests/a_test.py", "import": 1.5, "wall": 6.0, "cpu": 7.0,
        "trace": 1.0, "compile": 2.5, "rest": 2.5, "compilations": 4, "tests": 2,
    }  # fmt: skip
