"""What a data set is to this library: classes, their sizes, and a way to read them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from lite_jax.errors import unknown_name

SPLITS = ("train", "valid", "test")


class Groups(NamedTuple):
    """Which classes may meet in an episode; its classes all come from one group.

    Attributes:
        members: Class numbers of each group; a class may be in several.
        chances: Probability of each group, in sum 1.
        whole: For each group, whether an episode of variable way has all its classes
            (up to the largest way) instead of a number drawn.
    """

    members: Sequence[np.ndarray]
    chances: np.ndarray
    whole: Sequence[bool]


def equal_groups(members: Sequence[np.ndarray], *, whole: bool = False) -> Groups:
    """Return groups that are all as likely, such as the alphabets of Omniglot."""
    count = len(members)
    return Groups(members, np.full(count, 1 / count), [whole] * count)


class ClassSource(Protocol):
    """A set of images indexed by class; reading is thread-safe and pure.

    A source may also have an attribute `groups`, a `Groups` or None; without, all
    classes are one group.
    """

    @property
    def class_names(self) -> Sequence[str]:
        """One name a class."""
        ...

    @property
    def class_sizes(self) -> Sequence[int]:
        """Images of each class."""
        ...

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Of every image that `read` returns: `(height, width, channels)`.

        Of clips, `(clip_length, height, width, channels)`.
        """
        ...

    def read(self, class_index: int, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return images `[len(indices), height, width, channels]` uint8."""
        ...


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Images in memory: `images[c]` holds class c, `[n_c, height, width, channels]`."""

    class_names: Sequence[str]
    images: Sequence[np.ndarray]
    groups: Groups | None = None

    @property
    def class_sizes(self) -> list[int]:
        """Images of each class."""
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
    """Return the source's groups; by default one, of all classes."""
    own = getattr(source, "groups", None)
    return own or equal_groups([np.arange(len(source.class_names))])


def check_split(split: str) -> None:
    """Raise unless `split` is one of `SPLITS`."""
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
