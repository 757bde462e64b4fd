"""Lists of the classes, or of the images, of each split, in the usual formats.

A list is one JSON file that names the classes of each split,

    {"train": ["class", …], "valid": [ … ], "test": [ … ]}

or a folder with one file a split, called `train` (or `base`), `valid` (or `val`,
`validation`) and `test` (or `novel`), in one of these formats:

- `.txt`: one class a line, as in the splits of CIFAR-FS;
- `.csv`: one image a line, under a header with a column of files and a column of
  classes, as in the splits of miniImageNet and in `metadata.csv` of Hugging Face;
- `.json`: `{"class_names": […], "class_roots": […]}`, as in easyfsl's lists of CUB and
  tieredImageNet; or `{"label_names": […], "image_names": […], "image_labels": […]}`,
  as in the lists of "A Closer Look at Few-shot Classification"; or `["class", …]`.

Files and folders are relative to the data set's folder and must lie inside it.
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
_HELD_OUT = 0.2  # share of the classes for validation, and for testing
SPLIT_NAMES = {
    "train": ("train", "base"),
    "valid": ("valid", "val", "validation"),
    "test": ("test", "novel"),
}
"""Names of the files and folders of each split."""
_FILE_COLUMNS = ("filename", "file_name", "image_path", "path", "file", "image")
_CLASS_COLUMNS = ("label", "class_name", "class", "target")


def share_of_classes(
    classes: Mapping[str, T], split: str, whose: str
) -> Mapping[str, T]:
    """Return the classes of a split: 60 % for training, 20 % each for the others.

    Classes are dealt out in a fixed random order, so the result depends only on their
    names. "valid" and "test" have at least 2 classes each.

    Args:
        classes: Class name → any value.
        split: "train", "valid" or "test".
        whose: What holds the classes, for the error message.

    Raises:
        UserError: There are fewer than 6 classes.
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
    numbers = {"train": train, "valid": valid, "test": test}[split]
    return {names[i]: classes[names[i]] for i in sorted(numbers)}


def classes_of_split(
    classes: Mapping[str, T], split: str, class_list: str | Path, whose: str
) -> Mapping[str, T]:
    """Return the classes of a split, from a list or else by `share_of_classes`.

    Args:
        classes: Class name → any value.
        split: "train", "valid" or "test".
        class_list: Path of a list of class names; empty for none.
        whose: What holds the classes, for error messages.

    Raises:
        UserError: The list names an unknown class, or lists files.
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
    """Return class name → image files of a split, from a list.

    Args:
        path: The list.
        root: The data set's folder.
        split: "train", "valid" or "test".
        images_of: `folder -> image files`, for a listed folder.

    Raises:
        UserError: A listed file or folder does not exist, or lies outside `root`.
    """
    images: dict[str, list[Path]] = {}
    for name, entries in read_list(path, split).items():
        if entries is None:
            entries = [name]
        for entry in entries:
            target = _listed_path(root, entry, name, path)
            files = images_of(target) if target.is_dir() else [target]
            images.setdefault(name, []).extend(files)
    return images


def _listed_path(root: Path, file: str, name: str, path: Path) -> Path:
    """Return `root / file` if it exists, else `root / name / file`."""
    for candidate in (root / file, root / name / file):
        if not candidate.resolve().is_relative_to(root.resolve()):
            raise UserError(
                f"{path} lists {file!r}, which lies outside root={root}: list "
                "files relative to it"
            )
        if candidate.exists():
            return candidate
    raise UserError(f"{path} lists {file!r}, and root={root} has no such file")


def read_list(path: Path, split: str) -> dict[str, list[str] | None]:
    """Return class name → files or folders that a list gives a split.

    The value is None where the list gives only the class name, which is then the name
    of the class's folder.

    Args:
        path: The list: a JSON file, or a folder with one file a split.
        split: "train", "valid" or "test".

    Raises:
        UserError: The list does not exist, lacks the split or lists nothing for it, or
            has no known format.
    """
    if path.is_file():
        names = _class_names(path, split)
        return dict.fromkeys(names)
    if not path.is_dir():
        raise UserError(f"class_list={path}: no such file or folder")
    candidates = [
        path / f"{n}{suffix}" for n in SPLIT_NAMES[split] for suffix in _READERS
    ]
    file = next(filter(Path.is_file, candidates), None)
    if file is None:
        expected = " or ".join(
            f"{SPLIT_NAMES[split][0]}{suffix}" for suffix in _READERS
        )
        raise UserError(f"class_list={path} has no list of {split!r}: {expected}")
    try:
        listed = _READERS[file.suffix](file)
    except (*MALFORMED, csv.Error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file} is no list of classes ({error})") from error
    if not listed:
        raise UserError(f"{file} lists nothing")
    return listed


def _class_names(path: Path, split: str) -> list[str]:
    try:
        names_of = json.loads(path.read_text(encoding="utf-8"))
        names = next(names_of[x] for x in SPLIT_NAMES[split] if x in names_of)
    except StopIteration:
        raise UserError(f"{path} has no list of {split!r}") from None
    except MALFORMED as error:
        raise UserError(
            f"{path}: expected JSON that names the classes of each split ({error})"
        ) from error
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: expected a list of class names for {split!r}")
    return names


def _classes_from_text(path: Path) -> dict[str, list[str] | None]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict.fromkeys(line.strip() for line in lines if line.strip())


def _classes_from_csv(path: Path) -> dict[str, list[str] | None]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        columns = [x.strip() for x in rows.fieldnames or ()]
        rows.fieldnames = columns
        classes: dict[str, list[str] | None] = {}
        file_column = _column(path, columns, _FILE_COLUMNS)
        class_column = _column(path, columns, _CLASS_COLUMNS)
        for row in rows:
            files = classes.setdefault(row[class_column], [])
            assert files is not None
            files.append(row[file_column])
    return classes


def _column(path: Path, columns: Sequence[str], known: Sequence[str]) -> str:
    for name in known:
        if name in columns:
            return name
    raise UserError(f"{path} has columns {columns}: expected one of {list(known)}")


def _classes_from_json(path: Path) -> dict[str, list[str] | None]:
    content: Any = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(content, list):
        return dict.fromkeys(str(name) for name in content)
    if "image_names" in content:
        classes: dict[str, list[str] | None] = {}
        for file, label in zip(
            content["image_names"], content["image_labels"], strict=True
        ):
            name = str(label)
            if "label_names" in content and int(label) < len(content["label_names"]):
                name = str(content["label_names"][int(label)])
            files = classes.setdefault(name, [])
            assert files is not None
            files.append(file)
        return classes
    roots = content.get("class_roots", content["class_names"])
    pairs = zip(content["class_names"], roots, strict=True)
    return {str(name): [str(root)] for name, root in pairs}


_READERS: dict[str, Callable[[Path], dict[str, list[str] | None]]] = {
    ".json": _classes_from_json,
    ".csv": _classes_from_csv,
    ".txt": _classes_from_text,
}
