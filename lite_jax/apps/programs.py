"""The table of the programs that `lite_jax.main` can run.

The modules of a program are imported when it runs, so errors in the command line are
reported without delay.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from lite_jax.errors import UserError, pick


class Program(NamedTuple):
    """A row of the table `PROGRAMS`.

    Attributes:
        settings: MODULE:CLASS of all settings, whose fields have defaults.
        modes: Mode → MODULE:FUNCTION, `(config, workdir) -> text`.
        hosts: Whether several hosts can share a run.
    """

    settings: str
    modes: Mapping[str, str]
    hosts: bool = False


PROGRAMS = {
    "meta_learning": Program(
        "lite_jax.run.settings:Settings",
        {
            "train": "lite_jax.apps.meta_learning:train",
            "eval": "lite_jax.apps.meta_learning:evaluate",
            "export": "lite_jax.apps.meta_learning:export",
        },
        hosts=True,
    ),
    "policies": Program(
        "lite_jax.apps.rl.settings:PolicySettings",
        {
            "train": "lite_jax.apps.rl.run:run_policy",
            "eval": "lite_jax.apps.rl.run:evaluate_policy",
        },
    ),
    "reweighting": Program(
        "lite_jax.apps.reweight.settings:ReweightingSettings",
        {"train": "lite_jax.apps.reweight.run:run_reweighting"},
    ),
}
MODES = ("train", "eval", "export")


def find_run(
    config: ConfigDict, mode: str, *, hosts: str | None
) -> Callable[[ConfigDict, Path], str]:
    """Return the function that runs a mode of a configuration's program.

    Args:
        config: All settings.
        mode: One of `MODES`.
        hosts: The flag `--hosts`; None for one process.

    Raises:
        UserError: An unknown program, a mode that it does not have, or several hosts
            for a program of one process.
    """
    program = pick("program", config.get("program", ""), PROGRAMS)
    if mode not in program.modes:
        known = " or ".join(f"--mode={name}" for name in program.modes)
        raise UserError(
            f"--mode={mode}: a run of program={config.program} has only {known}"
        )
    if hosts is not None and not program.hosts:
        raise UserError(
            f"--hosts={hosts}: a run of program={config.program} is of one process: "
            "leave --hosts out"
        )
    return load(program.modes[mode])


def load(place: str) -> Callable[..., Any]:
    """Return the function or class at MODULE:NAME."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
