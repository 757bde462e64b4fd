"""ORBIT's training tasks, padded to static sizes."""

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
    """A rule for drawing ORBIT's training tasks.

    Attributes:
        way: Smallest and largest number of objects of a task. A user with fewer objects
            than the smallest number gives all.
        max_support: Largest number of context clips. Above it, clips are dropped at
            random; each object keeps one or more.
        max_target: Largest number of target clips, above which they are dropped alike.
    """

    way: tuple[int, int] = (2, 15)
    max_support: int = 500
    max_target: int = 500

    @property
    def support_size(self) -> int:
        """Static number of context clips that supports are padded to."""
        return self.max_support

    @property
    def query_size(self) -> int:
        """Static number of target clips that query sets are padded to."""
        return self.max_target

    @property
    def least_support(self) -> int:
        """Smallest number of context clips, if all users have `way[0]` objects."""
        return self.way[0]

    def describe(self) -> str:
        """Return a short description, such as `users of 2–15 objects`."""
        return f"users of {self.way[0]}–{self.way[1]} objects"

    def check(self, name: str, source: ClassSource) -> None:
        """Raise unless `source` is ORBIT's, and the limits allow one clip an object."""
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
        """Number of context videos of each object."""
        return [len(thing.context) for user in self.users for thing in user.things]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """`(clip_length, height, width, channels)`."""
        return self.protocol.clip_length, *self.spec.shape

    def read(self, class_index: int, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the first clips of an object's context videos.

        Args:
            class_index: Number of the object among all users' objects.
            indices: Numbers of the context videos.

        Returns:
            `[len(indices), clip_length, height, width, channels]` uint8.
        """
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

        Every user has 50 tasks an epoch, in an order drawn for that epoch.
        `lite_jax.data.load_task` explains the arguments.
        """
        count = _TASKS_PER_EPOCH * len(self.users)
        epoch, position = divmod(index, count)
        order = episode_rng(seed, f"{stream}.order", epoch).permutation(count)
        user = self.users[order[position] % len(self.users)]
        rng = episode_rng(seed, stream, index)
        task = draw_task(user, self.protocol, rng, way=spec.way)
        target = [(clip, v.label) for v in task.videos for clip in v.clips]
        clips, labels = [c for c, _ in target], [label for _, label in target]

        def load(clips: list[Clip], labels: list[int], most: int) -> Examples:
            numbers = _clip_numbers(np.array(labels), most, rng)
            images = open_clips([clips[i] for i in numbers], self.spec, pool)
            if augment:
                frames = images.reshape(-1, *self.spec.shape)
                images = augment(frames, rng).reshape(images.shape)
            return pad_examples(images, np.array(labels)[numbers], most)

        return Task(
            load(task.context, task.labels, spec.max_support),
            load(clips, labels, spec.max_target),
        )


def _clip_numbers(
    labels: np.ndarray, most: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the sorted numbers of at most `most` clips, with each label among them."""
    if len(labels) <= most:
        return np.arange(len(labels))
    order = rng.permutation(len(labels))
    _, firsts = np.unique(labels[order], return_index=True)
    one_each = order[firsts]
    others = order[~np.isin(order, one_each)]
    return np.sort(np.concatenate([one_each, others[: most - len(one_each)]]))
