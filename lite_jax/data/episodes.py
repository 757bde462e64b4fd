"""Episodes: which images of which classes make one task."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lite_jax.data.sources import ClassSource
from lite_jax.errors import UserError


class EpisodeSpec(NamedTuple):
    """How tasks are drawn; ranges are inclusive, and equal ends fix a number.

    Attributes:
        way: Least and most classes of a task.
        shot: Least and most support images, drawn for each class.
        query: Query images of each class.
        max_support: Most support images of a task, or None; above it, images are
            dropped at random, never the last one of a class.
    """

    way: tuple[int, int]
    shot: tuple[int, int]
    query: int
    max_support: int | None = None

    @property
    def support_size(self) -> int:
        """The static size that supports are padded to."""
        most = self.way[1] * self.shot[1]
        return most if self.max_support is None else min(most, self.max_support)

    @property
    def query_size(self) -> int:
        """The static size that query sets are padded to."""
        return self.way[1] * self.query

    @property
    def least_support(self) -> int:
        """Support size of the smallest task."""
        return min(self.way[0] * self.shot[0], self.support_size)

    def describe(self) -> str:
        """Return a phrase such as `5-way 1-shot` or `5–20-way 1–5-shot`."""

        def span(ends: tuple[int, int]) -> str:
            return str(ends[0]) if ends[0] == ends[1] else f"{ends[0]}–{ends[1]}"

        return f"{span(self.way)}-way {span(self.shot)}-shot"


class Episode(NamedTuple):
    """One draw: `classes [way]`, and per class the image numbers of each set."""

    classes: np.ndarray
    support: list[np.ndarray]
    query: list[np.ndarray]


def episode_rng(seed: int, stream: str, index: int) -> np.random.Generator:
    """Return the generator of episode `index`: a pure function of its arguments."""
    return np.random.default_rng((seed, zlib.crc32(stream.encode()), index))


def sample_episode(
    class_sizes: Sequence[int], spec: EpisodeSpec, rng: np.random.Generator
) -> Episode:
    """Draw classes, shots and images; support and query never share an image.

    Args:
        class_sizes: Images of each class.
        spec: What to draw; `check_spec` says whether the classes can serve it.
        rng: Used up; take it from `episode_rng`.
    """
    way = int(rng.integers(spec.way[0], spec.way[1] + 1))
    classes = rng.choice(len(class_sizes), way, replace=False)
    shots = rng.integers(spec.shot[0], spec.shot[1] + 1, way)
    shots = np.minimum(shots, [class_sizes[c] - spec.query for c in classes])
    shots = _cap(shots, spec.support_size, rng)
    support, query = [], []
    for label, shot in zip(classes, shots, strict=True):
        chosen = rng.choice(class_sizes[label], shot + spec.query, replace=False)
        support.append(chosen[:shot])
        query.append(chosen[shot:])
    return Episode(classes, support, query)


def _cap(shots: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Drop images at random until `most` are left, keeping one of each class."""
    spare = np.repeat(np.arange(len(shots)), shots - 1)
    surplus = int(shots.sum()) - most
    if surplus <= 0:
        return shots
    dropped = rng.choice(spare, surplus, replace=False)
    return shots - np.bincount(dropped, minlength=len(shots))


def check_spec(name: str, spec: EpisodeSpec, source: ClassSource) -> None:
    """Raise unless `source` can serve every episode of `spec`.

    Args:
        name: The setting that holds the spec, for the message.
        spec: The episodes.
        source: Where they are drawn from.

    Raises:
        UserError: Names the setting, its value and the mend.
    """
    for field, (least, most) in (("way", spec.way), ("shot", spec.shot)):
        floor = 2 if field == "way" else 1
        if not floor <= least <= most:
            raise UserError(
                f"{name}.{field}={least},{most}: expected least, most with "
                f"{floor} ≤ least ≤ most"
            )
    if spec.query < 1:
        raise UserError(f"{name}.query={spec.query}: expected 1 or more")
    if spec.max_support is not None and spec.max_support < spec.way[1]:
        raise UserError(
            f"{name}.max_support={spec.max_support} is under one image a class at "
            f"{name}.way={spec.way[1]}: raise it or lower the way"
        )
    sizes = list(source.class_sizes)
    if spec.way[1] > len(sizes):
        raise UserError(
            f"{name}.way={spec.way[1]} is more than the {len(sizes)} classes there "
            "are: lower it or add classes"
        )
    smallest = int(np.argmin(sizes))
    if sizes[smallest] < spec.shot[0] + spec.query:
        raise UserError(
            f"class {source.class_names[smallest]!r} has {sizes[smallest]} images, too "
            f"few for {name}.shot={spec.shot[0]} and {name}.query={spec.query} "
            f"({spec.shot[0] + spec.query}): lower them, add images or remove the class"
        )
