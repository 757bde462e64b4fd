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


class Stage(NamedTuple):
    """Blocks of equal kind: how many, kernel, first stride, expansion and channels."""

    depth: int
    kernel_size: int
    stride: int
    expansion: int
    width: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
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
    """Return EfficientNet-B0 without its classifier: 1280 features.

    4,007,548 parameters, running statistics apart. FiLM at 18 places, after a norm and
    before a swish: the stem, the depthwise convolution of each of the 16 blocks, the
    head (LITE's `efficientnet.py`).

    Args:
        norm: "batch" with frozen statistics, for pretrained weights; "group" to train.
        norm_groups: Groups of each GroupNorm.
        mean: Subtracted from pixels in [0, 1]: one number, or one a channel.
        std: What pixels are divided by afterwards.
        remat: Keep block boundaries only, and compute blocks again for the gradient.
        tensorflow: Pad as TensorFlow does, with ε = 1e-3: for weights named `tf_…`.

    Raises:
        UserError: At `init`, images under 32 pixels a side.
    """
    module = EfficientNet(norm, norm_groups, remat, tensorflow)
    return make_network(module, mean=mean, std=std, least_size=32)


class EfficientNet(nn.Module):
    """Stem, seven stages of blocks, head, mean over positions."""

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
        block = nn.remat(Block) if self.remat else Block
        x = Conv(32, (3, 3), (2, 2), padding=padding(3), name="conv_stem")(images)
        x = nn.silu(norm(name="bn1")(x))
        for number, stage in enumerate(STAGES):
            for i in range(stage.depth):
                place = stage if i == 0 else stage._replace(stride=1)
                x = block(place, norm, padding, name=f"blocks.{number}.{i}")(x)
        x = nn.silu(norm(name="bn2")(Conv(1280, (1, 1), name="conv_head")(x)))
        return global_average(x)


class Block(nn.Module):
    """Expansion, depthwise convolution, squeeze and excitation, projection.

    The first stage has no expansion, and timm numbers its norms from there.
    """

    stage: Stage
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
    """Channels weighted by what their means say."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return `x`, each channel times a number in (0, 1)."""
        mean = x.mean((1, 2), keepdims=True)
        hidden = nn.silu(
            Conv(self.width, (1, 1), use_bias=True, name="conv_reduce")(mean)
        )
        gate = Conv(x.shape[-1], (1, 1), use_bias=True, name="conv_expand")(hidden)
        return x * nn.sigmoid(gate)
