"""The backward pass of `lite_jax.pmeta.sparse`: gradients from a block's residuals."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lite_jax.nn.description import Block, Layer, Unit
from lite_jax.pmeta.attention import channel_scores, normalised_gradients
from lite_jax.pmeta.choice import Choice, any_trained
from lite_jax.pmeta.layers import along, channel_means, product_of, through_norm
from lite_jax.pmeta.sparse_forward import uncut_channels, window_positions
from lite_jax.types import PyTree

Gradients = dict[str, Any]
"""A trained layer's path → the gradient of its weights."""


def block_gradients(
    block: Block,
    choice: Choice,
    passes: bool,
    weights: dict[str, Any],
    modules: dict[str, Any],
    residuals: PyTree,
    gradient: jax.Array,
) -> tuple[Gradients, jax.Array | None]:
    """Return the gradients of the trained layers' weights and of the block's input.

    The latter is None unless `passes`. `gradient` is that of the block's output.
    """
    weight_gradients: Gradients = {}

    def path_gradient(units: tuple[Unit, ...], gradient: jax.Array, until: int) -> Any:
        """Return the gradient of the units' input; None where it is not needed."""
        for i, unit in reversed(list(enumerate(units))):
            below = [layer for lower in units[:i] for layer in lower.layers]
            if not passes and not any_trained([*below, *unit.layers], choice):
                return None
            if unit.relu and i < until:
                bits = residuals[f"{unit.layer.path} relu"]
                gradient = _relu_gradient(gradient, bits, block.slope)
            for j, layer in reversed(list(enumerate(unit.layers))):
                goes_on = passes or any_trained([*below, *unit.layers[:j]], choice)
                stored = residuals[layer.path]
                layer_gradients, gradient = _layer_gradients(
                    layer, choice, weights, modules, stored, gradient, goes_on
                )
                weight_gradients.update(layer_gradients)
                if not goes_on:
                    return None
        return gradient

    if block.ends_in_relu:
        gradient = _relu_gradient(gradient, residuals["relu"], block.slope)
    if block.pool:
        gradient = _unpooled_gradient(gradient, residuals["pool"], block.unpooled)
    input_gradient = path_gradient(block.units, gradient, until=len(block.units) - 1)
    if block.shortcut is not None:
        shortcut_gradient = path_gradient((block.shortcut,), gradient, until=0)
        input_gradient = input_gradient + shortcut_gradient if passes else None
    return weight_gradients, input_gradient


def _layer_gradients(
    layer: Layer,
    choice: Choice,
    weights: dict[str, Any],
    modules: dict[str, Any],
    residuals: dict[str, jax.Array],
    gradient: jax.Array,
    goes_on: bool,
) -> tuple[Gradients, jax.Array]:
    """Return a layer's weight gradient if it is trained, and the gradient of its input.

    `gradient` is that of the layer's output. It is returned unchanged unless `goes_on`.
    """
    weight_gradients = {}
    if layer.path in choice.trained:
        weight_gradients[layer.path] = _weight_gradient(
            layer, choice, modules[layer.path], residuals, gradient
        )
    if not goes_on:
        return weight_gradients, gradient
    layer_weights = weights[layer.path]
    if layer.kind == "norm":
        detached = choice.norm_gradient == "detached"
        standardised = None if detached else residuals["activations"]
        input_gradient = through_norm(
            layer, layer_weights["scale"], standardised, residuals["factor"], gradient
        )
    else:
        # The layer is linear, so its derivative is the same at any input.
        zeros = jnp.zeros((gradient.shape[0], *layer.inputs), gradient.dtype)
        kernel = layer_weights["kernel"]
        _, pull = jax.vjp(lambda x: product_of(layer)(x, kernel), zeros)
        (input_gradient,) = pull(gradient)
    return weight_gradients, input_gradient


