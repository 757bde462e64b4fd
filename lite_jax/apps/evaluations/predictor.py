"""Adapt once, then predict any number of images: for test sets too large for a task."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lite_jax.data.loader import pad_examples
from lite_jax.lite import exact_sum
from lite_jax.types import Examples, Learner, Params, PyTree


class Predictor:
    """A learner's two compiled functions.

    `adapt` is compiled once for each power of two of support images, `predict` once
    for batches of `chunk_size`.
    """

    def __init__(self, learner: Learner, chunk_size: int):
        """Make the functions; they are compiled when first called."""
        self._chunk_size = chunk_size
        set_sum = exact_sum(chunk_size)

        @jax.jit
        def adapt(params: Params, support: Examples) -> PyTree:
            return learner.adapt(params, support, jax.random.key(0), set_sum)

        @jax.jit
        def predict(params: Params, task_state: PyTree, inputs: jax.Array) -> jax.Array:
            return jnp.argmax(learner.predict(params, task_state, inputs), -1)

        self._adapt, self._predict = adapt, predict

    def adapt(self, params: Params, inputs: np.ndarray, labels: np.ndarray) -> Adapted:
        """Return the task state of a support set `[n, …]` with labels `[n]`."""
        size = 1 << (len(labels) - 1).bit_length()  # few sizes are compiled
        support = pad_examples(inputs, labels, size)
        return Adapted(params, self._adapt(params, support))

    def predict(self, adapted: Adapted, inputs: np.ndarray) -> np.ndarray:
        """Return the labels `[m]` of inputs `[m, …]`."""
        labels, size = [], self._chunk_size
        for start in range(0, len(inputs), size):
            part = inputs[start : start + size]
            padded = np.zeros((size, *inputs.shape[1:]), inputs.dtype)
            padded[: len(part)] = part
            found = self._predict(adapted.params, adapted.task_state, padded)
            labels.append(np.asarray(found)[: len(part)])
        return np.concatenate(labels)


class Adapted(NamedTuple):
    """Parameters, and what a learner made of a support set."""

    params: Params
    task_state: PyTree
