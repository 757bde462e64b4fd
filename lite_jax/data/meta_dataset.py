"""Meta-Dataset's converted records, read in place; no TensorFlow, no conversion.

A source is a folder with `dataset_spec.json` and one `<class id>.tfrecords` a class.
Source: Triantafillou et al., "Meta-Dataset", ICLR 2020; Dumoulin et al., "Comparing
Transfer and Meta Learning Approaches on a Unified Few-Shot Classification Benchmark",
2021 (MD-v2); Bronskill et al. 2021 for what LITE trains on.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from lite_jax.data.combined import Mixture
from lite_jax.data.images import ImageSpec
from lite_jax.data.sources import (
    SPLITS,
    Groups,
    check_split,
    equal_groups,
)
from lite_jax.data.tfrecord import RecordFile, parse_example
from lite_jax.errors import UserError, unknown_name

MOST_LEAVES = 392
"""ImageNet's nodes that span more leaves are never drawn."""


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
        raise unknown_name("data.protocol", name, PROTOCOLS)
    return PROTOCOLS[name]


class DatasetSpec(NamedTuple):
    """What `dataset_spec.json` says.

    Attributes:
        class_names: One a class; the place in the list is the class id.
        class_sizes: Images of each class.
        splits: Class ids of "train", "valid" and "test".
        groups: For each split, which classes may meet, by their places in the split;
            None for all.
    """

    class_names: list[str]
    class_sizes: list[int]
    splits: dict[str, np.ndarray]
    groups: dict[str, Groups | None]


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
) -> RecordSource:
    """Return a split of one source.

    Args:
        root: The folder of the sources' folders.
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
        raise UserError(
            f"data.root={root} has no folder {name!r}: convert that source with "
            "Meta-Dataset's scripts, or leave it out of data.sources"
        )
    found = read_spec(folder)
    ids, groups = found.splits[split], found.groups[split]
    if name == "ilsvrc_2012":
        if hierarchy and len(found.splits["train"]) < len(found.class_names):
            raise UserError(
                f"{folder}: this is ImageNet's first split, and protocol md-v2 trains "
                "on all classes: convert ilsvrc_2012_v2, or set data.protocol=lite"
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
                f"{path} is missing, and {folder / _SPEC} lists its class "
                f"{spec.class_names[i]!r}: copy or convert it again"
            )
        file = RecordFile(path, index_folder=folder / ".offsets")
        if len(file) != spec.class_sizes[i]:
            raise UserError(
                f"{path} holds {len(file)} images, and {folder / _SPEC} says "
                f"{spec.class_sizes[i]}: take the spec that was written with the "
                "records, or convert them again"
            )
        files.append(file)
    return files


# --------------------------------------------------------------------------- specs

_SPEC = "dataset_spec.json"
_NAMES = {"train": "TRAIN", "valid": "VALID", "test": "TEST"}


def read_spec(folder: Path) -> DatasetSpec:
    """Return the spec of a source's folder.

    Raises:
        UserError: No spec, a pickled one, an unknown kind, or contradictions in it.
    """
    path = folder / _SPEC
    if not path.is_file():
        if path.with_suffix(".pkl").is_file():
            raise UserError(
                f"{path.with_suffix('.pkl')} is an old pickled spec, and reading one "
                f"runs code: put the source's {_SPEC} in its place (Meta-Dataset's "
                "repository has them under dataset_conversion/dataset_specs)"
            )
        raise UserError(f"{folder} has no {_SPEC}: convert the source again")
    try:
        return parse_spec(json.loads(path.read_text(encoding="utf-8")))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except KeyError as error:
        raise UserError(f"{path} lacks {error}: convert the source again") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is no dataset spec ({error}): convert the source again"
        ) from error


def parse_spec(found: Mapping[str, Any]) -> DatasetSpec:
    """Return the spec of the decoded JSON, of any of Meta-Dataset's three kinds."""
    kind = found["__class__"]
    if kind not in _KINDS:
        raise unknown_name("kind of spec", kind, _KINDS)
    if found.get("file_pattern", "{}.tfrecords") != "{}.tfrecords":
        raise UserError(
            f"file_pattern={found['file_pattern']!r} is not supported: expected one "
            "file a class, {}.tfrecords"
        )
    names = {int(k): str(v) for k, v in found["class_names"].items()}
    if sorted(names) != list(range(len(names))):
        raise UserError("class ids are not 0, 1, 2, …")
    spec = _KINDS[kind](found, [names[i] for i in range(len(names))])
    total = sum(map(len, spec.splits.values()))
    if total != len(names):
        raise UserError(f"the splits have {total} classes, and {len(names)} have names")
    return spec


