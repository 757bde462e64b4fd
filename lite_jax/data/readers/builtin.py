"""Sources that need no download: handwritten digits, and procedural images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image

from lite_jax.data.sources import SPLITS, ArraySource, check_split


def digits(split: str, image_size: int = 32) -> ArraySource:
    """Return a split of scikit-learn's handwritten digits, which need no download.

    They are 1,797 grey images of 8 × 8 pixels in 10 classes, which are too few for
    three disjoint sets of classes. "train" therefore holds the first four fifths of the
    images of each even digit, "valid" the other fifth, and "test" all images of the odd
    digits.

    Args:
        split: "train", "valid" or "test".
        image_size: Pixels a side after bilinear resizing.
    """
    check_split(split)
    from sklearn.datasets import load_digits  # takes a second to import

    data = load_digits()
    images = np.stack([_resize_grey(x * (255 / 16), image_size) for x in data.images])
    classes = range(1, 10, 2) if split == "test" else range(0, 10, 2)
    by_class = [images[data.target == digit] for digit in classes]
    if split == "train":
        by_class = [x[: len(x) * 4 // 5] for x in by_class]
    if split == "valid":
        by_class = [x[len(x) * 4 // 5 :] for x in by_class]
    return ArraySource([f"digit {c}" for c in classes], by_class)


@dataclasses.dataclass(frozen=True)
class SyntheticSource:
    """Procedural images, computed when read, which therefore cost no memory.

    Each class is a smooth random pattern. An image is the pattern of its class,
    shifted, with a contrast and noise of its own.

    Attributes:
        class_names: Name of each class.
        class_sizes: Number of images of each class.
        image_shape: `(height, width, channels)`.
        seed: Seed of the patterns and images.
        first_class: Number of the split's first class among all splits' classes.
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
        most = np.array(pattern.shape[:2]) // 4
        shifted = np.roll(pattern, rng.integers(-most, most + 1), (0, 1))
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
    """Return a split of procedural images, for tests and benchmarks.

    Args:
        split: "train", "valid" or "test"; their classes are disjoint.
        image_size: Pixels a side.
        num_classes: Number of classes of each split.
        images_per_class: Number of images of each class.
        channels: Number of channels, 1 or 3.
        seed: Seed of the patterns and images.
    """
    check_split(split)
    first = SPLITS.index(split) * num_classes
    return SyntheticSource(
        [f"pattern {first + c}" for c in range(num_classes)],
        [images_per_class] * num_classes,
        (image_size, image_size, channels),
        seed,
        first,
    )


def _resize_grey(image: np.ndarray, size: int) -> np.ndarray:
    resized = Image.fromarray(image.astype(np.float32)).resize(
        (size, size), Image.Resampling.BILINEAR
    )
    return np.clip(np.rint(np.asarray(resized)), 0, 255).astype(np.uint8)[..., None]
