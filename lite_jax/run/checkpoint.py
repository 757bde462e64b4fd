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
        self._check_shapes(wanted)
        args = ocp.args.StandardRestore(wanted)
        return self._manager.restore(self.step(), args=args)

    def restore_all(self) -> Any:
        """Return the tree of NumPy arrays as it was saved."""
        saved = self._manager.item_metadata(self.step()).tree
        return self.restore(saved)

    def _check_shapes(self, wanted: Any) -> None:
        """Compare before reading: Orbax leaves reads pending when it finds out late."""
        saved, asked = (
            collections.Counter(tuple(leaf.shape) for leaf in jax.tree.leaves(tree))
            for tree in (self._manager.item_metadata(self.step()).tree, wanted)
        )
        if saved != asked:
            raise UserError(
                f"the checkpoint in {self._manager.directory} does not fit this model "
                "and these images: it holds arrays of shapes "
                f"{sorted(saved - asked)} where {sorted(asked - saved)} are needed"
            )

    def close(self) -> None:
        """Release the folder."""
        self._manager.close()
