"""Sets of labelled images, for tasks with a fixed test set."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from lite_jax.data.images import ImageSpec
from lite_jax.errors import UserError


class LabelledImages(Protocol):
    """Labelled images, read by number."""

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def read(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return images `[n, size, size, 3]` uint8 and labels `[n]` int32."""
        ...


@dataclasses.dataclass(frozen=True)
class FileSet:
    """Labelled image files.

    Attributes:
        files: Path and label of each image.
        spec: Size and form of the images.
    """

    files: Sequence[tuple[Path, int]]
    spec: ImageSpec

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    def read(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return images `[n, size, size, 3]` uint8 and labels `[n]` int32."""
        files = [self.files[i] for i in indices]
        images = [self._open(path) for path, _ in files]
        return np.stack(images), np.array([label for _, label in files], np.int32)

    def _open(self, path: Path) -> np.ndarray:
        try:
            return self.spec.open(path)
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(
                f"{path} cannot be read ({error}): copy it again; no image of this set "
                "is skipped"
            ) from error


def listed_images(root: Path, path: Path, num_classes: int) -> list[tuple[Path, int]]:
    """Return the image files and labels in a list of lines "path label".

    Args:
        root: Folder that the listed paths are relative to.
        path: The list.
        num_classes: Labels are 0 … num_classes - 1.

    Raises:
        UserError: The list is missing or empty, or a line is invalid.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: copy the data set again")
    files = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        file = root / name
        if not label.isdigit() or not 0 <= int(label) < num_classes:
            raise UserError(
                f"{path}, line {number}: {line!r}: expected a path and a label below "
                f"{num_classes}"
            )
        if not file.resolve().is_relative_to(root.resolve()):
            raise UserError(f"{path}, line {number}: {name!r} lies outside {root}")
        files.append((file, int(label)))
    if not files:
        raise UserError(f"{path} lists nothing")
    return files
