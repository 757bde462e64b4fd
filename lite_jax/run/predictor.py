"""Adapt once, then predict many: for tests, evaluations and photographs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from lite_jax.data.loader import pad_examples
from lite_jax.learners.episode_loss import episode_loss
from lite_jax.lite import exact_sum
from lite_jax.types import Examples, Learner, Params, PyTree, Task

BATCHES = (1, 4, 16, 32)
"""Images predicted at once, by default; each size is compiled for itself."""


class Predictor:
    """A learner's compiled functions.

    `adapt` is compiled once for each padded size of a support set, and prediction once
    for each size of a batch.
    """

    def __init__(
        self,
        learner: Learner,
        chunk_size: int | None = None,
        batch_sizes: Sequence[int] = BATCHES,
    ):
        """Make the functions; they are compiled when they are first called.

        Args:
            learner: What adapts and predicts.
            chunk_size: Images computed at once in adapting; None for all.
            batch_sizes: Images predicted at once, in increasing order.
        """
        self.learner, self._chunk_size = learner, chunk_size
        self._batch_sizes = tuple(batch_sizes)

    @functools.cached_property
    def adapt_padded(self) -> Callable[[Params, Examples], PyTree]:
        """`(params, support) -> task_state`, of a support of any mask."""
        set_sum = exact_sum(self._chunk_size)

        @jax.jit
        def adapt(params: Params, support: Examples) -> PyTree:
            # An exact sum draws nothing, but a learner may split its key among its sums
            return self.learner.adapt(params, support, jax.random.key(0), set_sum)

        return adapt

    @functools.cached_property
    def _predict(self) -> Callable[[Params, PyTree, np.ndarray], jax.Array]:
        return jax.jit(self.learner.predict)

    @functools.cached_property
    def accuracy(self) -> jax.stages.Wrapped:
        """`(params, task) -> accuracy` of the query in [0, 1], in one program.

        Adapts on the whole support and predicts the query, both in chunks.
        """
        loss_fn = episode_loss(self.learner, query_chunk_size=self._chunk_size)
        set_sum = exact_sum(self._chunk_size)

        @jax.jit
        def score(params: Params, task: Task) -> jax.Array:
            _, aux = loss_fn(params, task, jax.random.key(0), set_sum=set_sum)
            return aux["accuracy"]

        return score

    def adapt(self, params: Params, inputs: np.ndarray, labels: np.ndarray) -> Adapted:
        """Return the task state of a support set `[n, …]` with labels `[n]`."""
        support = pad_examples(inputs, labels, padded_size(len(labels)))
        return Adapted(params, self.adapt_padded(params, support))

    def logits(self, adapted: Adapted, inputs: np.ndarray) -> np.ndarray:
        """Return logits `[m, way]` of inputs `[m, …]`."""

        def predict(batch: np.ndarray) -> jax.Array:
            return self._predict(adapted.params, adapted.task_state, batch)

        return in_batches(predict, inputs, self._batch_sizes)

    def predict(self, adapted: Adapted, inputs: np.ndarray) -> np.ndarray:
        """Return the labels `[m]` of inputs `[m, …]`."""
        return self.logits(adapted, inputs).argmax(-1)


class Adapted(NamedTuple):
    """Parameters, and what a learner made of a support set."""

    params: Params
    task_state: PyTree


def padded_size(count: int) -> int:
    """Return the least of 1, 2, 3, 4, 6, 8, 12, 16, 24, … that is not below `count`.

    So that few programs serve sets of every size.
    """
    powers = (base << k for k in range(count.bit_length() + 1) for base in (1, 3))
    return min(size for size in powers if size >= count)


def in_batches(
    function: Callable[[np.ndarray], object],
    rows: np.ndarray,
    sizes: Sequence[int] = BATCHES,
) -> np.ndarray:
    """Return `function` of all rows, which sees a few batch sizes alone."""
    parts = []
    for first in range(0, len(rows), sizes[-1]):
        batch = rows[first : first + sizes[-1]]
        size = min(size for size in sizes if size >= len(batch))
        parts.append(np.asarray(function(padded(batch, size)))[: len(batch)])
    return np.concatenate(parts)


def padded(rows: np.ndarray, size: int) -> np.ndarray:
    """Return rows with zeros after them, `[size, …]`."""
    empty = np.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)
    return np.concatenate([rows, empty])
