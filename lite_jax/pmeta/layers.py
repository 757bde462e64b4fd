"""Described networks computed layer by layer, with replaceable layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from lite_jax.errors import unknown_name
from lite_jax.nn.convolution import conv_general_dilated
from lite_jax.nn.description import Architecture, Block, Layer, Unit, at_path
from lite_jax.nn.layers import max_pool
from lite_jax.nn.network import normalise
from lite_jax.types import Params

LayerWeights = Any
"""A layer's weights: `{"kernel"[, "bias"]}`, or `{"scale", "bias"}` of a norm."""

Compute = Callable[[Layer, LayerWeights, jax.Array], jax.Array]
"""`(layer, weights, x [n, …]) -> [n, …]`, the output of one layer, before any ReLU."""

EPSILON = 1e-5


def compute_layer(layer: Layer, weights: LayerWeights, x: jax.Array) -> jax.Array:
    """Return the output of a layer for an input `[n, …]`, before any ReLU."""
    if layer.kind == "norm":
        return scale_and_shift(weights, standardise(x, layer.groups)[0])
    y = product_of(layer)(x, weights["kernel"])
    return y + weights["bias"][None] if layer.kind == "dense" else y


def product_of(layer: Layer) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Return the layer's function `(x, kernel) -> y`, linear in both.

    It is a matrix product for a dense layer and else a convolution.
    """
    return jnp.matmul if layer.kind == "dense" else convolve


def scale_and_shift(weights: LayerWeights, standardised: jax.Array) -> jax.Array:
    """Return a norm's output for its standardised input `[n, h, w, c]`."""
    scale, bias = (along(weights[name], standardised) for name in ("scale", "bias"))
    return standardised * scale + bias


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return the convolution `[n, h, w, d]` at stride 1, padded to the same size.

    Args:
        x: `[n, h, w, c]`.
        kernel: `[height, width, c, d]`.
    """
    layout = ("NHWC", "HWIO", "NHWC")
    return conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)


def standardise(x: jax.Array, groups: int) -> tuple[jax.Array, jax.Array]:
    """Return `x` with mean 0 and variance 1 in each group of channels, and the factor.

    Args:
        x: `[n, h, w, c]`.
        groups: Number of groups of channels.

    Returns:
        The standardised tensor `[n, h, w, c]`, and one over the standard deviation,
        `[n, 1, 1, c]`.
    """
    mean = _over_groups(x.mean((1, 2)), groups)
    variance = _over_groups(((x - mean) ** 2).mean((1, 2)), groups)
    factor = lax.rsqrt(variance + EPSILON)
    # Without the barrier XLA stores the x - mean of the variance to reuse it.
    x, mean, factor = lax.optimization_barrier((x, mean, factor))
    return (x - mean) * factor, factor


def _over_groups(means: jax.Array, groups: int) -> jax.Array:
    """Return each channel's group mean `[n, 1, 1, c]`, from channel means `[n, c]`.

    Means are taken by channel first, since reshaping the images would copy them.
    """
    count, channels = means.shape
    grouped = means.reshape(count, groups, channels // groups).mean(2)
    return jnp.repeat(grouped, channels // groups, axis=1)[:, None, None, :]


NormGradient = Literal["exact", "bfloat16", "detached"]
NORM_GRADIENTS: tuple[NormGradient, ...] = ("exact", "bfloat16", "detached")
"""How a gradient passes a norm: by the stored standardised tensor ("exact"), by that
tensor rounded to bfloat16 ("bfloat16"), or with mean and deviation as constants, which
needs no tensor ("detached"). The paper's memory figures count none, as "detached" does;
its text does not say."""


def check_norm_gradient(name: str) -> None:
    """Raise unless a name is one of `NORM_GRADIENTS`."""
    if name not in NORM_GRADIENTS:
        raise unknown_name("norm_gradient", name, NORM_GRADIENTS)


def as_kept(kind: NormGradient, standardised: jax.Array) -> jax.Array:
    """Return a standardised tensor as the backward pass stores it.

    It is in bfloat16 for "bfloat16", and unchanged otherwise.
    """
    return standardised.astype(jnp.bfloat16) if kind == "bfloat16" else standardised


def through_norm(
    layer: Layer,
    scale: jax.Array,
    standardised: jax.Array | None,
    factor: jax.Array,
    gradient: jax.Array,
) -> jax.Array:
    """Return the gradient of a norm's input, `[n, h, w, c]`.

    It is r (s g − mean(s g) − x̂ mean(s g x̂)), with means over positions and the
    channels of a group. With constant statistics ("detached") it is r s g.

    Args:
        layer: The norm.
        scale: s, `[c]`, the norm's weights.
        standardised: x̂, `[n, h, w, c]` in any precision; None for constant statistics.
        factor: r, `[n, 1, 1, c]`, one over the standard deviation.
        gradient: g, `[n, h, w, c]`, the gradient of the norm's output.
    """
    scaled = gradient * along(scale, gradient)
    if standardised is None:
        return factor * scaled
    standardised = standardised.astype(gradient.dtype)
    mean, correlation = (
        _over_groups(along(scale, sums) * sums, layer.groups)
        for sums in channel_means(gradient, standardised)
    )
    return factor * (scaled - mean - standardised * correlation)


def channel_means(
    gradient: jax.Array, standardised: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the means over positions of g and of g x̂, `[n, c]` each.

    Args:
        gradient: g, `[n, h, w, c]`.
        standardised: x̂, `[n, h, w, c]`.
    """
    return gradient.mean((1, 2)), (gradient * standardised).mean((1, 2))


