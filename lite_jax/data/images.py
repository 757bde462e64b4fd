"""Decoding of images, and resizing by named rules.

The papers resize by different rules. On a photograph resized to 84 pixels,
Meta-Dataset's rule and VTAB's differ by 13 grey levels on average. Results therefore
record the name of the rule.
"""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from lite_jax.errors import unknown_name

Resize = Callable[[np.ndarray, int], np.ndarray]
"""`(image [h, w, c] uint8, size) -> [size, size, c] uint8`."""


def decode(
    encoded: bytes | Path, channels: int = 3, *, upright: bool = False
) -> np.ndarray:
    """Return the pixels `[height, width, channels]` uint8 of an encoded image.

    Only the first frame of an animation is decoded. Transparent pixels are blended with
    white. 16-bit values are reduced to their upper 8 bits.

    Args:
        encoded: The bytes of a file, or its path.
        channels: 3 for RGB, 1 for grey.
        upright: Rotate the image by its EXIF orientation tag.

    Raises:
        OSError, SyntaxError, ValueError, Image.DecompressionBombError: Pillow cannot
            read the image. ValueError is also raised for floating-point pixels, and for
            32-bit pixels outside 0 … 65,535.
    """
    file = io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about large images and odd metadata
        with Image.open(file) as image:
            oriented = ImageOps.exif_transpose(image) if upright else image
            opaque = _opaque_image(_eight_bit_image(oriented))
            pixels = np.asarray(opaque.convert("RGB" if channels == 3 else "L"))
    return pixels.reshape(*pixels.shape[:2], channels)


def _eight_bit_image(image: Image.Image) -> Image.Image:
    """Return the image with 8-bit pixels, without Pillow's clipping of wider ones."""
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not known")
    if not image.mode.startswith("I"):
        return image
    pixels = np.asarray(image).astype(np.int64)
    if pixels.min() < 0 or pixels.max() > 65_535:
        raise ValueError("32-bit pixels, whose range is not known")
    wide = image.mode != "I" or pixels.max() > 255
    return Image.fromarray((pixels >> 8 if wide else pixels).astype(np.uint8))


