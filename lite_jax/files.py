"""Atomic writes, JSON-lines files, and bundles of exported programs."""

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
    """Return a row as one line of JSON, without the line break.

    Raises:
        ValueError: A number is not finite.
    """
    return json.dumps(row, allow_nan=False)


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append a row to a JSON-lines file, in a single write."""
    with path.open("a", encoding="utf-8") as file:
        file.write(format_row(row) + "\n")


def keep_rows(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Remove the rows of a JSON-lines file for which `wanted` is false.

    A last line that lacks its line break is removed too. If nothing is removed, or the
    file does not exist, nothing is written.

    Args:
        path: The file.
        wanted: `row -> bool`, whether the row stays.
    """
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    complete = [line for line in lines if line.endswith("\n")]
    remaining = [line for line in complete if wanted(json.loads(line))]
    if remaining != lines:
        write_atomically(path, "".join(remaining))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON-lines file, or [] if it does not exist.

    A last line that lacks its line break is removed from the file.
    """
    if not path.exists():
        return []
    keep_rows(path, lambda row: True)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file atomically: it has its old content until it has all of the new.

    The content is written to `<path>.part`, which then replaces the file.
    """
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
    """Return a function as a serialised JAX program.

    Args:
        function: A function that `jax.jit` accepts.
        specs: `jax.ShapeDtypeStruct`s of its arguments.
        platforms: Platforms that the program runs on, such as `("cpu", "cuda")`; by
            default the current one.
    """
    program = export.export(jax.jit(function), platforms=platforms)(*specs)
    return bytes(program.serialize())


def named_leaves(tree: PyTree) -> tuple[dict[str, Any], Any]:
    """Return a tree's leaves by path, such as `a/b`, and its structure."""
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    join = jax.tree_util.keystr
    named = {join(path, simple=True, separator="/"): leaf for path, leaf in paths}
    return named, structure


def shapes_of(arrays: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """Return each array's `jax.ShapeDtypeStruct`, by name."""
    return {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in arrays.items()}


def write_artefact(
    path: Path,
    programs: Mapping[str, bytes],
    arrays: Mapping[str, Any],
    manifest: Mapping[str, Any],
) -> dict[str, int]:
    """Write a bundle atomically; return the bytes of each part before compression.

    Args:
        path: The zip file to write.
        programs: File name → serialised program.
        arrays: Name → array, stored in `weights.npz`.
        manifest: Values for `manifest.json`, to which the versions of lite_jax and JAX
            are added.
    """
    versions = {
        "lite_jax": importlib.metadata.version("lite_jax"),
        "jax": jax.__version__,
    }
    weights = io.BytesIO()
    copies: dict[str, Any] = {name: np.asarray(x) for name, x in arrays.items()}
    np.savez(weights, **copies)
    parts = dict(programs) | {
        WEIGHTS: weights.getvalue(),
        MANIFEST: json.dumps(dict(manifest) | versions, indent=1).encode(),
    }
    bundle = io.BytesIO()
    with zipfile.ZipFile(bundle, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in parts.items():
            file.writestr(name, data)
    write_atomically(path, bundle.getvalue())
    return {name: len(data) for name, data in parts.items()}
