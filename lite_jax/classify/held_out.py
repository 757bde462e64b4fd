"""What a classifier makes of support images that it was not adapted on."""

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
    """Accuracy on support images, each predicted without it.

    Attributes:
        correct: How many were predicted right.
        counted: How many were held out; a class's only image cannot be.
        folds: In how many parts; as many as images if they were left out one by one.
        total: Images of the support.
    """

    correct: int
    counted: int
    folds: int
    total: int

    @property
    def accuracy(self) -> float | None:
        """In [0, 1]; None where nothing could be held out."""
        return self.correct / self.counted if self.counted else None

    def describe(self) -> str:
        """Return a phrase such as `leave-one-out: 22 of 24 right (91.7 %)`."""
        if not self.counted:
            return "leave-one-out: not possible, it takes two images of a class"
        how = f"{self.folds} parts held out in turn"
        name = "leave-one-out" if self.folds >= self.counted else how
        share = f"{name}: {self.correct} of {self.counted} right"
        rest = self.total - self.counted
        alone = f"; {rest} left aside, the only one of a class" if rest else ""
        return f"{share} ({100 * self.correct / self.counted:.1f} %){alone}"


def assign_folds(labels: np.ndarray, folds: int) -> np.ndarray:
    """Return the part `[n]` in which each example is held out; −1 for in none.

    A class is spread over the parts, so that some of it is always left; an example
    that is the only one of its class is never held out.

    Args:
        labels: `[n]` integers.
        folds: Parts, 2 or more; no more than examples are used.

    >>> print(assign_folds(np.array([0, 0, 0, 1, 1, 2]), 2))
    [ 0  1  0  1  0 -1]
    """
    if folds < 2:
        raise UserError(f"folds={folds}: expected 2 or more, or 0 for none")
    parts = np.full(len(labels), -1)
    counts = np.bincount(labels)
    countable = np.flatnonzero(counts[labels] > 1)
    in_order = countable[np.argsort(labels[countable], kind="stable")]
    parts[in_order] = np.arange(len(in_order)) % folds
    return parts


def hold_out(
    score: Score, labels: np.ndarray, folds: int
) -> tuple[HeldOut, np.ndarray, np.ndarray]:
    """Return the accuracy, and the logits and labels it is from.

    Args:
        score: Adapts on some examples and returns the logits of others.
        labels: `[n]` integers.
        folds: Parts; 0 holds nothing out.

    Returns:
        The accuracy, logits `[m, way]` and labels `[m]` of what was held out.
    """
    found, truth = [], []
    parts = assign_folds(labels, folds) if folds else np.full(len(labels), -1)
    for part in range(parts.max(initial=-1) + 1):
        held = np.flatnonzero(parts == part)
        found.append(score(np.flatnonzero(parts != part), held))
        truth.append(labels[held])
    logits = np.concatenate(found) if found else np.zeros((0, 2))
    wanted = np.concatenate(truth) if truth else np.zeros(0, int)
    correct = int((logits.argmax(1) == wanted).sum()) if len(wanted) else 0
    return HeldOut(correct, len(wanted), len(found), len(labels)), logits, wanted


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return T > 0 by which logits are divided to become calibrated.

    Minimises the mean cross-entropy of softmax(logits / T) on held-out examples, with
    targets (n + 1) / (n + K) for the true class and 1 / (n + K) for the K − 1 others: a
    few examples that are all predicted right do not make for certainty.

    Args:
        logits: `[n, K]`; −∞ for a class that could not be chosen.
        labels: `[n]`.

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
