"""Training tasks on their way to the device, a few episodes ahead of it."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lite_jax.data.augment import make_augment
from lite_jax.data.loader import check_batch_size, load_batch, load_task, run_ahead
from lite_jax.data.sources import ClassSource
from lite_jax.run import build_data, parallel
from lite_jax.run.settings import settings_named
from lite_jax.types import Task


class Feed:
    """The tasks of every step, stacked along a leading axis.

    The host holds the step that is being put together and `data.prefetch` episodes
    beyond it, whatever the number of tasks a step; threads decode the images of an
    episode side by side.
    """

    def __init__(
        self, config: ConfigDict, source: ClassSource, mesh: Mesh | None = None
    ):
        """Choose how tasks are loaded; nothing is read yet."""
        self._mesh, self._width = mesh, config.train.tasks_per_step
        self._depth = config.data.prefetch
        threads = config.data.workers or os.cpu_count() or 1
        pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        with settings_named({"augment": "data.augment", "size": "train.batch_size"}):
            augment = make_augment(config.data.augment)
            if config.learner == "classifier":
                check_batch_size(config.train.batch_size, source)
        if config.learner == "classifier":
            load = functools.partial(load_batch, source, config.train.batch_size)
        else:
            spec = build_data.make_spec(config.train.episode)
            load = functools.partial(load_task, source, spec, pool=pool)

        def load_one(index: int) -> Task:
            return load(config.seed, "train", index, augment=augment)

        self._load = load_one

    def step(self, step: int) -> Task:
        """Return the tasks of one step, from 1."""
        numbers = self._numbers(step)
        return self._place(map(self._load, numbers), len(numbers))

    def ahead(self, steps: Sequence[int]) -> Generator[Task]:
        """Yield the tasks of the steps in turn, loaded in the background."""
        numbers = itertools.chain.from_iterable(map(self._numbers, steps))
        with closing(run_ahead(self._load, numbers, depth=self._depth)) as episodes:
            for step in steps:
                count = len(self._numbers(step))
                yield self._place(itertools.islice(episodes, count), count)

    def _numbers(self, step: int) -> list[int]:
        own = parallel.own_tasks(self._mesh, self._width)
        return [(step - 1) * self._width + i for i in own]

    def _place(self, tasks: Iterable[Task], count: int) -> Task:
        """Return the tasks on the device; one at a time is held beside the stack."""
        tasks = iter(tasks)
        first = next(tasks)
        stacked = jax.tree.map(lambda x: np.empty((count, *x.shape), x.dtype), first)
        for place, task in enumerate(itertools.chain([first], tasks)):
            jax.tree.map(functools.partial(_put, place), stacked, task)
        return parallel.place_tasks(self._mesh, stacked, self._width)


def _put(place: int, stacked: np.ndarray, x: np.ndarray) -> None:
    stacked[place] = x
