"""Sources over folders of image files: a user's own, and Omniglot's."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from lite_jax.data.sources import SPLITS, ArraySource, ClassSource
from lite_jax.errors import UserError, unknown_name

_logger = logging.getLogger(__name__)
_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
_HELD_OUT = 0.2  # of the classes, for validation and again for testing

Decoder = Callable[[Path], np.ndarray]


def folder(
    root: str | Path, split: str, image_size: int = 84, *, cache_gb: float = 2.0
) -> ClassSource:
    """Return colour images from class sub-folders, squeezed to a square.

    Either `root/{train,valid,test}/<class>/<image>` (`val` will do for `valid`), or
    `root/<class>/<image>`; then the classes are split 60/20/20 in a fixed random order
    that depends on their names alone. Images are turned upright by their EXIF tag,
    converted to RGB and resized bilinearly without keeping the aspect ratio, as the
    LITE paper does.

    Args:
        root: The data set's folder.
        split: "train", "valid" or "test"; their classes are disjoint.
        image_size: Pixels a side.
        cache_gb: Decoded images are kept in memory up to this many GB (10⁹ bytes).
            A set that fits is decoded once, at the start; a larger one is decoded as
            it is read. Unreadable images are named, counted and skipped in both.

    Raises:
        UserError: No such folder, no images, too few classes, or a class that
            unreadable images leave empty.
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    classes = _folder_classes(_existing(root), split)

    def decode(path: Path) -> np.ndarray:
        with _opened(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
            return np.asarray(
                upright.resize((image_size, image_size), Image.Resampling.BILINEAR)
            )

    return _file_source(classes, decode, (image_size, image_size, 3), cache_gb)


def omniglot_folder(
    root: str | Path,
    image_size: int = 28,
    *,
    without: str | Path | None = None,
    alphabets: Sequence[str] | None = None,
    cache_gb: float = 2.0,
) -> ClassSource:
    """Return Omniglot characters from its official layout, ink bright on black.

    Args:
        root: A folder `<alphabet>/<character>/<drawing>.png`.
        image_size: Pixels a side, resized with an area (box) filter.
        without: Another such folder; its alphabets are left out of this one.
        alphabets: If given, only these.
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

    def decode(path: Path) -> np.ndarray:
        with _opened(path) as image:
            grey = image.convert("L").resize(
                (image_size, image_size), Image.Resampling.BOX
            )
        return _bright_ink(np.asarray(grey))[..., None]

    return _file_source(classes, decode, (image_size, image_size, 1), cache_gb)


@dataclasses.dataclass(frozen=True)
class FileSource:
    """Image files decoded each time they are read.

    In place of an unreadable file stands the next readable one of its class, always
    the same, so that reading stays pure; each is named once in a warning, with a count.
    """

    class_names: Sequence[str]
    files: Sequence[Sequence[Path]]
    image_shape: tuple[int, int, int]
    decode: Decoder
    unreadable: set[Path] = dataclasses.field(default_factory=set)

    @property
    def class_sizes(self) -> list[int]:
        """Files of each class."""
        return [len(x) for x in self.files]

    def read(self, class_index: int, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return images `[len(indices), height, width, channels]` uint8."""
        return np.stack([self._readable(class_index, int(i)) for i in indices])

    def _readable(self, class_index: int, index: int) -> np.ndarray:
        paths, reason = self.files[class_index], ""
        for path in (*paths[index:], *paths[:index]):
            image, reason = _try_decode(self.decode, path)
            if image is not None:
                return image
            if path not in self.unreadable:
                self.unreadable.add(path)
                _logger.warning(
                    "skipped unreadable %s (%s), number %d so far",
                    path, reason, len(self.unreadable),
                )  # fmt: skip
        raise _dry_class(self.class_names[class_index], paths, reason)


def _dry_class(name: str, paths: Sequence[Path], reason: str) -> UserError:
    return UserError(
        f"class {name!r}: none of its {len(paths)} images can be read, e.g. {paths[0]} "
        f"({reason}): mend them or remove the class"
    )


def _file_source(
    classes: Mapping[str, Sequence[Path]],
    decode: Decoder,
    image_shape: tuple[int, int, int],
    cache_gb: float,
) -> ClassSource:
    """Return the classes decoded into memory where they fit, else file by file."""
    for name, files in classes.items():
        if not files:
            raise UserError(
                f"class {name!r} has no images: add some or remove its folder"
            )
    names, paths = list(classes), list(classes.values())
    wanted = sum(map(len, paths)) * int(np.prod(image_shape))
    if wanted > cache_gb * 1e9:
        return FileSource(names, paths, image_shape, decode)
    return ArraySource(names, _decode_all(names, paths, decode))


def _decode_all(
    names: Sequence[str], files: Sequence[Sequence[Path]], decode: Decoder
) -> list[np.ndarray]:
    """Decode every file on two threads or more; skip the unreadable, with a count."""
    flat = [path for paths in files for path in paths]
    with ThreadPoolExecutor() as pool:
        decoded = pool.map(lambda path: _try_decode(decode, path), flat)
        bar = tqdm(
            decoded, "decoding images", len(flat), unit="image", delay=2, leave=False
        )
        results = dict(zip(flat, bar, strict=True))
    bad = [
        f"{path} ({reason})"
        for path, (image, reason) in results.items()
        if image is None
    ]
    if bad:
        listed = "; ".join(bad[:5]) + ("; …" if len(bad) > 5 else "")
        _logger.warning(
            "skipped %d unreadable of %d images: %s", len(bad), len(flat), listed
        )
    images = []
    for name, paths in zip(names, files, strict=True):
        readable = [results[path][0] for path in paths if results[path][0] is not None]
        if not readable:
            raise _dry_class(name, paths, results[paths[0]][1])
        images.append(np.stack(readable))
    return images


def _try_decode(decode: Decoder, path: Path) -> tuple[np.ndarray | None, str]:
    """Return the image and "", or None and why not."""
    try:
        return decode(path), ""
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return None, str(error).replace(str(path), "it") or type(error).__name__


def _opened(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(path)


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
