"""Multi-layer perceptrons on vectors."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lite_jax.nn import description
from lite_jax.types import Network


def mlp(width: int = 128, depth: int = 1) -> Network:
    """Return a perceptron of `depth` dense layers, each with a ReLU.

    Inputs `[n, …]` are flattened to vectors. Features are `[n, width]`.

    Args:
        width: Units of each layer.
        depth: Number of layers. With 0 the features are the flattened inputs.
    """
    module = _Perceptron(width, depth)

    def init(key: Any, example_spec: Any) -> Any:
        return module.init(key, jnp.zeros((1, *example_spec.shape))).get("params", {})

    def apply(params: Any, inputs: jax.Array) -> Any:
        return module.apply({"params": params}, inputs)

    def describe(shape: tuple[int, ...], outputs: int) -> description.Architecture:
        hidden = (width,) * depth
        return description.describe_perceptron(math.prod(shape), hidden, outputs)

    return Network(init, apply, describe=describe)


class _Perceptron(nn.Module):
    """Dense layers, each with a ReLU."""

    width: int
    depth: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        for i in range(self.depth):
            x = nn.relu(nn.Dense(self.width, name=f"layers.{i}")(x))
        return x
