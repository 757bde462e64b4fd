"""A transformer encoder of token sequences, by default small enough for a CPU."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lite_jax.types import Network

PADDING = 0
"""The token that pads sequences to a common length."""


def text_encoder(
    vocabulary: int, *, width: int = 64, depth: int = 2, heads: int = 4
) -> Network:
    """Return a transformer encoder with LayerNorm before each sub-layer.

    Inputs are integer tokens `[n, length]`, of the length that `init` is called with.
    Features `[n, width]` are the mean over the words of a sequence. Padding takes no
    part in attention or in the mean.

    Args:
        vocabulary: Number of different tokens, with `PADDING`.
        width: Size of the embeddings and features; a multiple of `heads`.
        depth: Number of blocks.
        heads: Number of attention heads.

    References:
        Vaswani et al., "Attention Is All You Need", 2017.
    """
    module = _Encoder(vocabulary, width, depth, heads)

    def init(key: Any, example_spec: Any) -> Any:
        return module.init(key, jnp.zeros((1, *example_spec.shape), jnp.int32))[
            "params"
        ]

    def apply(params: Any, inputs: jax.Array) -> Any:
        return module.apply({"params": params}, inputs)

    return Network(init, apply)


class _Encoder(nn.Module):
    """Embeddings of tokens and positions, blocks, LayerNorm and mean over words."""

    vocabulary: int
    width: int
    depth: int
    heads: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        words = tokens != PADDING
        mask = words[:, None, None, :]
        positions = self.param(
            "positions", nn.initializers.normal(0.02), (1, tokens.shape[1], self.width)
        )
        x = nn.Embed(self.vocabulary, self.width, name="words")(tokens)
        x = x + jnp.broadcast_to(positions, x.shape)
        for i in range(self.depth):
            x = _Block(self.heads, name=f"blocks.{i}")(x, mask)
        x = nn.LayerNorm(name="norm")(x)
        counts = jnp.maximum(words.sum(1), 1).astype(x.dtype)
        return jnp.where(words[:, :, None], x, 0).sum(1) / counts[:, None]


class _Block(nn.Module):
    """Self-attention and a two-layer perceptron, each after a LayerNorm."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        attention = nn.MultiHeadDotProductAttention(self.heads, name="attention")
        x = x + attention(nn.LayerNorm(name="norm1")(x), mask=mask)
        hidden = nn.Dense(4 * x.shape[-1], name="up")(nn.LayerNorm(name="norm2")(x))
        return x + nn.Dense(x.shape[-1], name="down")(nn.gelu(hidden))
