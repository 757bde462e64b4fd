"""Tables of images as Hugging Face stores them: parquet, one or more files a split."""

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
    """Return the classes of parquet files, all of whose splits are joined.

    A row has `image`, which holds encoded `bytes`, and a label, whose names stand in
    the file's Hugging Face metadata; without them the numbers are the names. The
    classes are then dealt out to "train", "valid" and "test", since the splits of such
    files have the same classes. The encoded images stay in memory.

    Args:
        root: A file, or a folder that has `*.parquet` files at any depth.
        split: "train", "valid" or "test".
        spec: What becomes of the images.
        label: The column of classes.
        class_list: Which classes a split has; see `lite_jax.data.class_lists`.
        cache_gb: As in `folder`.

    Raises:
        UserError: No such files, or other columns.
    """
    check_split(split)
    path = Path(root).expanduser()
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    if not files:
        raise UserError(f"root={root} has no .parquet files")
    found = tuple((file, file.stat().st_mtime_ns) for file in files)
    classes, encoded = _read(found, label)
    chosen = classes_of_split(classes, split, class_list, f"root={root}")

    def open_row(row: int) -> np.ndarray:
        return spec.open(encoded[row])

    return item_source(chosen, open_row, spec.shape, cache_gb)


@functools.lru_cache(maxsize=1)
def _read(
    files: tuple[tuple[Path, int], ...], label: str
) -> tuple[dict[str, list[int]], list[bytes]]:
    """Return class name → rows, and all rows' images; three splits read them once."""
    import pyarrow
    import pyarrow.parquet  # of the dependencies of tensorflow-datasets

    encoded: list[bytes] = []
    classes: dict[str, list[int]] = {}
    for file, _ in files:
        try:
            table = pyarrow.parquet.read_table(file)
        except pyarrow.ArrowInvalid as error:
            raise UserError(f"{file} is no parquet file ({error})") from error
        name_of = _namer(file, table, label)
        rows = zip(table["image"].to_pylist(), table[label].to_pylist(), strict=True)
        for image, number in rows:
            classes.setdefault(name_of(number), []).append(len(encoded))
            encoded.append(_bytes(file, image))
    return {name: classes[name] for name in sorted(classes)}, encoded


def _namer(file: Path, table: Any, label: str) -> Callable[[Any], str]:
    """Return `label -> class name`, from the names in the table's metadata if any."""
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


def _bytes(file: Path, image: Any) -> bytes:
    held = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(held, bytes):
        raise UserError(
            f"{file} holds images that are not encoded bytes: save it with the images "
            "embedded"
        )
    return held
