"""ORBIT's training tasks, padded to a static size like any other task."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np

from lite_jax.data.augment import Augment
from lite_jax.data.episodes import episode_rng
from lite_jax.data.images import ImageSpec
from lite_jax.data.loader import pad_examples
from lite_jax.data.orbit.protocol import (
    Clip,
    OrbitProtocol,
    User,
    draw_task,
    open_clips,
)
from lite_jax.data.sources import ClassSource
from lite_jax.errors import UserError
from lite_jax.types import Examples, Task

_TASKS_PER_EPOCH = 50  # of each user


class OrbitSpec(NamedTuple):
    """How ORBIT's training tasks are drawn.

    Attributes:
        way: Least and most objects; a user with fewer gives all.
        max_support: Most context clips; above it, clips are dropped at random, never
            the last one of an object.
        max_target: Most target clips, the same way.
    """

    way: tuple[int, int] = (2, 15)
    max_support: int = 500
    max_target: int = 500

    @property
    def support_size(self) -> int:
        """The static size that supports are padded to."""
        return self.max_support

    @property
    def query_size(self) -> int:
        """The static size that query sets are padded to."""
        return self.max_target

    @property
    def least_support(self) -> int:
        """Support size of the smallest task."""
        return self.way[0]

    def describe(self) -> str:
        """Return a phrase for people."""
        return f"users of {self.way[0]}–{self.way[1]} objects"

    def check(self, name: str, source: ClassSource) -> None:
        """Raise unless `source` is ORBIT, and clips enough are allowed."""
        if not isinstance(source, OrbitSource):
            raise UserError(f"{name} is for ORBIT's tasks: set dataset=orbit")
        for field in ("max_support", "max_target"):
            value = getattr(self, field)
            if value < self.way[1]:
                raise UserError(
                    f"{name}.{field}={value} is under one clip an object at "
                    f"{name}.way={self.way[1]}: raise it or lower the way"
                )


@dataclasses.dataclass(frozen=True)
class OrbitSource:
    """The users of a split; a class is an object of one user, an example a clip."""

    users: Sequence[User]
    protocol: OrbitProtocol
    spec: ImageSpec

    @property
    def class_names(self) -> list[str]:
        """`user/object`, of all users."""
        return [f"{u.name}/{thing.name}" for u in self.users for thing in u.things]

    @property
    def class_sizes(self) -> list[int]:
        """Context videos of each object."""
        return [len(thing.context) for user in self.users for thing in user.things]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """`(clip_length, height, width, channels)`."""
        return self.protocol.clip_length, *self.spec.shape

    def read(self, class_index: int, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the first clip of an object's context videos, by number."""
        things = [thing for user in self.users for thing in user.things]
        videos = [things[class_index].context[int(i)] for i in indices]
        length = self.protocol.clip_length
        clips = [
            tuple(video.frames[min(k, len(video.frames) - 1)] for k in range(length))
            for video in videos
        ]
        return open_clips(clips, self.spec)

    def load_task(
        self,
        spec: OrbitSpec,
        seed: int,
        stream: str,
        index: int,
        *,
        augment: Augment | None = None,
        pool: Executor | None = None,
    ) -> Task:
        """Return task `index` of a stream, a pure function of the arguments.

        Every user has 50 tasks an epoch, in an order drawn anew for each.
        """
        count = _TASKS_PER_EPOCH * len(self.users)
        epoch, place = divmod(index, count)
        order = episode_rng(seed, f"{stream}.order", epoch).permutation(count)
        user = self.users[order[place] % len(self.users)]
        rng = episode_rng(seed, stream, index)
        task = draw_task(user, self.protocol, rng, way=spec.way)
        target = [(clip, v.label) for v in task.videos for clip in v.clips]
        clips, labels = [c for c, _ in target], [label for _, label in target]

        def load(clips: list[Clip], labels: list[int], most: int) -> Examples:
            kept = _kept(np.array(labels), most, rng)
            images = open_clips([clips[i] for i in kept], self.spec, pool)
            if augment:
                frames = images.reshape(-1, *self.spec.shape)
                images = augment(frames, rng).reshape(images.shape)
            return pad_examples(images, np.array(labels)[kept], most)

        return Task(
            load(task.context, task.labels, spec.max_support),
            load(clips, labels, spec.max_target),
        )


def _kept(labels: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Return `most` places or fewer, in order, one of each label at least."""
    if len(labels) <= most:
        return np.arange(len(labels))
    order = rng.permutation(len(labels))
    _, firsts = np.unique(labels[order], return_index=True)
    sure = order[firsts]
    rest = order[~np.isin(order, sure)]
    return np.sort(np.concatenate([sure, rest[: most - len(sure)]]))
