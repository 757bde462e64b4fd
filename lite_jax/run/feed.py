"""Loading of training tasks, a few episodes ahead of the device."""

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

from lite_jax.data.augment import make_augment
from lite_jax.data.loader import check_batch_size, load_batch, load_task, run_ahead
from lite_jax.data.sources import ClassSource
from lite_jax.run import build_data, parallel
from lite_jax.run.configs import settings_named
from lite_jax.run.settings import Settings
from lite_jax.types import Task


class Feed:
    """The tasks of every step, stacked along a leading axis.

    Host memory holds the tasks of one step and `data.prefetch` further episodes,
    whatever the number of tasks in a step. Several threads decode the images of an
    episode.
    """

    def __init__(self, config: Settings, source: ClassSource, mesh: Mesh | None = None):
        """Check the settings, and choose how tasks are loaded; nothing is read yet."""
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
        """Return the tasks of one step; the first step is 1."""
        indices = self._task_indices(step)
        return self._on_device(map(self._load, indices), len(indices))

    def ahead(self, steps: Sequence[int]) -> Generator[Task]:
        """Yield the tasks of each step in order, loaded in background threads."""
        indices = itertools.chain.from_iterable(map(self._task_indices, steps))
        with closing(run_ahead(self._load, indices, depth=self._depth)) as episodes:
            for step in steps:
                count = len(self._task_indices(step))
                yield self._on_device(itertools.islice(episodes, count), count)

    def _task_indices(self, step: int) -> list[int]:
        """Return the indices of the tasks of a step that this host loads."""
        indices = parallel.own_tasks(self._mesh, self._width)
        return [(step - 1) * self._width + i for i in indices]

    def _on_device(self, tasks: Iterable[Task], count: int) -> Task:
        """Return the stacked tasks, on the device.

        Host memory holds the stack and one more task.
        """
        tasks = iter(tasks)
        first = next(tasks)
        stacked = jax.tree.map(lambda x: np.empty((count, *x.shape), x.dtype), first)
        for index, task in enumerate(itertools.chain([first], tasks)):
            jax.tree.map(functools.partial(_write_row, index), stacked, task)
        return parallel.place_tasks(self._mesh, stacked, self._width)


def _write_row(index: int, stacked: np.ndarray, row: np.ndarray) -> None:
    stacked[index] = row
