"""Runs killed at random moments end as if they had not been."""

import signal

from experiments.kills import kill


def test_twenty_kills_change_nothing(tmp_path):
    found = kill(20, signal.SIGKILL, tmp_path)
    assert found.kills == 20 and found.runs == found.identical >= 1
    assert found.before_a_checkpoint < found.kills
