"""A data set decoded and resized once, so that reading an image is copying it.

A cache is a folder with `index.json` and, for each split, `<split>.npy` of all images
`[n, height, width, channels]` uint8, class after class, and `<split>.crc.npy` with a
CRC-32C of each, by which every image is checked whenever it is read.
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
"""The file by which a cache is known."""
_AT_ONCE = 64  # images that a thread reads


def build_cache(
    folder: str | Path, splits: Mapping[str, ClassSource], about: Mapping[str, Any]
) -> int:
    """Write all images of some splits into a folder; return its bytes.

    The folder appears when it is complete: until then its name ends in `.part`, and an
    interrupted command leaves only that, which the next one writes anew.

    Args:
        folder: Must not exist.
        splits: "train", "valid" or "test" → source, of equal image shapes.
        about: What the images are, for the index: data set, resize rule, ….

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
            "groups": None if groups is None else _as_json(groups),
            "crcs_sha256": hashlib.sha256(crcs.tobytes()).hexdigest(),
        }
    (draft / INDEX).write_text(json.dumps(index) + "\n", encoding="utf-8")
    draft.rename(folder)
    return sum(path.stat().st_size for path in folder.iterdir())


def _write_images(path: Path, source: ClassSource, split: str) -> np.ndarray:
    """Write a split's images; return their CRCs `[n]` uint32."""
    total = sum(source.class_sizes)
    images = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.uint8, shape=(total, *source.image_shape)
    )
    crcs = np.zeros(total, np.uint32)
    bar = tqdm(total=total, desc=f"caching {split}", unit="image", leave=False)

    def write(part: tuple[int, int, range]) -> int:
        place, label, numbers = part
        for offset, image in enumerate(source.read(label, numbers)):
            images[place + offset] = image
            crcs[place + offset] = _crc(image)
        return len(numbers)

    with bar, ThreadPoolExecutor() as pool:
        for count in pool.map(write, _parts(source.class_sizes)):
            bar.update(count)
    images.flush()
    return crcs


def _parts(class_sizes: Sequence[int]) -> Iterable[tuple[int, int, range]]:
    """Yield `(place in the file, class, image numbers)` of a few images each."""
    place = 0
    for label, size in enumerate(class_sizes):
        for start in range(0, size, _AT_ONCE):
            yield place + start, label, range(start, min(start + _AT_ONCE, size))
        place += size


def _crc(image: np.ndarray) -> int:
    return google_crc32c.value(np.ascontiguousarray(image).tobytes())


@dataclasses.dataclass(frozen=True)
class CachedSource:
    """A split of a cache; images lie in a memory-mapped file."""

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
        """Return images `[len(indices), height, width, channels]` uint8."""
        start = sum(self.class_sizes[:class_index])
        places = start + np.asarray(indices, int)
        found = np.stack([self.images[place] for place in places])
        for place, image in zip(places, found, strict=True):
            if _crc(image) != self.crcs[place]:
                raise UserError(
                    f"{self.path}: image {place} is not what was written (its CRC "
                    "differs): build the cache again"
                )
        return found


def open_cache(root: str | Path, split: str, image_size: int = 0) -> CachedSource:
    """Return a split of a cache.

    Args:
        root: The cache's folder.
        split: "train", "valid" or "test".
        image_size: If given, the size that images must have.

    Raises:
        UserError: No cache there, one without the split, of another image size, or
            with files that do not belong to its index.
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
    found = index["splits"][split]
    side = found["image_shape"][-2]
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
    same = hashlib.sha256(crcs.tobytes()).hexdigest() == found["crcs_sha256"]
    total = sum(found["class_sizes"])
    if not same or images.shape != (total, *found["image_shape"]):
        raise UserError(f"{path} does not belong to its {INDEX}: build the cache again")
    groups = found["groups"] and _from_json(found["groups"])
    return CachedSource(
        path, found["class_names"], found["class_sizes"], images, crcs, groups
    )


def _as_json(groups: Groups) -> dict[str, Any]:
    return {
        "members": [[int(i) for i in group] for group in groups.members],
        "chances": [float(x) for x in groups.chances],
        "whole": [bool(x) for x in groups.whole],
    }


def _from_json(found: Mapping[str, Any]) -> Groups:
    members = [np.array(group, int) for group in found["members"]]
    return Groups(members, np.array(found["chances"]), found["whole"])
