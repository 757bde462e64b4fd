"""Meta attention: which channels' weights an inner step changes, by what passes them.

Qu, Zhou, Thiele, "p-Meta: Towards On-device Deep Model Adaptation", KDD 2022, §4.3. The
paper leaves some choices open; those made here are named where they are made.
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
    """What meta attention looks at.

    Attributes:
        forward: ρ of the module that looks at a layer's input: the share of the scores
            that is cut off, 0 up to 1. None for no such module.
        backward: ρ of the module that looks at the gradient of its output.
    """

    forward: float | None = 0.3
    backward: float | None = 0.0

    def check(self) -> None:
        """Raise where a ratio is outside [0, 1)."""
        for name, ratio in self._asdict().items():
            if ratio is not None and not 0 <= ratio < 1:
                raise UserError(
                    f"attention.{name}={ratio}: expected 0 or more, below 1"
                )


NO_ATTENTION = Attention(None, None)


def init_attention(key: Key, architecture: Architecture, attention: Attention) -> Any:
    """Return `{"forward": module, "backward": module}` at the path of every layer.

    A module is two dense layers C → C → C with ReLU between. The second starts at zero,
    so that training starts with equal scores.
    """
    sides = [name for name, ratio in attention._asdict().items() if ratio is not None]
    found: dict[str, Any] = {}
    for layer in architecture.body:
        place = found
        for name in layer.path.split("/"):
            place = place.setdefault(name, {})
        for side in sides:
            key, own = jax.random.split(key)
            size = (layer.inputs if side == "forward" else layer.outputs)[-1]
            kernel = jax.random.normal(own, (size, size)) * (2 / size) ** 0.5
            place[side] = {
                "hidden": {"kernel": kernel, "bias": jnp.zeros(size)},
                "out": {"kernel": jnp.zeros((size, size)), "bias": jnp.zeros(size)},
            }
    return found


def channel_scores(
    module: Params, tensor: jax.Array, counted: jax.Array, ratio: float
) -> jax.Array:
    """Return γ `[c]`, by the mean over positions of a tensor `[n, …, c]`.

    The modules' outputs are averaged over the examples before the softmax.

    Args:
        module: Of one layer and side.
        tensor: What passes the layer.
        counted: `[n]`, 0 for examples that are padding.
        ratio: ρ.
    """
    z = tensor.reshape(tensor.shape[0], -1, tensor.shape[-1]).mean(1)
    hidden, out = module["hidden"], module["out"]
    z = jax.nn.relu(z @ hidden["kernel"] + hidden["bias"][None])
    z = z @ out["kernel"] + out["bias"][None]
    present = (counted != 0).astype(z.dtype)
    mean = present @ z / jnp.maximum(present.sum(), 1)
    return clip_and_normalise(jax.nn.softmax(mean), ratio)


def clip_and_normalise(scores: jax.Array, ratio: float) -> jax.Array:
    """Return the scores with the least of them at zero and a mean of 1 (Algorithm 1).

    The fewest scores, from the least on, whose sum is ρ or more are cut; the largest
    always stays (as printed, the algorithm can cut all and divide 0 by 0). The gradient
    is that of C · scores, straight through.

    Args:
        scores: `[c]`, adding up to 1.
        ratio: ρ, 0 up to 1.

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
    below = jnp.cumsum(scores[order]) - scores[order]  # the sum of those before
    cut = (below < ratio) & (jnp.arange(size) < size - 1)
    kept = jnp.zeros_like(scores).at[order].set(jnp.where(cut, 0, scores[order]))
    clipped = size * kept / kept.sum()
    return through + lax.stop_gradient(clipped - through)


def most_channels(size: int, ratio: float | None) -> int:
    """Return how many of C channels can survive: C − ⌈ρC⌉, and all without attention.

    The c least of C scores that add up to 1 hold c / C of it at most, so at least ⌈ρC⌉
    are cut.

    >>> [most_channels(size, 0.3) for size in (3, 20, 32, 64, 512)]
    [2, 14, 22, 44, 358]
    """
    return max(1, size - math.ceil(round((ratio or 0.0) * size, 9)))


def normalised_gradients(gradients: jax.Array, counted: jax.Array) -> jax.Array:
    """Return `[n, …]` gradients as attention looks at them, each of size 1.

    A gradient's scale depends on how many examples its loss is the mean of, and is tiny
    beside a module's biases, so that as it is it tells the module little and other
    things with one example than with many. Each example's is divided by its own root
    mean square.
    """
    each = jnp.where(counted != 0, 1 / jnp.where(counted != 0, counted, 1), 0)
    row = (-1,) + (1,) * (gradients.ndim - 1)
    own = gradients * each.astype(gradients.dtype).reshape(row)
    axes = tuple(range(1, gradients.ndim))
    square = (own**2).mean(axes, keepdims=True)
    return own * lax.rsqrt(jnp.where(square > 0, square, 1))
