"""Loading of a trained run: its settings and its best parameters."""

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
"""Settings that may differ between training a run and using its parameters.

They say how the run was trained, what it is tested on, and how tests are computed. All
other settings decide what the parameters mean."""


class TrainedRun(NamedTuple):
    """A trained run.

    Attributes:
        folder: Its workdir.
        config: The settings it is used with. `backbone.weights` is empty, since the
            checkpoint holds all parameters.
        params: The best parameters, as NumPy arrays.
    """

    folder: Path
    config: ConfigDict
    params: Params

    def check_fits(self, wanted: PyTree) -> None:
        """Raise unless the parameters have the shapes of `wanted`.

        Raises:
            UserError: The shapes differ; the message lists them.
        """
        check_shapes(self.folder / "checkpoints/best", self.params, wanted)


def open_run(folder: Path, config: ConfigDict | None = None) -> TrainedRun:
    """Return a run's settings and its best parameters.

    Args:
        folder: The workdir.
        config: Settings to use the run with; they may differ from the run's settings
            in `FREE` only. None for the run's settings, of a meta-learning run.

    Raises:
        UserError: The folder holds no run, no checkpoint, or a run of other settings.
    """
    if config is None:
        used = workdir.load_config(folder)
    else:
        used = config.copy_and_resolve_references()
    saved = workdir.read_config(folder)
    if saved is None or not list((folder / "checkpoints/best").glob("[0-9]*")):
        raise UserError(
            f"workdir={folder} holds no checkpoint to evaluate: train first"
        )
    if config is not None:
        workdir.check_same(folder, saved, config, sorted(set(config) - FREE))
    with contextlib.closing(Slot(folder / "checkpoints/best")) as best:
        params = best.restore_all()
    if "backbone" in used:
        used.backbone.weights = ""
    return TrainedRun(folder, used, params)
