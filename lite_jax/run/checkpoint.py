"""Saving and restoring pytrees with Orbax, one slot at a time."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from lite_jax.errors import UserError


class Slot:
    """A folder that keeps the newest checkpoint saved to it.

    A save is complete or absent: Orbax writes to a temporary folder and renames it.
    """

    def __init__(self, path: Path):
        """Open the slot at `path`, which need not exist yet."""
        path.mkdir(parents=True, exist_ok=True)
        own = jax.process_index()  # a slot is of one process; others are not waited for
        options = ocp.CheckpointManagerOptions(
            max_to_keep=1,
            create=False,
            enable_async_checkpointing=False,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=own,
                active_processes={own},
                barrier_sync_key_prefix=f"process{own}",
            ),
        )
        self._manager = ocp.CheckpointManager(
            path.absolute(),
            options=options,
            item_handlers=ocp.StandardCheckpointHandler(),
        )

    def step(self) -> int | None:
        """Return the step of the checkpoint, or None where there is none."""
        return self._manager.latest_step()

    def save(self, step: int, tree: Any) -> None:
        """Save `tree`; a checkpoint of the same step is left as it is."""
        if step in self._manager.all_steps():
            return
        arrays = jax.device_get(tree)
        if not self._manager.save(step, args=ocp.args.StandardSave(arrays)):
            raise OSError(f"checkpoint of step {step} was not saved")

    def restore(self, template: Any) -> Any:
        """Return the tree of NumPy arrays, of the structure and shapes of `template`.

        Raises:
            UserError: The checkpoint holds another tree.
        """
        wanted = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), template)
        # Before reading: Orbax leaves reads pending when it finds out late.
        saved = self._manager.item_metadata(self.step()).tree
        check_shapes(self._manager.directory, saved, wanted)
        args = ocp.args.StandardRestore(wanted)
        return self._manager.restore(self.step(), args=args)

    def restore_all(self) -> Any:
        """Return the tree of NumPy arrays as it was saved."""
        saved = self._manager.item_metadata(self.step()).tree
        return self.restore(saved)

    def close(self) -> None:
        """Release the folder."""
        self._manager.close()


def check_shapes(path: Any, saved: Any, wanted: Any) -> None:
    """Raise unless two trees hold arrays of the same shapes.

    Args:
        path: Where `saved` is from.
        saved: Arrays, or their shapes.
        wanted: Arrays, or their shapes.

    Raises:
        UserError: They do not; it names the shapes.
    """
    there, here = (
        collections.Counter(tuple(leaf.shape) for leaf in jax.tree.leaves(tree))
        for tree in (saved, wanted)
    )
    if there != here:
        raise UserError(
            f"the checkpoint in {path} does not fit this model and these images: it "
            f"holds arrays of shapes {sorted(there - here)} where "
            f"{sorted(here - there)} are needed"
        )
