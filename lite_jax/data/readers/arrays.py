"""Sources of arrays in NumPy's `.npz`, HDF5, and the pickles of old benchmarks.

A data set is one file, whose classes are divided among the splits, or a folder with one
file a split (`train.npz`, `val.npz`, `test.npz`).
"""

from __future__ import annotations

import contextlib
import functools
import pickle
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lite_jax.data.class_lists import SPLIT_NAMES, classes_of_split
from lite_jax.data.images import ImageSpec
from lite_jax.data.readers.items import item_source
from lite_jax.data.readers.npy import check_npz
from lite_jax.data.sources import ClassSource, check_split
from lite_jax.errors import UserError

_IMAGES = ("images", "x", "data", "image", "image_data", "x_train")
_LABELS = ("labels", "y", "targets", "label", "y_train")
_NAMES = ("class_names", "label_names", "names")


class Pixels(NamedTuple):
    """The content of a file.

    Attributes:
        classes: Class name → keys of its images.
        image: `key -> image`, as pixels or as encoded bytes.
    """

    classes: Mapping[str, Sequence[Any]]
    image: Callable[[Any], np.ndarray]


def array_source(
    root: str | Path,
    split: str,
    spec: ImageSpec,
    *,
    class_list: str | Path = "",
    allow_pickle: bool = False,
    cache_gb: float = 2.0,
) -> ClassSource:
    """Return a split of the arrays in `.npz`, `.h5`, `.hdf5` or pickle files.

    A file holds `images [n, height, width(, channels)]` uint8, `labels [n]` and
    optionally `class_names`. Images may also be named `x`, `data`, …, and labels `y`,
    `targets`, …. An HDF5 file may instead hold one array a class, in a group `datasets`
    or at the top, as Torchmeta writes them.

    Args:
        root: The file, or a folder with one file a split.
        split: "train", "valid" or "test".
        spec: Size and form of the images.
        class_list: Path of a list of each split's classes, for a data set in one file;
            see `lite_jax.data.class_lists`.
        allow_pickle: Read `.pkl` and `.pickle` files (miniImageNet, FC100,
            tieredImageNet). Reading one runs the code that its author put there.
        cache_gb: As in `folder`.

    Raises:
        UserError: The file does not exist, its arrays have unknown names, shapes or
            types, or it is a pickle and `allow_pickle` is False.
    """
    check_split(split)
    path = Path(root).expanduser()
    if not path.exists():
        raise UserError(f"root={root}: no such file or folder")
    one_file = path.is_file()
    if not one_file:
        file = _file_of_split(path, split)
        if file is None:
            raise UserError(
                f"root={root} has no file for {split!r}: expected {split}.npz, "
                f"{split}.hdf5 or the like"
            )
        path = file
    if path.suffix not in _READERS:
        raise UserError(f"{path}: expected one of {', '.join(_READERS)}")
    if path.suffix in _PICKLES and not allow_pickle:
        raise UserError(
            f"{path} is a pickle, and reading one runs code that its author chose: if "
            "you trust it, set allow_pickle=True"
        )
    classes, image = _content(path, path.stat().st_mtime_ns)
    if one_file:
        classes = classes_of_split(classes, split, class_list, str(path))

    def open_item(key: Any) -> np.ndarray:
        pixels = np.asarray(image(key))
        encoded = pixels.ndim == 1
        return spec.open(pixels.tobytes()) if encoded else spec.fit(pixels)

    return item_source(classes, open_item, spec.shape, cache_gb)


@functools.lru_cache(maxsize=1)
def _content(path: Path, modified: int) -> Pixels:
    """Return the content of a file, which the three splits read once."""
    del modified  # part of the cache's key only
    return _READERS[path.suffix](path)


def _file_of_split(folder: Path, split: str) -> Path | None:
    """Return a split's file, such as `train.npz` or `train_images_png.pkl`, or None."""
    for path in sorted(folder.iterdir()):
        words = set(re.split("[-_]", path.stem))
        named = words & set(SPLIT_NAMES[split]) and "labels" not in words
        if named and path.suffix in _READERS:
            return path
    return None


