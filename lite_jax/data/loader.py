"""Tasks and batches as padded arrays, loaded by background threads."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from lite_jax.data.augment import Augment
from lite_jax.data.episodes import (
    ClassSampler,
    EpisodeSampler,
    episode_rng,
    sample_episode,
)
from lite_jax.data.sources import ClassSource, class_groups
from lite_jax.errors import UserError
from lite_jax.types import Examples, Task

T = TypeVar("T")
R = TypeVar("R")


def load_task(
    source: ClassSource,
    spec: EpisodeSampler,
    seed: int,
    stream: str,
    index: int,
    *,
    augment: Augment | None = None,
    pool: Executor | None = None,
) -> Task:
    """Return episode `index` as a padded `Task` of NumPy arrays.

    The task is a pure function of the arguments: the same call gives the same bytes in
    any process and any order. Training therefore resumes from a step number.

    Args:
        source: Source of the images. If it has a method `load_task`, like ORBIT's, the
            call is passed to that.
        spec: The rule for drawing tasks; sets are padded to its static sizes.
        seed: The run's seed.
        stream: Name of an independent series of episodes, such as "train".
        index: Number of the episode in its stream, from 0.
        augment: `(images, rng) -> images`, applied to support and query alike.
        pool: Threads that read the classes of the episode in parallel.
    """
    load_own_task = getattr(source, "load_task", None)
    if load_own_task:
        return load_own_task(spec, seed, stream, index, augment=augment, pool=pool)
    rng = episode_rng(seed, stream, index)
    assert isinstance(spec, ClassSampler)
    groups = class_groups(source)
    episode = sample_episode(source.class_sizes, spec, rng, groups)

    def load(parts: list[np.ndarray], size: int) -> Examples:
        map_classes = pool.map if pool else map
        images_by_class = map_classes(source.read, episode.classes, parts)
        images = np.concatenate(list(images_by_class))
        labels = np.repeat(np.arange(len(parts)), list(map(len, parts)))
        return pad_examples(augment(images, rng) if augment else images, labels, size)

    return Task(
        load(episode.support, spec.support_size), load(episode.query, spec.query_size)
    )


def pad_examples(inputs: np.ndarray, labels: np.ndarray, size: int) -> Examples:
    """Return `inputs [n, …]` and `labels [n]` padded with zeros to `size` examples."""
    count = len(labels)
    padded_inputs = np.zeros((size, *inputs.shape[1:]), inputs.dtype)
    padded_inputs[:count] = inputs
    padded_labels = np.zeros(size, np.int32)
    padded_labels[:count] = labels
    return Examples(padded_inputs, padded_labels, np.arange(size) < count)


def load_batch(
    source: ClassSource,
    size: int,
    seed: int,
    stream: str,
    index: int,
    *,
    augment: Augment | None = None,
) -> Task:
    """Return batch `index` of supervised training on all classes, as a `Task`.

    The support is empty, and the query holds `size` images. Labels are the source's
    class numbers. An epoch goes through all images in an order drawn for that epoch; a
    last incomplete batch is left out. A batch is a pure function of the arguments.

    Args:
        source: Source of the images.
        size: Number of images of a batch, at most that of the source.
        seed: The run's seed.
        stream: Name of an independent series of batches.
        index: Number of the batch in its stream, from 0.
        augment: `(images, rng) -> images`.

    Raises:
        UserError: `size` is below 1 or above the source's number of images.
    """
    check_batch_size(size, source)
    ends = np.cumsum(source.class_sizes)
    epoch, batch = divmod(index, int(ends[-1]) // size)
    order = episode_rng(seed, f"{stream}.order", epoch).permutation(int(ends[-1]))
    rows = order[batch * size : (batch + 1) * size]
    labels = np.searchsorted(ends, rows, side="right").astype(np.int32)
    numbers = rows - (ends - source.class_sizes)[labels]
    images = np.empty((size, *source.image_shape), np.uint8)
    for label in np.unique(labels):
        in_class = labels == label
        images[in_class] = source.read(int(label), numbers[in_class])
    if augment:
        images = augment(images, episode_rng(seed, stream, index))
    query = Examples(images, labels, np.ones(size, bool))
    return Task(Examples(*(x[:0] for x in query)), query)


def check_batch_size(size: int, source: ClassSource) -> None:
    """Raise unless the source has enough images for a batch of this size."""
    total = sum(source.class_sizes)
    if not 1 <= size <= total:
        raise UserError(f"size={size}: expected 1 to {total}, the training images")


def run_ahead(
    make: Callable[[T], R], items: Iterable[T], *, depth: int = 2, workers: int = 2
) -> Generator[R, None, None]:
    """Yield `make(item)` for each item in order, computed by background threads.

    Args:
        make: Function called on a worker thread. An exception is raised from this
            generator when its result is due.
        items: Arguments of `make`, read lazily.
        depth: Largest number of results computed ahead, which bounds the memory.
        workers: Number of threads.
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
