"""Saving of classifiers to files, and loading them without the trained run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from lite_jax.classify import standalone
from lite_jax.classify.classifier import Classifier
from lite_jax.classify.held_out import HeldOut
from lite_jax.data.images import ImageSpec
from lite_jax.errors import MALFORMED, UserError, unknown_name
from lite_jax.files import exported, named_leaves, shapes_of, write_artefact
from lite_jax.run.predictor import in_batches
from lite_jax.types import PyTree

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
PredictFn = Callable[[PyTree, Any], Any]
"""`(weights, images [n, …] uint8) -> log-probabilities [n, classes]`."""


def save_classifier(
    path: Path,
    classifier: Classifier,
    program: PredictFn,
    weights: PyTree,
    platforms: Sequence[str] | None = None,
) -> None:
    """Write a classifier to a file, whole or not at all.

    The file holds only the leaves of `weights` that the program uses.

    Args:
        path: The file.
        classifier: Its class names, image spec, temperature and held-out accuracy are
            saved.
        program: Computes log-probabilities; compiled for any number of images.
        weights: The first argument of the program.
        platforms: Of `PLATFORMS`; None for that of this machine.

    Raises:
        UserError: An unknown platform, or a path that cannot be written.
    """
    for platform in platforms or ():
        if platform not in PLATFORMS:
            raise unknown_name("platform", platform, PLATFORMS)
    named, structure = named_leaves(weights)
    shape = classifier.spec.shape
    sample = jax.ShapeDtypeStruct((1, *shape), jnp.uint8)
    are_used = _are_used(program, weights, sample)
    used = {k: x for (k, x), keep in zip(named.items(), are_used, strict=True) if keep}
    zeros = {k: jnp.zeros(x.shape, x.dtype) for k, x in named.items() if k not in used}

    def predict(used: dict[str, Any], images: jax.Array) -> jax.Array:
        leaves = used | zeros
        tree = jax.tree.unflatten(structure, [leaves[name] for name in named])
        return program(tree, images)

    (count,) = export.symbolic_shape("n", constraints=("n >= 1",))
    images = jax.ShapeDtypeStruct((count, *shape), jnp.uint8)
    code = exported(predict, shapes_of(used), images, platforms=platforms)
    manifest = {
        "kind": standalone.KIND,
        "format": standalone.FORMAT,
        "class_names": list(classifier.class_names),
        "image": classifier.spec._asdict(),
        "temperature": classifier.temperature,
        "held_out": classifier.held_out._asdict(),
    }
    try:
        write_artefact(path, {"predict": code}, used, manifest)
    except OSError as error:
        raise UserError(f"out={path} cannot be written: {error}") from error


def _are_used(program: PredictFn, weights: PyTree, images: Any) -> list[bool]:
    """Return, for each leaf of the weights, whether the program uses it."""
    traced = jax.make_jaxpr(program)(weights, images).jaxpr
    used_ids = {id(x) for equation in traced.eqns for x in equation.invars}
    used_ids |= {id(x) for x in traced.outvars}
    return [id(x) in used_ids for x in traced.invars[: len(jax.tree.leaves(weights))]]


def load_classifier(path: str | Path) -> Classifier:
    """Return the classifier in a file that `save_classifier` wrote.

    Raises:
        UserError: The file holds no classifier, or one that this version or this device
            cannot run.
    """
    try:
        loaded = standalone.load(Path(path).expanduser())
        manifest = loaded.manifest
        return Classifier(
            tuple(manifest["class_names"]),
            ImageSpec(**manifest["image"]),
            HeldOut(**manifest["held_out"]),
            manifest["temperature"],
            lambda images: in_batches(loaded.log_probabilities, images),
        )
    except MALFORMED as error:
        raise UserError(f"classifier={path} cannot be loaded: {error}") from error
