"""Sources of Parquet tables of images, as Hugging Face stores them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lite_jax.data.class_lists import classes_of_split
from lite_jax.data.images import ImageSpec
from lite_jax.data.readers.items import item_source
from lite_jax.data.sources import ClassSource, check_split
from lite_jax.errors import UserError


def parquet_source(
    root: str | Path,
    split: str,
    spec: ImageSpec,
    *,
    label: str = "label",
    class_list: str | Path = "",
    cache_gb: float = 2.0,
) -> ClassSource:
    """Return a split of the classes of Parquet files.

    A row has an `image`, which holds encoded `bytes`, and a label. Class names are read
    from the file's Hugging Face metadata; without it, the labels are the names. Splits
    of such files have the same classes. All files are therefore joined, and the classes
    are divided among "train", "valid" and "test". The encoded images stay in memory.

    Args:
        root: A file, or a folder that has `*.parquet` files at any depth.
        split: "train", "valid" or "test".
        spec: Size and form of the images.
        label: Name of the column of labels.
        class_list: Path of a list of each split's classes; see
            `lite_jax.data.class_lists`.
        cache_gb: As in `folder`.

    Raises:
        UserError: There are no such files, they lack a column, or their images are not
            encoded bytes.
    """
    check_split(split)
    path = Path(root).expanduser()
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    if not files:
        raise UserError(f"root={root} has no .parquet files")
    modified = tuple((file, file.stat().st_mtime_ns) for file in files)
    classes, encoded = _rows_and_images(modified, label)
    of_split = classes_of_split(classes, split, class_list, f"root={root}")

    def open_row(row: int) -> np.ndarray:
        return spec.open(encoded[row])

    return item_source(of_split, open_row, spec.shape, cache_gb)


@functools.lru_cache(maxsize=1)
def _rows_and_images(
    files: tuple[tuple[Path, int], ...], label: str
) -> tuple[dict[str, list[int]], list[bytes]]:
    """Return class name → rows, and each row's encoded image; all splits share them.

    Args:
        files: Path and modification time of each file.
        label: Name of the column of labels.
    """
    import pyarrow
    import pyarrow.parquet  # a dependency of tensorflow-datasets

    encoded: list[bytes] = []
    classes: dict[str, list[int]] = {}
    for file, _ in files:
        try:
            table = pyarrow.parquet.read_table(file)
        except pyarrow.ArrowInvalid as error:
            raise UserError(f"{file} is no parquet file ({error})") from error
        name_of = _name_function(file, table, label)
        rows = zip(table["image"].to_pylist(), table[label].to_pylist(), strict=True)
        for image, number in rows:
            classes.setdefault(name_of(number), []).append(len(encoded))
            encoded.append(_encoded_bytes(file, image))
    return {name: classes[name] for name in sorted(classes)}, encoded


def _name_function(file: Path, table: Any, label: str) -> Callable[[Any], str]:
    """Return the function `label -> class name` of a table."""
    for column in ("image", label):
        if column not in table.column_names:
            raise UserError(
                f"{file} has columns {table.column_names}: expected 'image' and "
                f"{label!r}"
            )
    metadata = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = metadata.get("info", {}).get("features", {}).get(label, {})
    names = feature.get("names")

    def name_of(value: Any) -> str:
        if names is None:
            return str(value)
        if not 0 <= value < len(names):
            raise UserError(
                f"{file} holds label {value}, outside its {len(names)} class names"
            )
        return names[value]

    return name_of


def _encoded_bytes(file: Path, image: Any) -> bytes:
    encoded = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(encoded, bytes):
        raise UserError(
            f"{file} holds images that are not encoded bytes: save it with the images "
            "embedded"
        )
    return encoded
