"""Opening a trained run: its settings and its best parameters."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from lite_jax.errors import UserError
from lite_jax.run import workdir
from lite_jax.run.checkpoint import Slot, check_shapes
from lite_jax.types import Params, PyTree

FREE = frozenset({
    "name", "seed", "data", "gradient", "devices", "optimizer", "train", "valid",
    "test", "benchmark",
})  # fmt: skip
"""Sections that may differ from a run's when its parameters are used: they say how it
was trained, or what it is tested on and how that is computed. All others say what the
parameters mean."""


class TrainedRun(NamedTuple):
    """A run that was trained.

    Attributes:
        folder: Its workdir.
        config: The settings it is used with. `backbone.weights` is empty, since the
            checkpoint holds all parameters.
        params: The best parameters, NumPy arrays.
    """

    folder: Path
    config: ConfigDict
    params: Params

    def check_fits(self, wanted: PyTree) -> None:
        """Raise unless the parameters have the shapes of `wanted`.

        Raises:
            UserError: They do not; it names the shapes.
        """
        check_shapes(self.folder / "checkpoints/best", self.params, wanted)


def open_run(folder: Path, config: ConfigDict | None = None) -> TrainedRun:
    """Return a run's settings and its best parameters.

    Args:
        folder: The workdir.
        config: Settings to use it with, equal to the run's but in the sections `FREE`;
            None for the run's own, which has to be one of meta-learning.

    Raises:
        UserError: No run there, one without a checkpoint, or one of other settings.
    """
    check_trained(folder, config)
    config = config.copy_and_resolve_references() if config else None
    config = config or workdir.load_config(folder)
    with contextlib.closing(Slot(folder / "checkpoints/best")) as best:
        params = best.restore_all()
    if "backbone" in config:
        config.backbone.weights = ""
    return TrainedRun(folder, config, params)


def check_trained(folder: Path, config: ConfigDict | None) -> None:
    """Raise unless a folder holds a checkpoint, of these settings if any are given."""
    saved = workdir.read_config(folder)
    if saved is None and config is None:
        workdir.load_config(folder)  # says what is missing
    if saved is None or not list((folder / "checkpoints/best").glob("[0-9]*")):
        raise UserError(
            f"workdir={folder} holds no checkpoint to evaluate: train first"
        )
    if config is not None:
        workdir.check_same(folder, saved, config, sorted(set(config) - FREE))
