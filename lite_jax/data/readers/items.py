"""Sources whose images are decoded from items: files, records or rows of a table."""

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
"""Exceptions that Pillow raises for an unreadable image."""
Decode = Callable[[Any], np.ndarray]
"""`item -> image [height, width, channels] uint8`."""


@dataclasses.dataclass(frozen=True)
class ItemSource:
    """Images decoded each time they are read.

    An unreadable image is replaced by the next readable one of its class. This is
    always the same one, so reading stays pure. A warning names each unreadable image
    once, with their count so far.

    Attributes:
        class_names: Name of each class.
        items: Items of each class.
        image_shape: `(height, width, channels)`.
        decode: `item -> image`.
        groups: Groups of classes that may meet in an episode; None if all may.
        unreadable: Unreadable items that have been met.
    """

    class_names: Sequence[str]
    items: Sequence[Sequence[Any]]
    image_shape: tuple[int, int, int]
    decode: Decode
    groups: Groups | None = None
    unreadable: set[Any] = dataclasses.field(default_factory=set)

    @property
    def class_sizes(self) -> list[int]:
        """Number of items of each class."""
        return [len(x) for x in self.items]

    def read(self, class_index: int, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return images `[len(indices), height, width, channels]` uint8."""
        return np.stack([self._readable_image(class_index, int(i)) for i in indices])

    def _readable_image(self, class_index: int, index: int) -> np.ndarray:
        items, reason = self.items[class_index], ""
        for offset in range(len(items)):
            item = items[(index + offset) % len(items)]
            image, reason = _decoded(self.decode, item)
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
    """Return a source of items, decoded into memory if they fit, else when read.

    Args:
        classes: Class name → items.
        decode: `item -> image [*image_shape] uint8`. One of the exceptions `UNREADABLE`
            means that the item is unreadable; a `UserError` is passed on.
        image_shape: `(height, width, channels)`.
        cache_gb: Largest size of the decoded images kept in memory, in GB (10⁹ bytes).
        groups: Groups of classes that may meet in an episode; None if all may.

    Raises:
        UserError: A class has no items, or no readable ones.
    """
    for name, items in classes.items():
        if not len(items):
            raise UserError(
                f"class {name!r} has no images: add some or remove the class"
            )
    names, lists = list(classes), list(classes.values())
    num_bytes = sum(map(len, lists)) * int(np.prod(image_shape))
    if num_bytes > cache_gb * 1e9:
        return ItemSource(names, lists, image_shape, decode, groups)
    return ArraySource(names, _decoded_classes(names, lists, decode), groups)


def _decoded_classes(
    names: Sequence[str], classes: Sequence[Sequence[Any]], decode: Decode
) -> list[np.ndarray]:
    """Return the readable images of each class, `[n_c, height, width, channels]`."""
    results = decode_each([item for items in classes for item in items], decode)
    images, remaining = [], iter(results)
    for name, items in zip(names, classes, strict=True):
        decoded = [next(remaining) for _ in items]
        readable = [image for image, _ in decoded if image is not None]
        if not readable:
            raise dry_class(name, items, decoded[0][1])
        images.append(np.stack(readable))
    return images


def decode_each(
    items: Sequence[Any], decode: Decode
) -> list[tuple[np.ndarray | None, str]]:
    """Return for each item its image and "", or None and why it is unreadable.

    Several threads decode the items. A warning counts the unreadable ones and names the
    first five.

    Args:
        items: The items.
        decode: `item -> image`; see `item_source`.
    """
    with ThreadPoolExecutor() as pool:
        decoded = pool.map(lambda item: _decoded(decode, item), items)
        bar = tqdm(
            decoded, "decoding images", len(items), unit="image", delay=2, leave=False
        )
        results = list(bar)
    unreadable = [
        f"{name_of(item)} ({reason})"
        for item, (image, reason) in zip(items, results, strict=True)
        if image is None
    ]
    if unreadable:
        listed = "; ".join(unreadable[:5]) + ("; …" if len(unreadable) > 5 else "")
        count = len(unreadable)
        _logger.warning(
            "skipped %d unreadable of %d images: %s", count, len(items), listed
        )
    return results


def name_of(item: Any) -> str:
    """Return an item's name in messages, which holds neither its bytes nor pixels."""
    return "an image in memory" if isinstance(item, (bytes, np.ndarray)) else str(item)


def _decoded(decode: Decode, item: Any) -> tuple[np.ndarray | None, str]:
    """Return an item's image and "", or None and why it is unreadable."""
    try:
        return decode(item), ""
    except UserError:
        raise
    except UNREADABLE as error:
        return None, str(error).replace(name_of(item), "it") or type(error).__name__


def dry_class(name: str, items: Sequence[Any], reason: str) -> UserError:
    """Return the error for a class without a readable image.

    Args:
        name: Name of the class.
        items: Its items, one or more.
        reason: Why the first item is unreadable.
    """
    return UserError(
        f"class {name!r}: none of its {len(items)} images can be read, e.g. "
        f"{name_of(items[0])} "
        f"({reason}): mend them or remove the class"
    )
