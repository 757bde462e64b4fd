"""Sources over folders of image files: a user's own, and Omniglot's."""

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
    """Return colour images from class sub-folders, squeezed to a square.

    Either `root/{train,valid,test}/<class>/<image>` (`val` or `validation` will do for
    `valid`), or `root/<class>/<image>`; then the classes are split 60/20/20 in a fixed
    random order that depends on their names alone. Images are turned upright by their
    EXIF tag, converted to RGB and resized without keeping the aspect ratio, as the LITE
    paper does.

    Args:
        root: The data set's folder.
        split: "train", "valid" or "test"; their classes are disjoint.
        image_size: Pixels a side.
        class_list: If given, what says which classes, or images, each split has; see
            `lite_jax.data.class_lists`.
        resize: The rule; see `make_resize`.
        cache_gb: Decoded images are kept in memory up to this many GB (10⁹ bytes).
            A set that fits is decoded once, at the start; a larger one is decoded as
            it is read. Unreadable images are named, counted and skipped in both.

    Raises:
        UserError: No such folder, no images, too few classes, or a class that
            unreadable images leave empty.
    """
    check_split(split)
    found = existing_folder(root)
    classes = (
        listed_files(Path(class_list).expanduser(), found, split, images_of)
        if class_list
        else _folder_classes(found, split)
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
    """Return Omniglot characters from its official layout, ink bright on black.

    Args:
        root: A folder `<alphabet>/<character>/<drawing>.png`.
        image_size: Pixels a side.
        without: Another such folder; its alphabets are left out of this one.
        alphabets: If given, only these.
        by_alphabet: The characters of an episode come from one alphabet, as in
            Meta-Dataset, instead of from all.
        resize: The rule; see `make_resize`.
        cache_gb: As in `folder`.

    Raises:
        UserError: No such folder, an unknown alphabet, or nothing left.
    """
    root = existing_folder(root)
    excluded = class_folders(existing_folder(without)) if without else {}
    found = {k: v for k, v in class_folders(root).items() if k not in excluded}
    for name in alphabets or ():
        if name not in found:
            raise unknown_name(f"alphabet of {root}", name, found)
    classes = {
        f"{alphabet}/{character}": images_of(path)
        for alphabet in alphabets or found
        for character, path in class_folders(found[alphabet]).items()
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
    """Return class name → files of one split of `root`."""
    found = class_folders(root)
    if "train" in found and class_folders(found["train"]):
        own = [found[name] for name in SPLIT_NAMES[split] if name in found]
        if not own:
            raise UserError(
                f"root={root} has a 'train' folder but no {split!r} folder: add "
                "one, or put all classes side by side to have them split"
            )
        found = class_folders(own[0])
    else:
        found = dict(share_of_classes(found, split, f"root={root}"))
    classes = {name: images_of(path) for name, path in found.items()}
    if not any(classes.values()):
        raise UserError(
            f"root={root}: no images for {split!r}; expected one folder a class "
            f"with image files ({', '.join(sorted(_SUFFIXES))})"
        )
    return classes


def has_images(root: Path) -> bool:
    """Return whether some folder below, two levels down at most, holds an image."""
    inside = [
        p for path in class_folders(root).values() for p in (path, *path.iterdir())
    ]
    return any(images_of(path) for path in inside if path.is_dir())


def existing_folder(root: str | Path) -> Path:
    """Return the folder, or raise."""
    path = Path(root).expanduser()
    if not path.is_dir():
        raise UserError(f"root={root}: no such folder; set root=FOLDER")
    return path


def class_folders(path: Path) -> dict[str, Path]:
    """Return name → folder of what lies directly in a folder, by name."""
    folders = sorted(p for p in path.iterdir() if p.is_dir())
    return {p.name: p for p in folders if not p.name.startswith(".")}


def images_of(path: Path) -> list[Path]:
    """Return the image files of a folder, by name."""
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES)
    return [p for p in files if not p.name.startswith(".")]
