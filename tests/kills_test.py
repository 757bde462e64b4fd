"""Runs killed at random moments end as if they had not been."""

import signal

import pytest

from experiments.kills import kill


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path, monkeypatch):
    # What is compiled is kept apart: a kill may leave half of a file there too.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    found = kill(20, signal.SIGKILL, tmp_path)
    assert found.kills == 20 and found.runs == found.identical >= 1
    assert found.before_a_checkpoint < found.kills
