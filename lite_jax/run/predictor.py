"""Adaptation to a support set and prediction in batches, compiled."""

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
"""Default batch sizes of prediction; each is compiled once."""


class Predictor:
    """The compiled functions of a learner.

    `adapt` is compiled once for each padded size of a support set, and prediction once
    for each size of a batch.
    """

    def __init__(
        self,
        learner: Learner,
        chunk_size: int | None = None,
        batch_sizes: Sequence[int] = BATCHES,
    ):
        """Store the arguments; functions are compiled on their first call.

        Args:
            learner: The learner.
            chunk_size: Images computed at once when adapting; None for all.
            batch_sizes: Images predicted at once, in increasing order.
        """
        self.learner, self._chunk_size = learner, chunk_size
        self._batch_sizes = tuple(batch_sizes)

    @functools.cached_property
    def adapt_padded(self) -> Callable[[Params, Examples], PyTree]:
        """`(params, padded support) -> task_state`."""
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
        """`(params, task) -> accuracy` of the query set in [0, 1], in one program.

        The program adapts to the whole support and predicts the query, both in chunks.
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
    """Parameters, and the task state of a support set."""

    params: Params
    task_state: PyTree


def padded_size(count: int) -> int:
    """Return the least of 1, 2, 3, 4, 6, 8, 12, 16, 24, … that is at least `count`.

    Padding to these sizes limits the number of compiled programs.
    """
    powers = (base << k for k in range(count.bit_length() + 1) for base in (1, 3))
    return min(size for size in powers if size >= count)


def in_batches(
    function: Callable[[np.ndarray], object],
    rows: np.ndarray,
    sizes: Sequence[int] = BATCHES,
) -> np.ndarray:
    """Return `function` of all rows, called on batches of a few sizes.

    Args:
        function: `[b, …] -> [b, …]`.
        rows: `[n, …]`.
        sizes: Batch sizes, in increasing order; the last batch is padded with zeros.
    """
    parts = []
    for first in range(0, len(rows), sizes[-1]):
        batch = rows[first : first + sizes[-1]]
        size = min(size for size in sizes if size >= len(batch))
        parts.append(np.asarray(function(_padded(batch, size)))[: len(batch)])
    return np.concatenate(parts)


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    """Return the rows followed by rows of zeros, `[size, …]`."""
    zeros = np.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)
    return np.concatenate([rows, zeros])
