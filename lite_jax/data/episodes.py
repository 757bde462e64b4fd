"""Rules for drawing episodes: their classes, shots and images.

An episode is a pure function of its random generator. `episode_rng` makes that
generator from a seed, the name of a stream and the number of the episode. Episode 7 of
a stream is therefore the same in every process and every order of drawing.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from lite_jax.data.sources import ClassSource, Groups, class_groups, equal_groups
from lite_jax.errors import UserError


class EpisodeSampler(Protocol):
    """A rule for drawing tasks: `EpisodeSpec`, `VariableSpec` or `OrbitSpec`."""

    @property
    def way(self) -> tuple[int, int]:
        """Smallest and largest number of classes of a task."""
        ...

    @property
    def support_size(self) -> int:
        """Static number of examples that supports are padded to."""
        ...

    @property
    def query_size(self) -> int:
        """Static number of examples that query sets are padded to."""
        ...

    @property
    def least_support(self) -> int:
        """Smallest number of support images of a task."""
        ...

    def describe(self) -> str:
        """Return a short description, such as `5-way 1-shot`."""
        ...

    def check(self, name: str, source: ClassSource) -> None:
        """Raise unless every episode can be drawn from `source`.

        Args:
            name: Name of the spec's setting, for the error message.
            source: Source of the images.

        Raises:
            UserError: Names the setting, its value and the correction.
        """
        ...


@runtime_checkable
class ClassSampler(EpisodeSampler, Protocol):
    """A rule for drawing tasks from classes of images."""

    def draw_sizes(
        self, sizes: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, int]:
        """Return the number of support images of each class, and of query images.

        Args:
            sizes: Number of images of each class of the task, `[way]`.
            rng: Generator, advanced by the call.

        Returns:
            Support images of each class, `[way]`, and query images of every class.
        """
        ...


class EpisodeSpec(NamedTuple):
    """A rule for tasks whose shot is fixed, or drawn uniformly for each class.

    Attributes:
        way: Smallest and largest number of classes of a task; equal ends fix it.
        shot: Smallest and largest number of support images of a class; equal ends fix
            it. A shot is at most what the query images leave of the class.
        query: Number of query images of each class.
        max_support: Largest number of support images of a task, or None for no limit.
            Above it, images are dropped at random; each class keeps one or more.
    """

    way: tuple[int, int]
    shot: tuple[int, int]
    query: int
    max_support: int | None = None

    @property
    def support_size(self) -> int:
        """Static number of examples that supports are padded to."""
        most = self.way[1] * self.shot[1]
        return most if self.max_support is None else min(most, self.max_support)

    @property
    def query_size(self) -> int:
        """Static number of examples that query sets are padded to."""
        return self.way[1] * self.query

    @property
    def least_support(self) -> int:
        """Smallest number of support images of a task."""
        return min(self.way[0] * self.shot[0], self.support_size)

    def describe(self) -> str:
        """Return a phrase such as `5-way 1-shot` or `5–20-way 1–5-shot`."""
        return f"{_span(self.way)}-way {_span(self.shot)}-shot"

    def draw_sizes(
        self, sizes: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, int]:
        """Return support images of each class `[way]`, and query images a class."""
        shots = rng.integers(self.shot[0], self.shot[1] + 1, len(sizes))
        shots = np.minimum(shots, sizes - self.query)
        return _capped_shots(shots, self.support_size, rng), self.query

    def check(self, name: str, source: ClassSource) -> None:
        """Raise unless every episode can be drawn from `source`."""
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
    """A rule for tasks of variable way and shot, exactly as Meta-Dataset draws them.

    Class c of the task has n_c images. Each class has q = min(max_query, min_c ⌊n_c/2⌋)
    query images, which leave r_c = n_c − q. The support size is
    S = min(max_support, Σ_c (⌊β min(max_contribution, r_c)⌋ + 1)), with one β ~ U[0,1).
    The shot of class c is min(⌊w_c (S − way)⌋ + 1, r_c), with weights w_c ∝ n_c exp α_c
    that sum to 1 and independent α_c ~ U(log ½, log 2).

    Source: Triantafillou et al., "Meta-Dataset", ICLR 2020, §3.2 and appendix.

    Attributes:
        way: Smallest and largest number of classes of a task. The number is drawn
            uniformly, and is at most the size of the group of classes. A `whole` group
            gives all its classes, up to the largest number.
        max_query: Largest number of query images of a class.
        max_support: Largest number of support images of a task.
        max_contribution: Largest number of images that a class counts for when the
            support size is drawn; the shot of the class may be larger.
    """

    way: tuple[int, int] = (5, 50)
    max_query: int = 10
    max_support: int = 500
    max_contribution: int = 100

    @property
    def support_size(self) -> int:
        """Static number of examples that supports are padded to."""
        return self.max_support

    @property
    def query_size(self) -> int:
        """Static number of examples that query sets are padded to."""
        return self.way[1] * self.max_query

    @property
    def least_support(self) -> int:
        """Smallest number of support images of a task."""
        return self.way[0]

    def describe(self) -> str:
        """Return a phrase such as `5–50-way, at most 500 support images`."""
        return f"{_span(self.way)}-way, at most {self.max_support} support images"

    def draw_sizes(
        self, sizes: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, int]:
        """Return support images of each class `[way]`, and query images a class."""
        way, query = len(sizes), min(self.max_query, int(sizes.min()) // 2)
        remaining = sizes - query
        contributions = rng.random() * np.minimum(self.max_contribution, remaining)
        total = min(self.max_support, int(np.floor(contributions + 1).sum()))
        weights = sizes * np.exp(rng.uniform(np.log(0.5), np.log(2), way))
        shares = np.floor(weights / weights.sum() * (total - way)).astype(int)
        return np.minimum(shares + 1, remaining), query

    def check(self, name: str, source: ClassSource) -> None:
        """Raise unless every episode can be drawn from `source`."""
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
    """One episode: its classes, and the numbers of their images.

    Attributes:
        classes: Class numbers, `[way]`.
        support: For each class, the numbers of its support images, `[shot]`.
        query: For each class, the numbers of its query images.
    """

    classes: np.ndarray
    support: list[np.ndarray]
    query: list[np.ndarray]


def episode_rng(seed: int, stream: str, index: int) -> np.random.Generator:
    """Return the generator of an episode, a pure function of the arguments.

    Args:
        seed: The run's seed, 0 or more.
        stream: Name of an independent series of episodes, such as "train".
        index: Number of the episode in its stream, 0 or more.
    """
    return np.random.default_rng((seed, zlib.crc32(stream.encode()), index))


def sample_episode(
    class_sizes: Sequence[int],
    spec: ClassSampler,
    rng: np.random.Generator,
    groups: Groups | None = None,
) -> Episode:
    """Draw the classes, shots and images of an episode.

    Support and query share no image. The images of a class are drawn uniformly from all
    of its images, so that files in order of recording (the tracks of traffic signs) are
    well mixed.

    Args:
        class_sizes: Number of images of each class.
        spec: The rule for drawing; `check_spec` checks that the classes suffice.
        rng: Generator from `episode_rng`, advanced by the call.
        groups: Groups of classes that may meet; by default one group of all classes.
    """
    groups = groups or equal_groups([np.arange(len(class_sizes))])
    classes = _episode_classes(spec, groups, rng)
    sizes = np.array([class_sizes[c] for c in classes])
    shots, num_query = spec.draw_sizes(sizes, rng)
    support, query = [], []
    for size, shot in zip(sizes, shots, strict=True):
        images = rng.choice(size, shot + num_query, replace=False)
        support.append(images[:shot])
        query.append(images[shot:])
    return Episode(classes, support, query)


def _episode_classes(
    spec: EpisodeSampler, groups: Groups, rng: np.random.Generator
) -> np.ndarray:
    """Return class numbers drawn from one group, which has `spec.way[0]` or more."""
    least, most = spec.way
    eligible = np.flatnonzero([len(group) >= least for group in groups.members])
    number = eligible[0]
    if len(eligible) > 1:
        chances = groups.chances[eligible]
        number = rng.choice(eligible, p=chances / chances.sum())
    members = groups.members[number]
    most = min(most, len(members))
    way = most if groups.whole[number] else int(rng.integers(least, most + 1))
    return rng.choice(members, way, replace=False)


def _capped_shots(shots: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Return the shots after random images above `most` are dropped, each 1 or more."""
    spare = np.repeat(np.arange(len(shots)), shots - 1)
    surplus = int(shots.sum()) - most
    if surplus <= 0:
        return shots
    dropped = rng.choice(spare, surplus, replace=False)
    return shots - np.bincount(dropped, minlength=len(shots))


def check_spec(name: str, spec: EpisodeSampler, source: ClassSource) -> None:
    """Raise unless every episode of `spec` can be drawn from `source`.

    Args:
        name: Name of the spec's setting, for the error message.
        spec: The rule for drawing episodes.
        source: Source of the images.

    Raises:
        UserError: Names the setting, its value and the correction.
    """
    least, most = spec.way
    if not 2 <= least <= most:
        raise UserError(
            f"{name}.way={least},{most}: expected least, most with 2 ≤ least ≤ most"
        )
    if hasattr(source, "load_task") and isinstance(spec, ClassSampler):
        raise UserError(
            f"{name} draws classes of images, but the data set draws its tasks itself: "
            "use the config variant orbit"
        )
    largest = max(map(len, class_groups(source).members))
    needed = most if isinstance(spec, EpisodeSpec) else least
    if needed > largest:
        raise UserError(
            f"{name}.way={needed} is more than the {largest} classes that may meet in "
            "an episode: lower it or add classes"
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
