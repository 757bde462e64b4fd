"""Loading of an exported plan, adaptation and prediction on a device.

This file needs JAX and NumPy and imports nothing of lite_jax. It can be copied beside
an artefact:

    from device import load

    artefact = load("birds.zip")
    weights = artefact.adapt(images, labels)      # [n, …], [n] int from 0
    logits = artefact.predict(images, weights)    # [m, way]

An artefact is a zip file of programs in StableHLO (`jax.export`), weights without
pickles (`.npz`) and a manifest in JSON. Nothing in it is evaluated as Python.
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
_MALFORMED = (  # errors of reading a malformed zip file or manifest
    EOFError, LookupError, NotImplementedError, OSError, RecursionError, RuntimeError,
    TypeError, ValueError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
MANIFEST, WEIGHTS = "manifest.json", "weights.npz"

Weights = dict[str, Any]
"""Name → array: the parameters and the modules of meta attention."""


class Artefact(NamedTuple):
    """An exported network that adapts by a plan.

    Attributes:
        manifest: `format`, `input_shape`, `input_dtype`, `way`, `batch_size`, `steps`
            (for each step its program and the step sizes of its trained layers), and
            the versions of lite_jax and JAX.
        weights: The weights before adaptation.
        programs: Name → program.
    """

    manifest: dict[str, Any]
    weights: Weights
    programs: dict[str, Any]

    def adapt(self, inputs: Any, labels: Any) -> Weights:
        """Return the weights after the plan's steps on a support.

        Args:
            inputs: `[n, …]` images of the manifest's shape and dtype, with n ≥ 1 a
                multiple of `batch_size`.
            labels: `[n]` integers in `0 … way-1`.

        Raises:
            ValueError: Inputs or labels that do not fit the manifest.
        """
        inputs, labels = self._checked_inputs(inputs), np.asarray(labels)
        if labels.shape != inputs.shape[:1] or not len(labels):
            raise ValueError(
                f"labels: shape {labels.shape}, expected one for each of the "
                f"{len(inputs)} inputs, of which there is at least one"
            )
        if labels.min() < 0 or labels.max() >= self.manifest["way"]:
            raise ValueError(
                f"labels: {labels.min()} to {labels.max()}, expected 0 to "
                f"{self.manifest['way'] - 1}"
            )
        if len(labels) % self.manifest["batch_size"]:
            raise ValueError(
                f"inputs: {len(labels)} are no multiple of batch_size="
                f"{self.manifest['batch_size']}"
            )
        weights = self.weights
        for step in self.manifest["steps"]:
            if step["sizes"]:
                run = self.programs[step["program"]].call
                sizes = {k: np.float32(x) for k, x in step["sizes"].items()}
                changed = run(weights, sizes, inputs, labels.astype(np.int32))
                weights = {**weights, **changed}
        return weights

    def predict(self, inputs: Any, weights: Weights | None = None) -> jax.Array:
        """Return logits `[m, way]`.

        Args:
            inputs: `[m, …]` images of the manifest's shape and dtype, with m ≥ 1 a
                multiple of `batch_size`.
            weights: Adapted weights; by default those before adaptation.

        Raises:
            ValueError: Inputs that do not fit the manifest.
        """
        weights = self.weights if weights is None else weights
        return self.programs["predict"].call(weights, self._checked_inputs(inputs))

    def _checked_inputs(self, inputs: Any) -> np.ndarray:
        inputs = np.asarray(inputs)
        shape, dtype = self.manifest["input_shape"], self.manifest["input_dtype"]
        if list(inputs.shape[1:]) != shape or inputs.dtype != dtype:
            raise ValueError(
                f"inputs: {inputs.dtype} of shape {inputs.shape}, expected {dtype} of "
                f"shape (n, {', '.join(map(str, shape))})"
            )
        return inputs


def load(path: str | Path) -> Artefact:
    """Return the artefact in a file.

    Raises:
        ValueError: The file is no artefact, or has another format than `FORMAT`.
    """
    try:
        size = Path(path).stat().st_size
        with zipfile.ZipFile(path) as file:
            if any(member.compress_size > size for member in file.infolist()):
                raise ValueError("a part of it is said to be larger than the file")
            content = {name: file.read(name) for name in file.namelist()}
        manifest = json.loads(content.pop(MANIFEST))
        file_format = manifest["format"]
    except _MALFORMED as error:
        raise ValueError(f"{path}: not an exported plan ({error})") from error
    if file_format != FORMAT:
        raise ValueError(
            f"{path}: format {file_format}, made by lite_jax "
            f"{manifest.get('lite_jax')}, and this loader reads format {FORMAT}: "
            "export it anew, or use its own loader"
        )
    with np.load(io.BytesIO(content.pop(WEIGHTS)), allow_pickle=False) as stored:
        weights = {name: stored[name] for name in stored.files}
    programs = {
        name: export.deserialize(bytearray(data)) for name, data in content.items()
    }
    return Artefact(manifest, weights, programs)
