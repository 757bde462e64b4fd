"""Meta-Dataset's sources, read from its converted records without TensorFlow.

A source is a folder with `dataset_spec.json` and one `<class id>.tfrecords` a class, or
a data set prepared by tfds.

Source: Triantafillou et al., "Meta-Dataset", ICLR 2020; Dumoulin et al., "Comparing
Transfer and Meta Learning Approaches on a Unified Few-Shot Classification Benchmark",
2021 (MD-v2); Bronskill et al. 2021 for LITE's training sources.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from lite_jax.data.images import ImageSpec
from lite_jax.data.meta_dataset.spec import SPEC, DatasetSpec, read_spec
from lite_jax.data.meta_dataset.tfds import PreparedRecords, read_prepared
from lite_jax.data.readers.combined import Mixture
from lite_jax.data.readers.prepared import find_prepared, is_prepared
from lite_jax.data.readers.tfrecord import RecordFile, parse_example
from lite_jax.data.sources import Groups, check_split
from lite_jax.errors import UserError, pick, unknown_name


class Protocol(NamedTuple):
    """The sources of each split, and whether ImageNet's episodes use its hierarchy."""

    train: tuple[str, ...]
    valid: tuple[str, ...]
    test: tuple[str, ...]
    hierarchy: bool


_SIX = ("omniglot", "aircraft", "cu_birds", "dtd", "quickdraw", "fungi")
_TRAIN = ("ilsvrc_2012", *_SIX)
_VALID = (*_SIX, "mscoco")
_TEST = (*_SIX, "traffic_sign", "mscoco")
META_DATASET_PROTOCOLS = {
    "md-v2": Protocol(_TRAIN, _VALID, _TEST, hierarchy=True),
    "lite": Protocol((*_TRAIN, "mnist"), _VALID, _TEST, hierarchy=False),
}


def find_meta_dataset_protocol(name: str) -> Protocol:
    """Return the protocol with the given name.

    Raises:
        UserError: `name` is unknown; the message suggests the nearest known name.
    """
    return pick("protocol", name, META_DATASET_PROTOCOLS)


def make_meta_dataset(
    root: str | Path,
    split: str,
    image_size: int = 84,
    *,
    protocol: str = "md-v2",
    sources: Sequence[str] = (),
    resize: str = "md",
) -> Mixture:
    """Return a split of Meta-Dataset, in which an episode's classes share a source.

    Under "md-v2", ImageNet's episodes follow its hierarchy, and all of its 1000 classes
    are training classes. Under "lite", as in the LITE paper's code, they draw from all
    1000 classes, and MNIST is an eighth training source. The ways under "lite" are
    larger (27.6 instead of 18.3 on average), and the classes less similar.

    Args:
        root: The folder of the sources' folders.
        split: "train", "valid" or "test".
        image_size: Pixels a side.
        protocol: "md-v2" or "lite".
        sources: Names of the sources to use; empty for all of the protocol's.
        resize: Name of the resize rule; see `make_resize`.

    Raises:
        UserError: The protocol or a source is unknown, or a source cannot be read.
    """
    check_split(split)
    rules = find_meta_dataset_protocol(protocol)
    known = {name for part in (rules.train, rules.valid, rules.test) for name in part}
    for name in sources:
        if name not in known:
            raise unknown_name(f"source of protocol {protocol}", name, known)
    names = [n for n in getattr(rules, split) if not sources or n in sources]
    spec = ImageSpec(image_size, resize)
    return Mixture(
        {name: read_source(root, name, split, spec, rules.hierarchy) for name in names}
    )


