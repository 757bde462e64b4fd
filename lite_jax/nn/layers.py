"""The layers that backbones share: convolution, normalisation with FiLM, pooling."""

from __future__ import annotations

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from lite_jax.errors import UserError, unknown_name
from lite_jax.lite.additive import accumulation_dtype
from lite_jax.nn.convolution import conv_general_dilated

Conv = functools.partial(
    nn.Conv,
    use_bias=False,
    kernel_init=nn.initializers.he_normal(),
    conv_general_dilated=conv_general_dilated,
)
NORMS = ("group", "batch")
NORM_PARTS = ("group", "layer")  # what Flax's norms are called inside a `Norm`


class Norm(nn.Module):
    """Normalisation that never mixes images, with FiLM after it where asked.

    Attributes:
        kind: "group", "batch" (frozen statistics) or "layer".
        groups: Groups of a GroupNorm.
        film: Whether this is a FiLM place: `scale · x + shift` for each channel, from
            the collection "film". `init` makes the identity there; `apply` without
            the collection is the network without FiLM.
        epsilon: Added to the variance.
    """

    kind: str
    groups: int = 8
    film: bool = True
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return `x [n, …, channels]`, normalised in float32 at least."""
        dtype = x.dtype
        x = x.astype(accumulation_dtype(dtype))
        if self.kind == "group":
            check_groups(x.shape[-1], self.groups)
            x = nn.GroupNorm(self.groups, epsilon=self.epsilon, name="group")(x)
        elif self.kind == "batch":
            x = self._frozen_batch_norm(x)
        elif self.kind == "layer":
            x = nn.LayerNorm(epsilon=self.epsilon, name="layer")(x)
        else:
            raise unknown_name("norm", self.kind, NORMS)
        if self.film and self.is_initializing():
            self.put_variable("film", "scale", jnp.ones(x.shape[-1]))
            self.put_variable("film", "shift", jnp.zeros(x.shape[-1]))
        if self.film and self.has_variable("film", "scale"):
            scale: jax.Array = self.get_variable("film", "scale")
            shift: jax.Array = self.get_variable("film", "shift")
            x = x * _as_row(scale, x) + _as_row(shift, x)
        return x.astype(dtype)

    def _frozen_batch_norm(self, x: jax.Array) -> jax.Array:
        """Normalise with constant statistics: one multiplication, one addition."""
        size = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, size)
        bias = self.param("bias", nn.initializers.zeros, size)
        mean = lax.stop_gradient(self.param("mean", nn.initializers.zeros, size))
        var = lax.stop_gradient(self.param("var", nn.initializers.ones, size))
        factor = scale * lax.rsqrt(var + self.epsilon)
        return x * _as_row(factor, x) + _as_row(bias - mean * factor, x)


def check_groups(channels: int, groups: int) -> None:
    """Raise unless the channels of a GroupNorm can be split into so many groups."""
    if channels < 1 or groups < 1 or channels % groups:
        raise UserError(
            f"norm_groups={groups} does not divide {channels} channels: "
            "change norm_groups, or the width"
        )


def pads(kernel_size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return PyTorch's padding of half a kernel on every side."""
    half = kernel_size // 2
    return ((half, half), (half, half))


def max_pool(images: jax.Array) -> jax.Array:
    """Return the 2×2 maxima; its backward pass beats `nn.max_pool`'s on CPU.

    A side of one pixel stays as it is. Of equal maxima one takes the gradient.
    """
    pixels = windows(images)
    for axis in (4, 2):
        pixels = functools.reduce(_larger, jnp.unstack(pixels, axis=axis))
    return pixels


def _larger(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.where(wins(x, y), x, y)


def wins(x: jax.Array, y: jax.Array) -> jax.Array:
    """Say where x is the larger of two numbers, one of equals, or not a number.

    A maximum and its gradient go by this comparison. That of `jnp.maximum` asks which
    of the two equals the maximum, that of `jnp.max` also divides by how many do. None
    does where XLA computes x and y again with other rounding: the gradient is lost
    there, or 0 / 0.
    """
    return (x >= y) | jnp.isnan(x)


def windows(images: jax.Array) -> jax.Array:
    """Return images `[n, h, rows, w, columns, c]`, each 2×2 window in axes of its own.

    Odd rows and columns at the end are left out; a side of one pixel is a window's.
    """
    count, height, width, channels = images.shape
    rows, columns = min(height, 2), min(width, 2)
    height, width = height // rows, width // columns
    images = images[:, : rows * height, : columns * width]
    return images.reshape(count, height, rows, width, columns, channels)


def overlapping_max_pool(images: jax.Array) -> jax.Array:
    """Return the 3×3 maxima at stride 2, padded by one pixel (the ResNet stem's)."""
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    images = jnp.pad(images, padding, constant_values=-jnp.inf)
    ends = [size - 2 for size in images.shape[1:3]]
    windows = [
        images[:, i : ends[0] + i : 2, j : ends[1] + j : 2]
        for i, j in itertools.product(range(3), repeat=2)
    ]
    return functools.reduce(_larger, windows)


def global_average(images: jax.Array) -> jax.Array:
    """Return the mean over positions, `[n, channels]`, in float32 at least."""
    return images.mean((1, 2), accumulation_dtype(images.dtype))


def _as_row(vector: jax.Array, x: jax.Array) -> jax.Array:
    return vector.astype(x.dtype).reshape((1,) * (x.ndim - 1) + vector.shape)
