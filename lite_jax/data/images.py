"""From encoded images to pixels: decoding, and resizing by a named rule.

The papers resize differently, and the difference is larger than one thinks: on a
photograph brought to 84 pixels Meta-Dataset's rule and VTAB's are 13 grey levels
apart on average. A rule therefore has a name, which results record.
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

    Of an animation, the first picture; what is transparent is seen on white; 16 bits
    become the upper 8.

    Args:
        encoded: The bytes of a file, or its path.
        channels: 3 for RGB, 1 for grey.
        upright: Turn it by its EXIF tag, as people see it.

    Raises:
        OSError, SyntaxError, ValueError, Image.DecompressionBombError: As Pillow says;
            ValueError also for numbers of no known range.
    """
    file = io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large images, and of odd metadata
        with Image.open(file) as image:
            turned = ImageOps.exif_transpose(image) if upright else image
            opaque = _on_white(_in_eight_bits(turned))
            pixels = np.asarray(opaque.convert("RGB" if channels == 3 else "L"))
    return pixels.reshape(*pixels.shape[:2], channels)


def _in_eight_bits(image: Image.Image) -> Image.Image:
    """Return an image of wider numbers in 8 bits, where Pillow would cut them off."""
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not known")
    if not image.mode.startswith("I"):
        return image
    pixels = np.asarray(image).astype(np.int64)
    if pixels.min() < 0 or pixels.max() > 65_535:
        raise ValueError("32-bit pixels, whose range is not known")
    wide = image.mode != "I" or pixels.max() > 255
    return Image.fromarray((pixels >> 8 if wide else pixels).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    colours = image.convert("RGBA")
    white = Image.new("RGBA", colours.size, "white")
    return Image.alpha_composite(white, colours)


class ImageSpec(NamedTuple):
    """What a source makes of every image.

    Attributes:
        size: Pixels a side, 1 to 4096.
        resize: The rule's name; see `make_resize`.
        channels: 3 for RGB, 1 for grey.
        upright: Turn images by their EXIF tag.
        bright_ink: Of drawings, make ink bright on black, whatever the paper.
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
        """Return the image of a file, or of its bytes; errors as of `decode`."""
        return self._resized(decode(encoded, self.channels, upright=self.upright))

    def fit(self, pixels: np.ndarray) -> np.ndarray:
        """Return the image of pixels `[h, w]`, `[h, w, 1]` or `[h, w, 3]` uint8."""
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if pixels.shape[2] != self.channels:
            mode = "RGB" if self.channels == 3 else "L"
            converted = np.asarray(as_picture(pixels).convert(mode))
            pixels = converted.reshape(*pixels.shape[:2], self.channels)
        return self._resized(pixels)

    def _resized(self, pixels: np.ndarray) -> np.ndarray:
        for sizes in _watched:
            sizes.append((pixels.shape[1], pixels.shape[0]))
        image = make_resize(self.resize)(pixels, self.size)
        dark = self.bright_ink and image.mean() >= 127.5  # ink covers the lesser part
        return 255 - image if dark else image


_watched: list[list[tuple[int, int]]] = []


@contextlib.contextmanager
def watched_sizes() -> Iterator[list[tuple[int, int]]]:
    """Give a list that every image's `(width, height)` is added to, before resizing."""
    sizes: list[tuple[int, int]] = []
    _watched.append(sizes)
    try:
        yield sizes
    finally:
        _watched.remove(sizes)


@functools.cache
def make_resize(rule: str) -> Resize:
    """Return the rule that squeezes an image to a square, results rounded to uint8.

    None keeps the aspect ratio, as in the papers.

    Args:
        rule: One of
            "md": bilinear between the four nearest pixels, corners on corners, no
            antialias: TensorFlow's `resize_images(align_corners=True)`, Meta-Dataset's.
            "vtab": the same with half-pixel centres: `tf.image.resize`, VTAB's.
            "lanczos": Pillow's, antialiased: what LITE does to VTAB.
            "bilinear": Pillow's, antialiased.
            "area": the mean over the area that a new pixel covers.

    Raises:
        UserError: Another rule.

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
    def places(count: int) -> np.ndarray:
        return np.linspace(0, count - 1, size) if size > 1 else np.zeros(1)

    return _interpolated(image, places)


def _vtab(image: np.ndarray, size: int) -> np.ndarray:
    def places(count: int) -> np.ndarray:
        centres = (np.arange(size) + 0.5) * (count / size) - 0.5
        return np.clip(centres, 0, count - 1)

    return _interpolated(image, places)


def _interpolated(image: np.ndarray, places: Callable[[int], np.ndarray]) -> np.ndarray:
    """Return bilinear values at `places(height)` × `places(width)`, in pixels."""
    rows, columns = places(image.shape[0]), places(image.shape[1])
    blended = _between(_between(image, rows, 0), columns, 1)
    return _rounded(blended)


def _between(values: np.ndarray, places: np.ndarray, axis: int) -> np.ndarray:
    low = np.floor(places).astype(int)
    high = np.minimum(low + 1, values.shape[axis] - 1)
    shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
    share = (places - low).astype(np.float32).reshape(shape)
    first = values.take(low, axis).astype(np.float32)
    return first + share * (values.take(high, axis) - first)


def _area(image: np.ndarray, size: int) -> np.ndarray:
    rows = _overlaps(image.shape[0], size)
    columns = _overlaps(image.shape[1], size)
    narrow = np.tensordot(rows, image.astype(np.float32), 1)
    return _rounded(np.einsum("cw,rwk->rck", columns, narrow, optimize=True))


def _overlaps(count: int, size: int) -> np.ndarray:
    """Return `[size, count]`, the share of each old pixel in each new one."""
    edges = np.arange(size + 1) * (count / size)
    old = np.arange(count)
    right = np.minimum(edges[1:, None], old + 1)
    left = np.maximum(edges[:-1, None], old)
    return (np.maximum(right - left, 0) * (size / count)).astype(np.float32)


def _by_pillow(rule: Image.Resampling) -> Resize:
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
    "bilinear": _by_pillow(Image.Resampling.BILINEAR),
    "lanczos": _by_pillow(Image.Resampling.LANCZOS),
    "md": _md,
    "vtab": _vtab,
}
RESIZE_RULES = tuple(_RULES)
