"""Support sets of a user's images: files, encoded bytes or arrays."""

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
"""A file's path, its bytes, or pixels `[h, w]`, `[h, w, 1]` or `[h, w, 3]` uint8."""


class Support(NamedTuple):
    """A support set of images with labels.

    Attributes:
        class_names: Name of each label 0, 1, ….
        images: `[n, height, width, channels]` uint8.
        labels: `[n]` int32.
        items: The item that each image was read from.
        skipped: Number of unreadable items, which have no image here.
    """

    class_names: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray
    items: tuple[Image, ...]
    skipped: int


def read_support(classes: Mapping[str, Sequence[Image]], spec: ImageSpec) -> Support:
    """Return the readable images of the classes as a support set.

    A warning counts the unreadable images and names the first five.

    Args:
        classes: Class name → images.
        spec: Size and form of the returned images.

    Raises:
        UserError: There are fewer than two classes, or a class has no readable image.
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
    images, labels, read_items, start = [], [], [], 0
    for label, (name, items) in enumerate(classes.items()):
        decoded, start = results[start : start + len(items)], start + len(items)
        readable = [x for x, _ in decoded if x is not None]
        if not readable:
            raise dry_class(name, items, decoded[0][1])
        images += readable
        labels += [label] * len(readable)
        pairs = zip(items, decoded, strict=True)
        read_items += [item for item, (x, _) in pairs if x is not None]
    return Support(
        tuple(classes),
        np.stack(images),
        np.array(labels, np.int32),
        tuple(read_items),
        len(flat) - len(read_items),
    )


def read_images(items: Sequence[Image], spec: ImageSpec) -> np.ndarray:
    """Return one image for each item, `[n, height, width, channels]` uint8.

    Raises:
        UserError: `items` is a single image, is empty, or has an unreadable image.
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
    """Return the readable images `[n, height, width, channels]` uint8, and their items.

    A warning counts the unreadable images and names the first five.

    Raises:
        UserError: No image is readable.
    """
    results = decode_each(items, lambda item: open_image(item, spec))
    pairs = zip(results, items, strict=True)
    read = [(image, item) for (image, _), item in pairs if image is not None]
    if not read:
        raise UserError(f"images: none of {len(items)} can be read: give some others")
    return np.stack([image for image, _ in read]), [item for _, item in read]


def folder_support(root: str | Path) -> dict[str, list[Path]]:
    """Return class name → image files of a folder with a sub-folder for each class.

    Raises:
        UserError: The folder does not exist, or no sub-folder holds images.
    """
    path = Path(root).expanduser()
    if not path.is_dir():
        raise UserError(f"support={root}: no such folder")
    classes = {name: images_of(x) for name, x in class_folders(path).items()}
    if not any(classes.values()):
        raise UserError(
            f"support={root} holds no images in sub-folders: make a sub-folder for "
            "each class and put its images there"
        )
    return classes


def open_image(item: Image, spec: ImageSpec) -> np.ndarray:
    """Return an image in the size and form of a spec, `[*spec.shape]` uint8.

    Raises:
        OSError, SyntaxError, ValueError: The image cannot be read.
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