def _opaque_image(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    colours = image.convert("RGBA")
    white = Image.new("RGBA", colours.size, "white")
    return Image.alpha_composite(white, colours)


class ImageSpec(NamedTuple):
    """The size and form that a source gives every image.

    Attributes:
        size: Pixels a side, 1 to 4096.
        resize: Name of the resize rule; see `make_resize`.
        channels: 3 for RGB, 1 for grey.
        upright: Rotate images by their EXIF orientation tag.
        bright_ink: For drawings: invert an image whose mean is 127.5 or more, so that
            ink is bright on a dark ground.
    """

    size: int
    resize: str = "bilinear"
    channels: int = 3
    upright: bool = False
    bright_ink: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)`."""
        return self.size, self.size, self.channels

    def open(self, encoded: bytes | Path) -> np.ndarray:
        """Return the decoded image of a file, `[size, size, channels]` uint8.

        Args:
            encoded: The bytes of a file, or its path.

        Raises:
            OSError, SyntaxError, ValueError, Image.DecompressionBombError: As `decode`.
        """
        return self._resized(decode(encoded, self.channels, upright=self.upright))

    def fit(self, pixels: np.ndarray) -> np.ndarray:
        """Return the image of given pixels, `[size, size, channels]` uint8.

        Args:
            pixels: `[h, w]`, `[h, w, 1]` or `[h, w, 3]` uint8.
        """
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if pixels.shape[2] != self.channels:
            mode = "RGB" if self.channels == 3 else "L"
            converted = np.asarray(as_picture(pixels).convert(mode))
            pixels = converted.reshape(*pixels.shape[:2], self.channels)
        return self._resized(pixels)

    def _resized(self, pixels: np.ndarray) -> np.ndarray:
        for sizes in _watching_lists:
            sizes.append((pixels.shape[1], pixels.shape[0]))
        image = make_resize(self.resize)(pixels, self.size)
        # Ink covers less of a drawing than paper does.
        dark_ink = self.bright_ink and image.mean() >= 127.5
        return 255 - image if dark_ink else image


_watching_lists: list[list[tuple[int, int]]] = []


@contextlib.contextmanager
def watched_sizes() -> Iterator[list[tuple[int, int]]]:
    """Yield a list to which each image's `(width, height)` before resizing is added."""
    sizes: list[tuple[int, int]] = []
    _watching_lists.append(sizes)
    try:
        yield sizes
    finally:
        _watching_lists.remove(sizes)


@functools.cache
def make_resize(rule: str) -> Resize:
    """Return the function that resizes images to a square by a named rule.

    No rule keeps the aspect ratio, as in the papers. Results are rounded to uint8. An
    image that has the size already is returned unchanged.

    Args:
        rule: One of
            "md": Meta-Dataset's; bilinear between the four nearest pixels, with corners
            aligned and no antialias, like TensorFlow's
            `resize_images(align_corners=True)`.
            "vtab": VTAB's; the same with half-pixel centres, like `tf.image.resize`.
            "lanczos": Pillow's, antialiased; LITE's rule for VTAB.
            "bilinear": Pillow's, antialiased.
            "area": the mean over the area that a new pixel covers.

    Raises:
        UserError: The rule is unknown.

    >>> import numpy as np
    >>> ramp = np.arange(0, 250, 25, np.uint8).reshape(1, 10, 1)
    >>> for rule in ("md", "vtab", "area"):
    ...     print(rule, make_resize(rule)(np.repeat(ramp, 10, 0), 4)[0, :, 0])
    md [  0  75 150 225]
    vtab [ 19  81 144 206]
    area [ 20  80 145 205]
    """
    if rule not in _RULES:
        raise unknown_name("resize rule", rule, _RULES)
    resize = _RULES[rule]

    def resized(image: np.ndarray, size: int) -> np.ndarray:
        same = image.shape[0] == image.shape[1] == size
        return image if same else resize(image, size)

    return resized


def _md(image: np.ndarray, size: int) -> np.ndarray:
    def positions(count: int) -> np.ndarray:
        return np.linspace(0, count - 1, size) if size > 1 else np.zeros(1)

    return _interpolated(image, positions)


def _vtab(image: np.ndarray, size: int) -> np.ndarray:
    def positions(count: int) -> np.ndarray:
        centres = (np.arange(size) + 0.5) * (count / size) - 0.5
        return np.clip(centres, 0, count - 1)

    return _interpolated(image, positions)


def _interpolated(
    image: np.ndarray, positions: Callable[[int], np.ndarray]
) -> np.ndarray:
    """Return bilinear values at `positions(height)` × `positions(width)`, in pixels."""
    rows, columns = positions(image.shape[0]), positions(image.shape[1])
    by_row = _interpolated_along(image, rows, 0)
    return _rounded(_interpolated_along(by_row, columns, 1))


def _interpolated_along(
    values: np.ndarray, positions: np.ndarray, axis: int
) -> np.ndarray:
    """Return values interpolated linearly along one axis, float32."""
    low = np.floor(positions).astype(int)
    high = np.minimum(low + 1, values.shape[axis] - 1)
    shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
    share = (positions - low).astype(np.float32).reshape(shape)
    first = values.take(low, axis).astype(np.float32)
    return first + share * (values.take(high, axis) - first)


def _area(image: np.ndarray, size: int) -> np.ndarray:
    rows = _overlaps(image.shape[0], size)
    columns = _overlaps(image.shape[1], size)
    by_row = np.tensordot(rows, image.astype(np.float32), 1)
    return _rounded(np.einsum("cw,rwk->rck", columns, by_row, optimize=True))


def _overlaps(count: int, size: int) -> np.ndarray:
    """Return each old pixel's share in each new pixel, `[size, count]` float32."""
    edges = np.arange(size + 1) * (count / size)
    old = np.arange(count)
    right = np.minimum(edges[1:, None], old + 1)
    left = np.maximum(edges[:-1, None], old)
    return (np.maximum(right - left, 0) * (size / count)).astype(np.float32)


def _pillow_resize(rule: Image.Resampling) -> Resize:
    def resize(image: np.ndarray, size: int) -> np.ndarray:
        pixels = np.asarray(as_picture(image).resize((size, size), rule))
        return pixels.reshape(size, size, image.shape[2])

    return resize


def as_picture(image: np.ndarray) -> Image.Image:
    """Return `[h, w, 1 or 3]` uint8 as a Pillow image."""
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


_RULES: dict[str, Resize] = {
    "area": _area,
    "bilinear": _pillow_resize(Image.Resampling.BILINEAR),
    "lanczos": _pillow_resize(Image.Resampling.LANCZOS),
    "md": _md,
    "vtab": _vtab,
}
RESIZE_RULES = tuple(_RULES)