def compute_features(
    architecture: Architecture, params: Params, inputs: jax.Array, compute: Compute
) -> jax.Array:
    """Return a backbone's features `[n, d]`, computed layer by layer.

    With `compute_layer` they are those of the backbone's `apply`.

    Args:
        architecture: The backbone's layers.
        params: The backbone's parameters.
        inputs: `[n, …]` images, as the backbone takes them.
        compute: The function that computes a layer, such as `compute_layer`.
    """
    x = network_inputs(params, inputs)
    for block in architecture.blocks:
        x = _block_output(block, params, x, compute)
    return flattened(architecture, x)


def network_inputs(params: Params, inputs: jax.Array) -> jax.Array:
    """Return the first layer's input, normalised images or flattened vectors.

    Args:
        params: The backbone's parameters; "input" holds the normalisation of images.
        inputs: `[n, …]`, as the backbone takes them.
    """
    if "input" in params:
        return normalise(inputs, **params["input"])
    return inputs.reshape(inputs.shape[0], -1)


def flattened(architecture: Architecture, x: jax.Array) -> jax.Array:
    """Return features `[n, d]`, the last block's output averaged or flattened."""
    return x.mean((1, 2)) if architecture.average else x.reshape(x.shape[0], -1)


def _block_output(
    block: Block, params: Params, x: jax.Array, compute: Compute
) -> jax.Array:
    def unit_output(unit: Unit, x: jax.Array) -> jax.Array:
        for layer in unit.layers:
            x = compute(layer, at_path(params, layer.path), x)
        return rectified(x, block.slope) if unit.relu else x

    y = x
    for unit in block.units:
        y = unit_output(unit, y)
    if block.shortcut is not None:
        y = rectified(y + unit_output(block.shortcut, x), block.slope)
    return max_pool(y) if block.pool else y


def rectified(x: jax.Array, slope: float) -> jax.Array:
    """Return x where it is positive, and else slope · x (ReLU or leaky ReLU)."""
    return jnp.where(x > 0, x, jnp.asarray(slope, x.dtype) * x)


def along(vector: jax.Array, x: jax.Array, axis: int = -1) -> jax.Array:
    """Return a vector reshaped to broadcast along one axis of `x`."""
    shape = [1] * x.ndim
    shape[axis] = -1
    return vector.reshape(shape)
