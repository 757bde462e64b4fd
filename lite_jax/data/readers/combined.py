"""Sources made of other sources: turned images, and several data sets at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from lite_jax.data.sources import ClassSource, Groups, class_groups
from lite_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class RotatedSource:
    """A source with every class four times, turned by 0, 90, 180 and 270 degrees."""

    source: ClassSource

    @property
    def class_names(self) -> list[str]:
        """`name`, `name turned 90°`, … in the order of the plain classes."""
        turns = ("", " turned 90°", " turned 180°", " turned 270°")
        return [name + turn for turn in turns for name in self.source.class_names]

    @property
    def class_sizes(self) -> list[int]:
        """Images of each class."""
        return list(self.source.class_sizes) * 4

    @property
    def image_shape(self) -> tuple[int, ...]:
        """`(height, width, channels)`."""
        return self.source.image_shape

    @property
    def groups(self) -> Groups | None:
        """The plain classes' groups, each four times; None where all may meet."""
        own = getattr(self.source, "groups", None)
        if own is None:
            return None
        count = len(self.source.class_names)
        turned = [group + turn * count for turn in range(4) for group in own.members]
        return Groups(turned, np.tile(own.chances / 4, 4), [*own.whole] * 4)

    def read(self, class_index: int, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return images `[len(indices), height, width, channels]` uint8."""
        turn, plain = divmod(class_index, len(self.source.class_names))
        return np.rot90(self.source.read(plain, indices), turn, axes=(1, 2))


def rotated(source: ClassSource) -> RotatedSource:
    """Return `source` with its classes turned by 90° as extra classes.

    Raises:
        UserError: Images that are not square, or clips.
    """
    if len(source.image_shape) != 3:
        raise UserError("rotations=True is for images, not clips: set it to False")
    height, width, _ = source.image_shape
    if height != width:
        raise UserError(f"rotations=True needs square images, got {height} × {width}")
    return RotatedSource(source)


class Mixture:
    """Several data sets as one: an episode draws its set first, and never mixes them.

    Every set is as likely as the others, whatever its size, as in Meta-Dataset.
    """

    def __init__(self, parts: Mapping[str, ClassSource]):
        """Join the named sources.

        Raises:
            UserError: None, or images of different shapes.
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
            own = class_groups(part)
            members += [start + group for group in own.members]
            chances += list(own.chances / len(self.parts))
            whole += own.whole
        return Groups(members, np.array(chances), whole)

    def read(self, class_index: int, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return images `[len(indices), height, width, channels]` uint8."""
        place = int(np.searchsorted(self._starts, class_index, side="right")) - 1
        part = list(self.parts.values())[place]
        return part.read(class_index - int(self._starts[place]), indices)
