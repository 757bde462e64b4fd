"""Sources made of other sources: rotated classes, and mixtures of data sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from lite_jax.data.sources import ClassSource, Groups, class_groups
from lite_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class RotatedSource:
    """A source with four classes for each, rotated by 0, 90, 180 and 270 degrees."""

    source: ClassSource

    @property
    def class_names(self) -> list[str]:
        """The plain names, then all names with ` turned 90°`, and so on."""
        turns = ("", " turned 90°", " turned 180°", " turned 270°")
        return [name + turn for turn in turns for name in self.source.class_names]

    @property
    def class_sizes(self) -> list[int]:
        """Number of images of each class."""
        return list(self.source.class_sizes) * 4

    @property
    def image_shape(self) -> tuple[int, ...]:
        """`(height, width, channels)`."""
        return self.source.image_shape

    @property
    def groups(self) -> Groups | None:
        """The source's groups, once for each rotation; None if all classes may meet."""
        groups = getattr(self.source, "groups", None)
        if groups is None:
            return None
        count = len(self.source.class_names)
        members = [x + turn * count for turn in range(4) for x in groups.members]
        return Groups(members, np.tile(groups.chances / 4, 4), [*groups.whole] * 4)

    def read(self, class_index: int, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return images `[len(indices), height, width, channels]` uint8."""
        turn, plain = divmod(class_index, len(self.source.class_names))
        return np.rot90(self.source.read(plain, indices), turn, axes=(1, 2))


def rotated(source: ClassSource) -> RotatedSource:
    """Return `source` with its classes rotated by multiples of 90° as extra classes.

    Raises:
        UserError: The images are not square, or they are clips.
    """
    if len(source.image_shape) != 3:
        raise UserError("rotations=True is for images, not clips: set it to False")
    height, width, _ = source.image_shape
    if height != width:
        raise UserError(f"rotations=True needs square images, got {height} × {width}")
    return RotatedSource(source)


class Mixture:
    """A source of several data sets; the classes of an episode share a data set.

    The data sets are equally likely, whatever their sizes, as in Meta-Dataset.

    Attributes:
        parts: Name → source of each data set.
    """

    def __init__(self, parts: Mapping[str, ClassSource]):
        """Join sources.

        Args:
            parts: Name → source of each data set; names become prefixes of the classes'
                names.

        Raises:
            UserError: `parts` is empty, or the sources' image shapes differ.
        """
        if not parts:
            raise UserError("sources='': name one data set or more")
        shapes = {name: tuple(part.image_shape) for name, part in parts.items()}
        if len(set(shapes.values())) > 1:
            raise UserError(f"sources of different image shapes cannot mix: {shapes}")
        self.parts = dict(parts)
        self.class_names = [f"{n}/{c}" for n, p in parts.items() for c in p.class_names]
        self.class_sizes = [size for p in parts.values() for size in p.class_sizes]
        self.image_shape = next(iter(parts.values())).image_shape
        counts = [len(part.class_names) for part in parts.values()]
        self._starts = np.cumsum([0, *counts])
        self.groups = self._joined_groups()

    def _joined_groups(self) -> Groups:
        members: list[np.ndarray] = []
        chances: list[float] = []
        whole: list[bool] = []
        for start, part in zip(self._starts, self.parts.values(), strict=False):
            groups = class_groups(part)
            members += [start + group for group in groups.members]
            chances += list(groups.chances / len(self.parts))
            whole += groups.whole
        return Groups(members, np.array(chances), whole)

    def read(self, class_index: int, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return images `[len(indices), height, width, channels]` uint8."""
        number = int(np.searchsorted(self._starts, class_index, side="right")) - 1
        part = list(self.parts.values())[number]
        return part.read(class_index - int(self._starts[number]), indices)
