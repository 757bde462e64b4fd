"""Which classes, and which images, belong to which split: lists in the usual forms.

A list is one JSON file that names the classes of each split,

    {"train": ["class", …], "valid": [ … ], "test": [ … ]}

or a folder with one file a split, called `train`, `valid` (or `val`, `validation`) and
`test` (or `base` and `novel` for the first and the last), in one of these forms:

- `.txt`: a class a line, as the splits of CIFAR-FS come;
- `.csv`: an image a line under a header with a column of files and one of classes, as
  the splits of miniImageNet come, or `metadata.csv` of Hugging Face;
- `.json`: `{"class_names": […], "class_roots": […]}`, as easyfsl lists CUB and
  tieredImageNet; or `{"label_names": […], "image_names": […], "image_labels": […]}`,
  as the file lists of "A Closer Look at Few-shot Classification" do; or `["class", …]`.

Files and folders are relative to the data set's folder and cannot leave it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lite_jax.errors import MALFORMED, UserError, unknown_name

T = TypeVar("T")
_HELD_OUT = 0.2  # of the classes, for validation and again for testing
SPLIT_NAMES = {
    "train": ("train", "base"),
    "valid": ("valid", "val", "validation"),
    "test": ("test", "novel"),
}
"""What the files and folders of each split are called."""
_FILES = ("filename", "file_name", "image_path", "path", "file", "image")
_CLASSES = ("label", "class_name", "class", "target")


def share_of_classes(
    classes: Mapping[str, T], split: str, whose: str
) -> Mapping[str, T]:
    """Return the share of the classes that `split` has, the same in every run.

    60, 20 and 20 % in a fixed random order that depends on the names alone.

    Raises:
        UserError: Fewer than 6 classes; `whose` says of what.
    """
    if len(classes) < 6:
        raise UserError(
            f"{whose} holds {len(classes)} classes; splitting them into train, valid "
            "and test takes 6 or more (2 each)"
        )
    names = sorted(classes)
    order = np.random.default_rng(0).permutation(len(names))
    held_out = max(2, round(_HELD_OUT * len(names)))
    train, valid, test = np.split(order, [-2 * held_out, -held_out])
    share = {"train": train, "valid": valid, "test": test}[split]
    return {names[i]: classes[names[i]] for i in sorted(share)}


def classes_of_split(
    classes: Mapping[str, T], split: str, class_list: str | Path, whose: str
) -> Mapping[str, T]:
    """Return the classes that a list names, or without one, the split's share.

    Raises:
        UserError: The list names a class that is not there, or lists images.
    """
    if not class_list:
        return share_of_classes(classes, split, whose)
    path = Path(class_list).expanduser()
    listed = read_list(path, split)
    if any(files is not None for files in listed.values()):
        raise UserError(
            f"class_list={path} lists files, and {whose} has none: list classes"
        )
    for name in listed:
        if name not in classes:
            raise unknown_name(f"class in {path}, of {whose}", name, classes)
    return {name: classes[name] for name in listed}


def listed_files(
    path: Path, root: Path, split: str, images_of: Callable[[Path], list[Path]]
) -> dict[str, list[Path]]:
    """Return class name → image files below `root`, as a list says.

    Args:
        path: The list.
        root: The data set's folder.
        split: "train", "valid" or "test".
        images_of: Lists the images of a class's folder.

    Raises:
        UserError: Something listed is not there, or lies outside `root`.
    """
    found: dict[str, list[Path]] = {}
    for name, files in read_list(path, split).items():
        if files is None:
            files = [name]
        for file in files:
            place = _inside(root, file, name, path)
            own = images_of(place) if place.is_dir() else [place]
            found.setdefault(name, []).extend(own)
    return found


def _inside(root: Path, file: str, name: str, path: Path) -> Path:
    """Return `root / file`, or `root / class / file`, whichever exists."""
    for place in (root / file, root / name / file):
        if not place.resolve().is_relative_to(root.resolve()):
            raise UserError(
                f"{path} lists {file!r}, which lies outside root={root}: list "
                "files relative to it"
            )
        if place.exists():
            return place
    raise UserError(f"{path} lists {file!r}, and root={root} has no such file")


def read_list(path: Path, split: str) -> dict[str, list[str] | None]:
    """Return class name → files or folders, or None for the folder of that name.

    Raises:
        UserError: No such list, one without that split, or in no known form.
    """
    if path.is_file():
        names = _names_by_split(path, split)
        return dict.fromkeys(names)
    if not path.is_dir():
        raise UserError(f"class_list={path}: no such file or folder")
    candidates = [
        path / f"{n}{suffix}" for n in SPLIT_NAMES[split] for suffix in _FORMS
    ]
    file = next(filter(Path.is_file, candidates), None)
    if file is None:
        expected = " or ".join(f"{SPLIT_NAMES[split][0]}{suffix}" for suffix in _FORMS)
        raise UserError(f"class_list={path} has no list of {split!r}: {expected}")
    try:
        listed = _FORMS[file.suffix](file)
    except (*MALFORMED, csv.Error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file} is no list of classes ({error})") from error
    if not listed:
        raise UserError(f"{file} lists nothing")
    return listed


def _names_by_split(path: Path, split: str) -> list[str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        names = next(found[name] for name in SPLIT_NAMES[split] if name in found)
    except StopIteration:
        raise UserError(f"{path} has no list of {split!r}") from None
    except MALFORMED as error:
        raise UserError(
            f"{path}: expected JSON that names the classes of each split ({error})"
        ) from error
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: expected a list of class names for {split!r}")
    return names


def _from_text(path: Path) -> dict[str, list[str] | None]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict.fromkeys(line.strip() for line in lines if line.strip())


def _from_csv(path: Path) -> dict[str, list[str] | None]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        columns = [x.strip() for x in rows.fieldnames or ()]
        rows.fieldnames = columns
        found: dict[str, list[str] | None] = {}
        column, label = _column(path, columns, _FILES), _column(path, columns, _CLASSES)
        for row in rows:
            own = found.setdefault(row[label], [])
            assert own is not None
            own.append(row[column])
    return found


def _column(path: Path, columns: Sequence[str], known: Sequence[str]) -> str:
    for name in known:
        if name in columns:
            return name
    raise UserError(f"{path} has columns {columns}: expected one of {list(known)}")


def _from_json(path: Path) -> dict[str, list[str] | None]:
    found: Any = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(found, list):
        return dict.fromkeys(str(name) for name in found)
    if "image_names" in found:
        classes: dict[str, list[str] | None] = {}
        for file, label in zip(
            found["image_names"], found["image_labels"], strict=True
        ):
            name = str(label)
            if "label_names" in found and int(label) < len(found["label_names"]):
                name = str(found["label_names"][int(label)])
            own = classes.setdefault(name, [])
            assert own is not None
            own.append(file)
        return classes
    roots = found.get("class_roots", found["class_names"])
    pairs = zip(found["class_names"], roots, strict=True)
    return {str(name): [str(root)] for name, root in pairs}


_FORMS: dict[str, Callable[[Path], dict[str, list[str] | None]]] = {
    ".json": _from_json,
    ".csv": _from_csv,
    ".txt": _from_text,
}
