"""Difficulty scores of training examples, and the rows that pruning by them keeps."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lite_jax.apps.reweight.sets import LabelledSet
from lite_jax.apps.reweight.training import Logits, cross_entropies
from lite_jax.types import Params

Score = Callable[[Logits, Params, LabelledSet], jax.Array]
"""`(logits, params, train) -> [n]`; higher for harder examples."""


def loss_score(logits: Logits, params: Params, train: LabelledSet) -> jax.Array:
    """Return each example's cross-entropy, `[n]`."""
    return cross_entropies(logits, params, train.inputs, train.labels)


def el2n(logits: Logits, params: Params, train: LabelledSet) -> jax.Array:
    """Return the norm of each example's error, ‖softmax − one-hot‖, `[n]`.

    References:
        Paul, Ganguli, Dziugaite, "Deep Learning on a Data Diet", NeurIPS 2021.
    """
    predicted = jax.nn.softmax(logits(params, train.inputs))
    labels = jax.nn.one_hot(train.labels, predicted.shape[1], dtype=predicted.dtype)
    return jnp.linalg.norm(predicted - labels, axis=1)


def grand(logits: Logits, params: Params, train: LabelledSet) -> jax.Array:
    """Return the norm of each example's gradient, `[n]` (GraNd, Paul et al. 2021)."""

    def norm(example: LabelledSet) -> jax.Array:
        def loss(params: Params) -> jax.Array:
            batch = jax.tree.map(lambda x: x[None], example)
            return loss_score(logits, params, batch)[0]

        return optax.tree.norm(jax.grad(loss)(params))

    return jax.lax.map(norm, train, batch_size=min(50, train.labels.shape[0]))


SCORES: dict[str, Score] = {"loss": loss_score, "EL2N": el2n, "GraNd": grand}


def mean_scores(
    logits: Logits, networks: list[Params], train: LabelledSet
) -> dict[str, np.ndarray]:
    """Return the mean of each score over several networks, `{name: [n]}`."""
    means = {}
    for name, score in SCORES.items():
        run = jax.jit(lambda params, train, score=score: score(logits, params, train))
        means[name] = np.mean([run(params, train) for params in networks], axis=0)
    return means


def kept_rows(scores: np.ndarray, share: float, *, highest: bool) -> np.ndarray:
    """Return the indices of the highest or lowest scores, in ascending order.

    Of equal scores the earlier are kept.

    Args:
        scores: `[n]`.
        share: Share of the rows kept, in (0, 1]; at least one row is.
        highest: Keep the highest scores, or else the lowest.
    """
    count = max(1, round(share * len(scores)))
    order = np.argsort(-scores if highest else scores, kind="stable")
    return np.sort(order[:count])