def _flat(found: Mapping[str, Any], names: list[str]) -> DatasetSpec:
    counts = {k: found["classes_per_split"][v] for k, v in _NAMES.items()}
    no_groups: dict[str, Groups | None] = dict.fromkeys(SPLITS)
    return DatasetSpec(names, _sizes(found, names), _in_turn(counts), no_groups)


def _bilevel(found: Mapping[str, Any], names: list[str]) -> DatasetSpec:
    """Classes stand superclass after superclass, and those split after split."""
    sizes = [
        found["classes_per_superclass"][str(i)]
        for i in range(len(found["classes_per_superclass"]))
    ]
    counts = {k: found["superclasses_per_split"][v] for k, v in _NAMES.items()}
    splits, groups = {}, {}
    ends = np.cumsum([0, *sizes])
    for split, members in _in_turn(counts).items():
        first = ends[members[0]] if len(members) else 0
        inside = [np.arange(ends[i], ends[i + 1]) - first for i in members]
        splits[split] = first + np.arange(sum(map(len, inside)))
        groups[split] = equal_groups(inside) if inside else None
    return DatasetSpec(names, _sizes(found, names), splits, groups)


def _hierarchical(found: Mapping[str, Any], names: list[str]) -> DatasetSpec:
    ids = {name: i for i, name in enumerate(names)}
    sizes, splits, groups = np.zeros(len(names), int), {}, {}
    for split, name in _NAMES.items():
        nodes = {n["wn_id"]: n["children_ids"] for n in found["split_subgraphs"][name]}
        leaves = [wn_id for wn_id, children in nodes.items() if not children]
        unknown = [leaf for leaf in leaves if leaf not in ids]
        if unknown:
            raise UserError(f"leaf {unknown[0]} of {name} is not among class_names")
        splits[split] = np.sort([ids[leaf] for leaf in leaves]).astype(int)
        for leaf in leaves:
            sizes[ids[leaf]] = found["images_per_class"][name][leaf]
        places = {int(i): place for place, i in enumerate(splits[split])}
        spans = spanned_leaves(nodes)
        members = [
            np.sort([places[ids[leaf]] for leaf in spans[wn_id]])
            for wn_id, children in nodes.items()
            if children and len(spans[wn_id]) <= MOST_LEAVES
        ]
        groups[split] = equal_groups(members, whole=True) if members else None
    return DatasetSpec(names, sizes.tolist(), splits, groups)


_KINDS: dict[str, Callable[[Mapping[str, Any], list[str]], DatasetSpec]] = {
    "DatasetSpecification": _flat,
    "BiLevelDatasetSpecification": _bilevel,
    "HierarchicalDatasetSpecification": _hierarchical,
}


def spanned_leaves(children: Mapping[str, Sequence[str]]) -> dict[str, set[str]]:
    """Return the leaves below each node of a directed acyclic graph; of a leaf, itself.

    >>> spans = spanned_leaves({"a": ["b", "c"], "b": ["d", "e"], "c": ["e"],
    ...                         "d": [], "e": []})
    >>> sorted(spans["a"]), sorted(spans["c"])
    (['d', 'e'], ['e'])
    """
    spans: dict[str, set[str]] = {}

    def span(node: str) -> set[str]:
        if node not in spans:
            below = [span(child) for child in children[node]]
            spans[node] = set().union(*below) if below else {node}
        return spans[node]

    for node in children:
        span(node)
    return spans


def _sizes(found: Mapping[str, Any], names: list[str]) -> list[int]:
    counts = found["images_per_class"]
    sizes = [counts[str(i)] for i in range(len(names))]
    if not all(isinstance(size, int) for size in sizes):
        raise UserError("images_per_class counts pools, which are not supported")
    return sizes


def _in_turn(counts: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Return numbers 0, 1, 2, … dealt out to the splits, train first."""
    ends = np.cumsum([0, *counts.values()])
    return {k: np.arange(*ends[i : i + 2]) for i, k in enumerate(counts)}
