"""Blocks whose backward pass stores only what the trained layers need.

The residuals of a block are decided before it is compiled:

- the inputs of trained convolutions and dense layers, and the standardised tensors of
  trained norms. Of these only as many channels are stored as meta attention can leave
  (`most_channels`), so no gradient is lost;
- the standardised tensors and factors of norms that a gradient passes, as
  `norm_gradient` asks;
- one bit for each number that a ReLU is applied to, and two for each output of a pool.

Nothing is stored below the first trained layer.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lite_jax.nn.description import Architecture, Block, Layer, Unit, at_path
from lite_jax.nn.layers import windows, wins
from lite_jax.pmeta.attention import (
    NO_ATTENTION,
    Attention,
    channel_scores,
    most_channels,
    normalised_gradients,
)
from lite_jax.pmeta.layers import (
    NormGradient,
    along,
    as_kept,
    channel_means,
    compute_layer,
    flattened,
    network_inputs,
    product_of,
    rectified,
    scale_and_shift,
    standardise,
    through_norm,
)
from lite_jax.types import Params, PyTree

Gradients = dict[str, Any]
"""A trained layer's path → the gradient of its weights."""


class Choice(NamedTuple):
    """The trained layers of a step, and how their gradients are computed.

    Attributes:
        trained: Paths of the trained layers.
        attention: Ratios of meta attention.
        norm_gradient: How gradients pass norms, "exact", "bfloat16" or "detached"; see
            `lite_jax.pmeta.layers`.
    """

    trained: frozenset[str]
    attention: Attention = NO_ATTENTION
    norm_gradient: NormGradient = "exact"


