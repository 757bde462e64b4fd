"""What a data set is to this library: classes, their sizes, and a way to read them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from lite_jax.errors import UserError, unknown_name

SPLITS = ("train", "valid", "test")


class ClassSource(Protocol):
    """A set of images indexed by class; reading is thread-safe and pure."""

    @property
    def class_names(self) -> Sequence[str]:
        """One name a class."""
        ...

    @property
    def class_sizes(self) -> Sequence[int]:
        """Images of each class."""
        ...

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)` of every image that `read` returns."""
        ...

    def read(self, class_index: int, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return images `[len(indices), height, width, channels]` uint8."""
        ...


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Images in memory: `images[c]` holds class c, `[n_c, height, width, channels]`."""

    class_names: Sequence[str]
    images: Sequence[np.ndarray]

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


def digits(split: str, image_size: int = 32) -> ArraySource:
    """Return scikit-learn's handwritten digits, which need no download.

    1,797 grey images of 8 × 8 pixels in 10 classes. Ten classes are too few for three
    disjoint sets of them, so `train` holds four fifths of the images of the even
    digits, `valid` the other fifth, and `test` all images of the odd ones, unseen.

    Args:
        split: "train", "valid" or "test".
        image_size: Pixels a side after bilinear resizing.
    """
    _check_split(split)
    from sklearn.datasets import load_digits  # takes a second to import

    data = load_digits()
    images = np.stack([_resize_grey(x * (255 / 16), image_size) for x in data.images])
    chosen = range(1, 10, 2) if split == "test" else range(0, 10, 2)
    by_class = [images[data.target == digit] for digit in chosen]
    if split == "train":
        by_class = [x[: len(x) * 4 // 5] for x in by_class]
    if split == "valid":
        by_class = [x[len(x) * 4 // 5 :] for x in by_class]
    return ArraySource([f"digit {c}" for c in chosen], by_class)


@dataclasses.dataclass(frozen=True)
class SyntheticSource:
    """Procedural images: each class a smooth random pattern, each image a variant.

    An image is its class's pattern, shifted, with its own contrast and noise; it is
    computed when read, so that any number at any resolution costs no memory.
    """

    class_names: Sequence[str]
    class_sizes: Sequence[int]
    image_shape: tuple[int, int, int]
    seed: int
    first_class: int

    def read(self, class_index: int, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return images `[len(indices), height, width, channels]` uint8."""
        label = self.first_class + class_index
        pattern = self._pattern(np.random.default_rng((self.seed, label)))
        return np.stack([self._variant(pattern, label, int(i)) for i in indices])

    def _pattern(self, rng: np.random.Generator) -> np.ndarray:
        height, width, channels = self.image_shape
        coarse = rng.uniform(-1, 1, (channels, 6, 6)).astype(np.float32)
        planes = [
            Image.fromarray(x).resize((width, height), Image.Resampling.BICUBIC)
            for x in coarse
        ]
        return np.stack([np.asarray(x) for x in planes], -1)

    def _variant(self, pattern: np.ndarray, label: int, index: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, label, 1 + index))
        reach = np.array(pattern.shape[:2]) // 4
        shifted = np.roll(pattern, rng.integers(-reach, reach + 1), (0, 1))
        noise = rng.normal(scale=0.3, size=pattern.shape)
        image = 127.5 * (1 + 0.6 * rng.uniform(0.5, 1.5) * shifted + noise)
        return np.clip(image, 0, 255).astype(np.uint8)


def synthetic(
    split: str,
    image_size: int = 28,
    *,
    num_classes: int = 20,
    images_per_class: int = 40,
    channels: int = 3,
    seed: int = 0,
) -> SyntheticSource:
    """Return procedural images of any size, for tests and benchmarks.

    Args:
        split: "train", "valid" or "test"; their classes are disjoint.
        image_size: Pixels a side.
        num_classes: Classes of each split.
        images_per_class: Images of each class.
        channels: 1 or 3.
        seed: Another seed, another data set.
    """
    _check_split(split)
    first = SPLITS.index(split) * num_classes
    return SyntheticSource(
        [f"pattern {first + c}" for c in range(num_classes)],
        [images_per_class] * num_classes,
        (image_size, image_size, channels),
        seed,
        first,
    )


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
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)`."""
        return self.source.image_shape

    def read(self, class_index: int, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return images `[len(indices), height, width, channels]` uint8."""
        turn, plain = divmod(class_index, len(self.source.class_names))
        return np.rot90(self.source.read(plain, indices), turn, axes=(1, 2))


def rotated(source: ClassSource) -> RotatedSource:
    """Return `source` with its classes turned by 90° as extra classes.

    Raises:
        UserError: Images that are not square.
    """
    height, width, _ = source.image_shape
    if height != width:
        raise UserError(f"data.rotations needs square images, got {height} × {width}")
    return RotatedSource(source)


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)


def _resize_grey(image: np.ndarray, size: int) -> np.ndarray:
    resized = Image.fromarray(image.astype(np.float32)).resize(
        (size, size), Image.Resampling.BILINEAR
    )
    return np.clip(np.rint(np.asarray(resized)), 0, 255).astype(np.uint8)[..., None]
