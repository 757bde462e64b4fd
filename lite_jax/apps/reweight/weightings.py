"""Weights of training examples, as functions of learned parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lite_jax.errors import UserError
from lite_jax.types import Key, PyTree


class Weighting(NamedTuple):
    """Weights of training examples.

    Attributes:
        init: `(key, num_train) -> meta_params`.
        weights: `(meta_params, losses [n], rows [n]) -> [n]` in (0, 1); `rows` are
            indices of the examples in the training set.
    """

    init: Callable[[Key, int], PyTree]
    weights: Callable[[PyTree, jax.Array, jax.Array], jax.Array]


def per_example_weighting() -> Weighting:
    """Return the weighting by a sigmoid(λ_n) for each example, 1/2 at the start."""
    return Weighting(
        lambda key, num_train: jnp.zeros(num_train),
        lambda meta_params, losses, rows: jax.nn.sigmoid(meta_params[rows]),
    )


def meta_weight_net(hidden: int = 100) -> Weighting:
    """Return Meta-Weight-Net: a small network from an example's loss to its weight.

    No gradient passes through the loss, so a step cannot lower a weight by raising a
    loss. The last layer is 0 at the start, so all weights are 1/2. A random last layer
    may give large losses large weights, which learning may never reverse.

    Args:
        hidden: Units of the hidden layer.

    References:
        Shu et al., "Meta-Weight-Net: Learning an Explicit Mapping For Sample
        Weighting", NeurIPS 2019.
    """
    if hidden < 1:
        raise UserError(f"reweight.hidden={hidden}: expected 1 or more")

    def init(key: Key, num_train: int) -> PyTree:
        first = {"kernel": jax.random.normal(key, (1, hidden)),
                 "bias": jnp.zeros(hidden)}  # fmt: skip
        second = {"kernel": jnp.zeros((hidden, 1)), "bias": jnp.zeros(1)}
        return {"first": first, "second": second}

    def weights(params: PyTree, losses: jax.Array, rows: jax.Array) -> jax.Array:
        x = jax.lax.stop_gradient(losses)[:, None]
        x = jax.nn.relu(x @ params["first"]["kernel"] + params["first"]["bias"][None])
        x = x @ params["second"]["kernel"] + params["second"]["bias"][None]
        return jax.nn.sigmoid(x[:, 0])

    return Weighting(init, weights)
