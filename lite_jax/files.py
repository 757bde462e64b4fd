"""Files that are whole or not there: rows of JSON, and bundles of programs."""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from lite_jax.types import PyTree


def format_row(row: Mapping[str, Any]) -> str:
    """Return a row as one line of JSON; numbers that are not finite are refused."""
    return json.dumps(row, allow_nan=False)


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append one JSON line to a file, in a single write."""
    with path.open("a", encoding="utf-8") as file:
        file.write(format_row(row) + "\n")


def keep_rows(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Drop the rows of a JSON-lines file that are not `wanted`, or are cut short."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    kept = [line for line in whole if wanted(json.loads(line))]
    if kept != lines:
        write_atomically(path, "".join(kept))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON-lines file, none where there is none.

    A last line that was cut short is dropped from the file.
    """
    if not path.exists():
        return []
    keep_rows(path, lambda row: True)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file whole: a reader, or a crash, never meets half of it."""
    draft = path.with_name(path.name + ".part")
    try:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(draft, path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


# ------------------------------------------------------------------------ bundles

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
