"""Small feature extractors, from images to one feature vector per image.

Every backbone normalises its uint8 input and uses no batch statistics. The features of
one image therefore do not depend on the others, as additive functions require
(`lite_jax.lite.additive`).
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax

from lite_jax.nn import description
from lite_jax.nn.layers import Conv, Norm, check_groups, global_average, max_pool
from lite_jax.nn.network import make_network, normalise
from lite_jax.types import Network


def conv4(
    width: int = 64,
    *,
    norm: str = "group",
    norm_groups: int = 8,
    mean: float | tuple[float, ...] = 0.5,
    std: float | tuple[float, ...] = 0.25,
    remat: bool = False,
) -> Network:
    """Return Conv-4 with GroupNorm, the small backbone of the few-shot literature.

    Four blocks of 3×3 convolution, norm, FiLM, ReLU and 2×2 max-pooling. The positions
    are then flattened: an image of h × w pixels has `width · ⌊h/16⌋ · ⌊w/16⌋` features,
    by default 64 at 28 × 28 pixels and 1600 at 84 × 84. (Vinyals et al. 2016 and Snell
    et al. 2017 use batch normalisation, which would mix the examples of a chunk.)

    Args:
        width: Channels of each block.
        norm: "group", or "batch" with frozen statistics.
        norm_groups: Groups of each GroupNorm; must divide `width`.
        mean: Mean of pixels in [0, 1], subtracted from them: a number, or one for each
            channel.
        std: Standard deviation by which the difference is divided, likewise.
        remat: Whether the backward pass rematerialises each block from its input.

    Returns:
        A `Network`; images may be uint8 or float in [0, 1].

    Raises:
        UserError: `norm_groups` that does not divide `width`; at `init`, an image with
            a side under 16 pixels, or an unknown norm.
    """
    check_groups(width, norm_groups)
    module = Conv4(width, norm, norm_groups, remat)
    describe = functools.partial(
        description.describe_conv4, width=width, groups=norm_groups, norm=norm
    )
    return make_network(module, mean=mean, std=std, least_size=16, describe=describe)


def pixels(mean: float = 0.0, std: float = 1.0) -> Network:
    """Return the network without parameters, whose features are normalised pixels.

    Prototypes of pixels are the baseline of a learned backbone.

    Args:
        mean: Mean of pixels in [0, 1], subtracted from them.
        std: Standard deviation by which the difference is divided.
    """

    def apply(params: Any, inputs: jax.Array) -> jax.Array:
        del params
        return normalise(inputs, mean, std).reshape(inputs.shape[0], -1)

    return Network(lambda key, example_spec: {}, apply)


def set_encoder(width: int = 64, *, norm_groups: int = 8) -> Network:
    """Return CNAPs' set encoder, which embeds each image as a vector `[width]`.

    Five blocks of 3×3 convolution with bias, norm, ReLU and 2×2 max-pooling, then the
    mean over positions: 150,144 parameters on colour images. The published encoder uses
    batch normalisation in training mode, by which the embedding of an image depends on
    its chunk. GroupNorm replaces it, with as many parameters.

    Args:
        width: Channels of each block, and numbers in the embedding.
        norm_groups: Groups of each GroupNorm; must divide `width`.

    Raises:
        UserError: `norm_groups` that does not divide `width`.

    References:
        Requeima et al., "Fast and Flexible Multi-Task Classification Using Conditional
        Neural Adaptive Processes", 2019, appendix.
    """
    check_groups(width, norm_groups)
    module = SetEncoder(width, norm_groups)
    return make_network(module, mean=0.5, std=0.25, least_size=1, film=False)


class ConvBlock(nn.Module):
    """3×3 convolution, norm, ReLU and 2×2 max-pooling."""

    width: int
    norm: str
    norm_groups: int
    use_bias: bool = False
    film: bool = True

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Return `[n, ⌊h/2⌋, ⌊w/2⌋, width]`; a side of one pixel stays."""
        images = Conv(self.width, (3, 3), use_bias=self.use_bias, name="conv")(images)
        images = Norm(self.norm, self.norm_groups, self.film, name="norm")(images)
        return max_pool(nn.relu(images))


class Conv4(nn.Module):
    """Four `ConvBlock`s, flattened."""

    width: int
    norm: str
    norm_groups: int
    remat: bool

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Return `[n, width · positions]`."""
        block = nn.remat(ConvBlock) if self.remat else ConvBlock
        for i in range(4):
            images = block(self.width, self.norm, self.norm_groups, name=f"blocks.{i}")(
                images
            )
        return images.reshape(images.shape[0], -1)


class SetEncoder(nn.Module):
    """Five `ConvBlock`s with bias and without FiLM, averaged over positions."""

    width: int
    norm_groups: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Return `[n, width]`."""
        for i in range(5):
            block = ConvBlock(
                self.width, "group", self.norm_groups, use_bias=True, film=False,
                name=f"blocks.{i}",
            )  # fmt: skip
            images = block(images)
        return global_average(images)
