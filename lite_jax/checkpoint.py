"""Saving and restoring pytrees with Orbax, one slot at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from lite_jax.errors import UserError


class Slot:
    """A folder that keeps the newest checkpoint saved to it.

    A save is complete or absent: Orbax writes to a temporary folder and renames it.
    """

    def __init__(self, path: Path):
        """Open the slot at `path`, which need not exist yet."""
        options = ocp.CheckpointManagerOptions(
            max_to_keep=1, enable_async_checkpointing=False
        )
        self._manager = ocp.CheckpointManager(path.absolute(), options=options)

    def step(self) -> int | None:
        """Return the step of the checkpoint, or None where there is none."""
        return self._manager.latest_step()

    def save(self, step: int, tree: Any) -> None:
        """Save `tree`; a checkpoint of the same step is left as it is."""
        if step in self._manager.all_steps():
            return
        if not self._manager.save(step, args=ocp.args.StandardSave(tree)):
            raise OSError(f"checkpoint of step {step} was not saved")

    def restore(self, template: Any) -> Any:
        """Return the tree, in the structure, shapes and dtypes of `template`.

        Raises:
            UserError: The checkpoint holds another tree.
        """
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        step, wanted = self.step(), ocp.args.StandardRestore(shapes)
        try:
            return self._manager.restore(step, args=wanted)
        except ValueError as error:
            raise UserError(
                f"the checkpoint in {self._manager.directory} does not fit this model "
                f"and these images: {str(error).splitlines()[0]}"
            ) from error

    def close(self) -> None:
        """Release the folder."""
        self._manager.close()