def read_source(
    root: str | Path,
    name: str,
    split: str,
    spec: ImageSpec,
    hierarchy: bool = True,
) -> RecordSource | PreparedRecords:
    """Return a split of one source, from its records or as prepared by tfds.

    Args:
        root: The folder of the sources' folders, or tfds' `data_dir` with the source at
            `meta_dataset/<source>/<version>`.
        name: Name of the source. `ilsvrc_2012` with its hierarchy is read from the
            folder `ilsvrc_2012_v2` if that exists.
        split: "train", "valid" or "test".
        spec: Size and form of the images.
        hierarchy: Whether ImageNet's episodes follow its hierarchy. If not, its classes
            may all meet, and with records, any split has all classes.

    Raises:
        UserError: The folder does not exist, its spec is old or inconsistent, or a file
            is missing, is broken or holds another number of images than the spec says.
    """
    folder = Path(root).expanduser() / name
    if name == "ilsvrc_2012" and hierarchy:
        version_2 = folder.with_name("ilsvrc_2012_v2")
        folder = version_2 if version_2.is_dir() else folder
    if not folder.is_dir():
        if is_prepared(root, f"meta_dataset/{name}"):
            prepared = find_prepared(root, f"meta_dataset/{name}")
            return read_prepared(prepared, split, spec, hierarchy, name)
        raise UserError(
            f"root={root} has no folder {name!r}: convert that source with "
            "Meta-Dataset's scripts, or leave it out of sources="
        )
    dataset = read_spec(folder)
    ids, groups = dataset.splits[split], dataset.groups[split]
    if name == "ilsvrc_2012":
        if hierarchy and len(dataset.splits["train"]) < len(dataset.class_names):
            raise UserError(
                f"{folder}: this is ImageNet's first split, and protocol md-v2 trains "
                "on all classes: convert ilsvrc_2012_v2, or set protocol=lite"
            )
        if not hierarchy:
            ids, groups = np.arange(len(dataset.class_names)), None
    if not len(ids):
        raise UserError(f"{folder} has no {split} classes: leave it out")
    files = _checked_files(folder, dataset, ids)
    return RecordSource(
        [dataset.class_names[i] for i in ids],
        [dataset.class_sizes[i] for i in ids],
        files,
        spec,
        groups,
    )


@dataclasses.dataclass(frozen=True)
class RecordSource:
    """Classes whose images lie in one record file each.

    Attributes:
        class_names: Name of each class.
        class_sizes: Number of images of each class.
        files: Record file of each class.
        spec: Size and form of the images.
        groups: Groups of classes that may meet in an episode; None if all may.
    """

    class_names: Sequence[str]
    class_sizes: Sequence[int]
    files: Sequence[RecordFile]
    spec: ImageSpec
    groups: Groups | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)`."""
        return self.spec.shape

    def read(self, class_index: int, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return images `[len(indices), height, width, channels]` uint8."""
        file = self.files[class_index]
        records = file.read(indices)
        return np.stack(
            [
                open_record(record, self.spec, file.path, int(i))[0]
                for i, record in zip(indices, records, strict=True)
            ]
        )


def open_record(
    record: bytes, spec: ImageSpec, path: Path, number: int
) -> tuple[np.ndarray, int]:
    """Return the image `[*spec.shape]` uint8 and the label of a record.

    Args:
        record: A serialised `tf.train.Example`.
        spec: Size and form of the image.
        path: File of the record, for the error message.
        number: Number of the record in the file, for the error message.

    Raises:
        UserError: The record does not hold one `image` and one `label`, or the image
            cannot be read.
    """
    try:
        features = parse_example(record)
        (encoded,), (label,) = features["image"], features["label"]
        if not isinstance(encoded, bytes):
            raise ValueError("its image is a number")
        return spec.open(encoded), int(label)
    except KeyError as error:
        reason = f"it has no feature {error}"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error)
    raise UserError(
        f"{path}: record {number} cannot be read ({reason}): convert the file again"
    )


def _checked_files(
    folder: Path, spec: DatasetSpec, ids: Iterable[int]
) -> list[RecordFile]:
    files = []
    bar = tqdm(list(ids), f"indexing {folder.name}", unit="class", delay=2, leave=False)
    for i in bar:
        path = folder / f"{i}.tfrecords"
        if not path.is_file():
            raise UserError(
                f"{path} is missing, and {folder / SPEC} lists its class "
                f"{spec.class_names[i]!r}: copy or convert it again"
            )
        file = RecordFile(path, index_folder=folder / ".offsets")
        if len(file) != spec.class_sizes[i]:
            raise UserError(
                f"{path} holds {len(file)} images, and {folder / SPEC} says "
                f"{spec.class_sizes[i]}: take the spec that was written with the "
                "records, or convert them again"
            )
        files.append(file)
    return files
