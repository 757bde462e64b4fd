"""Meta-Dataset's converted records, read in place; no TensorFlow, no conversion.

A source is a folder with `dataset_spec.json` and one `<class id>.tfrecords` a class.
Source: Triantafillou et al., "Meta-Dataset", ICLR 2020; Dumoulin et al., "Comparing
Transfer and Meta Learning Approaches on a Unified Few-Shot Classification Benchmark",
2021 (MD-v2); Bronskill et al. 2021 for what LITE trains on.
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
from lite_jax.errors import UserError, unknown_name


class Protocol(NamedTuple):
    """Which sources each split has, and whether ImageNet keeps its hierarchy."""

    train: tuple[str, ...]
    valid: tuple[str, ...]
    test: tuple[str, ...]
    hierarchy: bool


_SIX = ("omniglot", "aircraft", "cu_birds", "dtd", "quickdraw", "fungi")
_TRAIN = ("ilsvrc_2012", *_SIX)
_VALID = (*_SIX, "mscoco")
_TEST = (*_SIX, "traffic_sign", "mscoco")
PROTOCOLS = {
    "md-v2": Protocol(_TRAIN, _VALID, _TEST, hierarchy=True),
    "lite": Protocol((*_TRAIN, "mnist"), _VALID, _TEST, hierarchy=False),
}


def find_protocol(name: str) -> Protocol:
    """Return a protocol by name, or raise with the nearest known one."""
    if name not in PROTOCOLS:
        raise unknown_name("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]


def make_meta_dataset(
    root: str | Path,
    split: str,
    image_size: int = 84,
    *,
    protocol: str = "md-v2",
    sources: Sequence[str] = (),
    resize: str = "md",
) -> Mixture:
    """Return a split of Meta-Dataset, of whose sources every episode draws one.

    Under "md-v2", ImageNet's episodes follow its hierarchy, in which all 1000 classes
    are for training. Under "lite", as in the LITE paper's code, they are any of the
    1000 classes, and MNIST is an eighth source; this makes larger ways (27.6 on average
    in place of 18.3) of less similar classes.

    Args:
        root: The folder of the sources' folders.
        split: "train", "valid" or "test".
        image_size: Pixels a side.
        protocol: "md-v2" or "lite".
        sources: If given, only these of the protocol's.
        resize: The rule; see `make_resize`.

    Raises:
        UserError: An unknown protocol or source, or records that do not fit.
    """
    check_split(split)
    found = find_protocol(protocol)
    known = {name for part in (found.train, found.valid, found.test) for name in part}
    for name in sources:
        if name not in known:
            raise unknown_name(f"source of protocol {protocol}", name, known)
    names = [n for n in getattr(found, split) if not sources or n in sources]
    spec = ImageSpec(image_size, resize)
    return Mixture(
        {name: read_source(root, name, split, spec, found.hierarchy) for name in names}
    )


def read_source(
    root: str | Path,
    name: str,
    split: str,
    spec: ImageSpec,
    hierarchy: bool = True,
) -> RecordSource | PreparedRecords:
    """Return a split of one source, from records or as tfds prepared it.

    Args:
        root: The folder of the sources' folders, or tfds' `data_dir` with the source at
            `meta_dataset/<source>/<version>`.
        name: The source's; of `ilsvrc_2012`, records in `ilsvrc_2012_v2` come first
            where the hierarchy is kept.
        split: "train", "valid" or "test".
        spec: What becomes of the images.
        hierarchy: Without, all of ImageNet's classes are for training, and all meet.

    Raises:
        UserError: No such folder, an old or inconsistent spec, missing files, files
            that hold another number of images than the spec says, or broken ones.
    """
    folder = Path(root).expanduser() / name
    if name == "ilsvrc_2012" and hierarchy:
        second = folder.with_name("ilsvrc_2012_v2")
        folder = second if second.is_dir() else folder
    if not folder.is_dir():
        if is_prepared(root, f"meta_dataset/{name}"):
            prepared = find_prepared(root, f"meta_dataset/{name}")
            return read_prepared(prepared, split, spec, hierarchy, name)
        raise UserError(
            f"root={root} has no folder {name!r}: convert that source with "
            "Meta-Dataset's scripts, or leave it out of sources="
        )
    found = read_spec(folder)
    ids, groups = found.splits[split], found.groups[split]
    if name == "ilsvrc_2012":
        if hierarchy and len(found.splits["train"]) < len(found.class_names):
            raise UserError(
                f"{folder}: this is ImageNet's first split, and protocol md-v2 trains "
                "on all classes: convert ilsvrc_2012_v2, or set protocol=lite"
            )
        if not hierarchy:
            ids, groups = np.arange(len(found.class_names)), None
    if not len(ids):
        raise UserError(f"{folder} has no {split} classes: leave it out")
    files = _checked_files(folder, found, ids)
    return RecordSource(
        [found.class_names[i] for i in ids],
        [found.class_sizes[i] for i in ids],
        files,
        spec,
        groups,
    )


@dataclasses.dataclass(frozen=True)
class RecordSource:
    """Classes of images in one record file each."""

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
    """Return the image and the label of a record.

    Raises:
        UserError: It has not one `image` and one `label`, or no readable image.
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
