"""Predictions for image files, as a table, CSV, JSON or a sheet of thumbnails."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lite_jax.classify.classifier import Classifier
from lite_jax.data.describe import draw_sheet
from lite_jax.data.readers.folders import class_folders, images_of
from lite_jax.data.supports import read_readable
from lite_jax.errors import UserError

_COLUMNS = 10  # of the sheet


class Predictions(NamedTuple):
    """The class probabilities of image files.

    Attributes:
        files: Paths of the n files that could be read.
        images: `[n, height, width, channels]` uint8, as the classifier reads them.
        class_names: Names of the columns of `probabilities`.
        probabilities: `[n, classes]`.
    """

    files: list[str]
    images: np.ndarray
    class_names: tuple[str, ...]
    probabilities: np.ndarray


def predict_files(classifier: Classifier, paths: Iterable[str | Path]) -> Predictions:
    """Return the predictions for image files, and for all images in folders.

    A warning names files that are no readable images.

    Raises:
        UserError: A path that does not exist, a folder without images, or no readable
            image.
    """
    files = [str(file) for path in paths for file in _files(Path(path).expanduser())]
    images, readable = read_readable(files, classifier.spec)
    probabilities = classifier.probabilities(images)
    return Predictions(
        [str(x) for x in readable], images, classifier.class_names, probabilities
    )


def _files(path: Path) -> list[Path]:
    """Return a file, or all image files of a folder, at any depth."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder")
    files = _images_below(path)
    if not files:
        raise UserError(f"{path} holds no images")
    return files


def _images_below(path: Path) -> list[Path]:
    folders = class_folders(path).values()
    return images_of(path) + [file for x in folders for file in _images_below(x)]


def as_table(found: Predictions) -> str:
    """Return a text table: file, class and its probability."""
    width = max(len(file) for file in found.files)
    names = max(len(name) for name in found.class_names)
    return "\n".join(
        f"{file:<{width}}  {name:<{names}}  {100 * share:5.1f} %"
        for file, name, share in _best(found)
    )


def as_csv(found: Predictions) -> str:
    """Return CSV with a header: file, class, its probability, those of all classes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "class", "probability", *found.class_names])
    for (file, name, share), row in zip(_best(found), found.probabilities, strict=True):
        writer.writerow([file, name, *(f"{x:.6f}" for x in (share, *row))])
    return text.getvalue().removesuffix("\n")


def as_json(found: Predictions) -> str:
    """Return a JSON list of objects: file, class, probability, probabilities."""
    rows = [
        {
            "file": file,
            "class": name,
            "probability": float(share),
            "probabilities": {
                k: float(x) for k, x in zip(found.class_names, row, strict=True)
            },
        }
        for (file, name, share), row in zip(
            _best(found), found.probabilities, strict=True
        )
    ]
    return json.dumps(rows, indent=1, ensure_ascii=False)


FORMATS = {"csv": as_csv, "json": as_json, "table": as_table}


def _best(found: Predictions) -> list[tuple[str, str, float]]:
    """Return `(file, most probable class, its probability)` of each file."""
    best = found.probabilities.argmax(1)
    shares = found.probabilities.max(1)
    names = [found.class_names[i] for i in best]
    return list(zip(found.files, names, shares, strict=True))


def check_sheet(path: Path) -> None:
    """Raise unless `draw_predictions` can save a picture at the path.

    Raises:
        UserError: The path is no .png file in a folder that exists.
    """
    if path.suffix != ".png" or not path.parent.is_dir():
        raise UserError(f"sheet={path}: expected a .png file in a folder that exists")


def draw_predictions(found: Predictions, path: Path) -> None:
    """Save a picture of the images by predicted class, the most probable first.

    Raises:
        UserError: The path is no .png file in a folder that exists.
    """
    check_sheet(path)
    best, shares = found.probabilities.argmax(1), found.probabilities.max(1)
    rows, names = [], []
    for label, name in enumerate(found.class_names):
        rows_of_class = np.flatnonzero(best == label)
        rows_of_class = rows_of_class[np.argsort(-shares[rows_of_class], kind="stable")]
        for first in range(0, len(rows_of_class), _COLUMNS):
            part = rows_of_class[first : first + _COLUMNS]
            rows.append(found.images[part])
            least, most = (round(100 * shares[i]) for i in (part[-1], part[0]))
            spread = f"{most}" if least == most else f"{most} to {least}"
            names.append(f"{name} {spread} %")
    draw_sheet({f"{len(found.files)} images, as predicted": rows}, names, path)
