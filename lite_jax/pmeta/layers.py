"""A described network computed layer by layer, so that layers can be replaced."""

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

Weights = Any
"""Of one layer: `{"kernel"[, "bias"]}`, or `{"scale", "bias"}` of a norm."""

Compute = Callable[[Layer, Weights, jax.Array], jax.Array]
"""`(layer, weights, x [n, …]) -> [n, …]`, one layer without what follows it."""

EPSILON = 1e-5


def compute_layer(layer: Layer, weights: Weights, x: jax.Array) -> jax.Array:
    """Return what a layer gives."""
    if layer.kind == "norm":
        return scale_and_shift(weights, standardise(x, layer.groups)[0])
    y = product_of(layer)(x, weights["kernel"])
    return y + weights["bias"][None] if layer.kind == "dense" else y


def product_of(layer: Layer) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Return `(x, kernel) -> y`, linear in both: a convolution, or a matrix product."""
    return jnp.matmul if layer.kind == "dense" else convolve


def scale_and_shift(weights: Weights, standardised: jax.Array) -> jax.Array:
    """Return what a norm gives, from the standardised tensor."""
    scale, bias = (along(weights[name], standardised) for name in ("scale", "bias"))
    return standardised * scale + bias


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return the convolution at stride 1, padded to the same size."""
    layout = ("NHWC", "HWIO", "NHWC")
    return conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)


def standardise(x: jax.Array, groups: int) -> tuple[jax.Array, jax.Array]:
    """Return `x [n, h, w, c]` with mean 0 and variance 1 in each group of channels.

    Also returns the factor `[n, 1, 1, c]`, one over the deviation.
    """
    mean = _over_groups(x.mean((1, 2)), groups)
    variance = _over_groups(((x - mean) ** 2).mean((1, 2)), groups)
    factor = lax.rsqrt(variance + EPSILON)
    # Otherwise XLA writes the x - mean of the variance, to use it again.
    x, mean, factor = lax.optimization_barrier((x, mean, factor))
    return (x - mean) * factor, factor


def _over_groups(means: jax.Array, groups: int) -> jax.Array:
    """Return the mean of each group of channels `[n, 1, 1, c]`, from those of channels.

    Channel by channel first: to reshape the images would copy them.
    """
    count, channels = means.shape
    grouped = means.reshape(count, groups, channels // groups).mean(2)
    return jnp.repeat(grouped, channels // groups, axis=1)[:, None, None, :]


NormGradient = Literal["exact", "bfloat16", "detached"]
NORM_GRADIENTS: tuple[NormGradient, ...] = ("exact", "bfloat16", "detached")
"""How a gradient passes a norm: by the standardised tensor that was kept in full, by
that tensor rounded to bfloat16, or with mean and deviation as constants, which needs
none. The paper's account keeps none, as the third; its text says nothing."""


def check_norm_gradient(name: str) -> None:
    """Raise unless a gradient can pass norms in this way."""
    if name not in NORM_GRADIENTS:
        raise unknown_name("norm_gradient", name, NORM_GRADIENTS)


def as_kept(kind: NormGradient, standardised: jax.Array) -> jax.Array:
    """Return a standardised tensor in the precision that a backward pass has it."""
    return standardised.astype(jnp.bfloat16) if kind == "bfloat16" else standardised


def through_norm(
    layer: Layer,
    scale: jax.Array,
    standardised: jax.Array | None,
    factor: jax.Array,
    gradient: jax.Array,
) -> jax.Array:
    """Return the gradient with respect to what a norm is given, `[n, h, w, c]`.

    r (s g − mean(s g) − x̂ mean(s g x̂)), means over the groups; without x̂, "detached",
    r s g.

    Args:
        layer: The norm.
        scale: s, `[c]`.
        standardised: x̂ in any precision; None where statistics count as constants.
        factor: r, `[n, 1, 1, c]`.
        gradient: g, with respect to what the norm gives.
    """
    passed = gradient * along(scale, gradient)
    if standardised is None:
        return factor * passed
    standardised = standardised.astype(gradient.dtype)
    mean, across = (
        _over_groups(along(scale, sums) * sums, layer.groups)
        for sums in channel_means(gradient, standardised)
    )
    return factor * (passed - mean - standardised * across)


def channel_means(
    gradient: jax.Array, standardised: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the means over positions of g and of g x̂, `[n, c]` each."""
    return gradient.mean((1, 2)), (gradient * standardised).mean((1, 2))


def features_of(
    architecture: Architecture, params: Params, inputs: jax.Array, compute: Compute
) -> jax.Array:
    """Return the features `[n, d]` that a backbone's `apply` gives, layer by layer.

    Args:
        architecture: Of the backbone.
        params: The backbone's.
        inputs: `[n, …]` as the backbone takes them.
        compute: What computes a layer, as `compute_layer` does.
    """
    x = network_inputs(params, inputs)
    for block in architecture.blocks:
        x = _block(block, params, x, compute)
    return flattened(architecture, x)


def network_inputs(params: Params, inputs: jax.Array) -> jax.Array:
    """Return inputs as the first layer takes them."""
    if "input" in params:
        return normalise(inputs, **params["input"])
    return inputs.reshape(inputs.shape[0], -1)


def flattened(architecture: Architecture, x: jax.Array) -> jax.Array:
    """Return the features that the last block's output holds."""
    return x.mean((1, 2)) if architecture.average else x.reshape(x.shape[0], -1)


def _block(block: Block, params: Params, x: jax.Array, compute: Compute) -> jax.Array:
    def through(unit: Unit, x: jax.Array) -> jax.Array:
        for layer in unit.layers:
            x = compute(layer, at_path(params, layer.path), x)
        return rectified(x, block.slope) if unit.relu else x

    y = x
    for unit in block.units:
        y = through(unit, y)
    if block.shortcut is not None:
        y = rectified(y + through(block.shortcut, x), block.slope)
    return max_pool(y) if block.pool else y


def rectified(x: jax.Array, slope: float) -> jax.Array:
    """Return the ReLU, leaky with a slope."""
    return jnp.where(x > 0, x, jnp.asarray(slope, x.dtype) * x)


def along(vector: jax.Array, x: jax.Array, axis: int = -1) -> jax.Array:
    """Return a vector shaped to multiply an axis of `x`."""
    shape = [1] * x.ndim
    shape[axis] = -1
    return vector.reshape(shape)
