"""Support sets out of people's own images: files, encoded bytes, arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lite_jax.data.images import ImageSpec
from lite_jax.data.readers.folders import class_folders, images_of
from lite_jax.data.readers.items import decode_each, dry_class
from lite_jax.errors import UserError

Image = str | Path | bytes | np.ndarray
"""A file's path, its content, or pixels `[h, w]`, `[h, w, 1]`, `[h, w, 3]` uint8."""


class Support(NamedTuple):
    """Images with classes.

    Attributes:
        class_names: Of the labels 0, 1, ….
        images: `[n, height, width, channels]` uint8.
        labels: `[n]` int32.
        items: What the images were read from.
        skipped: How many could not be read.
    """

    class_names: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray
    items: tuple[Image, ...]
    skipped: int


def read_support(classes: Mapping[str, Sequence[Image]], spec: ImageSpec) -> Support:
    """Return the readable images of the classes, as a learner sees them.

    Images that cannot be read are named in a warning, with a count.

    Args:
        classes: Name → images.
        spec: What is made of each image.

    Raises:
        UserError: Fewer than two classes, or one without a readable image.
    """
    if len(classes) < 2:
        raise UserError(
            f"support: {len(classes)} classes, and a classifier tells apart 2 or more: "
            "give a folder with a sub-folder of images for each class"
        )
    for name, items in classes.items():
        if not len(items):
            raise UserError(f"support: class {name!r} has no images: add some")
    flat = [item for items in classes.values() for item in items]
    results = decode_each(flat, lambda item: open_image(item, spec))
    images, labels, kept, place = [], [], [], 0
    for label, (name, items) in enumerate(classes.items()):
        own, place = results[place : place + len(items)], place + len(items)
        readable = [x for x, _ in own if x is not None]
        if not readable:
            raise dry_class(name, items, own[0][1])
        images += readable
        labels += [label] * len(readable)
        kept += [item for item, (x, _) in zip(items, own, strict=True) if x is not None]
    return Support(
        tuple(classes),
        np.stack(images),
        np.array(labels, np.int32),
        tuple(kept),
        len(flat) - len(kept),
    )


def read_images(items: Sequence[Image], spec: ImageSpec) -> np.ndarray:
    """Return images `[n, height, width, channels]` uint8, one an item.

    Raises:
        UserError: One image in place of a list, none at all, or unreadable ones.
    """
    single = isinstance(items, np.ndarray) and items.ndim < 4
    if single or isinstance(items, (str, bytes, Path)):
        raise UserError("images: expected a list of images, found one: write [image]")
    images, readable = read_readable(items, spec)
    if len(readable) < len(items):
        raise UserError(
            f"images: {len(items) - len(readable)} of {len(items)} cannot be read: "
            "leave them out (a warning names them)"
        )
    return images


def read_readable(
    items: Sequence[Image], spec: ImageSpec
) -> tuple[np.ndarray, list[Image]]:
    """Return the readable images `[n, height, width, channels]`, and their items.

    Those that cannot be read are named in a warning, with a count.

    Raises:
        UserError: No readable image.
    """
    results = decode_each(items, lambda item: open_image(item, spec))
    pairs = zip(results, items, strict=True)
    read = [(image, item) for (image, _), item in pairs if image is not None]
    if not read:
        raise UserError(f"images: none of {len(items)} can be read: give some others")
    return np.stack([image for image, _ in read]), [item for _, item in read]


def folder_support(root: str | Path) -> dict[str, list[Path]]:
    """Return class → files of a folder with a sub-folder for each class.

    Raises:
        UserError: No such folder, or one without sub-folders that hold images.
    """
    path = Path(root).expanduser()
    if not path.is_dir():
        raise UserError(f"support={root}: no such folder")
    found = {name: images_of(x) for name, x in class_folders(path).items()}
    if not any(found.values()):
        raise UserError(
            f"support={root} holds no images in sub-folders: make a sub-folder for "
            "each class and put its images there"
        )
    return found


def open_image(item: Image, spec: ImageSpec) -> np.ndarray:
    """Return `[height, width, channels]` uint8.

    Raises:
        OSError, SyntaxError, ValueError: An image that cannot be read.
    """
    if not isinstance(item, np.ndarray):
        return spec.open(Path(item) if isinstance(item, str) else item)
    channels = item.shape[2] if item.ndim == 3 else 1
    if item.dtype != np.uint8 or item.ndim not in (2, 3) or channels not in (1, 3):
        raise ValueError(
            f"{item.dtype} of shape {item.shape}, expected uint8 of shape (h, w), "
            "(h, w, 1) or (h, w, 3)"
        )
    return spec.fit(item)
