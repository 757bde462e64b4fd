"""Meta-Dataset's sources as prepared by TensorFlow Datasets (tfds).

A source is one split of examples, sorted by class. `metadata.json` beside the shards
gives, for Meta-Dataset's versions v1 and v2, the slice of each meta-split
(`meta_split_slices`), the slice of each class within it (`relative_class_slices`), and
the source's `dataset_specs`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lite_jax.data.images import ImageSpec
from lite_jax.data.meta_dataset.spec import DatasetSpec, parse_spec
from lite_jax.data.readers.prepared import PreparedSplit, open_feature
from lite_jax.data.sources import Groups
from lite_jax.errors import UserError

_VERSION = "v2"  # of ImageNet's split; the other sources' is the same in v1


@dataclasses.dataclass(frozen=True)
class PreparedRecords:
    """Classes that are slices of one prepared split.

    Attributes:
        class_names: Name of each class.
        slices: First and past-the-end example number of each class, `[classes, 2]`.
        examples: The prepared split.
        spec: Size and form of the images.
        groups: Groups of classes that may meet in an episode; None if all may.
    """

    class_names: Sequence[str]
    slices: np.ndarray
    examples: PreparedSplit
    spec: ImageSpec
    groups: Groups | None = None

    @property
    def class_sizes(self) -> list[int]:
        """Number of images of each class."""
        return (self.slices[:, 1] - self.slices[:, 0]).tolist()

    @property
    def image_shape(self) -> tuple[int, ...]:
        """`(height, width, channels)`."""
        return self.spec.shape

    def read(self, class_index: int, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return images `[len(indices), height, width, channels]` uint8."""
        numbers = self.slices[class_index, 0] + np.asarray(indices, int)
        examples = self.examples.read(numbers)
        return np.stack([open_feature(x["image"], self.spec) for x in examples])


def read_prepared(
    folder: Path, split: str, spec: ImageSpec, hierarchy: bool, name: str
) -> PreparedRecords:
    """Return a meta-split of a prepared source.

    Args:
        folder: The folder of `dataset_info.json`.
        split: "train", "valid" or "test".
        spec: Size and form of the images.
        hierarchy: Whether ImageNet's episodes follow its hierarchy; if not, all of its
            classes in the split may meet.
        name: Name of the source.

    Raises:
        UserError: The metadata is missing, malformed, or contradicts the labels.
    """
    path = folder / "metadata.json"
    if not path.is_file():
        raise UserError(f"{path} is missing: prepare the source again")
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
        dataset = _dataset_spec(metadata["dataset_specs"][_VERSION])
        start, stop = metadata["meta_split_slices"][_VERSION][split]
        relative = _class_slices(metadata["relative_class_slices"][_VERSION][split])
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path} is not Meta-Dataset's ({error}): prepare the source again"
        ) from error
    ids, groups = dataset.splits[split], dataset.groups[split]
    if len(relative) != len(ids):
        raise UserError(
            f"{path} has slices of {len(relative)} {split} classes, and its spec "
            f"{len(ids)}: prepare the source again"
        )
    if not len(ids):
        raise UserError(f"{folder} has no {split} classes: leave it out")
    examples = PreparedSplit(folder, "all_classes")
    slices = start + relative
    if slices.max() > min(stop, len(examples)):
        raise UserError(
            f"{path} places classes up to example {slices.max()}, and {split} ends at "
            f"{min(stop, len(examples))}: prepare the source again"
        )
    _check_labels(path, examples, slices)
    if name == "ilsvrc_2012" and not hierarchy:
        groups = None
    names = [dataset.class_names[i] for i in ids]
    return PreparedRecords(names, slices, examples, spec, groups)


def _dataset_spec(content: Any) -> DatasetSpec:
    return parse_spec(json.loads(content) if isinstance(content, str) else content)


def _class_slices(content: Any) -> np.ndarray:
    """Return slices `[classes, 2]` from a list, or from a mapping of class numbers."""
    if isinstance(content, Mapping):
        content = [content[str(i)] for i in range(len(content))]
    return np.array(content, int).reshape(-1, 2)


def _check_labels(path: Path, examples: PreparedSplit, slices: np.ndarray) -> None:
    """Raise unless each slice begins and ends with one label, which no other slice has.

    Slices that are off by one fail this check.
    """
    ends = np.stack([slices[:, 0], slices[:, 1] - 1], 1)
    labels = np.array([int(x["label"]) for x in examples.read(ends.ravel())])
    labels = labels.reshape(ends.shape)
    wrong = np.flatnonzero(labels[:, 0] != labels[:, 1])
    if len(wrong) or len(np.unique(labels[:, 0])) < len(labels):
        number = wrong[0] if len(wrong) else 0
        raise UserError(
            f"{path}: the slice of class {number}, {slices[number].tolist()}, holds "
            "other classes too: prepare the source again"
        )
