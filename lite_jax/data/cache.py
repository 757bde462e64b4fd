"""Caches of data sets: images decoded and resized once, in memory-mapped files.

A cache is a folder with these files:

- `index.json`: the splits, their classes, and a description of the images;
- `<split>.npy`: the split's images `[n, height, width, channels]` uint8, sorted by
  class;
- `<split>.crc.npy`: the CRC-32C of each image, `[n]` uint32. An image is checked
  against it whenever it is read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from tqdm import tqdm

from lite_jax.data.sources import ClassSource, Groups, check_split
from lite_jax.errors import UserError

INDEX = "index.json"
"""Name of the file that identifies a cache."""
_IMAGES_PER_READ = 64


def build_cache(
    folder: str | Path, splits: Mapping[str, ClassSource], about: Mapping[str, Any]
) -> int:
    """Write a cache of all images of some splits; return its size in bytes.

    The images are written to the folder `<folder>.part`, which is renamed when it is
    complete. A `.part` folder that an interrupted call left is removed first.

    Args:
        folder: The cache to write; it must not exist.
        splits: "train", "valid" or "test" → source of the images.
        about: Description of the images, such as data set and resize rule, stored in
            the index as JSON.

    Raises:
        UserError: The folder exists, or an image cannot be read.
    """
    folder = Path(folder).expanduser()
    if folder.exists():
        raise UserError(f"{folder} exists: remove it, or choose another folder")
    draft = folder.with_name(folder.name + ".part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    index: dict[str, Any] = {"about": dict(about), "splits": {}}
    for split, source in splits.items():
        crcs = _write_images(draft / f"{split}.npy", source, split)
        np.save(draft / f"{split}.crc.npy", crcs)
        groups = getattr(source, "groups", None)
        index["splits"][split] = {
            "class_names": list(source.class_names),
            "class_sizes": [int(n) for n in source.class_sizes],
            "image_shape": list(source.image_shape),
            "groups": None if groups is None else _groups_as_json(groups),
            "crcs_sha256": hashlib.sha256(crcs.tobytes()).hexdigest(),
        }
    (draft / INDEX).write_text(json.dumps(index) + "\n", encoding="utf-8")
    draft.rename(folder)
    return sum(path.stat().st_size for path in folder.iterdir())


def _write_images(path: Path, source: ClassSource, split: str) -> np.ndarray:
    """Write a split's images, and return their CRCs `[n]` uint32."""
    total = sum(source.class_sizes)
    images = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.uint8, shape=(total, *source.image_shape)
    )
    crcs = np.zeros(total, np.uint32)
    bar = tqdm(total=total, desc=f"caching {split}", unit="image", leave=False)

    def write(portion: tuple[int, int, range]) -> int:
        start, label, numbers = portion
        for row, image in enumerate(source.read(label, numbers), start):
            images[row] = image
            crcs[row] = _crc(image)
        return len(numbers)

    with bar, ThreadPoolExecutor() as pool:
        for count in pool.map(write, _portions(source.class_sizes)):
            bar.update(count)
    images.flush()
    return crcs


def _portions(class_sizes: Sequence[int]) -> Iterable[tuple[int, int, range]]:
    """Yield `(first row in the file, class, image numbers)` of up to 64 images."""
    first = 0
    for label, size in enumerate(class_sizes):
        for start in range(0, size, _IMAGES_PER_READ):
            stop = min(start + _IMAGES_PER_READ, size)
            yield first + start, label, range(start, stop)
        first += size


def _crc(image: np.ndarray) -> int:
    return google_crc32c.value(np.ascontiguousarray(image).tobytes())


@dataclasses.dataclass(frozen=True)
class CachedSource:
    """A split of a cache, whose images lie in a memory-mapped file.

    Attributes:
        path: The file of images.
        class_names: Name of each class.
        class_sizes: Number of images of each class.
        images: `[n, height, width, channels]` uint8, sorted by class.
        crcs: CRC-32C of each image, `[n]` uint32.
        groups: Classes that may meet in an episode; None if all may.
    """

    path: Path
    class_names: Sequence[str]
    class_sizes: Sequence[int]
    images: np.ndarray
    crcs: np.ndarray
    groups: Groups | None = None

    @property
    def image_shape(self) -> tuple[int, ...]:
        """`(height, width, channels)`."""
        return self.images.shape[1:]

    def read(self, class_index: int, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return images `[len(indices), height, width, channels]` uint8.

        Raises:
            UserError: An image does not match its CRC.
        """
        start = sum(self.class_sizes[:class_index])
        rows = start + np.asarray(indices, int)
        images = np.stack([self.images[row] for row in rows])
        for row, image in zip(rows, images, strict=True):
            if _crc(image) != self.crcs[row]:
                raise UserError(
                    f"{self.path}: image {row} is not what was written (its CRC "
                    "differs): build the cache again"
                )
        return images


def open_cache(root: str | Path, split: str, image_size: int = 0) -> CachedSource:
    """Return a split of a cache.

    Args:
        root: The cache's folder.
        split: "train", "valid" or "test".
        image_size: Required pixels a side of the images; 0 accepts any.

    Raises:
        UserError: The folder holds no cache, the cache lacks the split or has another
            image size, or its files do not match its index.
    """
    check_split(split)
    folder = Path(root).expanduser()
    if not (folder / INDEX).is_file():
        raise UserError(
            f"root={root} holds no cache: build one with `python -m lite_jax.data "
            f"cache --source=… --out={root}`"
        )
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    if split not in index["splits"]:
        raise UserError(f"{folder} has no {split!r} split: {sorted(index['splits'])}")
    entry = index["splits"][split]
    side = entry["image_shape"][-2]
    if image_size and side != image_size:
        raise UserError(
            f"{folder} holds images of {side} pixels a side: set image_size={side}"
        )
    path = folder / f"{split}.npy"
    try:
        images = np.load(path, mmap_mode="r")
        crcs = np.load(folder / f"{split}.crc.npy")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): build it again") from error
    crcs_match = hashlib.sha256(crcs.tobytes()).hexdigest() == entry["crcs_sha256"]
    total = sum(entry["class_sizes"])
    if not crcs_match or images.shape != (total, *entry["image_shape"]):
        raise UserError(f"{path} does not belong to its {INDEX}: build the cache again")
    groups = entry["groups"] and _groups_from_json(entry["groups"])
    return CachedSource(
        path, entry["class_names"], entry["class_sizes"], images, crcs, groups
    )


def _groups_as_json(groups: Groups) -> dict[str, Any]:
    return {
        "members": [[int(i) for i in group] for group in groups.members],
        "chances": [float(x) for x in groups.chances],
        "whole": [bool(x) for x in groups.whole],
    }


def _groups_from_json(content: Mapping[str, Any]) -> Groups:
    members = [np.array(group, int) for group in content["members"]]
    return Groups(members, np.array(content["chances"]), content["whole"])
