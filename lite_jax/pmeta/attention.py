"""Meta attention: channel masks computed from a layer's inputs and gradients.

The masks γ multiply the weight gradients of an inner step. The paper leaves some
choices open; docstrings state the ones made here.

References:
    Qu, Zhou, Thiele, "p-Meta: Towards On-device Deep Model Adaptation", KDD 2022, §4.3.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lite_jax.errors import UserError
from lite_jax.nn.description import Architecture
from lite_jax.types import Key, Params


class Attention(NamedTuple):
    """Ratios of meta attention.

    Attributes:
        forward: ρ of the module that scores the channels of a layer's input: the share
            of the scores' sum that is set to 0, at least 0 and below 1. None for no
            such module.
        backward: ρ of the module that scores the channels of the gradient of a layer's
            output. None for no such module.
    """

    forward: float | None = 0.3
    backward: float | None = 0.0

    def check(self) -> None:
        """Raise if a ratio is outside [0, 1).

        Raises:
            UserError: A ratio is outside.
        """
        for name, ratio in self._asdict().items():
            if ratio is not None and not 0 <= ratio < 1:
                raise UserError(
                    f"attention.{name}={ratio}: expected 0 or more, below 1"
                )


NO_ATTENTION = Attention(None, None)


def init_attention(key: Key, architecture: Architecture, attention: Attention) -> Any:
    """Return initial modules `{"forward": module, "backward": module}` of every layer.

    They stand at the layers' paths in a nested dictionary. The head has none. A module
    is two dense layers C → C → C with ReLU between them. The second starts at 0, so the
    scores of all channels are equal at first.

    Args:
        key: Key of the initialisation.
        architecture: The network.
        attention: The ratios; a module is left out where its ratio is None.
    """
    sides = [name for name, ratio in attention._asdict().items() if ratio is not None]
    modules: dict[str, Any] = {}
    for layer in architecture.body:
        layer_modules = modules
        for name in layer.path.split("/"):
            layer_modules = layer_modules.setdefault(name, {})
        for side in sides:
            key, kernel_key = jax.random.split(key)
            size = (layer.inputs if side == "forward" else layer.outputs)[-1]
            kernel = jax.random.normal(kernel_key, (size, size)) * (2 / size) ** 0.5
            layer_modules[side] = {
                "hidden": {"kernel": kernel, "bias": jnp.zeros(size)},
                "out": {"kernel": jnp.zeros((size, size)), "bias": jnp.zeros(size)},
            }
    return modules


def channel_scores(
    module: Params, tensor: jax.Array, counted: jax.Array, ratio: float
) -> jax.Array:
    """Return the channel mask γ `[c]` of a tensor.

    The module is applied to the tensor's mean over positions. Its outputs are averaged
    over the examples before the softmax.

    Args:
        module: The module of a layer's input or output side.
        tensor: `[n, …, c]`, the layer's input, or the gradient of its output.
        counted: `[n]`, 0 for examples that are padding.
        ratio: ρ, at least 0 and below 1.
    """
    z = tensor.reshape(tensor.shape[0], -1, tensor.shape[-1]).mean(1)
    hidden, out = module["hidden"], module["out"]
    z = jax.nn.relu(z @ hidden["kernel"] + hidden["bias"][None])
    z = z @ out["kernel"] + out["bias"][None]
    present = (counted != 0).astype(z.dtype)
    mean = present @ z / jnp.maximum(present.sum(), 1)
    return clip_and_normalise(jax.nn.softmax(mean), ratio)


def clip_and_normalise(scores: jax.Array, ratio: float) -> jax.Array:
    """Set the least scores to 0 and scale the scores to a mean of 1 (Algorithm 1).

    In ascending order, scores are cut until the sum of those cut is ρ or more. The
    largest score always stays; the algorithm as printed can cut all of them and divide
    0 by 0. The gradient is straight through: that of C · scores.

    Args:
        scores: `[c]`, of sum 1.
        ratio: ρ, at least 0 and below 1; at 0 nothing is cut.

    >>> print(clip_and_normalise(jnp.array([0.125, 0.125, 0.1875, 0.5625]), 0.2))
    [0. 0. 1. 3.]
    >>> print(clip_and_normalise(jnp.array([0.02, 0.03, 0.05, 0.9]), 0.5))
    [0. 0. 0. 4.]
    """
    size = scores.shape[0]
    through = size * scores
    if not ratio:
        return through
    order = jnp.argsort(scores)
    below = jnp.cumsum(scores[order]) - scores[order]  # the sum of lower scores
    cut = (below < ratio) & (jnp.arange(size) < size - 1)
    uncut = jnp.zeros_like(scores).at[order].set(jnp.where(cut, 0, scores[order]))
    clipped = size * uncut / uncut.sum()
    return through + lax.stop_gradient(clipped - through)


def most_channels(size: int, ratio: float | None) -> int:
    """Return the largest number of C channels that can stay: C − ⌈ρC⌉, at least 1.

    The c least of C scores of sum 1 have a sum of at most c / C, so ⌈ρC⌉ of them or
    more are cut.

    Args:
        size: C.
        ratio: ρ; all channels stay where it is None or 0.

    >>> [most_channels(size, 0.3) for size in (3, 20, 32, 64, 512)]
    [2, 14, 22, 44, 358]
    """
    return max(1, size - math.ceil(round((ratio or 0.0) * size, 9)))


def normalised_gradients(gradients: jax.Array, counted: jax.Array) -> jax.Array:
    """Return gradients with a root mean square of 1 for each example.

    The backward module takes gradients in this scale. Their own scale depends on the
    number of examples that the loss is a mean of, and is tiny beside a module's biases.

    Args:
        gradients: `[n, …]`, of the weighted sum of the examples' losses.
        counted: `[n]`, the weight of each example's loss, by which its gradient is
            divided; 0 for padding, whose result is 0.
    """
    factors = jnp.where(counted != 0, 1 / jnp.where(counted != 0, counted, 1), 0)
    row = (-1,) + (1,) * (gradients.ndim - 1)
    unweighted = gradients * factors.astype(gradients.dtype).reshape(row)
    axes = tuple(range(1, gradients.ndim))
    square = (unweighted**2).mean(axes, keepdims=True)
    return unweighted * lax.rsqrt(jnp.where(square > 0, square, 1))