def _weight_gradient(
    layer: Layer,
    choice: Choice,
    modules: Any,
    residuals: dict[str, jax.Array],
    gradient: jax.Array,
) -> Any:
    """Return the gradient of a trained layer's weights, zero where channels are cut.

    `gradient` is that of the layer's output.
    """
    ratio, out_channels, out_scores = choice.attention.backward, None, None
    if ratio is not None:
        ones = jnp.ones(gradient.shape[0], gradient.dtype)
        normalised = normalised_gradients(gradient, ones)
        out_scores = channel_scores(modules["backward"], normalised, ones, ratio)
    if layer.kind == "norm":
        return _norm_weight_gradient(layer, residuals, gradient, out_scores)
    if out_scores is not None:
        out_channels = uncut_channels(out_scores, ratio or 0.0)
        if out_channels is not None:
            gradient = jnp.take(gradient, out_channels, axis=-1)
            out_scores = out_scores[out_channels]
        gradient = gradient * along(out_scores, gradient)
    activations = residuals["activations"]
    window = () if layer.kind == "dense" else (layer.kernel_size,) * 2
    shape = (*window, activations.shape[-1], gradient.shape[-1])
    zeros = jnp.zeros(shape, activations.dtype)
    _, pull = jax.vjp(functools.partial(product_of(layer), activations), zeros)
    (kernel,) = pull(gradient)
    if "scores" in residuals:
        kernel = kernel * along(residuals["scores"], kernel, -2)
    width = layer.outputs[-1]
    kernel = _scattered(kernel, out_channels, -1, width)
    kernel = _scattered(kernel, residuals.get("channels"), -2, layer.inputs[-1])
    if layer.kind == "conv":
        return {"kernel": kernel}
    bias = _scattered(gradient.sum(0), out_channels, -1, width)
    return {"kernel": kernel, "bias": bias}


def _norm_weight_gradient(
    layer: Layer,
    residuals: dict[str, jax.Array],
    gradient: jax.Array,
    out_scores: jax.Array | None,
) -> Any:
    channels, scores = residuals.get("channels"), residuals.get("scores")
    if channels is not None:
        gradient = jnp.take(gradient, channels, axis=-1)
    positions = gradient.shape[1] * gradient.shape[2]
    standardised = residuals["activations"].astype(gradient.dtype)
    bias, scale = channel_means(gradient, standardised)
    sums = {"scale": scale.sum(0) * positions, "bias": bias.sum(0) * positions}
    if scores is not None:
        sums = {name: x * scores for name, x in sums.items()}
    size = layer.outputs[-1]
    sums = {name: _scattered(x, channels, -1, size) for name, x in sums.items()}
    if out_scores is not None:
        sums = {name: x * out_scores for name, x in sums.items()}
    return sums


def _scattered(
    x: jax.Array, channels: jax.Array | None, axis: int, size: int
) -> jax.Array:
    """Return zeros with the entries of `x` at the given channels of an axis.

    Args:
        x: The entries.
        channels: Their channels; None for all, in order.
        axis: The axis of channels.
        size: Number of channels in the result.
    """
    if channels is None:
        return x
    shape = list(x.shape)
    shape[axis] = size
    zeros = jnp.moveaxis(jnp.zeros(shape, x.dtype), axis, 0)
    return jnp.moveaxis(zeros.at[channels].set(jnp.moveaxis(x, axis, 0)), 0, axis)


def _relu_gradient(gradient: jax.Array, bits: jax.Array, slope: float) -> jax.Array:
    """Return the gradient of a ReLU's input; `bits` say where it was positive."""
    positive = jnp.unpackbits(bits, count=gradient.size).reshape(gradient.shape)
    return jnp.where(
        positive == 1, gradient, jnp.asarray(slope, gradient.dtype) * gradient
    )


def _unpooled_gradient(
    gradient: jax.Array, planes: jax.Array, unpooled: tuple[int, ...]
) -> jax.Array:
    """Return the gradient of a pool's input: the output's at the winners, 0 elsewhere.

    Args:
        gradient: `[n, h, w, c]`, the gradient of the pool's output.
        planes: The winners' positions in their windows, as two planes of bits.
        unpooled: Shape of one example's input.
    """
    count, height, width, channels = gradient.shape
    low, high = (
        jnp.unpackbits(bits, count=gradient.size).reshape(gradient.shape)
        for bits in planes
    )
    winners = low + 2 * high
    rows, columns = min(unpooled[0], 2), min(unpooled[1], 2)
    wide = (count, height, 1, width, 1, channels)
    won = winners.reshape(wide) == window_positions(rows, columns)
    spread = jnp.where(won, gradient.reshape(wide), 0)
    images = spread.reshape(count, rows * height, columns * width, channels)
    missing = [
        (0, full - size)
        for full, size in zip(unpooled[:2], images.shape[1:3], strict=True)
    ]
    # Without the barrier XLA:CPU stores the images twice, in two shapes.
    return lax.optimization_barrier(jnp.pad(images, ((0, 0), *missing, (0, 0))))
