"""Episodes: which classes, how many images, which ones.

An episode is a pure function of the random generator it is given, and `episode_rng`
makes that generator from a seed, a stream's name and a number: episode 7 of a stream is
the same whoever draws it, in whatever order.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from lite_jax.data.sources import ClassSource, Groups, class_groups, equal_groups
from lite_jax.errors import UserError


class Sampler(Protocol):
    """How tasks are drawn: `EpisodeSpec`, `VariableSpec` or `OrbitSpec`."""

    @property
    def way(self) -> tuple[int, int]:
        """Least and most classes of a task."""
        ...

    @property
    def support_size(self) -> int:
        """The static size that supports are padded to."""
        ...

    @property
    def query_size(self) -> int:
        """The static size that query sets are padded to."""
        ...

    @property
    def least_support(self) -> int:
        """Support size of the smallest task."""
        ...

    def describe(self) -> str:
        """Return a phrase for people."""
        ...

    def check(self, name: str, source: ClassSource) -> None:
        """Raise unless `source` can serve every episode."""
        ...


@runtime_checkable
class ClassSampler(Sampler, Protocol):
    """How tasks are drawn from classes of images."""

    def draw_sizes(
        self, sizes: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, int]:
        """Return support images of each class `[way]`, and query images of each."""
        ...


class EpisodeSpec(NamedTuple):
    """Tasks of a fixed shot, or one drawn uniformly for each class.

    Attributes:
        way: Least and most classes of a task; equal ends fix the number.
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
        return f"{_span(self.way)}-way {_span(self.shot)}-shot"

    def draw_sizes(
        self, sizes: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, int]:
        """Return support images of each class `[way]`, and query images of each."""
        shots = rng.integers(self.shot[0], self.shot[1] + 1, len(sizes))
        shots = np.minimum(shots, sizes - self.query)
        return _cap(shots, self.support_size, rng), self.query

    def check(self, name: str, source: ClassSource) -> None:
        """Raise unless `source` can serve every episode; `name` is the setting's."""
        if not 1 <= self.shot[0] <= self.shot[1]:
            raise UserError(
                f"{name}.shot={self.shot[0]},{self.shot[1]}: expected least, most with "
                "1 ≤ least ≤ most"
            )
        if self.query < 1:
            raise UserError(f"{name}.query={self.query}: expected 1 or more")
        if self.max_support is not None and self.max_support < self.way[1]:
            raise UserError(
                f"{name}.max_support={self.max_support} is under one image a class at "
                f"{name}.way={self.way[1]}: raise it or lower the way"
            )
        _check_smallest(
            source,
            self.shot[0] + self.query,
            f"{name}.shot={self.shot[0]} and {name}.query={self.query} "
            f"({self.shot[0] + self.query}): lower them, add",
        )


