"""Sources of image files in folders of classes, and in Omniglot's folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lite_jax.data.class_lists import SPLIT_NAMES, listed_files, share_of_classes
from lite_jax.data.images import ImageSpec
from lite_jax.data.readers.items import item_source
from lite_jax.data.sources import ClassSource, check_split, equal_groups
from lite_jax.errors import UserError, unknown_name

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def folder(
    root: str | Path,
    split: str,
    image_size: int = 84,
    *,
    class_list: str | Path = "",
    resize: str = "bilinear",
    cache_gb: float = 2.0,
) -> ClassSource:
    """Return a split of colour images in class folders, resized to squares.

    The files are `root/{train,valid,test}/<class>/<image>`, where `val` or `validation`
    may stand for `valid`, or `root/<class>/<image>`. In the second case the classes are
    split 60/20/20 in a fixed random order that depends only on their names. Images are
    rotated by their EXIF orientation tag, converted to RGB and resized without keeping
    the aspect ratio, as in the LITE paper.

    Args:
        root: The data set's folder.
        split: "train", "valid" or "test".
        image_size: Pixels a side.
        class_list: Path of a list of each split's classes or images, which replaces
            the rules above; see `lite_jax.data.class_lists`.
        resize: Name of the resize rule; see `make_resize`.
        cache_gb: Largest size of the decoded images kept in memory, in GB (10⁹ bytes).
            A split that fits is decoded once, by this call. A larger one is decoded
            whenever it is read. In both cases, unreadable images are skipped with a
            warning.

    Raises:
        UserError: The folder does not exist or holds no images, there are too few
            classes, or a class has no readable image.
    """
    check_split(split)
    path = existing_folder(root)
    classes = (
        listed_files(Path(class_list).expanduser(), path, split, images_of)
        if class_list
        else _folder_classes(path, split)
    )
    spec = ImageSpec(image_size, resize, upright=True)
    return item_source(classes, spec.open, spec.shape, cache_gb)


def omniglot_folder(
    root: str | Path,
    image_size: int = 28,
    *,
    without: str | Path | None = None,
    alphabets: Sequence[str] | None = None,
    by_alphabet: bool = False,
    resize: str = "area",
    cache_gb: float = 2.0,
) -> ClassSource:
    """Return Omniglot's characters as classes, with ink bright on black.

    Args:
        root: Folder of files `<alphabet>/<character>/<drawing>.png`.
        image_size: Pixels a side.
        without: Another such folder, whose alphabets are left out.
        alphabets: Names of the alphabets to use; None for all.
        by_alphabet: Whether the characters of an episode come from one alphabet, as in
            Meta-Dataset, instead of from all.
        resize: Name of the resize rule; see `make_resize`.
        cache_gb: As in `folder`.

    Raises:
        UserError: A folder does not exist, an alphabet is unknown, or there are no
            images.
    """
    root = existing_folder(root)
    excluded = class_folders(existing_folder(without)) if without else {}
    folders = {k: v for k, v in class_folders(root).items() if k not in excluded}
    for name in alphabets or ():
        if name not in folders:
            raise unknown_name(f"alphabet of {root}", name, folders)
    classes = {
        f"{alphabet}/{character}": images_of(path)
        for alphabet in alphabets or folders
        for character, path in class_folders(folders[alphabet]).items()
    }
    if not any(classes.values()):
        raise UserError(
            f"root={root}: no images; expected <alphabet>/<character>/<drawing>.png"
        )

    spec = ImageSpec(image_size, resize, channels=1, bright_ink=True)
    names = np.array([name.split("/")[0] for name in classes])
    groups = [np.flatnonzero(names == name) for name in dict.fromkeys(names)]
    return item_source(
        classes,
        spec.open,
        spec.shape,
        cache_gb,
        equal_groups(groups) if by_alphabet else None,
    )


def _folder_classes(root: Path, split: str) -> dict[str, list[Path]]:
    """Return class name → image files of a split of `root`."""
    folders = class_folders(root)
    if "train" in folders and class_folders(folders["train"]):
        of_split = [folders[name] for name in SPLIT_NAMES[split] if name in folders]
        if not of_split:
            raise UserError(
                f"root={root} has a 'train' folder but no {split!r} folder: add "
                "one, or put all classes side by side to have them split"
            )
        folders = class_folders(of_split[0])
    else:
        folders = dict(share_of_classes(folders, split, f"root={root}"))
    classes = {name: images_of(path) for name, path in folders.items()}
    if not any(classes.values()):
        raise UserError(
            f"root={root}: no images for {split!r}; expected one folder a class "
            f"with image files ({', '.join(sorted(_SUFFIXES))})"
        )
    return classes


def has_images(root: Path) -> bool:
    """Return whether a folder one or two levels below `root` holds an image."""
    paths = [
        p for path in class_folders(root).values() for p in (path, *path.iterdir())
    ]
    return any(images_of(path) for path in paths if path.is_dir())


def existing_folder(root: str | Path) -> Path:
    """Return the path of a folder, with `~` expanded.

    Raises:
        UserError: The folder does not exist.
    """
    path = Path(root).expanduser()
    if not path.is_dir():
        raise UserError(f"root={root}: no such folder; set root=FOLDER")
    return path


def class_folders(path: Path) -> dict[str, Path]:
    """Return name → path of a folder's sub-folders, sorted, without hidden ones."""
    folders = sorted(p for p in path.iterdir() if p.is_dir())
    return {p.name: p for p in folders if not p.name.startswith(".")}


def images_of(path: Path) -> list[Path]:
    """Return the image files of a folder, sorted by name, without hidden ones."""
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES)
    return [p for p in files if not p.name.startswith(".")]
