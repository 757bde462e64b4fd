"""Runs that are killed, in the middle of a save or at any moment, end as others do."""

import functools
import os
import shutil
import signal

import pytest
from runs import use_one_block

from lite_jax.run import train
from tests import toys
from tests.stress.kills import kill, left

CHANGES = ("mkdir", "rename", "replace", "rmdir", "unlink")


def once(make):
    """Return `make`, which makes the same from the second call on."""
    made = []

    def first(*args):
        return made[0] if made else made.append(make(*args)) or made[0]

    return first


@pytest.fixture
def config(monkeypatch, as_users_run_it):
    """A run of three steps, a checkpoint after each; its programs compile once."""
    use_one_block(monkeypatch)
    for name in ("make_train_step", "_make_validation"):
        monkeypatch.setattr(train, name, once(getattr(train, name)))
    monkeypatch.setattr(train, "run_tests", lambda *args: {})
    return toys.run_config(3)


def at_every_change(monkeypatch, action):
    """Let `action` happen before every change of what folders hold."""
    acting = []

    def watched(change):
        @functools.wraps(change)
        def changed(*args, **kwargs):
            if not acting:
                acting.append(True)
                action()
                acting.clear()
            return change(*args, **kwargs)

        return changed

    for name in CHANGES:
        monkeypatch.setattr(os, name, watched(getattr(os, name)))


def test_a_kill_in_the_middle_of_a_save_changes_nothing(config, tmp_path, monkeypatch):
    """A folder as it was at some moment is what SIGKILL had left at that moment.

    One copy for every set of folders of checkpoints, until the second is the only one,
    of the last moment that they were there.
    """
    whole, killed = tmp_path / "whole", {}

    def copy():
        if any(whole.glob("checkpoints/last/3*")):
            return
        places = (whole / "checkpoints").rglob("*")
        held = frozenset(str(x) for x in places if x.is_dir())
        copied = killed.setdefault(held, tmp_path / str(len(killed)))
        shutil.rmtree(copied, ignore_errors=True)
        shutil.copytree(whole, copied)

    whole.mkdir()
    with monkeypatch.context() as patch:
        at_every_change(patch, copy)
        train.train_and_evaluate(config, whole)
    expected, steps = left(whole, config), set()
    for folder in killed.values():
        names = {x.name for x in folder.glob("checkpoints/last/*")}
        steps.add(frozenset(name for name in names if name[0].isdigit()))
        train.train_and_evaluate(config, folder)
        assert left(folder, config) == expected
    unfinished = ".orbax-checkpoint-tmp"
    for found in ({"1"}, {"1", "2"}, {"1", f"2{unfinished}"}, {f"1{unfinished}"}):
        assert found in steps


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path, monkeypatch):
    # What is compiled is kept apart: a kill may leave half of a file there too.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    found = kill(20, signal.SIGKILL, tmp_path, steps=20)
    assert found.kills == 20 and found.runs == found.identical >= 1
    assert found.before_a_checkpoint < found.kills
