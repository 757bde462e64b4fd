"""EfficientNet-B0 (Tan and Le 2019), the backbone of the LITE paper.

Parameters carry timm's names (`blocks.1.0.conv_dw`), which `lite_jax.nn.weights` reads.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from lite_jax.nn.layers import Conv, Norm, global_average, pads
from lite_jax.nn.network import make_network
from lite_jax.nn.resnet import IMAGENET_MEAN, IMAGENET_STD
from lite_jax.types import Network


class StageSpec(NamedTuple):
    """Consecutive blocks of one kind.

    Attributes:
        depth: Number of blocks.
        kernel_size: Side of the depthwise filters, in pixels.
        stride: Stride of the first block; that of the others is 1.
        expansion: Factor from a block's input channels to its hidden channels.
        width: Output channels.
    """

    depth: int
    kernel_size: int
    stride: int
    expansion: int
    width: int


STAGES = (
    StageSpec(1, 3, 1, 1, 16),
    StageSpec(2, 3, 2, 6, 24),
    StageSpec(2, 5, 2, 6, 40),
    StageSpec(3, 3, 2, 6, 80),
    StageSpec(3, 5, 1, 6, 112),
    StageSpec(4, 5, 2, 6, 192),
    StageSpec(1, 3, 1, 6, 320),
)


def efficientnet_b0(
    *,
    norm: str = "batch",
    norm_groups: int = 8,
    mean: float | tuple[float, ...] = IMAGENET_MEAN,
    std: float | tuple[float, ...] = IMAGENET_STD,
    remat: bool = False,
    tensorflow: bool = False,
) -> Network:
    """Return EfficientNet-B0 without its classifier, with 1280 features.

    It has 4,007,548 parameters without the running statistics. FiLM stands after 18
    norms, each followed by a swish: those of the stem, of the depthwise convolution of
    each of the 16 blocks, and of the last convolution (as in LITE's `efficientnet.py`).

    Args:
        norm: "batch" with frozen statistics, for pretrained weights; "group" to train.
        norm_groups: Groups of each GroupNorm.
        mean: Mean of pixels in [0, 1], subtracted from them: a number, or one for each
            channel.
        std: Standard deviation by which the difference is divided, likewise.
        remat: Whether the backward pass rematerialises each block from its input.
        tensorflow: Whether to use TensorFlow's padding, and ε = 1e-3 in norms, for
            weights named `tf_…`.

    Raises:
        UserError: At `init`, an image with a side under 32 pixels, an unknown norm, or
            `norm_groups` that does not divide the channels of a GroupNorm.
    """
    module = EfficientNet(norm, norm_groups, remat, tensorflow)
    return make_network(module, mean=mean, std=std, least_size=32)


class EfficientNet(nn.Module):
    """Stem, seven stages of blocks, 1×1 convolution and mean over positions."""

    norm: str
    norm_groups: int
    remat: bool
    tensorflow: bool

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Return `[n, 1280]`."""
        epsilon = 1e-3 if self.tensorflow else 1e-5
        norm = functools.partial(Norm, self.norm, self.norm_groups, epsilon=epsilon)
        padding = (lambda size: "SAME") if self.tensorflow else pads
        block = nn.remat(MBConv) if self.remat else MBConv
        x = Conv(32, (3, 3), (2, 2), padding=padding(3), name="conv_stem")(images)
        x = nn.silu(norm(name="bn1")(x))
        for number, stage in enumerate(STAGES):
            for i in range(stage.depth):
                block_stage = stage if i == 0 else stage._replace(stride=1)
                x = block(block_stage, norm, padding, name=f"blocks.{number}.{i}")(x)
        x = nn.silu(norm(name="bn2")(Conv(1280, (1, 1), name="conv_head")(x)))
        return global_average(x)


class MBConv(nn.Module):
    """Expansion, depthwise convolution, squeeze and excitation, projection.

    The blocks of the first stage have no expansion layer. Their norms are bn1 and bn2,
    as in timm.
    """

    stage: StageSpec
    norm: Any
    padding: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return `[n, height/stride, width/stride, stage.width]`."""
        stage, channels = self.stage, x.shape[-1]
        names = iter(("bn1", "bn2", "bn3"))
        y, hidden = x, channels * stage.expansion
        if stage.expansion > 1:
            y = Conv(hidden, (1, 1), name="conv_pw")(y)
            y = nn.silu(self.norm(film=False, name=next(names))(y))
        side = (stage.kernel_size, stage.kernel_size)
        y = Conv(
            hidden, side, (stage.stride, stage.stride), name="conv_dw",
            padding=self.padding(stage.kernel_size), feature_group_count=hidden,
        )(y)  # fmt: skip
        y = nn.silu(self.norm(name=next(names))(y))
        y = SqueezeExcite(channels // 4, name="se")(y)
        projection = "conv_pwl" if stage.expansion > 1 else "conv_pw"
        y = Conv(stage.width, (1, 1), name=projection)(y)
        y = self.norm(film=False, name=next(names))(y)
        return x + y if x.shape == y.shape else y


class SqueezeExcite(nn.Module):
    """Gates in (0, 1) for the channels, computed from their means over positions."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return `x`, each channel times its gate."""
        mean = x.mean((1, 2), keepdims=True)
        hidden = nn.silu(
            Conv(self.width, (1, 1), use_bias=True, name="conv_reduce")(mean)
        )
        gate = Conv(x.shape[-1], (1, 1), use_bias=True, name="conv_expand")(hidden)
        return x * nn.sigmoid(gate)
