"""Data sets prepared by TensorFlow Datasets (tfds), read without TensorFlow.

Files of array_record are read by its own library, and TFRecord files through an index
of offsets. tfds itself resolves sub-splits and features.
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
"""Name of the file that identifies a prepared data set."""


class PreparedSplit:
    """The examples of a split or sub-split, read by number, with images encoded.

    Attributes:
        features: tfds' features of an example.
    """

    def __init__(self, folder: Path, split: str):
        """Open `split`, such as "train" or "train[:800]+validation[:200]".

        Args:
            folder: The folder of `dataset_info.json`.
            split: A split expression of tfds. For one version of a data set, a
                sub-split has the same examples in every file format.

        Raises:
            UserError: The split does not exist, or the file format is neither
                array_record nor tfrecord.
        """
        import tensorflow_datasets as tfds  # takes a second to import

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
        """Return the examples of given numbers, with images as encoded bytes."""
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
        instructions = builder.info.splits[split].file_instructions
        for file_number, part in enumerate(instructions):
            file = RecordFile(Path(part.filename))
            count = len(file) - part.skip if part.take == -1 else part.take
            if part.skip + count > len(file):
                raise UserError(
                    f"{file.path} holds {len(file)} records, fewer than its {INFO} "
                    "says: prepare or copy the data set again"
                )
            self._files.append(file)
            rows = np.arange(part.skip, part.skip + count)
            numbers.append(np.stack([np.full(count, file_number), rows], 1))
        self._numbers = np.concatenate(numbers or [np.zeros((0, 2), int)])

    def __len__(self) -> int:
        return len(self._numbers)

    def read(self, indices: list[int]) -> list[dict[str, Any]]:
        return [self._read(*self._numbers[i]) for i in indices]

    def _read(self, file_number: int, row: int) -> dict[str, Any]:
        (record,) = self._files[file_number].read([row])
        return self._features.deserialize_example_np(record, decoders=self._skip)


_READERS: dict[str, Any] = {"array_record": _ArrayRecords, "tfrecord": _TFRecords}


def find_prepared(root: str | Path, name: str, version: str = "") -> Path:
    """Return the folder of the newest version of a prepared data set.

    Args:
        root: tfds' `data_dir`.
        name: `name` or `name/config`.
        version: Required beginning of the version, such as "3"; empty for any.

    Raises:
        UserError: There is none; the message has the command that prepares it.
    """
    folders = _version_folders(root, name, version)
    if not folders:
        raise not_prepared(root, name, version)
    return max(folders, key=_version_numbers)


def is_prepared(root: str | Path, name: str, version: str = "") -> bool:
    """Return whether a version of a prepared data set exists; see `find_prepared`."""
    return bool(_version_folders(root, name, version))


def not_prepared(root: str | Path, name: str, version: str = "") -> UserError:
    """Return the error for a missing data set, with the command that prepares it."""
    of_version = f" of version {version}" if version else ""
    return UserError(
        f"{Path(root) / name} holds no data set prepared by tfds{of_version}: prepare "
        "it, on any machine with TensorFlow, by "
        f"`tfds build {name} --data_dir={root} --file_format=array_record`"
    )


def _version_folders(root: str | Path, name: str, version: str) -> list[Path]:
    base = Path(root).expanduser() / name
    return [path.parent for path in base.glob(f"{version}*/{INFO}")]


def _version_numbers(folder: Path) -> list[int]:
    return [int(x) if x.isdigit() else -1 for x in folder.name.split(".")]


def split_names(folder: Path) -> dict[str, int]:
    """Return split name → number of examples of a prepared data set."""
    info = json.loads((folder / INFO).read_text(encoding="utf-8"))
    return {
        split["name"]: sum(int(n) for n in split.get("shardLengths", ()))
        for split in info.get("splits", ())
    }


def prepared_classes(
    folder: Path, spec: ImageSpec, label: str = "label"
) -> tuple[dict[str, list[int]], Callable[[int], np.ndarray]]:
    """Return class name → example numbers over all splits, and `number -> image`.

    Labels are read once. Images are read when they are opened.

    Args:
        folder: The folder of `dataset_info.json`.
        spec: Size and form of the images.
        label: Name of the feature that holds the class.

    Raises:
        UserError: The data set lacks that feature, or images.
    """
    modified = (folder / INFO).stat().st_mtime_ns
    examples, classes = _examples_by_class(folder, label, modified)

    def open_image(number: int) -> np.ndarray:
        return open_feature(examples.read([number])[0]["image"], spec)

    return classes, open_image


@functools.lru_cache(maxsize=1)
def _examples_by_class(
    folder: Path, label: str, modified: int
) -> tuple[PreparedSplit, dict[str, list[int]]]:
    """Return the joined splits and class name → numbers, read once for all splits."""
    del modified  # part of the cache's key only
    examples = PreparedSplit(folder, "+".join(split_names(folder)))
    features = dict(examples.features.items())
    if "image" not in features or not hasattr(features.get(label), "int2str"):
        raise UserError(
            f"{folder} has features {sorted(features)}: expected an 'image' and class "
            f"labels in {label!r}"
        )
    classes: dict[str, list[int]] = {}
    for start in range(0, len(examples), _BATCH):
        numbers = range(start, min(start + _BATCH, len(examples)))
        for number, example in zip(numbers, examples.read(numbers), strict=True):
            name = features[label].int2str(int(example[label]))
            classes.setdefault(name, []).append(number)
    return examples, {name: classes[name] for name in sorted(classes)}


_BATCH = 1024


def open_feature(image: bytes | np.ndarray, spec: ImageSpec) -> np.ndarray:
    """Return the image `[*spec.shape]` uint8 of a feature: encoded bytes, or pixels."""
    return spec.open(image) if isinstance(image, bytes) else spec.fit(image)
