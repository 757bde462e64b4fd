"""The interface of image sources, groups of classes, and images in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from lite_jax.errors import unknown_name

SPLITS = ("train", "valid", "test")


class Groups(NamedTuple):
    """Groups of classes; the classes of an episode all come from one group.

    Attributes:
        members: Class numbers of each group; a class may be in several groups.
        chances: Probability of each group, `[groups]`; the sum is 1.
        whole: For each group, whether an episode has all of its classes, up to the
            largest way, instead of a random number of them.
    """

    members: Sequence[np.ndarray]
    chances: np.ndarray
    whole: Sequence[bool]


def equal_groups(members: Sequence[np.ndarray], *, whole: bool = False) -> Groups:
    """Return groups of equal probability, such as the alphabets of Omniglot.

    Args:
        members: Class numbers of each group.
        whole: Whether an episode has all classes of its group, up to the largest way.
    """
    count = len(members)
    return Groups(members, np.full(count, 1 / count), [whole] * count)


class ClassSource(Protocol):
    """A set of images indexed by class; reading is thread-safe and pure.

    A source may also have an attribute `groups`, a `Groups` or None. Without it, or if
    it is None, all classes are one group.
    """

    @property
    def class_names(self) -> Sequence[str]:
        """Name of each class."""
        ...

    @property
    def class_sizes(self) -> Sequence[int]:
        """Number of images of each class."""
        ...

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of an image that `read` returns: `(height, width, channels)`.

        The shape of a clip is `(clip_length, height, width, channels)`.
        """
        ...

    def read(self, class_index: int, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return images of a class, `[len(indices), *image_shape]` uint8.

        Args:
            class_index: Number of the class.
            indices: Numbers of the images within the class.
        """
        ...


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Images in memory.

    Attributes:
        class_names: Name of each class.
        images: Images of each class, `[n_c, height, width, channels]` uint8.
        groups: Groups of classes that may meet in an episode; None if all may.
    """

    class_names: Sequence[str]
    images: Sequence[np.ndarray]
    groups: Groups | None = None

    @property
    def class_sizes(self) -> list[int]:
        """Number of images of each class."""
        return [len(x) for x in self.images]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)`."""
        height, width, channels = self.images[0].shape[1:]
        return height, width, channels

    def read(self, class_index: int, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return images `[len(indices), height, width, channels]` uint8."""
        return self.images[class_index][np.asarray(indices, int)]


def class_groups(source: ClassSource) -> Groups:
    """Return the source's groups, or else one group of all classes."""
    groups = getattr(source, "groups", None)
    return groups or equal_groups([np.arange(len(source.class_names))])


def check_split(split: str) -> None:
    """Raise unless `split` is one of `SPLITS`."""
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
