"""Readers of Meta-Dataset's `dataset_spec.json`, of its three kinds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lite_jax.data.sources import SPLITS, Groups, equal_groups
from lite_jax.errors import MALFORMED, UserError, unknown_name

MOST_LEAVES = 392
"""Largest number of leaves of an ImageNet node that an episode may draw."""
SPEC = "dataset_spec.json"
_NAMES = {"train": "TRAIN", "valid": "VALID", "test": "TEST"}


class DatasetSpec(NamedTuple):
    """The content of a `dataset_spec.json`.

    Attributes:
        class_names: Name of each class, by class id.
        class_sizes: Number of images of each class, by class id.
        splits: Class ids of "train", "valid" and "test".
        groups: For each split, the groups of classes that may meet in an episode, as
            positions in the split's class ids; None if all may.
    """

    class_names: list[str]
    class_sizes: list[int]
    splits: dict[str, np.ndarray]
    groups: dict[str, Groups | None]


def read_spec(folder: Path) -> DatasetSpec:
    """Return the spec of a source's folder.

    Raises:
        UserError: The spec is missing, pickled, malformed or inconsistent.
    """
    path = folder / SPEC
    if not path.is_file():
        if path.with_suffix(".pkl").is_file():
            raise UserError(
                f"{path.with_suffix('.pkl')} is an old pickled spec, and reading one "
                f"runs code: put the source's {SPEC} in its place (Meta-Dataset's "
                "repository has them under dataset_conversion/dataset_specs)"
            )
        raise UserError(f"{folder} has no {SPEC}: convert the source again")
    try:
        return parse_spec(json.loads(path.read_text(encoding="utf-8")))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except KeyError as error:
        raise UserError(f"{path} lacks {error}: convert the source again") from error
    except MALFORMED as error:
        raise UserError(
            f"{path} is no dataset spec ({error}): convert the source again"
        ) from error


def parse_spec(found: Mapping[str, Any]) -> DatasetSpec:
    """Return the spec of decoded JSON, of any of Meta-Dataset's three kinds.

    Args:
        found: The decoded `dataset_spec.json`.

    Raises:
        UserError: The kind is unknown, or the spec is inconsistent or not supported.
    """
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


def _flat_spec(content: Mapping[str, Any], names: list[str]) -> DatasetSpec:
    counts = {k: content["classes_per_split"][v] for k, v in _NAMES.items()}
    no_groups: dict[str, Groups | None] = dict.fromkeys(SPLITS)
    _check_counts(counts.values(), len(names), "the splits have {} classes")
    splits = _consecutive_ids(counts)
    return DatasetSpec(names, _class_sizes(content, names), splits, no_groups)


def _bilevel_spec(content: Mapping[str, Any], names: list[str]) -> DatasetSpec:
    """Return a spec whose classes are sorted by superclass, and those by split."""
    sizes = [
        content["classes_per_superclass"][str(i)]
        for i in range(len(content["classes_per_superclass"]))
    ]
    counts = {k: content["superclasses_per_split"][v] for k, v in _NAMES.items()}
    _check_counts(sizes, len(names), "the superclasses have {} classes")
    _check_counts(counts.values(), len(sizes), "the splits have {} superclasses")
    splits, groups = {}, {}
    ends = np.cumsum([0, *sizes])
    for split, superclasses in _consecutive_ids(counts).items():
        first = ends[superclasses[0]] if len(superclasses) else 0
        members = [np.arange(ends[i], ends[i + 1]) - first for i in superclasses]
        splits[split] = first + np.arange(sum(map(len, members)))
        groups[split] = equal_groups(members) if members else None
    return DatasetSpec(names, _class_sizes(content, names), splits, groups)


def _hierarchical_spec(content: Mapping[str, Any], names: list[str]) -> DatasetSpec:
    ids = {name: i for i, name in enumerate(names)}
    sizes, splits, groups = np.zeros(len(names), int), {}, {}
    for split, name in _NAMES.items():
        graph = content["split_subgraphs"][name]
        nodes = {node["wn_id"]: node["children_ids"] for node in graph}
        leaves = [wn_id for wn_id, children in nodes.items() if not children]
        unknown = [leaf for leaf in leaves if leaf not in ids]
        if unknown:
            raise UserError(f"leaf {unknown[0]} of {name} is not among class_names")
        splits[split] = np.sort([ids[leaf] for leaf in leaves]).astype(int)
        for leaf in leaves:
            sizes[ids[leaf]] = content["images_per_class"][name][leaf]
        positions = {int(i): position for position, i in enumerate(splits[split])}
        spans = spanned_leaves(nodes)
        members = [
            np.sort([positions[ids[leaf]] for leaf in spans[wn_id]])
            for wn_id, children in nodes.items()
            if children and len(spans[wn_id]) <= MOST_LEAVES
        ]
        groups[split] = equal_groups(members, whole=True) if members else None
    return DatasetSpec(names, sizes.tolist(), splits, groups)


_KINDS: dict[str, Callable[[Mapping[str, Any], list[str]], DatasetSpec]] = {
    "DatasetSpecification": _flat_spec,
    "BiLevelDatasetSpecification": _bilevel_spec,
    "HierarchicalDatasetSpecification": _hierarchical_spec,
}


def spanned_leaves(children: Mapping[str, Sequence[str]]) -> dict[str, set[str]]:
    """Return the set of leaves below each node of a directed acyclic graph.

    The set of a leaf holds the leaf itself.

    Args:
        children: Node → its children, without any for a leaf.

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


def _class_sizes(content: Mapping[str, Any], names: list[str]) -> list[int]:
    counts = content["images_per_class"]
    sizes = [counts[str(i)] for i in range(len(names))]
    if not all(isinstance(size, int) for size in sizes):
        raise UserError("images_per_class counts pools, which are not supported")
    return sizes


def _check_counts(counts: Iterable[Any], total: int, phrase: str) -> None:
    """Raise unless the counts are whole numbers from 0 whose sum is `total`.

    The check comes before arrays of these sizes are allocated.
    """
    counts = list(counts)
    if not all(isinstance(n, int) and n >= 0 for n in counts):
        raise UserError(f"{phrase.format(counts)}: expected whole numbers from 0")
    if sum(counts) != total:
        raise UserError(f"{phrase.format(sum(counts))}, and {total} have names")


def _consecutive_ids(counts: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Return `counts[split]` numbers for each split, consecutive from 0."""
    ends = np.cumsum([0, *counts.values()])
    return {k: np.arange(*ends[i : i + 2]) for i, k in enumerate(counts)}
