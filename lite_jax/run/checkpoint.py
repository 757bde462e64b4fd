"""Checkpoints: pytrees saved and restored with Orbax."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from lite_jax.errors import UserError


class Slot:
    """A folder that holds one checkpoint: the last one saved to it.

    A save is complete or absent: Orbax writes to a temporary folder and renames it.
    """

    def __init__(self, path: Path):
        """Open the folder at `path`; make it if it does not exist."""
        path.mkdir(parents=True, exist_ok=True)
        process = jax.process_index()  # each process saves without waiting for others
        options = ocp.CheckpointManagerOptions(
            max_to_keep=1,
            create=False,
            enable_async_checkpointing=False,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=process,
                active_processes={process},
                barrier_sync_key_prefix=f"process{process}",
            ),
        )
        self._manager = ocp.CheckpointManager(
            path.absolute(),
            options=options,
            item_handlers=ocp.StandardCheckpointHandler(),
        )

    def step(self) -> int | None:
        """Return the step of the checkpoint, or None without a checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, tree: Any) -> None:
        """Save `tree`, unless there is a checkpoint of this step.

        Raises:
            OSError: The checkpoint was not saved.
        """
        if step in self._manager.all_steps():
            return
        arrays = jax.device_get(tree)
        if not self._manager.save(step, args=ocp.args.StandardSave(arrays)):
            raise OSError(f"checkpoint of step {step} was not saved")

    def restore(self, template: Any) -> Any:
        """Return the saved tree, as NumPy arrays.

        Args:
            template: Arrays of the structure, shapes and dtypes of the result.

        Raises:
            UserError: The checkpoint holds arrays of other shapes.
        """
        expected = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), template)
        # Before the read: Orbax leaves reads pending if it finds the error itself
        saved = self._manager.item_metadata(self.step()).tree
        check_shapes(self._manager.directory, saved, expected)
        args = ocp.args.StandardRestore(expected)
        return self._manager.restore(self.step(), args=args)

    def restore_all(self) -> Any:
        """Return the tree as it was saved, as NumPy arrays."""
        saved = self._manager.item_metadata(self.step()).tree
        return self.restore(saved)

    def close(self) -> None:
        """Release the folder."""
        self._manager.close()


def check_shapes(path: Any, saved: Any, wanted: Any) -> None:
    """Raise unless two trees hold arrays of the same shapes.

    Args:
        path: The checkpoint of `saved`, for the message.
        saved: Arrays, or their specs.
        wanted: Arrays, or their specs.

    Raises:
        UserError: The shapes differ; the message lists them.
    """
    saved_shapes, wanted_shapes = (
        collections.Counter(tuple(leaf.shape) for leaf in jax.tree.leaves(tree))
        for tree in (saved, wanted)
    )
    if saved_shapes != wanted_shapes:
        raise UserError(
            f"the checkpoint in {path} does not fit this model and these images: it "
            f"holds arrays of shapes {sorted(saved_shapes - wanted_shapes)} where "
            f"{sorted(wanted_shapes - saved_shapes)} are needed"
        )
