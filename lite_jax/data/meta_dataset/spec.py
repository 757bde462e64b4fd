"""What Meta-Dataset's `dataset_spec.json` says, of its three kinds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lite_jax.data.sources import SPLITS, Groups, equal_groups
from lite_jax.errors import MALFORMED, UserError, unknown_name

MOST_LEAVES = 392
"""ImageNet's nodes that span more leaves are never drawn."""
SPEC = "dataset_spec.json"
_NAMES = {"train": "TRAIN", "valid": "VALID", "test": "TEST"}


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


def read_spec(folder: Path) -> DatasetSpec:
    """Return the spec of a source's folder.

    Raises:
        UserError: No spec, a pickled one, an unknown kind, or contradictions in it.
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
    _check_counts(counts.values(), len(names), "the splits have {} classes")
    return DatasetSpec(names, _sizes(found, names), _in_turn(counts), no_groups)


def _bilevel(found: Mapping[str, Any], names: list[str]) -> DatasetSpec:
    """Classes stand superclass after superclass, and those split after split."""
    sizes = [
        found["classes_per_superclass"][str(i)]
        for i in range(len(found["classes_per_superclass"]))
    ]
    counts = {k: found["superclasses_per_split"][v] for k, v in _NAMES.items()}
    _check_counts(sizes, len(names), "the superclasses have {} classes")
    _check_counts(counts.values(), len(sizes), "the splits have {} superclasses")
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


def _check_counts(counts: Iterable[Any], total: int, phrase: str) -> None:
    """Raise unless numbers deal out `total` things, before room is made for them."""
    counts = list(counts)
    if not all(isinstance(n, int) and n >= 0 for n in counts):
        raise UserError(f"{phrase.format(counts)}: expected whole numbers from 0")
    if sum(counts) != total:
        raise UserError(f"{phrase.format(sum(counts))}, and {total} have names")


def _in_turn(counts: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Return numbers 0, 1, 2, … dealt out to the splits, train first."""
    ends = np.cumsum([0, *counts.values()])
    return {k: np.arange(*ends[i : i + 2]) for i, k in enumerate(counts)}