def _labelled_pixels(path: Path, arrays: Mapping[str, Any]) -> Pixels:
    """Return the content of a file that has an array of images and one of labels."""
    images = _known_array(path, arrays, _IMAGES)
    labels = np.asarray(_known_array(path, arrays, _LABELS)).reshape(-1)
    if len(images) != len(labels):
        raise UserError(f"{path} holds {len(images)} images and {len(labels)} labels")
    _check_images(path, images)
    names = next((arrays[n] for n in _NAMES if n in arrays), None)
    classes = {}
    for label in np.unique(labels):
        name = str(label) if names is None else _class_name(path, names, int(label))
        classes[name] = np.flatnonzero(labels == label).tolist()
    return Pixels(classes, images.__getitem__)


def _class_name(path: Path, names: Any, label: int) -> str:
    if not 0 <= label < len(names):
        raise UserError(
            f"{path} holds label {label}, outside its {len(names)} class names"
        )
    name = names[label]
    return name.decode() if isinstance(name, bytes) else str(name)


def _known_array(path: Path, arrays: Mapping[str, Any], known: tuple[str, ...]) -> Any:
    for name in known:
        if name in arrays:
            return arrays[name]
    raise UserError(
        f"{path} holds {sorted(arrays)}: expected one of {', '.join(known)}"
    )


def _check_images(path: Path, images: Any) -> None:
    shape = tuple(images.shape)
    fits = len(shape) == 3 or len(shape) == 4 and shape[3] in (1, 3)
    if not fits or images.dtype != np.uint8:
        raise UserError(
            f"{path} holds images {shape} of type {images.dtype}: expected "
            "[n, height, width], or with 1 or 3 channels last, as uint8 in 0 to 255"
        )


def _npz_pixels(path: Path) -> Pixels:
    try:
        check_npz(path)
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # zipfile and NumPy raise many types on a broken file
        reason = str(error) or type(error).__name__
        raise UserError(
            f"{path} cannot be read ({reason}): save it with np.savez, without objects"
        ) from error
    return _labelled_pixels(path, arrays)


def _hdf5_pixels(path: Path) -> Pixels:
    with _hdf5_file(path) as file:
        group = file.get("datasets", file)
        if any(name in group for name in _IMAGES):
            return _labelled_pixels(path, {name: group[name][...] for name in group})
        arrays = {name: group[name][...] for name in sorted(group)}
    for images in arrays.values():
        _check_images(path, images)
    classes = {
        name: [(name, i) for i in range(len(images))] for name, images in arrays.items()
    }
    return Pixels(classes, lambda key: arrays[key[0]][key[1]])


@contextlib.contextmanager
def _hdf5_file(path: Path) -> Iterator[Any]:
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"{path} needs h5py: pip install 'lite_jax[hdf5]'") from error
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path} is no HDF5 file ({error})") from error
    with file:
        yield file


def _pickle_pixels(path: Path) -> Pixels:
    content = _unpickled(path)
    if isinstance(content, list):  # tieredImageNet: encoded images, labels in a file
        labels = _unpickled(path.with_name(path.name.replace("images_png", "labels")))
        numbers = np.asarray(_known_array(path, labels, ("label_specific", *_LABELS)))
        classes = {
            str(label): np.flatnonzero(numbers == label).tolist()
            for label in np.unique(numbers)
        }
        return Pixels(classes, content.__getitem__)
    if "class_dict" in content:  # miniImageNet
        images = np.asarray(content["image_data"])
        _check_images(path, images)
        return Pixels(content["class_dict"], images.__getitem__)
    return _labelled_pixels(path, {name: np.asarray(x) for name, x in content.items()})


def _unpickled(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return pickle.load(file, encoding="latin1")
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} cannot be read ({error})") from error


_PICKLES = (".pkl", ".pickle")
_READERS: dict[str, Callable[[Path], Pixels]] = {
    ".npz": _npz_pixels,
    ".h5": _hdf5_pixels,
    ".hdf5": _hdf5_pixels,
    ".pkl": _pickle_pixels,
    ".pickle": _pickle_pixels,
}
