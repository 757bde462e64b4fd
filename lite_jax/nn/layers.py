"""Layers that backbones share: convolution, normalisation with FiLM, pooling."""

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
NORM_PARTS = ("group", "layer")  # names of Flax's norms inside a `Norm`


class Norm(nn.Module):
    """Normalisation that does not mix images, with optional FiLM after it.

    Attributes:
        kind: "group", "batch" (frozen statistics) or "layer".
        groups: Groups of a GroupNorm.
        film: Whether FiLM follows: `scale · x + shift` for each channel, with `scale`
            and `shift` from the collection "film". `init` fills the collection with the
            identity. `apply` without the collection skips FiLM.
        epsilon: Added to the variance.
    """

    kind: str
    groups: int = 8
    film: bool = True
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return `x` `[n, …, channels]` normalised, in its dtype.

        Normalisation and FiLM are computed in float32 at least.
        """
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
        """Return `x` normalised with constant statistics, in one affine map."""
        size = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, size)
        bias = self.param("bias", nn.initializers.zeros, size)
        mean = lax.stop_gradient(self.param("mean", nn.initializers.zeros, size))
        var = lax.stop_gradient(self.param("var", nn.initializers.ones, size))
        factor = scale * lax.rsqrt(var + self.epsilon)
        return x * _as_row(factor, x) + _as_row(bias - mean * factor, x)


def check_groups(channels: int, groups: int) -> None:
    """Raise a `UserError` unless `groups` divides the channels of a GroupNorm."""
    if channels < 1 or groups < 1 or channels % groups:
        raise UserError(
            f"norm_groups={groups} does not divide {channels} channels: "
            "change norm_groups, or the width"
        )


def pads(kernel_size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return PyTorch's padding: half a kernel, rounded down, on every side."""
    half = kernel_size // 2
    return ((half, half), (half, half))


def max_pool(images: jax.Array) -> jax.Array:
    """Return the 2×2 maxima at stride 2 of images `[n, h, w, c]`.

    Odd rows and columns at the end are dropped; a side of one pixel stays. Of equal
    maxima, one receives the gradient. On CPU the backward pass is faster than that of
    `nn.max_pool`.
    """
    maxima = windows(images)
    for axis in (4, 2):
        maxima = functools.reduce(_larger, jnp.unstack(maxima, axis=axis))
    return maxima


def _larger(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the elementwise maximum; see `wins`."""
    return jnp.where(wins(x, y), x, y)


def wins(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return where a maximum takes x: where x ≥ y, or x is NaN.

    The maxima here and their gradients use this comparison. The gradient of
    `jnp.maximum` compares each argument with the maximum, and that of `jnp.max` also
    divides by the number of equal arguments. Where XLA recomputes x and y with other
    rounding, neither equals the maximum, and the gradient is 0 or 0 / 0.
    """
    return (x >= y) | jnp.isnan(x)


def windows(images: jax.Array) -> jax.Array:
    """Return the 2×2 windows of images `[n, h, w, c]`.

    Odd rows and columns at the end are dropped. Where an image has a side of one pixel,
    so have its windows.

    Returns:
        `[n, ⌊h/rows⌋, rows, ⌊w/columns⌋, columns, c]`, with windows of rows × columns.
    """
    count, height, width, channels = images.shape
    rows, columns = min(height, 2), min(width, 2)
    height, width = height // rows, width // columns
    images = images[:, : rows * height, : columns * width]
    return images.reshape(count, height, rows, width, columns, channels)


def overlapping_max_pool(images: jax.Array) -> jax.Array:
    """Return the 3×3 maxima at stride 2, with padding 1, as in the stem of a ResNet."""
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    images = jnp.pad(images, padding, constant_values=-jnp.inf)
    ends = [size - 2 for size in images.shape[1:3]]
    shifted = [
        images[:, i : ends[0] + i : 2, j : ends[1] + j : 2]
        for i, j in itertools.product(range(3), repeat=2)
    ]
    return functools.reduce(_larger, shifted)


def global_average(images: jax.Array) -> jax.Array:
    """Return the mean over positions, `[n, channels]`, in float32 at least."""
    return images.mean((1, 2), accumulation_dtype(images.dtype))


def _as_row(vector: jax.Array, x: jax.Array) -> jax.Array:
    """Return `vector` in the dtype of `x`, with leading axes of size 1 to its rank."""
    return vector.astype(x.dtype).reshape((1,) * (x.ndim - 1) + vector.shape)
