"""Data sets prepared by TensorFlow Datasets, read by number and without TensorFlow.

Both file formats are read: array_record by its own library, and TFRecord through an
index of offsets. tfds itself resolves versions, sub-splits and features.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lite_jax.data.images import ImageSpec
from lite_jax.data.readers.tfrecord import RecordFile
from lite_jax.errors import UserError

INFO = "dataset_info.json"
"""The file by which a prepared data set is known."""


class PreparedSplit:
    """Examples of one split or sub-split, by number.

    Images are left encoded: they are bytes in what `read` returns.
    """

    def __init__(self, folder: Path, split: str):
        """Open `split`, such as "train" or "train[:800]+validation[:200]".

        Args:
            folder: Where `dataset_info.json` is.
            split: An expression in tfds' language; sub-splits are the same examples
                for a given version of a data set, whatever the file format.

        Raises:
            UserError: No such split, or a file format other than array_record and
                tfrecord.
        """
        import tensorflow_datasets as tfds  # takes a second

        builder = tfds.builder_from_directory(folder)
        self.features = builder.info.features
        self._skip = {
            name: tfds.decode.SkipDecoding()
            for name, feature in self.features.items()
            if isinstance(feature, tfds.features.Image)
        }
        kind = builder.info.file_format.value
        if kind not in _READERS:
            raise UserError(
                f"{folder} is in file format {kind!r}, whose sub-splits cannot be read "
                "without TensorFlow: prepare it as array_record or tfrecord"
            )
        try:
            self._records = _READERS[kind](builder, split, self._skip)
        except UserError:
            raise
        except (KeyError, ValueError) as error:
            sizes = {k: v.num_examples for k, v in builder.info.splits.items()}
            raise UserError(
                f"{folder} cannot give split {split!r} ({error}); it holds {sizes}"
            ) from error

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self._records)

    def read(self, indices: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """Return examples by number; images as encoded bytes."""
        return self._records.read([int(i) for i in indices])


class _ArrayRecords:
    def __init__(self, builder: Any, split: str, skip: dict[str, Any]):
        self._source = builder.as_data_source(split, decoders=skip)

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: list[int]) -> list[dict[str, Any]]:
        return self._source.__getitems__(indices)


class _TFRecords:
    def __init__(self, builder: Any, split: str, skip: dict[str, Any]):
        self._features, self._skip = builder.info.features, skip
        self._files, numbers = [], []
        for place, part in enumerate(builder.info.splits[split].file_instructions):
            file = RecordFile(Path(part.filename))
            taken = len(file) - part.skip if part.take == -1 else part.take
            if part.skip + taken > len(file):
                raise UserError(
                    f"{file.path} holds {len(file)} records, fewer than its {INFO} "
                    "says: prepare or copy the data set again"
                )
            self._files.append(file)
            rows = np.arange(part.skip, part.skip + taken)
            numbers.append(np.stack([np.full(taken, place), rows], 1))
        self._numbers = np.concatenate(numbers or [np.zeros((0, 2), int)])

    def __len__(self) -> int:
        return len(self._numbers)

    def read(self, indices: list[int]) -> list[dict[str, Any]]:
        return [self._read(*self._numbers[i]) for i in indices]

    def _read(self, place: int, row: int) -> dict[str, Any]:
        (record,) = self._files[place].read([row])
        return self._features.deserialize_example_np(record, decoders=self._skip)


_READERS: dict[str, Any] = {"array_record": _ArrayRecords, "tfrecord": _TFRecords}


def find_prepared(root: str | Path, name: str, version: str = "") -> Path:
    """Return the folder of a prepared data set, of the newest version there is.

    Args:
        root: tfds' `data_dir`.
        name: `name` or `name/config`.
        version: If given, how the version must begin, such as "3".

    Raises:
        UserError: It is not there; the message has the command that prepares it.
    """
    found = _versions(root, name, version)
    if not found:
        raise not_prepared(root, name, version)
    return max(found, key=_version)


def is_prepared(root: str | Path, name: str, version: str = "") -> bool:
    """Return whether `find_prepared` finds something."""
    return bool(_versions(root, name, version))


def not_prepared(root: str | Path, name: str, version: str = "") -> UserError:
    """Return the error with the command that prepares a data set."""
    wanted = f" of version {version}" if version else ""
    return UserError(
        f"{Path(root) / name} holds no data set prepared by tfds{wanted}: prepare it, "
        "on any machine with TensorFlow, by "
        f"`tfds build {name} --data_dir={root} --file_format=array_record`"
    )


def _versions(root: str | Path, name: str, version: str) -> list[Path]:
    base = Path(root).expanduser() / name
    return [path.parent for path in base.glob(f"{version}*/{INFO}")]


def _version(folder: Path) -> list[int]:
    return [int(x) if x.isdigit() else -1 for x in folder.name.split(".")]


def split_names(folder: Path) -> dict[str, int]:
    """Return the splits of a prepared data set with their numbers of examples."""
    found = json.loads((folder / INFO).read_text(encoding="utf-8"))
    return {
        split["name"]: sum(int(n) for n in split.get("shardLengths", ()))
        for split in found.get("splits", ())
    }


def prepared_classes(
    folder: Path, spec: ImageSpec, label: str = "label"
) -> tuple[dict[str, list[int]], Callable[[int], np.ndarray]]:
    """Return class name → example numbers over all splits, and how one is opened.

    Labels are read once, images stay encoded until they are opened.

    Args:
        folder: Where `dataset_info.json` is.
        spec: What becomes of the images.
        label: The feature that holds the class.

    Raises:
        UserError: The data set has no such label, or no image.
    """
    changed = (folder / INFO).stat().st_mtime_ns
    everything, classes = _by_label(folder, label, changed)

    def open_image(number: int) -> np.ndarray:
        return open_feature(everything.read([number])[0]["image"], spec)

    return classes, open_image


@functools.lru_cache(maxsize=1)
def _by_label(
    folder: Path, label: str, changed: int
) -> tuple[PreparedSplit, dict[str, list[int]]]:
    """Return all splits as one, and class name → numbers; read once for all three."""
    del changed  # another time, another data set
    everything = PreparedSplit(folder, "+".join(split_names(folder)))
    features = dict(everything.features.items())
    if "image" not in features or not hasattr(features.get(label), "int2str"):
        raise UserError(
            f"{folder} has features {sorted(features)}: expected an 'image' and class "
            f"labels in {label!r}"
        )
    classes: dict[str, list[int]] = {}
    for start in range(0, len(everything), _BATCH):
        numbers = range(start, min(start + _BATCH, len(everything)))
        for number, example in zip(numbers, everything.read(numbers), strict=True):
            name = features[label].int2str(int(example[label]))
            classes.setdefault(name, []).append(number)
    return everything, {name: classes[name] for name in sorted(classes)}


_BATCH = 1024


def open_feature(image: bytes | np.ndarray, spec: ImageSpec) -> np.ndarray:
    """Return the image of a feature: encoded, or an array of pixels."""
    return spec.open(image) if isinstance(image, bytes) else spec.fit(image)
