"""Sources over folders of image files: a user's own, and Omniglot's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lite_jax.data.images import ImageSpec
from lite_jax.data.items import item_source
from lite_jax.data.sources import ClassSource, check_split, equal_groups
from lite_jax.errors import UserError, unknown_name

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
_HELD_OUT = 0.2  # of the classes, for validation and again for testing


def folder(
    root: str | Path,
    split: str,
    image_size: int = 84,
    *,
    resize: str = "bilinear",
    cache_gb: float = 2.0,
) -> ClassSource:
    """Return colour images from class sub-folders, squeezed to a square.

    Either `root/{train,valid,test}/<class>/<image>` (`val` will do for `valid`), or
    `root/<class>/<image>`; then the classes are split 60/20/20 in a fixed random order
    that depends on their names alone. Images are turned upright by their EXIF tag,
    converted to RGB and resized without keeping the aspect ratio, as the LITE paper
    does.

    Args:
        root: The data set's folder.
        split: "train", "valid" or "test"; their classes are disjoint.
        image_size: Pixels a side.
        resize: The rule; see `make_resize`.
        cache_gb: Decoded images are kept in memory up to this many GB (10⁹ bytes).
            A set that fits is decoded once, at the start; a larger one is decoded as
            it is read. Unreadable images are named, counted and skipped in both.

    Raises:
        UserError: No such folder, no images, too few classes, or a class that
            unreadable images leave empty.
    """
    check_split(split)
    classes = _folder_classes(_existing(root), split)
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
    root = _existing(root)
    excluded = _subfolders(_existing(without)) if without else {}
    found = {k: v for k, v in _subfolders(root).items() if k not in excluded}
    for name in alphabets or ():
        if name not in found:
            raise unknown_name(f"alphabet of {root}", name, found)
    classes = {
        f"{alphabet}/{character}": _images(path)
        for alphabet in alphabets or found
        for character, path in _subfolders(found[alphabet]).items()
    }
    if not any(classes.values()):
        raise UserError(
            f"data.root={root}: no images; expected "
            "<alphabet>/<character>/<drawing>.png"
        )

    spec = ImageSpec(image_size, resize, channels=1)
    names = np.array([name.split("/")[0] for name in classes])
    groups = [np.flatnonzero(names == name) for name in dict.fromkeys(names)]
    return item_source(
        classes,
        lambda path: _bright_ink(spec.open(path)),
        spec.shape,
        cache_gb,
        equal_groups(groups) if by_alphabet else None,
    )


def _bright_ink(image: np.ndarray) -> np.ndarray:
    """Return the drawing with ink bright: ink is what covers the lesser part."""
    return image if image.mean() < 127.5 else 255 - image


def _folder_classes(root: Path, split: str) -> dict[str, list[Path]]:
    """Return class name → files of one split of `root`."""
    found = _subfolders(root)
    if "val" in found and "valid" not in found:
        found["valid"] = found["val"]
    if "train" in found and _subfolders(found["train"]):
        if split not in found:
            raise UserError(
                f"data.root={root} has a 'train' folder but no {split!r} folder: add "
                "one, or put all classes side by side to have them split"
            )
        found = _subfolders(found[split])
    else:
        found = _split_classes(found, root, split)
    classes = {name: _images(path) for name, path in found.items()}
    if not any(classes.values()):
        raise UserError(
            f"data.root={root}: no images for {split!r}; expected one folder a class "
            f"with image files ({', '.join(sorted(_SUFFIXES))})"
        )
    return classes


def _split_classes(found: dict[str, Path], root: Path, split: str) -> dict[str, Path]:
    """Return the share of the classes that `split` has, the same in every run."""
    if len(found) < 6:
        raise UserError(
            f"data.root={root} holds {len(found)} class folders; splitting them into "
            "train, valid and test takes 6 or more (2 each)"
        )
    names = sorted(found)
    order = np.random.default_rng(0).permutation(len(names))
    held_out = max(2, round(_HELD_OUT * len(names)))
    train, valid, test = np.split(order, [-2 * held_out, -held_out])
    share = {"train": train, "valid": valid, "test": test}[split]
    return {names[i]: found[names[i]] for i in sorted(share)}


def _existing(root: str | Path) -> Path:
    path = Path(root).expanduser()
    if not path.is_dir():
        raise UserError(
            f"data.root={root}: no such folder; set --config.data.root=FOLDER"
        )
    return path


def _subfolders(path: Path) -> dict[str, Path]:
    folders = sorted(p for p in path.iterdir() if p.is_dir())
    return {p.name: p for p in folders if not p.name.startswith(".")}


def _images(path: Path) -> list[Path]:
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES)
    return [p for p in files if not p.name.startswith(".")]
