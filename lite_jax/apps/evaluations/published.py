"""Accuracies that papers report, and how each was checked.

A "verified" figure was read in the authors' results files, a "secondary" one on a page
that quotes the paper. Other figures are left out; tables show "not verified" instead.
"""

from __future__ import annotations

from typing import NamedTuple


class Figure(NamedTuple):
    """A reported accuracy in %, and its status, "verified" or "secondary"."""

    percent: float
    status: str

    def __str__(self) -> str:
        """Return the figure with one decimal, and a * after it if it is secondary."""
        return f"{self.percent:.1f}" + ("*" if self.status == "secondary" else "")


LITE_VTAB_MD = {"VTAB all": Figure(51.4, "secondary")}
"""Simple CNAPs + LITE, EfficientNet-B0, 224 pixels (Bronskill et al. 2021)."""

_SUPERVISED = {
    "cifar100": 57.0,
    "caltech101": 91.0,
    "oxford_flowers102": 88.6,
    "oxford_iiit_pet": 89.9,
    "sun397": 34.4,
    "svhn": 87.3,
    "diabetic_retinopathy": 73.2,
    "eurosat": 95.3,
    "resisc45": 80.8,
    "patch_camelyon": 80.6,
    "clevr_distance": 56.1,
    "clevr_count": 41.0,
    "dmlab": 36.3,
    "dsprites_orientation": 46.0,
    "dsprites_location": 85.7,
    "smallnorb_azimuth": 45.7,
    "smallnorb_elevation": 35.4,
    "kitti_distance": 70.6,
    "VTAB all": 66.4,
    "VTAB natural": 74.7,
    "VTAB specialized": 82.5,
    "VTAB structured": 52.1,
}
FINE_TUNED_VTAB = {k: Figure(v, "verified") for k, v in _SUPERVISED.items()}
"""ResNet-50 pretrained on ImageNet, fine-tuned on the official 1000 images at 224
pixels (Sup-100 % of VTAB's results.csv; Zhai et al. 2019)."""

ORBIT = {
    ("2021", "clean", "simple_cnaps"): Figure(82.7, "secondary"),
    ("2021", "clutter", "protonets"): Figure(66.3, "secondary"),
    ("2022", "clutter", "cnaps"): Figure(67.68, "verified"),
    ("2022", "clutter", "simple_cnaps"): Figure(66.83, "verified"),
    ("2022", "clutter", "protonets"): Figure(67.91, "verified"),
    ("2022", "clutter", "finetuner"): Figure(64.57, "verified"),
}
"""(protocol, mode, learner) → frame accuracy with EfficientNet-B0 at 224 pixels: 2021
of the LITE paper, 2022 of the table in ORBIT's repository."""
