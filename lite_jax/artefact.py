"""Files that predict without this package: programs, arrays and a manifest in a zip.

Programs are StableHLO (`jax.export`), arrays `.npz` without pickles, the manifest JSON.
Readers stand beside what writes them, and import nothing of this package.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from lite_jax.metrics import write_atomically
from lite_jax.types import PyTree

MANIFEST, WEIGHTS = "manifest.json", "weights.npz"


def exported(
    function: Callable[..., Any], *specs: PyTree, platforms: Sequence[str] | None = None
) -> bytes:
    """Return a program's bytes.

    Args:
        function: What is compiled.
        specs: `jax.ShapeDtypeStruct`s of its arguments.
        platforms: Such as `("cpu", "cuda")`; by default that which this runs on.
    """
    made = export.export(jax.jit(function), platforms=platforms)(*specs)
    return bytes(made.serialize())


def named_leaves(tree: PyTree) -> tuple[dict[str, Any], Any]:
    """Return path → leaf in the tree's order, and its structure."""
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    join = jax.tree_util.keystr
    named = {join(path, simple=True, separator="/"): leaf for path, leaf in paths}
    return named, structure


def shapes_of(arrays: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the specs of arrays, for `exported`."""
    return {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in arrays.items()}


def write_artefact(
    path: Path,
    programs: Mapping[str, bytes],
    arrays: Mapping[str, Any],
    manifest: Mapping[str, Any],
) -> dict[str, int]:
    """Write the file, whole or not at all, and return the bytes of each part.

    The versions of lite_jax and JAX are added to the manifest.
    """
    versions = {
        "lite_jax": importlib.metadata.version("lite_jax"),
        "jax": jax.__version__,
    }
    stored = io.BytesIO()
    copies: dict[str, Any] = {name: np.asarray(x) for name, x in arrays.items()}
    np.savez(stored, **copies)
    parts = dict(programs) | {
        WEIGHTS: stored.getvalue(),
        MANIFEST: json.dumps(dict(manifest) | versions, indent=1).encode(),
    }
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in parts.items():
            file.writestr(name, data)
    write_atomically(path, content.getvalue())
    return {name: len(data) for name, data in parts.items()}
