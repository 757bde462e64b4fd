"""The table of data sets: how each is opened, and how a path is recognised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from lite_jax.data.cache import INDEX, open_cache
from lite_jax.data.class_lists import classes_of_split
from lite_jax.data.images import ImageSpec
from lite_jax.data.meta_dataset.source import make_meta_dataset
from lite_jax.data.orbit.protocol import find_orbit_protocol, read_users
from lite_jax.data.orbit.source import OrbitSource
from lite_jax.data.readers.arrays import array_source
from lite_jax.data.readers.builtin import digits, synthetic
from lite_jax.data.readers.folders import folder, has_images, omniglot_folder
from lite_jax.data.readers.items import item_source
from lite_jax.data.readers.parquet import parquet_source
from lite_jax.data.readers.prepared import INFO, find_prepared, prepared_classes
from lite_jax.data.settings import DataSettings
from lite_jax.data.sources import ClassSource, check_split
from lite_jax.errors import UserError, pick


class Dataset(NamedTuple):
    """A row of the table `DATASETS`.

    Attributes:
        open: `(settings, split) -> source`.
        is_at: `folder -> bool`, whether a folder holds such a data set; None for no
            such test.
        suffixes: Suffixes of the files that hold such a data set.
        needs_root: Whether the setting `root` is required.
        resize: Default resize rule for a user's images.
        channels: Number of channels of a user's images; None for the setting's.
        bright_ink: Whether the images are drawings in bright ink.
    """

    open: Callable[[DataSettings, str], ClassSource]
    is_at: Callable[[Path], bool] | None = None
    suffixes: tuple[str, ...] = ()
    needs_root: bool = True
    resize: str = "bilinear"
    channels: int | None = None
    bright_ink: bool = False


def open_source(settings: DataSettings, split: str) -> ClassSource:
    """Return the source of one split of a data set.

    Raises:
        UserError: The data set is unknown or cannot be read, or a setting is invalid.
    """
    dataset = pick("dataset", settings.dataset, DATASETS)
    if not 1 <= settings.image_size <= 4096:
        raise UserError(f"image_size={settings.image_size}: expected 1 to 4096")
    if dataset.needs_root and not settings.root:
        raise UserError(
            f"root='' and dataset={settings.dataset!r} reads files: set root=FOLDER"
        )
    return dataset.open(settings, split)


def detect(path: Path) -> str:
    """Return the name in `DATASETS` of the data set at a path.

    Raises:
        UserError: The path does not exist, or holds no known data set.
    """
    by_suffix = {x: name for name, row in DATASETS.items() for x in row.suffixes}
    if path.is_file():
        if path.suffix in by_suffix:
            return by_suffix[path.suffix]
        raise UserError(f"{path}: expected a folder, or one of {', '.join(by_suffix)}")
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder")
    for name, row in DATASETS.items():
        if row.is_at is not None and row.is_at(path):
            return name
        for suffix in row.suffixes:
            if any(path.glob(f"*{suffix}")) or any(path.glob(f"data/*{suffix}")):
                return name
    raise UserError(
        f"{path} holds nothing that is read here: expected class folders of images, "
        f"{', '.join(by_suffix)} files, a data set prepared by tfds, Omniglot's two "
        "small sets, or Meta-Dataset's records"
    )


def _image_spec(settings: DataSettings) -> ImageSpec:
    rule = settings.resize or "bilinear"
    return ImageSpec(settings.image_size, rule, settings.channels)


def own_image_spec(settings: DataSettings) -> ImageSpec:
    """Return the image spec of a user's images, for a run trained on a data set.

    Raises:
        UserError: The data set holds clips.
    """
    if settings.dataset == "orbit":
        raise UserError(
            "dataset='orbit': this run learned from videos, not from single images: "
            "use a run on images, e.g. of configs/protonets.py:folder"
        )
    row = DATASETS[settings.dataset]
    return ImageSpec(
        settings.image_size,
        settings.resize or row.resize,
        row.channels or settings.channels,
        upright=True,
        bright_ink=row.bright_ink,
    )


def _digits(settings: DataSettings, split: str) -> ClassSource:
    return digits(split, settings.image_size)


def _synthetic(settings: DataSettings, split: str) -> ClassSource:
    return synthetic(
        split,
        settings.image_size,
        num_classes=settings.synthetic_classes,
        images_per_class=settings.synthetic_images,
        channels=settings.channels,
    )


def _folder(settings: DataSettings, split: str) -> ClassSource:
    return folder(
        settings.root,
        split,
        settings.image_size,
        class_list=settings.class_list,
        resize=settings.resize or "bilinear",
        cache_gb=settings.cache_gb,
    )


def _omniglot(settings: DataSettings, split: str) -> ClassSource:
    """Return a split of Omniglot's two small background sets.

    "train" has four alphabets of small1, and "valid" its fifth. "test" has the
    alphabets that small2 has and small1 lacks.
    """
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


def _meta_dataset(settings: DataSettings, split: str) -> ClassSource:
    return make_meta_dataset(
        settings.root,
        split,
        settings.image_size,
        protocol=settings.protocol,
        sources=[x.strip() for x in settings.sources.split(",") if x.strip()],
        resize=settings.resize or "md",
    )


def _orbit(settings: DataSettings, split: str) -> ClassSource:
    protocol = find_orbit_protocol(settings.orbit_protocol)
    if settings.orbit_filter:
        issues = [x.strip() for x in settings.orbit_filter.split(",")]
        protocol = protocol._replace(frame_filter=tuple(set(issues) - {"none"}))
    users = read_users(settings.root, split, protocol, settings.orbit_mode)
    spec = ImageSpec(settings.image_size, settings.resize or "lanczos")
    return OrbitSource(users, protocol, spec)


def _arrays(settings: DataSettings, split: str) -> ClassSource:
    return array_source(
        settings.root,
        split,
        _image_spec(settings),
        class_list=settings.class_list,
        allow_pickle=settings.allow_pickle,
        cache_gb=settings.cache_gb,
    )


def _cache(settings: DataSettings, split: str) -> ClassSource:
    return open_cache(settings.root, split, settings.image_size)


def _parquet(settings: DataSettings, split: str) -> ClassSource:
    return parquet_source(
        settings.root,
        split,
        _image_spec(settings),
        label=settings.label,
        class_list=settings.class_list,
        cache_gb=settings.cache_gb,
    )


def _tfds(settings: DataSettings, split: str) -> ClassSource:
    check_split(split)
    path, spec = Path(settings.root).expanduser(), _image_spec(settings)
    if not (path / INFO).is_file():  # the parent folder of all versions
        path = find_prepared(path.parent, path.name)
    classes, open_image = prepared_classes(path, spec, settings.label)
    of_split = classes_of_split(classes, split, settings.class_list, f"root={path}")
    return item_source(of_split, open_image, spec.shape, settings.cache_gb)


def _has_tfds(path: Path) -> bool:
    return (path / INFO).is_file() or any(path.glob(f"*/{INFO}"))


DATASETS: dict[str, Dataset] = {  # `detect` tries them in this order
    "digits": Dataset(_digits, needs_root=False, channels=1, bright_ink=True),
    "synthetic": Dataset(_synthetic, needs_root=False),
    "tfds": Dataset(_tfds, _has_tfds),
    "cache": Dataset(_cache, lambda path: (path / INDEX).is_file()),
    "meta_dataset": Dataset(
        _meta_dataset,
        lambda path: any(path.glob("*/dataset_spec.*")),
        resize="md",
        channels=3,
    ),
    "omniglot": Dataset(
        _omniglot,
        lambda path: (path / "images_background_small1").is_dir(),
        resize="area",
        channels=1,
        bright_ink=True,
    ),
    "orbit": Dataset(_orbit, lambda path: any(path.glob("*/*/*/clean"))),
    "arrays": Dataset(_arrays, suffixes=(".npz", ".h5", ".hdf5", ".pkl", ".pickle")),
    "parquet": Dataset(_parquet, suffixes=(".parquet",)),
    "folder": Dataset(_folder, has_images, channels=3),
}
