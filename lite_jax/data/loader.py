"""From an episode to arrays, ahead of the device."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from lite_jax.data.augment import Augment
from lite_jax.data.episodes import ClassSampler, Sampler, episode_rng, sample_episode
from lite_jax.data.sources import ClassSource, class_groups
from lite_jax.errors import UserError
from lite_jax.types import Examples, Task

T = TypeVar("T")
R = TypeVar("R")


def load_task(
    source: ClassSource,
    spec: Sampler,
    seed: int,
    stream: str,
    index: int,
    *,
    augment: Augment | None = None,
    pool: Executor | None = None,
) -> Task:
    """Return episode `index` as a padded `Task` of NumPy arrays.

    A pure function of its arguments: the same call gives the same bytes in any
    process and any order, so training resumes from a step number alone.

    Args:
        source: Where images come from; if it has a method `load_task`, as ORBIT's has,
            that is called instead.
        spec: How tasks are drawn; its static sizes are what sets are padded to.
        seed: The run's seed.
        stream: Name of an independent series of episodes, such as "train".
        index: The number of the episode in its stream, from 0.
        augment: `(images, rng) -> images`, applied to support and query alike.
        pool: Threads that read the classes of the episode side by side.
    """
    own_way = getattr(source, "load_task", None)
    if own_way:
        return own_way(spec, seed, stream, index, augment=augment, pool=pool)
    rng = episode_rng(seed, stream, index)
    assert isinstance(spec, ClassSampler)
    groups = class_groups(source)
    episode = sample_episode(source.class_sizes, spec, rng, groups)

    def load(parts: list[np.ndarray], size: int) -> Examples:
        side_by_side = pool.map if pool else map
        read = side_by_side(source.read, episode.classes, parts)
        images = np.concatenate(list(read))
        labels = np.repeat(np.arange(len(parts)), list(map(len, parts)))
        return pad_examples(augment(images, rng) if augment else images, labels, size)

    return Task(
        load(episode.support, spec.support_size), load(episode.query, spec.query_size)
    )


def pad_examples(inputs: np.ndarray, labels: np.ndarray, size: int) -> Examples:
    """Return `inputs [n, …]` and `labels [n]` padded with zeros to `size` examples."""
    count = len(labels)
    images = np.zeros((size, *inputs.shape[1:]), inputs.dtype)
    images[:count] = inputs
    numbers = np.zeros(size, np.int32)
    numbers[:count] = labels
    return Examples(images, numbers, np.arange(size) < count)


def load_batch(
    source: ClassSource,
    size: int,
    seed: int,
    stream: str,
    index: int,
    *,
    augment: Augment | None = None,
) -> Task:
    """Return batch `index` of ordinary training on all classes, as a `Task`.

    The support is empty, the query holds `size` images, and labels are the numbers of
    the source's classes. Batches go through all images in an order drawn anew for
    every epoch (a last incomplete batch is left out), and are pure functions of the
    arguments, as tasks are.

    Args:
        source: Where images come from.
        size: Images of a batch; at most as many as there are.
        seed: The run's seed.
        stream: Name of an independent series of batches.
        index: The number of the batch, from 0.
        augment: `(images, rng) -> images`.

    Raises:
        UserError: More images than there are.
    """
    check_batch_size(size, source)
    ends = np.cumsum(source.class_sizes)
    epoch, place = divmod(index, int(ends[-1]) // size)
    order = episode_rng(seed, f"{stream}.order", epoch).permutation(int(ends[-1]))
    chosen = order[place * size : (place + 1) * size]
    labels = np.searchsorted(ends, chosen, side="right").astype(np.int32)
    numbers = chosen - (ends - source.class_sizes)[labels]
    images = np.empty((size, *source.image_shape), np.uint8)
    for label in np.unique(labels):
        own = labels == label
        images[own] = source.read(int(label), numbers[own])
    if augment:
        images = augment(images, episode_rng(seed, stream, index))
    query = Examples(images, labels, np.ones(size, bool))
    return Task(Examples(*(x[:0] for x in query)), query)


def check_batch_size(size: int, source: ClassSource) -> None:
    """Raise unless the source has images for a batch of this size."""
    total = sum(source.class_sizes)
    if not 1 <= size <= total:
        raise UserError(f"size={size}: expected 1 to {total}, the training images")


def run_ahead(
    make: Callable[[T], R], items: Iterable[T], *, depth: int = 2, workers: int = 2
) -> Generator[R, None, None]:
    """Yield `make(item)` in order, computed by background threads.

    Args:
        make: Called on a worker thread; its exception is raised here, in turn.
        items: What to make; read lazily.
        depth: Results made before they are asked for, which bounds the memory.
        workers: Threads.
    """
    items = iter(items)
    with ThreadPoolExecutor(workers, thread_name_prefix="episode") as pool:
        waiting = collections.deque(
            pool.submit(make, item) for item in itertools.islice(items, depth)
        )
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(make, i) for i in itertools.islice(items, 1))
                yield result
        finally:
            pool.shutdown(cancel_futures=True)
