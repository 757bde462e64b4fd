"""The forward pass of `lite_jax.pmeta.sparse`: a block's output and its residuals."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lite_jax.nn.description import Block, Layer, Unit
from lite_jax.nn.layers import windows, wins
from lite_jax.pmeta.attention import channel_scores, most_channels
from lite_jax.pmeta.choice import Choice, any_trained
from lite_jax.pmeta.layers import (
    as_kept,
    compute_layer,
    rectified,
    scale_and_shift,
    standardise,
)
from lite_jax.types import PyTree


def output_and_residuals(
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
        if passes or any_trained(block.layers, choice):
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
    channels = None if whole else uncut_channels(scores, ratio or 0.0)
    if channels is None:
        return {"activations": activations, "scores": scores}
    return {
        "activations": jnp.take(activations, channels, axis=-1),
        "scores": scores[channels],
        "channels": channels,
    }


def uncut_channels(scores: jax.Array, ratio: float) -> jax.Array | None:
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
    positions = window_positions(best.shape[2], best.shape[4])
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


def window_positions(rows: int, columns: int) -> jax.Array:
    """Return the number of each position in a window, in the shape of `windows`."""
    numbers = jnp.arange(rows * columns, dtype=jnp.uint8)
    return numbers.reshape(1, 1, rows, 1, columns, 1)
