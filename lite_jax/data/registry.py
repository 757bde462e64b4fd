"""Data sets by name, as a configuration chooses them, and what a path holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lite_jax.data.cache import INDEX, open_cache
from lite_jax.data.class_lists import classes_of_split
from lite_jax.data.images import ImageSpec
from lite_jax.data.meta_dataset.source import make_meta_dataset
from lite_jax.data.orbit.protocol import find_protocol, read_users
from lite_jax.data.orbit.source import OrbitSource
from lite_jax.data.readers.arrays import array_source
from lite_jax.data.readers.builtin import digits, synthetic
from lite_jax.data.readers.folders import folder, has_images, omniglot_folder
from lite_jax.data.readers.items import item_source
from lite_jax.data.readers.parquet import parquet_source
from lite_jax.data.readers.prepared import INFO, find_prepared, prepared_classes
from lite_jax.data.sources import ClassSource, check_split
from lite_jax.errors import UserError, unknown_name

Settings = Any
"""The section `data` of a configuration."""


def open_source(settings: Settings, split: str) -> ClassSource:
    """Return a split of the data set that the settings choose.

    Raises:
        UserError: An unknown data set, or one that cannot be read.
    """
    if settings.dataset not in DATASETS:
        raise unknown_name("data.dataset", settings.dataset, DATASETS)
    if not 1 <= settings.image_size <= 4096:
        raise UserError(f"data.image_size={settings.image_size}: expected 1 to 4096")
    if not settings.root and settings.dataset not in _ROOTLESS:
        raise UserError(
            f"data.root is empty, and dataset {settings.dataset!r} reads files: set "
            "--config.data.root=FOLDER"
        )
    return DATASETS[settings.dataset](settings, split)


def detect(path: Path) -> str:
    """Return the name of the data set that lies at a path.

    Raises:
        UserError: Nothing there, or nothing known.
    """
    if path.is_file():
        if path.suffix in _SUFFIXES:
            return _SUFFIXES[path.suffix]
        raise UserError(f"{path}: expected a folder, or one of {', '.join(_SUFFIXES)}")
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder")
    if (path / INFO).is_file() or any(path.glob(f"*/{INFO}")):
        return "tfds"
    if (path / INDEX).is_file():
        return "cache"
    if any(path.glob("*/dataset_spec.*")):
        return "meta_dataset"
    if (path / "images_background_small1").is_dir():
        return "omniglot"
    if any(path.glob("*/*/*/clean")):
        return "orbit"
    for suffix, name in _SUFFIXES.items():
        if any(path.glob(f"*{suffix}")) or any(path.glob(f"data/*{suffix}")):
            return name
    if has_images(path):
        return "folder"
    raise UserError(
        f"{path} holds nothing that is read here: expected class folders of images, "
        f"{', '.join(_SUFFIXES)} files, a data set prepared by tfds, Omniglot's two "
        "small sets, or Meta-Dataset's records"
    )


def _spec(settings: Settings) -> ImageSpec:
    rule = settings.resize or "bilinear"
    return ImageSpec(settings.image_size, rule, settings.channels)


def own_image_spec(settings: Settings) -> ImageSpec:
    """Return how other images become what a run on this data set has learned to see.

    Raises:
        UserError: A data set of clips.
    """
    if settings.dataset == "orbit":
        raise UserError(
            "data.dataset=orbit: this run learned from videos, and single images make "
            "none: use a run on images, e.g. of configs/protonets.py:folder"
        )
    rule, channels, drawings = _SEEN.get(
        settings.dataset, ("bilinear", settings.channels, False)
    )
    return ImageSpec(
        settings.image_size,
        settings.resize or rule,
        channels,
        upright=True,
        bright_ink=drawings,
    )


_SEEN = {  # resizing, channels, and whether ink is bright
    "digits": ("bilinear", 1, True),
    "folder": ("bilinear", 3, False),
    "meta_dataset": ("md", 3, False),
    "omniglot": ("area", 1, True),
}


def _digits(settings: Settings, split: str) -> ClassSource:
    return digits(split, settings.image_size)


def _synthetic(settings: Settings, split: str) -> ClassSource:
    return synthetic(
        split,
        settings.image_size,
        num_classes=settings.synthetic_classes,
        images_per_class=settings.synthetic_images,
        channels=settings.channels,
    )


def _folder(settings: Settings, split: str) -> ClassSource:
    return folder(
        settings.root,
        split,
        settings.image_size,
        class_list=settings.class_list,
        resize=settings.resize or "bilinear",
        cache_gb=settings.cache_gb,
    )


def _omniglot(settings: Settings, split: str) -> ClassSource:
    """Train on background_small1; hold out one alphabet; test on what small2 adds."""
    small1 = Path(settings.root) / "images_background_small1"
    small2 = Path(settings.root) / "images_background_small2"
    options: dict[str, Any] = {
        "by_alphabet": settings.by_alphabet,
        "resize": settings.resize or "area",
        "cache_gb": settings.cache_gb,
    }
    if split == "test":
        return omniglot_folder(small2, settings.image_size, without=small1, **options)
    alphabets = _OMNIGLOT_VALID if split == "valid" else _OMNIGLOT_TRAIN
    return omniglot_folder(small1, settings.image_size, alphabets=alphabets, **options)


_OMNIGLOT_TRAIN = ("Balinese", "Greek", "Korean", "Latin")
_OMNIGLOT_VALID = ("Early_Aramaic",)


def _meta_dataset(settings: Settings, split: str) -> ClassSource:
    return make_meta_dataset(
        settings.root,
        split,
        settings.image_size,
        protocol=settings.protocol,
        sources=[x.strip() for x in settings.sources.split(",") if x.strip()],
        resize=settings.resize or "md",
    )


def _orbit(settings: Settings, split: str) -> ClassSource:
    protocol = find_protocol(settings.orbit_protocol)
    if settings.orbit_filter:
        chosen = [x.strip() for x in settings.orbit_filter.split(",")]
        protocol = protocol._replace(frame_filter=tuple(set(chosen) - {"none"}))
    users = read_users(settings.root, split, protocol, settings.orbit_mode)
    spec = ImageSpec(settings.image_size, settings.resize or "lanczos")
    return OrbitSource(users, protocol, spec)


def _arrays(settings: Settings, split: str) -> ClassSource:
    return array_source(
        settings.root,
        split,
        _spec(settings),
        class_list=settings.class_list,
        allow_pickle=settings.allow_pickle,
        cache_gb=settings.cache_gb,
    )


def _cache(settings: Settings, split: str) -> ClassSource:
    return open_cache(settings.root, split, settings.image_size)


def _parquet(settings: Settings, split: str) -> ClassSource:
    return parquet_source(
        settings.root,
        split,
        _spec(settings),
        label=settings.label,
        class_list=settings.class_list,
        cache_gb=settings.cache_gb,
    )


def _tfds(settings: Settings, split: str) -> ClassSource:
    check_split(split)
    path, spec = Path(settings.root).expanduser(), _spec(settings)
    if not (path / INFO).is_file():  # a data set's folder, which has one a version
        path = find_prepared(path.parent, path.name)
    classes, open_image = prepared_classes(path, spec, settings.label)
    chosen = classes_of_split(classes, split, settings.class_list, f"data.root={path}")
    return item_source(chosen, open_image, spec.shape, settings.cache_gb)


_ROOTLESS = ("digits", "synthetic")
_SUFFIXES = {
    ".npz": "arrays",
    ".h5": "arrays",
    ".hdf5": "arrays",
    ".pkl": "arrays",
    ".pickle": "arrays",
    ".parquet": "parquet",
}
DATASETS: dict[str, Callable[[Settings, str], ClassSource]] = {
    "arrays": _arrays,
    "cache": _cache,
    "digits": _digits,
    "folder": _folder,
    "meta_dataset": _meta_dataset,
    "omniglot": _omniglot,
    "orbit": _orbit,
    "parquet": _parquet,
    "synthetic": _synthetic,
    "tfds": _tfds,
}
