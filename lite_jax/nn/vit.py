"""ViT-S/16 (Dosovitskiy et al. 2021; the small size of Touvron et al. 2021).

Parameters carry timm's names (`blocks.0.attn.qkv`), which `lite_jax.nn.weights` reads.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from lite_jax.nn.layers import Conv, Norm
from lite_jax.nn.network import make_network
from lite_jax.types import Network


def vit_s(
    *,
    mean: float | tuple[float, ...] = 0.5,
    std: float | tuple[float, ...] = 0.5,
    remat: bool = False,
) -> Network:
    """Return ViT-S/16 without its classifier, with the class token's 384 features.

    FiLM follows each of the 25 LayerNorms, as in ORBIT's code. Attention is among the
    patches of one image, so that its features do not depend on other images. The
    position embedding fits the image size that `init` is called with.

    Args:
        mean: Mean of pixels in [0, 1], subtracted from them: a number, or one for each
            channel.
        std: Standard deviation by which the difference is divided, likewise.
        remat: Whether the backward pass rematerialises each block from its input.

    Raises:
        UserError: At `init`, an image with a side that is not a multiple of 16.
    """
    module = ViT(384, 12, 6, remat)
    return make_network(module, mean=mean, std=std, least_size=16, multiple=16)


class ViT(nn.Module):
    """Patches of 16 × 16 pixels and a class token, blocks, and a LayerNorm."""

    width: int
    depth: int
    heads: int
    remat: bool

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Return `[n, width]`."""
        block = nn.remat(ViTBlock) if self.remat else ViTBlock
        x = Conv(
            self.width, (16, 16), (16, 16), padding="VALID", use_bias=True,
            name="patch_embed.proj",
        )(images)  # fmt: skip
        x = x.reshape(x.shape[0], -1, self.width)
        small = nn.initializers.normal(0.02)
        token = self.param("cls_token", small, (1, 1, self.width)).astype(x.dtype)
        size = (1, 1 + x.shape[1], self.width)
        positions = self.param("pos_embed", small, size).astype(x.dtype)
        tokens = jnp.broadcast_to(token, (x.shape[0], 1, self.width))
        x = jnp.concatenate([tokens, x], 1)
        x = x + jnp.broadcast_to(positions, x.shape)
        for i in range(self.depth):
            x = block(self.heads, name=f"blocks.{i}")(x)
        return Norm("layer", epsilon=1e-6, name="norm")(x[:, 0])


class ViTBlock(nn.Module):
    """Self-attention and a two-layer perceptron, each after a LayerNorm."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return tokens `[n, tokens, width]`."""
        norm = functools.partial(Norm, "layer", epsilon=1e-6)
        x = x + SelfAttention(self.heads, name="attn")(norm(name="norm1")(x))
        hidden = nn.Dense(4 * x.shape[-1], name="mlp.fc1")(norm(name="norm2")(x))
        return x + nn.Dense(x.shape[-1], name="mlp.fc2")(
            nn.gelu(hidden, approximate=False)
        )


class SelfAttention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return tokens `[n, tokens, width]`."""
        count, tokens, width = x.shape
        qkv = nn.Dense(3 * width, name="qkv")(x)
        qkv = qkv.reshape(count, tokens, 3, self.heads, width // self.heads)
        query, key, value = (qkv[:, :, i] for i in range(3))
        mixed = nn.dot_product_attention(query, key, value)
        return nn.Dense(width, name="proj")(mixed.reshape(x.shape))
