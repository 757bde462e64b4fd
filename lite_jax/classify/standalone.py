"""Loader of saved classifiers, which needs JAX and NumPy only.

This file imports nothing from lite_jax, so it can be copied beside a classifier:

    from standalone import load

    classifier = load("birds.zip")
    images = ...                                 # uint8 [n, size, size, channels]
    probabilities = classifier.probabilities(images)
    names = [classifier.class_names[i] for i in probabilities.argmax(1)]

A classifier is a zip of a compiled program in StableHLO (`jax.export`), weights without
pickles (`.npz`) and a manifest in JSON. "image" in the manifest holds the size and the
channels of images, and how the trained run resized images. Nothing in the file is
evaluated as Python.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export

FORMAT = 1
KIND = "classifier"
_MALFORMED = (  # raised by readers of zip files and JSON on malformed input
    EOFError, LookupError, NotImplementedError, OSError, RecursionError, RuntimeError,
    TypeError, ValueError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


class SavedClassifier(NamedTuple):
    """A classifier of images.

    Attributes:
        manifest: `class_names`, `image` (size, resize, channels, upright, bright_ink),
            `temperature`, `held_out` and versions.
        weights: Name → array.
        program: `weights, images -> log-probabilities`, compiled for each number of
            images.
    """

    manifest: dict[str, Any]
    weights: dict[str, Any]
    program: Any

    @property
    def class_names(self) -> list[str]:
        """The classes, in the order of the probabilities."""
        return self.manifest["class_names"]

    def probabilities(self, images: Any) -> np.ndarray:
        """Return probabilities `[n, classes]`, calibrated on the support.

        Args:
            images: `[n, size, size, channels]` uint8.

        Raises:
            ValueError: Images of another shape or dtype.
        """
        return np.exp(self.log_probabilities(images))

    def log_probabilities(self, images: Any) -> np.ndarray:
        """Return the logarithms of probabilities, `[n, classes]`.

        Args:
            images: `[n, size, size, channels]` uint8.

        Raises:
            ValueError: Images of another shape or dtype.
        """
        images = np.asarray(images)
        size, channels = (self.manifest["image"][k] for k in ("size", "channels"))
        if images.shape[1:] != (size, size, channels) or images.dtype != np.uint8:
            raise ValueError(
                f"images: {images.dtype} of shape {images.shape}, expected uint8 of "
                f"shape (n, {size}, {size}, {channels})"
            )
        return np.asarray(self.program(self.weights, images))


def load(path: str | Path) -> SavedClassifier:
    """Return the classifier in a file.

    Raises:
        ValueError: The file is no classifier, has a format that this loader does not
            know, or was made for other devices than this machine has.
    """
    try:
        size = Path(path).stat().st_size
        with zipfile.ZipFile(path) as file:
            if any(member.compress_size > size for member in file.infolist()):
                raise ValueError("a part of it is said to be larger than the file")
            manifest = json.loads(file.read("manifest.json"))
            header = manifest["kind"], manifest["format"]
            if header == (KIND, FORMAT):
                stored, program = file.read("weights.npz"), file.read("predict")
    except _MALFORMED as error:
        raise ValueError(f"{path}: not a saved classifier ({error})") from error
    if header != (KIND, FORMAT):
        raise ValueError(
            f"{path}: a {header[0]} of format {header[1]}, made by lite_jax "
            f"{manifest.get('lite_jax')}, and this loader reads {KIND}s of format "
            f"{FORMAT}: save it anew, or use its own loader"
        )
    try:
        with np.load(io.BytesIO(stored), allow_pickle=False) as arrays:
            weights = {name: arrays[name] for name in arrays.files}
        code = export.deserialize(bytearray(program))
    except Exception as error:  # the readers of arrays and StableHLO raise many kinds
        raise ValueError(f"{path}: its program is broken ({error})") from error
    here = jax.default_backend()
    known = {"cuda", "rocm"} if here == "gpu" else {here}
    if not known & set(code.platforms):
        raise ValueError(
            f"{path} was made for {' and '.join(code.platforms)}, and this machine "
            f"computes on {here}: save it for both, as by --platforms=cpu,cuda"
        )
    return SavedClassifier(manifest, weights, jax.jit(code.call))
