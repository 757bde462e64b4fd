"""ResNet-18 and ResNet-50 as in torchvision and timm, ResNet-12 as in few-shot papers.

Parameters carry timm's names (`layer1.0.conv1`), which `lite_jax.nn.weights` reads.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from lite_jax.nn import description
from lite_jax.nn.layers import (
    Conv,
    Norm,
    global_average,
    max_pool,
    overlapping_max_pool,
    pads,
)
from lite_jax.nn.network import make_network
from lite_jax.types import Network

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def resnet18(
    *,
    norm: str = "batch",
    norm_groups: int = 32,
    mean: float | tuple[float, ...] = IMAGENET_MEAN,
    std: float | tuple[float, ...] = IMAGENET_STD,
    remat: bool = False,
) -> Network:
    """Return ResNet-18 (He et al. 2016) without its classifier, with 512 features.

    FiLM follows both norms of every block, 16 in all.

    Args:
        norm: "batch" with frozen statistics, for pretrained weights; "group" to train.
        norm_groups: Groups of each GroupNorm.
        mean: Mean of pixels in [0, 1], subtracted from them: a number, or one for each
            channel.
        std: Standard deviation by which the difference is divided, likewise.
        remat: Whether the backward pass rematerialises each block from its input.

    Raises:
        UserError: At `init`, an image with a side under 32 pixels, an unknown norm, or
            `norm_groups` that does not divide the channels of a GroupNorm.
    """
    module = ResNet(BasicBlock, (2, 2, 2, 2), norm, norm_groups, remat)
    return make_network(module, mean=mean, std=std, least_size=32)


def resnet50(
    *,
    norm: str = "batch",
    norm_groups: int = 32,
    mean: float | tuple[float, ...] = IMAGENET_MEAN,
    std: float | tuple[float, ...] = IMAGENET_STD,
    remat: bool = False,
) -> Network:
    """Return ResNet-50 without its classifier, with 2048 features.

    The 3×3 convolutions have the strides, as in torchvision. FiLM follows the first two
    norms of every block, 32 in all. Arguments and errors are those of `resnet18`.
    """
    module = ResNet(Bottleneck, (3, 4, 6, 3), norm, norm_groups, remat)
    return make_network(module, mean=mean, std=std, least_size=32)


def resnet12(
    widths: Sequence[int] = (64, 160, 320, 640),
    *,
    norm: str = "group",
    norm_groups: int = 8,
    mean: float | tuple[float, ...] = 0.5,
    std: float | tuple[float, ...] = 0.25,
    remat: bool = False,
) -> Network:
    """Return ResNet-12, the larger backbone of the few-shot literature.

    It has four residual blocks of three 3×3 convolutions with leaky ReLUs of slope 0.1,
    each followed by 2×2 max-pooling, and no DropBlock. FiLM follows the three norms of
    every block, 12 in all. There are `widths[-1]` features, 640 by default.

    Args:
        widths: Channels of each block.
        norm: "group", or "batch" with frozen statistics.
        norm_groups: Groups of each GroupNorm.
        mean: As in `resnet18`.
        std: As in `resnet18`.
        remat: As in `resnet18`.

    Raises:
        UserError: At `init`, an image with a side under 16 pixels, an unknown norm, or
            `norm_groups` that does not divide one of `widths`.

    References:
        Lee et al., "Meta-Learning with Differentiable Convex Optimization", 2019.
    """
    module = ResNet12(tuple(widths), norm, norm_groups, remat)
    describe = functools.partial(
        description.describe_resnet12,
        widths=tuple(widths),
        groups=norm_groups,
        norm=norm,
    )
    return make_network(module, mean=mean, std=std, least_size=16, describe=describe)


class ResNet(nn.Module):
    """Stem, four stages of blocks and mean over positions."""

    block: Any
    depths: Sequence[int]
    norm: str
    norm_groups: int
    remat: bool

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Return `[n, 512]` with `BasicBlock`, `[n, 2048]` with `Bottleneck`."""
        block = nn.remat(self.block) if self.remat else self.block
        x = Conv(64, (7, 7), (2, 2), padding=pads(7), name="conv1")(images)
        x = nn.relu(Norm(self.norm, self.norm_groups, film=False, name="bn1")(x))
        x = overlapping_max_pool(x)
        for stage, depth in enumerate(self.depths):
            for i in range(depth):
                stride = 2 if stage and not i else 1
                name = f"layer{stage + 1}.{i}"
                x = block(
                    64 * 2**stage, stride, self.norm, self.norm_groups, name=name
                )(x)
        return global_average(x)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions, added to a shortcut."""

    width: int
    stride: int
    norm: str
    norm_groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return `[n, height/stride, width/stride, width]`."""
        norm = functools.partial(Norm, self.norm, self.norm_groups)
        strides = (self.stride, self.stride)
        y = Conv(self.width, (3, 3), strides, padding=pads(3), name="conv1")(x)
        y = nn.relu(norm(name="bn1")(y))
        y = Conv(self.width, (3, 3), padding=pads(3), name="conv2")(y)
        y = norm(name="bn2")(y)
        return nn.relu(y + _shortcut(x, self.width, strides, norm))


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions, added to a shortcut."""

    width: int
    stride: int
    norm: str
    norm_groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return `[n, height/stride, width/stride, 4 · width]`."""
        norm = functools.partial(Norm, self.norm, self.norm_groups)
        strides = (self.stride, self.stride)
        y = nn.relu(norm(name="bn1")(Conv(self.width, (1, 1), name="conv1")(x)))
        y = Conv(self.width, (3, 3), strides, padding=pads(3), name="conv2")(y)
        y = nn.relu(norm(name="bn2")(y))
        y = Conv(4 * self.width, (1, 1), name="conv3")(y)
        y = norm(film=False, name="bn3")(y)
        return nn.relu(y + _shortcut(x, 4 * self.width, strides, norm))


def _shortcut(x: jax.Array, width: int, strides: tuple[int, int], norm: Any) -> Any:
    """Return `x`, or a normalised 1×1 convolution of it where the shape changes."""
    if x.shape[-1] == width and strides == (1, 1):
        return x
    x = Conv(width, (1, 1), strides, padding=pads(1), name="downsample.0")(x)
    return norm(film=False, name="downsample.1")(x)


class ResNet12(nn.Module):
    """Four `ResNet12Block`s, averaged over positions."""

    widths: tuple[int, ...]
    norm: str
    norm_groups: int
    remat: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return `[n, widths[-1]]`."""
        block = nn.remat(ResNet12Block) if self.remat else ResNet12Block
        for i, width in enumerate(self.widths):
            x = block(width, self.norm, self.norm_groups, name=f"blocks.{i}")(x)
        return global_average(x)


class ResNet12Block(nn.Module):
    """Three 3×3 convolutions, added to a 1×1 shortcut, then 2×2 max-pooling."""

    width: int
    norm: str
    norm_groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return `[n, ⌊h/2⌋, ⌊w/2⌋, width]`; a side of one pixel stays."""
        norm = functools.partial(Norm, self.norm, self.norm_groups)
        y = x
        for i in (1, 2, 3):
            y = Conv(self.width, (3, 3), name=f"conv{i}")(y)
            y = norm(name=f"bn{i}")(y)
            y = nn.leaky_relu(y, 0.1) if i < 3 else y
        x = Conv(self.width, (1, 1), name="downsample.0")(x)
        x = norm(film=False, name="downsample.1")(x)
        return max_pool(nn.leaky_relu(x + y, 0.1))
