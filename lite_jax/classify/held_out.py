"""Accuracy on held-out support images, and calibration of probabilities by them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import log_softmax

from lite_jax.errors import UserError

Score = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""`(indices adapted on, indices held out [m]) -> logits [m, way]`."""


class HeldOut(NamedTuple):
    """Accuracy on support images, each predicted by a classifier adapted without it.

    Attributes:
        correct: Number of images predicted right.
        counted: Number of images held out; the only image of a class is not.
        folds: Number of parts held out in turn; `counted` for leave-one-out.
        total: Number of images of the support.
    """

    correct: int
    counted: int
    folds: int
    total: int

    @property
    def accuracy(self) -> float | None:
        """The accuracy in [0, 1]; None if no image was held out."""
        return self.correct / self.counted if self.counted else None

    def describe(self) -> str:
        """Return text such as `leave-one-out: 22 of 24 right (91.7 %)`."""
        if not self.counted:
            return "leave-one-out: not possible, it takes two images of a class"
        parts = f"{self.folds} parts held out in turn"
        method = "leave-one-out" if self.folds >= self.counted else parts
        text = f"{method}: {self.correct} of {self.counted} right"
        rest = self.total - self.counted
        note = f"; {rest} left aside, the only one of a class" if rest else ""
        return f"{text} ({100 * self.correct / self.counted:.1f} %){note}"


def assign_folds(labels: np.ndarray, folds: int) -> np.ndarray:
    """Return the part in which each example is held out, `[n]`; −1 for none.

    The examples of a class are spread over the parts, so each part leaves some of the
    class to adapt to. The only example of a class is never held out.

    Args:
        labels: `[n]` integers.
        folds: Number of parts, 2 or more; parts beyond the examples stay empty.

    >>> print(assign_folds(np.array([0, 0, 0, 1, 1, 2]), 2))
    [ 0  1  0  1  0 -1]
    """
    if folds < 2:
        raise UserError(f"folds={folds}: expected 2 or more, or 0 for none")
    parts = np.full(len(labels), -1)
    counts = np.bincount(labels)
    rows = np.flatnonzero(counts[labels] > 1)
    by_class = rows[np.argsort(labels[rows], kind="stable")]
    parts[by_class] = np.arange(len(by_class)) % folds
    return parts


def hold_out(
    score: Score, labels: np.ndarray, folds: int
) -> tuple[HeldOut, np.ndarray, np.ndarray]:
    """Predict each part of a support set from all other parts.

    Args:
        score: Adapts to some examples, and returns the logits of others.
        labels: `[n]` integers.
        folds: Number of parts; 0 to hold nothing out.

    Returns:
        The accuracy, logits `[m, way]` and labels `[m]` of the held-out examples.
    """
    logits_of_parts, labels_of_parts = [], []
    parts = assign_folds(labels, folds) if folds else np.full(len(labels), -1)
    for part in range(parts.max(initial=-1) + 1):
        held_out = np.flatnonzero(parts == part)
        logits_of_parts.append(score(np.flatnonzero(parts != part), held_out))
        labels_of_parts.append(labels[held_out])
    logits = np.concatenate(logits_of_parts) if logits_of_parts else np.zeros((0, 2))
    true_labels = (
        np.concatenate(labels_of_parts) if labels_of_parts else np.zeros(0, int)
    )
    correct = int((logits.argmax(1) == true_labels).sum()) if len(true_labels) else 0
    return (
        HeldOut(correct, len(true_labels), len(logits_of_parts), len(labels)),
        logits,
        true_labels,
    )


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature T > 0 that calibrates softmax(logits / T).

    T minimises the mean cross-entropy on held-out examples. Targets are
    (n + 1) / (n + K) for the true class and 1 / (n + K) for the K − 1 others, so that T
    does not go to 0 when all of a few examples are predicted right.

    Args:
        logits: `[n, K]`; −∞ for a class that cannot be predicted.
        labels: `[n]` integers.

    Returns:
        The temperature; 1 without examples.

    >>> sure = np.array([[4.0, 0.0], [0.0, 4.0], [4.0, 0.0], [4.0, 0.0]])
    >>> print(round(fit_temperature(sure, np.array([0, 1, 0, 1])), 2))  # 3 of 4 right
    5.77

    References:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
        Platt, "Probabilistic Outputs for Support Vector Machines", 1999.
    """
    count = len(labels)
    if not count:
        return 1.0
    from scipy.optimize import minimize_scalar  # takes half a second to import

    possible = np.isfinite(logits)
    targets = np.where(possible, 1.0, 0.0)
    targets[np.arange(count), labels] += count
    targets /= targets.sum(1, keepdims=True)

    def loss(log_temperature: float) -> float:
        logs = log_softmax(logits / math.exp(log_temperature), axis=1)
        return -float((targets * np.where(possible, logs, 0)).sum() / count)

    return math.exp(minimize_scalar(loss, bounds=(-8, 12), method="bounded").x)