def sparse_features(
    architecture: Architecture,
    choice: Choice,
    params: Params,
    modules: Any,
    inputs: jax.Array,
) -> jax.Array:
    """Return a backbone's features `[n, d]`, whose VJP stores what trained layers need.

    The weight gradients of trained layers are masked by attention over all examples of
    the call; on a device that is one. The gradients of all other layers and of the
    inputs are zero. If the choice has no layer of the backbone, features are computed
    without a derivative rule of this module.

    Args:
        architecture: The backbone's layers.
        choice: The trained layers.
        params: The backbone's parameters.
        modules: Modules of meta attention, from `init_attention`.
        inputs: `[n, …]` images, as the backbone takes them.
    """
    x, passes = network_inputs(params, inputs), False
    for block in architecture.blocks:
        weights = {x.path: at_path(params, x.path) for x in block.layers}
        block_modules = {x.path: at_path(modules, x.path) or {} for x in block.layers}
        if passes or _any_trained(block.layers, choice):
            x = sparse_block(block, choice, passes, weights, block_modules, x)
            passes = True
        else:
            settings = block, choice, False
            x, _ = _output_and_residuals(*settings, weights, block_modules, x)
    return flattened(architecture, x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def sparse_block(
    block: Block,
    choice: Choice,
    passes: bool,
    weights: dict[str, Any],
    modules: dict[str, Any],
    x: jax.Array,
) -> jax.Array:
    """Return a block's output `[n, …]`, with the residuals that this module describes.

    Args:
        block: The block.
        choice: The trained layers, of this block and others.
        passes: Whether the gradient of `x` is needed; otherwise it is zero.
        weights: Path → weights, of all the block's layers.
        modules: Path → modules of meta attention, of all the block's layers.
        x: The block's input, `[n, …]`.
    """
    return _output_and_residuals(block, choice, passes, weights, modules, x)[0]


def _block_forward(block, choice, passes, weights, modules, x):
    settings = block, choice, passes
    y, residuals = _output_and_residuals(*settings, weights, modules, x)
    return y, (residuals, weights, modules)


def _block_backward(block, choice, passes, residuals_and_params, cotangent):
    residuals, weights, modules = residuals_and_params
    weight_gradients, input_gradient = _block_gradients(
        block, choice, passes, weights, modules, residuals, cotangent
    )
    if input_gradient is None:
        shape = (cotangent.shape[0], *block.inputs)
        input_gradient = jnp.zeros(shape, cotangent.dtype)
    zeros = jax.tree.map(jnp.zeros_like, (weights, modules))
    return {**zeros[0], **weight_gradients}, zeros[1], input_gradient


# ------------------------------------------------------------------------ forward


def _output_and_residuals(
    block: Block,
    choice: Choice,
    passes: bool,
    weights: dict[str, Any],
    modules: dict[str, Any],
    x: jax.Array,
) -> tuple[jax.Array, PyTree]:
    """Return a block's output `[n, …]`, and the residuals of its backward pass.

    The arguments are those of `sparse_block`.
    """
    residuals: dict[str, Any] = {}

    def path_output(units: tuple[Unit, ...], x: jax.Array, until: int) -> jax.Array:
        """Return the output of units in a row, without the ReLUs from `until` on."""
        reached = passes
        for i, unit in enumerate(units):
            layer, norm = unit.layer, unit.norm
            reached = reached or layer.path in choice.trained
            residuals[layer.path] = _weight_residuals(layer, choice, modules, x)
            x = compute_layer(layer, weights[layer.path], x)
            if norm is not None:
                x, factor = standardise(x, norm.groups)
                whole = reached and choice.norm_gradient != "detached"
                residuals[norm.path] = _weight_residuals(
                    norm, choice, modules, x, whole=whole
                )
                if whole and norm.path not in choice.trained:
                    stored = as_kept(choice.norm_gradient, x)
                    residuals[norm.path] = {"activations": stored}
                if reached:
                    residuals[norm.path]["factor"] = factor
                reached = reached or norm.path in choice.trained
                x = scale_and_shift(weights[norm.path], x)
            if unit.relu and i < until:
                if reached:
                    residuals[f"{layer.path} relu"] = jnp.packbits(x > 0)
                x = rectified(x, block.slope)
        return x

    last = len(block.units) - 1
    y = path_output(block.units, x, until=last)
    if block.shortcut is not None:
        y = y + path_output((block.shortcut,), x, until=0)
    if block.pool:
        y, residuals["pool"] = _maxima_and_winners(y)
    if block.ends_in_relu:
        if passes or _any_trained(block.layers, choice):
            residuals["relu"] = jnp.packbits(y > 0)
        y = rectified(y, block.slope)
    return y, residuals


def _weight_residuals(
    layer: Layer,
    choice: Choice,
    modules: dict[str, Any],
    activations: jax.Array,
    whole: bool = False,
) -> dict[str, jax.Array]:
    """Return the residuals of a layer's weight gradient; none if it is not trained.

    Args:
        layer: The layer.
        choice: The trained layers.
        modules: Path → modules of meta attention.
        activations: `[n, …, c]`, the layer's input, or a norm's standardised tensor.
        whole: Store all channels, because the gradient that passes a norm needs them.
    """
    if layer.path not in choice.trained:
        return {}
    ratio, scores = choice.attention.forward, None
    if ratio is not None:
        ones = jnp.ones(activations.shape[0], activations.dtype)
        module = modules[layer.path]["forward"]
        scores = channel_scores(module, activations, ones, ratio)
    if layer.kind == "norm":
        activations = as_kept(choice.norm_gradient, activations)
    if scores is None:
        return {"activations": activations}
    channels = None if whole else _uncut_channels(scores, ratio or 0.0)
    if channels is None:
        return {"activations": activations, "scores": scores}
    return {
        "activations": jnp.take(activations, channels, axis=-1),
        "scores": scores[channels],
        "channels": channels,
    }


def _uncut_channels(scores: jax.Array, ratio: float) -> jax.Array | None:
    """Return the channels `[k]` whose score can be above 0; None if all can."""
    size = scores.shape[0]
    count = most_channels(size, ratio)
    if count == size:
        return None
    return jnp.argsort(-scores)[:count].astype(jnp.int32)


def _maxima_and_winners(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the 2×2 maxima, and the winners' positions as two planes of bits.

    Of equal maxima the first takes the gradient.
    """
    best = windows(x)
    positions = _window_positions(best.shape[2], best.shape[4])
    positions = jnp.broadcast_to(positions, best.shape)
    for axis in (4, 2):
        (best, *others), (positions, *other_positions) = (
            jnp.unstack(array, axis=axis) for array in (best, positions)
        )
        for other, position in zip(others, other_positions, strict=True):
            first = wins(best, other)
            best = jnp.where(first, best, other)
            positions = jnp.where(first, positions, position)
    planes = [jnp.packbits((positions >> bit) & 1) for bit in range(2)]
    return best, jnp.stack(planes)


def _window_positions(rows: int, columns: int) -> jax.Array:
    """Return the number of each position in a window, in the shape of `windows`."""
    numbers = jnp.arange(rows * columns, dtype=jnp.uint8)
    return numbers.reshape(1, 1, rows, 1, columns, 1)


# ------------------------------------------------------------------------ backward


def _block_gradients(
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
            if not passes and not _any_trained([*below, *unit.layers], choice):
                return None
            if unit.relu and i < until:
                bits = residuals[f"{unit.layer.path} relu"]
                gradient = _relu_gradient(gradient, bits, block.slope)
            for j, layer in reversed(list(enumerate(unit.layers))):
                goes_on = passes or _any_trained([*below, *unit.layers[:j]], choice)
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
        out_channels = _uncut_channels(out_scores, ratio or 0.0)
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
    won = winners.reshape(wide) == _window_positions(rows, columns)
    spread = jnp.where(won, gradient.reshape(wide), 0)
    images = spread.reshape(count, rows * height, columns * width, channels)
    missing = [
        (0, full - size)
        for full, size in zip(unpooled[:2], images.shape[1:3], strict=True)
    ]
    # Without the barrier XLA:CPU stores the images twice, in two shapes.
    return lax.optimization_barrier(jnp.pad(images, ((0, 0), *missing, (0, 0))))


def _any_trained(layers: Any, choice: Choice) -> bool:
    return any(layer.path in choice.trained for layer in layers)


sparse_block.defvjp(_block_forward, _block_backward)
