"""Feature extractors: images in, one feature vector an image out.

Every backbone normalises its own uint8 input, so that the statistics that belong to
its weights stay beside them, and uses no batch statistics, so that the features of
one image do not depend on the others (what `lite_jax.lite` calls additive).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lite_jax.errors import UserError
from lite_jax.nn.convolution import conv_general_dilated
from lite_jax.types import Network


def conv4(
    width: int = 64, norm_groups: int = 8, mean: float = 0.5, std: float = 0.25
) -> Network:
    """Return Conv-4 with GroupNorm: the small backbone of the few-shot literature.

    Four blocks of 3×3 convolution, GroupNorm, ReLU and 2×2 max-pooling, then all
    positions as one vector: `width · ⌊height/16⌋ · ⌊width/16⌋` features, 64 at 28
    pixels and 1600 at 84. (Vinyals et al. 2016 and Snell et al. 2017 use batch
    normalisation, which would mix the examples of a chunk.)

    Args:
        width: Channels of each block.
        norm_groups: Groups of each GroupNorm; must divide `width`.
        mean: Subtracted from pixels in [0, 1].
        std: What pixels are divided by afterwards.

    Returns:
        A `Network`; images may be uint8 or float in [0, 1].

    Raises:
        UserError: Groups that do not divide the width; at `init`, images under 16
            pixels a side.
    """
    if width < 1 or norm_groups < 1 or width % norm_groups:
        raise UserError(
            f"backbone.norm_groups={norm_groups} does not divide backbone.width={width}"
        )
    module = _Conv4(width, norm_groups)

    def init(key: Any, example_spec: Any) -> Any:
        if min(example_spec.shape[:2]) < 16:
            raise UserError(
                "conv4 halves images four times and needs 16 pixels a side or more, "
                f"got {example_spec.shape[0]} × {example_spec.shape[1]}: raise "
                "data.image_size"
            )
        images = jnp.zeros((1, *example_spec.shape), jnp.float32)
        return module.init(key, images)["params"]

    def apply(params: Any, inputs: jax.Array) -> Any:
        return module.apply({"params": params}, normalise(inputs, mean, std))

    return Network(init, apply)


def pixels(mean: float = 0.0, std: float = 1.0) -> Network:
    """Return the network without parameters: features are the pixels themselves.

    Prototypes of raw pixels are the baseline that a learned backbone has to beat.
    """

    def apply(params: Any, inputs: jax.Array) -> jax.Array:
        del params
        return normalise(inputs, mean, std).reshape(inputs.shape[0], -1)

    return Network(lambda key, example_spec: {}, apply)


def normalise(inputs: jax.Array, mean: float, std: float) -> jax.Array:
    """Return `(pixels - mean) / std`, with uint8 pixels first scaled to [0, 1]."""
    if jnp.issubdtype(inputs.dtype, jnp.integer):
        inputs = inputs.astype(jnp.float32) / 255
    return (inputs - mean) / std


class _Conv4(nn.Module):
    width: int
    norm_groups: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        for _ in range(4):
            images = nn.Conv(
                self.width, (3, 3), use_bias=False,
                conv_general_dilated=conv_general_dilated,
            )(images)  # fmt: skip
            images = nn.relu(nn.GroupNorm(self.norm_groups)(images))
            images = _max_pool(images)
        return images.reshape(images.shape[0], -1)


def _max_pool(images: jax.Array) -> jax.Array:
    """Return the 2×2 maxima; its backward pass beats `nn.max_pool`'s on CPU."""
    count, height, width, channels = images.shape
    height, width = height // 2, width // 2
    images = images[:, : 2 * height, : 2 * width]
    return images.reshape(count, height, 2, width, 2, channels).max((2, 4))
