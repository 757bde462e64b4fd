"""Sources whose images are decoded from items: files, records, rows of a table."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from lite_jax.data.sources import ArraySource, ClassSource, Groups
from lite_jax.errors import UserError

_logger = logging.getLogger(__name__)

UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for a file that is no image it can read."""
Decode = Callable[[Any], np.ndarray]
"""`item -> image [height, width, channels] uint8`."""


@dataclasses.dataclass(frozen=True)
class ItemSource:
    """Images decoded each time they are read.

    In place of an unreadable one stands the next readable one of its class, always
    the same, so that reading stays pure; each is named once in a warning, with a count.
    """

    class_names: Sequence[str]
    items: Sequence[Sequence[Any]]
    image_shape: tuple[int, int, int]
    decode: Decode
    groups: Groups | None = None
    unreadable: set[Any] = dataclasses.field(default_factory=set)

    @property
    def class_sizes(self) -> list[int]:
        """Items of each class."""
        return [len(x) for x in self.items]

    def read(self, class_index: int, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return images `[len(indices), height, width, channels]` uint8."""
        return np.stack([self._readable(class_index, int(i)) for i in indices])

    def _readable(self, class_index: int, index: int) -> np.ndarray:
        items, reason = self.items[class_index], ""
        for place in range(len(items)):
            item = items[(index + place) % len(items)]
            image, reason = _try_decode(self.decode, item)
            if image is not None:
                return image
            if item not in self.unreadable:
                self.unreadable.add(item)
                _logger.warning(
                    "skipped unreadable %s (%s), number %d so far",
                    item, reason, len(self.unreadable),
                )  # fmt: skip
        raise dry_class(self.class_names[class_index], items, reason)


def item_source(
    classes: Mapping[str, Sequence[Any]],
    decode: Decode,
    image_shape: tuple[int, int, int],
    cache_gb: float,
    groups: Groups | None = None,
) -> ClassSource:
    """Return the classes decoded into memory where they fit, else item by item.

    Args:
        classes: Name → items of each class.
        decode: From an item to an image of `image_shape`; an `OSError`, `SyntaxError`
            or `ValueError` means that it is unreadable, a `UserError` is passed on.
        image_shape: `(height, width, channels)`.
        cache_gb: Decoded images are kept in memory up to this many GB (10⁹ bytes).
        groups: Which classes may meet.

    Raises:
        UserError: A class without items, or without readable ones.
    """
    for name, items in classes.items():
        if not len(items):
            raise UserError(
                f"class {name!r} has no images: add some or remove the class"
            )
    names, lists = list(classes), list(classes.values())
    wanted = sum(map(len, lists)) * int(np.prod(image_shape))
    if wanted > cache_gb * 1e9:
        return ItemSource(names, lists, image_shape, decode, groups)
    return ArraySource(names, _decode_all(names, lists, decode), groups)


def _decode_all(
    names: Sequence[str], classes: Sequence[Sequence[Any]], decode: Decode
) -> list[np.ndarray]:
    """Return the readable images of every class."""
    results = decode_each([item for items in classes for item in items], decode)
    images, rest = [], iter(results)
    for name, items in zip(names, classes, strict=True):
        own = [next(rest) for _ in items]
        readable = [image for image, _ in own if image is not None]
        if not readable:
            raise dry_class(name, items, own[0][1])
        images.append(np.stack(readable))
    return images


def decode_each(
    items: Sequence[Any], decode: Decode
) -> list[tuple[np.ndarray | None, str]]:
    """Return each item's image and "", or None and why it is unreadable.

    Decodes on two threads or more; the unreadable are named in a warning, with a count.
    """
    with ThreadPoolExecutor() as pool:
        decoded = pool.map(lambda item: _try_decode(decode, item), items)
        bar = tqdm(
            decoded, "decoding images", len(items), unit="image", delay=2, leave=False
        )
        results = list(bar)
    bad = [
        f"{name_of(item)} ({reason})"
        for item, (image, reason) in zip(items, results, strict=True)
        if image is None
    ]
    if bad:
        listed = "; ".join(bad[:5]) + ("; …" if len(bad) > 5 else "")
        _logger.warning(
            "skipped %d unreadable of %d images: %s", len(bad), len(items), listed
        )
    return results


def name_of(item: Any) -> str:
    """Return what a message calls an item: never its bytes or its pixels."""
    return "an image in memory" if isinstance(item, (bytes, np.ndarray)) else str(item)


def _try_decode(decode: Decode, item: Any) -> tuple[np.ndarray | None, str]:
    """Return the image and "", or None and why not."""
    try:
        return decode(item), ""
    except UserError:
        raise
    except UNREADABLE as error:
        return None, str(error).replace(name_of(item), "it") or type(error).__name__


def dry_class(name: str, items: Sequence[Any], reason: str) -> UserError:
    """Return the error for a class that unreadable images leave empty."""
    return UserError(
        f"class {name!r}: none of its {len(items)} images can be read, e.g. "
        f"{name_of(items[0])} "
        f"({reason}): mend them or remove the class"
    )
