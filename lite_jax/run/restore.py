"""Loading of a trained run: its settings and its best parameters."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any, Generic, overload

from lite_jax.errors import UserError
from lite_jax.run import workdir
from lite_jax.run.checkpoint import Slot, check_shapes
from lite_jax.run.configs import S
from lite_jax.run.settings import Settings
from lite_jax.types import Params, PyTree

FREE = frozenset({
    "name", "seed", "data", "gradient", "devices", "optimizer", "train", "valid",
    "test", "benchmark",
})  # fmt: skip
"""Settings that may differ between training a run and using its parameters.

They say how the run was trained, what it is tested on, and how tests are computed. All
other settings decide what the parameters mean."""


@dataclasses.dataclass(frozen=True)
class TrainedRun(Generic[S]):
    """A trained run.

    Attributes:
        folder: Its workdir.
        config: The settings it is used with. `backbone.weights` is empty, since the
            checkpoint holds all parameters.
        params: The best parameters, as NumPy arrays.
    """

    folder: Path
    config: S
    params: Params

    def check_fits(self, wanted: PyTree) -> None:
        """Raise unless the parameters have the shapes of `wanted`.

        Raises:
            UserError: The shapes differ; the message lists them.
        """
        check_shapes(self.folder / "checkpoints/best", self.params, wanted)


@overload
def open_run(folder: Path, config: S) -> TrainedRun[S]: ...


@overload
def open_run(folder: Path) -> TrainedRun[Settings]: ...


def open_run(folder: Path, config: Any = None) -> TrainedRun[Any]:
    """Return a run's best parameters, and settings to use them with.

    Args:
        folder: The workdir.
        config: The settings; they may differ from those of the run in `FREE` only. None
            for those of the run, a meta-learning one. Settings that did not exist when
            it was saved then have their defaults.

    Raises:
        UserError: The folder holds no run, no checkpoint, or a run of other settings.
    """
    used = workdir.load_config(folder) if config is None else config
    saved = workdir.read_config(folder)
    if saved is None or not list((folder / "checkpoints/best").glob("[0-9]*")):
        raise UserError(
            f"workdir={folder} holds no checkpoint to evaluate: train first"
        )
    if config is not None:
        sections = {field.name for field in dataclasses.fields(config)}
        workdir.check_same(folder, saved, config, sorted(sections - FREE))
    with contextlib.closing(Slot(folder / "checkpoints/best")) as best:
        params = best.restore_all()
    return TrainedRun(folder, _without_weights(used), params)


def _without_weights(config: S) -> S:
    """Return settings with an empty `backbone.weights`, if the program has it."""
    if not isinstance(config, Settings):
        return config
    backbone = dataclasses.replace(config.backbone, weights="")
    return dataclasses.replace(config, backbone=backbone)