class VariableSpec(NamedTuple):
    """Tasks of variable way and shot, exactly as Meta-Dataset draws them.

    With n_c images in class c of the task, q = min(max_query, min_c ⌊n_c / 2⌋) query
    images a class and r_c = n_c − q left: one β ~ U[0, 1) gives the support size
    S = min(max_support, Σ_c ⌊β min(max_contribution, r_c)⌋ + 1), and independent
    α_c ~ U(log ½, log 2) the shots min(⌊w_c (S − way)⌋ + 1, r_c), w_c ∝ n_c exp α_c.

    Source: Triantafillou et al., "Meta-Dataset", ICLR 2020, §3.2 and appendix.

    Attributes:
        way: Least and most classes of a task, drawn uniformly up to what the group of
            classes has; a `whole` group gives all its classes, at most this many.
        max_query: Most query images of each class; all classes have as many.
        max_support: Most support images of a task.
        max_contribution: Most images that a class counts for when the size of the
            support is drawn; a class may still be given more.
    """

    way: tuple[int, int] = (5, 50)
    max_query: int = 10
    max_support: int = 500
    max_contribution: int = 100

    @property
    def support_size(self) -> int:
        """The static size that supports are padded to."""
        return self.max_support

    @property
    def query_size(self) -> int:
        """The static size that query sets are padded to."""
        return self.way[1] * self.max_query

    @property
    def least_support(self) -> int:
        """Support size of the smallest task."""
        return self.way[0]

    def describe(self) -> str:
        """Return a phrase such as `5–50-way, at most 500 support images`."""
        return f"{_span(self.way)}-way, at most {self.max_support} support images"

    def draw_sizes(
        self, sizes: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, int]:
        """Return support images of each class `[way]`, and query images of each."""
        way, query = len(sizes), min(self.max_query, int(sizes.min()) // 2)
        left = sizes - query
        wanted = rng.random() * np.minimum(self.max_contribution, left)
        total = min(self.max_support, int(np.floor(wanted + 1).sum()))
        weights = sizes * np.exp(rng.uniform(np.log(0.5), np.log(2), way))
        shares = np.floor(weights / weights.sum() * (total - way)).astype(int)
        return np.minimum(shares + 1, left), query

    def check(self, name: str, source: ClassSource) -> None:
        """Raise unless `source` can serve every episode; `name` is the setting's."""
        for field, value in (
            ("max_query", self.max_query),
            ("max_contribution", self.max_contribution),
        ):
            if value < 1:
                raise UserError(f"{name}.{field}={value}: expected 1 or more")
        if self.max_support < self.way[1]:
            raise UserError(
                f"{name}.max_support={self.max_support} is under one image a class at "
                f"{name}.way={self.way[1]}: raise it or lower the way"
            )
        _check_smallest(source, 2, "one support and one query image: add")


class Episode(NamedTuple):
    """One draw: `classes [way]`, and per class the image numbers of each set."""

    classes: np.ndarray
    support: list[np.ndarray]
    query: list[np.ndarray]


def episode_rng(seed: int, stream: str, index: int) -> np.random.Generator:
    """Return the generator of episode `index`: a pure function of its arguments."""
    return np.random.default_rng((seed, zlib.crc32(stream.encode()), index))


def sample_episode(
    class_sizes: Sequence[int],
    spec: ClassSampler,
    rng: np.random.Generator,
    groups: Groups | None = None,
) -> Episode:
    """Draw classes, shots and images; support and query never share an image.

    The images of a class are drawn uniformly from all it has, so that files which
    stand in the order they were taken (the tracks of traffic signs) are well mixed.

    Args:
        class_sizes: Images of each class.
        spec: What to draw; `check_spec` says whether the classes can serve it.
        rng: Used up; take it from `episode_rng`.
        groups: Which classes may meet; by default all.
    """
    groups = groups or equal_groups([np.arange(len(class_sizes))])
    classes = _draw_classes(spec, groups, rng)
    sizes = np.array([class_sizes[c] for c in classes])
    shots, num_query = spec.draw_sizes(sizes, rng)
    support, query = [], []
    for size, shot in zip(sizes, shots, strict=True):
        chosen = rng.choice(size, shot + num_query, replace=False)
        support.append(chosen[:shot])
        query.append(chosen[shot:])
    return Episode(classes, support, query)


def _draw_classes(
    spec: Sampler, groups: Groups, rng: np.random.Generator
) -> np.ndarray:
    """Return the classes of an episode, all of one group that has enough of them."""
    least, most = spec.way
    able = np.flatnonzero([len(group) >= least for group in groups.members])
    place = able[0]
    if len(able) > 1:
        chances = groups.chances[able]
        place = rng.choice(able, p=chances / chances.sum())
    members = groups.members[place]
    most = min(most, len(members))
    way = most if groups.whole[place] else int(rng.integers(least, most + 1))
    return rng.choice(members, way, replace=False)


def _cap(shots: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Drop images at random until `most` are left, keeping one of each class."""
    spare = np.repeat(np.arange(len(shots)), shots - 1)
    surplus = int(shots.sum()) - most
    if surplus <= 0:
        return shots
    dropped = rng.choice(spare, surplus, replace=False)
    return shots - np.bincount(dropped, minlength=len(shots))


def check_spec(name: str, spec: Sampler, source: ClassSource) -> None:
    """Raise unless `source` can serve every episode of `spec`.

    Args:
        name: The setting that holds the spec, for the message.
        spec: The episodes.
        source: Where they are drawn from.

    Raises:
        UserError: Names the setting, its value and the mend.
    """
    least, most = spec.way
    if not 2 <= least <= most:
        raise UserError(
            f"{name}.way={least},{most}: expected least, most with 2 ≤ least ≤ most"
        )
    if hasattr(source, "load_task") and isinstance(spec, ClassSampler):
        raise UserError(
            f"{name} draws classes of images, and the data set gives tasks of its own: "
            "use the config variant orbit"
        )
    largest = max(map(len, class_groups(source).members))
    needed = most if isinstance(spec, EpisodeSpec) else least
    if needed > largest:
        raise UserError(
            f"{name}.way={needed} is more than the {largest} classes there are that "
            "may meet in an episode: lower it or add classes"
        )
    spec.check(name, source)


def _check_smallest(source: ClassSource, needed: int, purpose: str) -> None:
    sizes = list(source.class_sizes)
    smallest = int(np.argmin(sizes))
    if sizes[smallest] < needed:
        raise UserError(
            f"class {source.class_names[smallest]!r} has {sizes[smallest]} images, too "
            f"few for {purpose} images or remove the class"
        )


def _span(ends: tuple[int, int]) -> str:
    return str(ends[0]) if ends[0] == ends[1] else f"{ends[0]}–{ends[1]}"
