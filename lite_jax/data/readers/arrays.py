"""Images that come as arrays: NumPy's `.npz`, HDF5, and the pickles of old benchmarks.

A data set is one file, whose classes are dealt out to the splits, or a folder with a
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
    """What a file holds: class name → keys of its images, and an image by its key."""

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
    """Return the classes of arrays in `.npz`, `.h5`, `.hdf5` or pickle files.

    A file holds `images [n, height, width(, channels)]` uint8, `labels [n]` and, if it
    likes, `class_names` (also under `x`, `data`, …; `y`, `targets`, …), or, in HDF5, a
    data set a class, in a group `datasets` or at the top, as Torchmeta writes them.

    Args:
        root: The file, or a folder with a file a split.
        split: "train", "valid" or "test".
        spec: What becomes of the images.
        class_list: Which classes a split has, where one file holds all; see
            `lite_jax.data.class_lists`.
        allow_pickle: Read `.pkl` and `.pickle` files (miniImageNet, FC100,
            tieredImageNet). Reading one runs whatever code its author put there.
        cache_gb: As in `folder`.

    Raises:
        UserError: No such file, arrays of other names, shapes or types, or a pickle
            without the permission to read it.
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
    classes, image = _read(path, path.stat().st_mtime_ns)
    if one_file:
        classes = classes_of_split(classes, split, class_list, str(path))

    def open_item(key: Any) -> np.ndarray:
        found = np.asarray(image(key))
        return spec.open(found.tobytes()) if found.ndim == 1 else spec.fit(found)

    return item_source(classes, open_item, spec.shape, cache_gb)


@functools.lru_cache(maxsize=1)
def _read(path: Path, changed: int) -> Pixels:
    """Return what a file holds; all three splits of one file read it once."""
    del changed  # another time, another file
    return _READERS[path.suffix](path)


def _file_of_split(folder: Path, split: str) -> Path | None:
    """Return `train.npz`, or `FC100_train.pickle`, or `train_images_png.pkl`, …."""
    for path in sorted(folder.iterdir()):
        words = set(re.split("[-_]", path.stem))
        named = words & set(SPLIT_NAMES[split]) and "labels" not in words
        if named and path.suffix in _READERS:
            return path
    return None


def _by_label(path: Path, arrays: Mapping[str, Any]) -> Pixels:
    """Return the classes of `images` and `labels`, whatever they are called."""
    images = _under(path, arrays, _IMAGES)
    labels = np.asarray(_under(path, arrays, _LABELS)).reshape(-1)
    if len(images) != len(labels):
        raise UserError(f"{path} holds {len(images)} images and {len(labels)} labels")
    _check_images(path, images)
    names = next((arrays[n] for n in _NAMES if n in arrays), None)
    classes = {}
    for label in np.unique(labels):
        name = str(label) if names is None else _name(path, names, int(label))
        classes[name] = np.flatnonzero(labels == label).tolist()
    return Pixels(classes, images.__getitem__)


def _name(path: Path, names: Any, label: int) -> str:
    if not 0 <= label < len(names):
        raise UserError(
            f"{path} holds label {label}, outside its {len(names)} class names"
        )
    name = names[label]
    return name.decode() if isinstance(name, bytes) else str(name)


def _under(path: Path, arrays: Mapping[str, Any], known: tuple[str, ...]) -> Any:
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


def _npz(path: Path) -> Pixels:
    try:
        check_npz(path)
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except Exception as error:  # whatever zipfile and NumPy make of a broken file
        reason = str(error) or type(error).__name__
        raise UserError(
            f"{path} cannot be read ({reason}): save it with np.savez, without objects"
        ) from error
    return _by_label(path, found)


def _hdf5(path: Path) -> Pixels:
    with _hdf5_file(path) as file:
        held = file.get("datasets", file)
        if any(name in held for name in _IMAGES):
            return _by_label(path, {name: held[name][...] for name in held})
        arrays = {name: held[name][...] for name in sorted(held)}
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


def _pickle(path: Path) -> Pixels:
    found = _unpickled(path)
    if isinstance(found, list):  # tieredImageNet: encoded images, labels beside them
        labels = _unpickled(path.with_name(path.name.replace("images_png", "labels")))
        numbers = np.asarray(_under(path, labels, ("label_specific", *_LABELS)))
        classes = {
            str(label): np.flatnonzero(numbers == label).tolist()
            for label in np.unique(numbers)
        }
        return Pixels(classes, found.__getitem__)
    if "class_dict" in found:  # miniImageNet
        images = np.asarray(found["image_data"])
        _check_images(path, images)
        return Pixels(found["class_dict"], images.__getitem__)
    return _by_label(path, {name: np.asarray(x) for name, x in found.items()})


def _unpickled(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return pickle.load(file, encoding="latin1")
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} cannot be read ({error})") from error


_PICKLES = (".pkl", ".pickle")
_READERS: dict[str, Callable[[Path], Pixels]] = {
    ".npz": _npz,
    ".h5": _hdf5,
    ".hdf5": _hdf5,
    ".pkl": _pickle,
    ".pickle": _pickle,
}
