"""The 18 tasks of VTAB-v2, as rules for the splits and labels of tfds' data sets.

Source: Zhai et al. 2019 and its code for labels and splits; the LITE paper's code for
the test sets of protocol "lite".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Example = Mapping[str, Any]


class VtabRule(NamedTuple):
    """The splits and labels by which a prepared data set becomes a task.

    Attributes:
        group: "natural", "specialized" or "structured".
        dataset: Name of the data set in tfds, with the config.
        version: Required beginning of the data set's version.
        num_classes: Labels are 0 … num_classes - 1.
        valid: Start of the 200 validation images: a split, and the fraction of it, as
            (numerator, denominator), that comes before.
        test: Start of the test set, likewise; it ends with the split.
        lite_test: Start of the test set under protocol "lite", likewise; None for the
            training images that follow the support.
        list_name: Name of the folder, where images come with lists.
        label: `example -> label`.
    """

    group: str
    dataset: str
    version: str
    num_classes: int
    valid: tuple[str, tuple[int, int]]
    test: tuple[str, tuple[int, int]]
    lite_test: tuple[str, tuple[int, int]] | None
    list_name: str
    label: Callable[[Example], int]


def _plain_label(example: Example) -> int:
    return int(example["label"])


def _label_feature(name: str) -> Callable[[Example], int]:
    return lambda example: int(example[name])


def _positions(example: Example, name: str) -> np.ndarray:
    """Return a feature of all objects, `[objects, 3]` float64; `[0, 3]` without any."""
    return np.asarray(example["objects"][name], np.float64).reshape(-1, 3)


def clevr_count(example: Example) -> int:
    """Return the number of objects minus 3, in 0 … 7."""
    return len(_positions(example, "pixel_coords")) - 3


def clevr_distance(example: Example) -> int:
    """Return the bin of the nearest object's distance, in 0 … 5."""
    nearest = _positions(example, "pixel_coords")[:, 2].min()
    return _bin(nearest, (0, 8, 8.5, 9, 9.5, 10, 100))


def kitti_distance(example: Example) -> int:
    """Return the bin of the nearest car's, van's or truck's distance, 3 without any."""
    vehicles = np.asarray(example["objects"]["type"], int).reshape(-1) < 3
    depths = _positions(example, "location")[vehicles, 2]
    return _bin(min([1000.0, *depths]), (-100, 8, 20, 999))


def _bin(value: float, edges: Sequence[float]) -> int:
    """Return the number of the last edge strictly below `value`."""
    return int(np.searchsorted(edges, value, side="left")) - 1


def dsprites_location(example: Example) -> int:
    """Return the bin of the x-position; 16 bins hold 2 positions each."""
    return int(example["label_x_position"]) // 2


def dsprites_orientation(example: Example) -> int:
    """Return the bin of the orientation; 16 bins hold 3 or 2 orientations each."""
    return int(example["label_orientation"]) * 2 // 5


_ALL, _END = (0, 1), (9, 10)
_TEST = ("test", _ALL)


def _rule(
    group: str,
    dataset: str,
    version: str,
    num_classes: int,
    *,
    valid: tuple[str, tuple[int, int]] = ("validation", _ALL),
    test: tuple[str, tuple[int, int]] = _TEST,
    lite_test: tuple[str, tuple[int, int]] | None = _TEST,
    list_name: str = "",
    label: Callable[[Example], int] = _plain_label,
) -> VtabRule:
    name = list_name or dataset.split("/")[0]
    return VtabRule(
        group, dataset, version, num_classes, valid, test, lite_test, name, label
    )


_CLEVR: dict[str, Any] = {
    "valid": ("train", _END),
    "test": ("validation", _ALL),
    "lite_test": ("validation", _ALL),
}
_DSPRITES: dict[str, Any] = {
    "valid": ("train", (8, 10)),
    "test": ("train", (9, 10)),
    "lite_test": None,
}
_NORB: dict[str, Any] = {
    "valid": ("test", _ALL),
    "test": ("test", (1, 2)),
}
RULES = {
    "caltech101": _rule(
        "natural", "caltech101", "3", 102, valid=("train", _END)
    ),
    "cifar100": _rule(
        "natural", "cifar100", "3", 100, valid=("train", _END), list_name="cifar"
    ),
    "oxford_flowers102": _rule("natural", "oxford_flowers102", "2", 102),
    "oxford_iiit_pet": _rule(
        "natural", "oxford_iiit_pet", "", 37, valid=("train", (8, 10))
    ),
    "sun397": _rule("natural", "sun397/tfds", "4", 397),
    "svhn": _rule(
        "natural", "svhn_cropped", "3", 10, valid=("train", _END), list_name="svhn"
    ),
    "diabetic_retinopathy": _rule(
        "specialized",
        "diabetic_retinopathy_detection/btgraham-300",
        "3",
        5,
        list_name="diabetic_retinopathy",
    ),
    "eurosat": _rule(
        "specialized", "eurosat/rgb", "2", 10,
        valid=("train", (6, 10)), test=("train", (8, 10)), lite_test=None,
    ),
    "resisc45": _rule(
        "specialized", "resisc45", "3", 45,
        valid=("train", (6, 10)), test=("train", (8, 10)), lite_test=None,
    ),
    "patch_camelyon": _rule("specialized", "patch_camelyon", "2", 2),
    "clevr_distance": _rule(
        "structured", "clevr", "3", 6, **_CLEVR, list_name="clevr_dist",
        label=clevr_distance,
    ),
    "clevr_count": _rule(
        "structured", "clevr", "3", 8, **_CLEVR, list_name="clevr_count",
        label=clevr_count,
    ),
    "dmlab": _rule("structured", "dmlab", "2", 6),
    "dsprites_orientation": _rule(
        "structured", "dsprites", "2", 16, **_DSPRITES, list_name="dsprites_ori",
        label=dsprites_orientation,
    ),
    "dsprites_location": _rule(
        "structured", "dsprites", "2", 16, **_DSPRITES, list_name="dsprites_loc",
        label=dsprites_location,
    ),
    "smallnorb_azimuth": _rule(
        "structured", "smallnorb", "2", 18, **_NORB, list_name="smallnorb_azi",
        label=_label_feature("label_azimuth"),
    ),
    "smallnorb_elevation": _rule(
        "structured", "smallnorb", "2", 9, **_NORB, list_name="smallnorb_ele",
        label=_label_feature("label_elevation"),
    ),
    "kitti_distance": _rule(
        "structured", "kitti", "3", 4, list_name="kitti", label=kitti_distance
    ),
}  # fmt: skip
VTAB = tuple(RULES)
"""The names of the 18 tasks, in the paper's order of groups."""
GROUPS = {name: rule.group for name, rule in RULES.items()}
"""Task → "natural", "specialized" or "structured"."""
