"""Blocks whose backward pass keeps only what the trained layers need.

What a block leaves for its backward pass is decided before it is compiled: the inputs
of trained convolutions and the standardised tensors of trained norms, of each only the
channels that meta attention can leave (`most_channels`, so nothing is cut short), one
bit for each number that a ReLU passes, and three for each that a pool gives. Nothing is
kept of what lies below the first trained layer.
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
    """What a gradient is wanted of, and how it passes norms.

    Attributes:
        trained: Paths of the layers.
        attention: Ratios.
        norm_gradient: As in `lite_jax.pmeta.layers`.
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
    """Return a backbone's features `[n, d]`, whose VJP keeps what the choice needs.

    The gradient of trained layers is masked by attention over the examples given, which
    on a device is one; that of all others is zero. It does not reach the inputs.

    Args:
        architecture: Of the backbone.
        choice: The trained layers.
        params: The backbone's.
        modules: Of meta attention, from `init_attention`.
        inputs: `[n, …]` as the backbone takes them.
    """
    x, passes = network_inputs(params, inputs), False
    for block in architecture.blocks:
        own = {x.path: at_path(params, x.path) for x in block.layers}
        looks = {x.path: at_path(modules, x.path) or {} for x in block.layers}
        if passes or _any_trained(block.layers, choice):
            x = sparse_block(block, choice, passes, own, looks, x)
            passes = True
        else:
            x = _forward(block, choice, False, own, looks, x)[0]
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
    """Return a block's output; see the module.

    Args:
        block: The block.
        choice: The trained layers, of this block and others.
        passes: Whether a gradient is wanted of `x`; otherwise it is zero.
        weights: Path → weights, of all the block's layers.
        modules: Path → modules of meta attention, of all the block's layers.
        x: `[n, …]`.
    """
    return _forward(block, choice, passes, weights, modules, x)[0]


def _block_forward(block, choice, passes, weights, modules, x):
    y, kept = _forward(block, choice, passes, weights, modules, x)
    return y, (kept, weights, modules)


def _block_backward(block, choice, passes, residuals, cotangent):
    kept, weights, modules = residuals
    found, passed = _backward(block, choice, passes, weights, modules, kept, cotangent)
    if passed is None:
        passed = jnp.zeros((cotangent.shape[0], *block.inputs), cotangent.dtype)
    zeros = jax.tree.map(jnp.zeros_like, (weights, modules))
    return {**zeros[0], **found}, zeros[1], passed


# ------------------------------------------------------------------------ forward


def _forward(
    block: Block,
    choice: Choice,
    passes: bool,
    weights: dict[str, Any],
    modules: dict[str, Any],
    x: jax.Array,
) -> tuple[jax.Array, PyTree]:
    """Return a block's output, and what its backward pass needs."""
    kept: dict[str, Any] = {}

    def through(units: tuple[Unit, ...], x: jax.Array, until: int) -> jax.Array:
        """Compute units in a row; ReLUs from unit `until` on are the block's own."""
        reached = passes
        for i, unit in enumerate(units):
            layer, norm = unit.layer, unit.norm
            reached = reached or layer.path in choice.trained
            kept[layer.path] = _kept(layer, choice, modules, x)
            x = compute_layer(layer, weights[layer.path], x)
            if norm is not None:
                x, factor = standardise(x, norm.groups)
                passed = reached and choice.norm_gradient != "detached"
                kept[norm.path] = _kept(norm, choice, modules, x, whole=passed)
                if passed and norm.path not in choice.trained:
                    kept[norm.path] = {"seen": as_kept(choice.norm_gradient, x)}
                if reached:
                    kept[norm.path]["factor"] = factor
                reached = reached or norm.path in choice.trained
                x = scale_and_shift(weights[norm.path], x)
            if unit.relu and i < until:
                if reached:
                    kept[f"{layer.path} relu"] = jnp.packbits(x > 0)
                x = rectified(x, block.slope)
        return x

    last = len(block.units) - 1
    y = through(block.units, x, until=last)
    if block.shortcut is not None:
        y = y + through((block.shortcut,), x, until=0)
    if block.pool:
        y, winners = _pool(y)
        kept["pool"] = winners
    if block.ends_in_relu:
        if passes or _any_trained(block.layers, choice):
            kept["relu"] = jnp.packbits(y > 0)
        y = rectified(y, block.slope)
    return y, kept


def _kept(
    layer: Layer,
    choice: Choice,
    modules: dict[str, Any],
    seen: jax.Array,
    whole: bool = False,
) -> dict[str, jax.Array]:
    """Return what a layer's weight gradient needs of its input: surviving channels.

    All of them if `whole`: what passes a norm needs those too.
    """
    if layer.path not in choice.trained:
        return {}
    ratio, scores = choice.attention.forward, None
    if ratio is not None:
        ones = jnp.ones(seen.shape[0], seen.dtype)
        scores = channel_scores(modules[layer.path]["forward"], seen, ones, ratio)
    if layer.kind == "norm":
        seen = as_kept(choice.norm_gradient, seen)
    if scores is None:
        return {"seen": seen}
    channels = None if whole else _survivors(scores, ratio or 0.0)
    if channels is None:
        return {"seen": seen, "scores": scores}
    return {
        "seen": jnp.take(seen, channels, axis=-1),
        "scores": scores[channels],
        "channels": channels,
    }


def _survivors(scores: jax.Array, ratio: float) -> jax.Array | None:
    """Return the channels `[k]` that can be above zero; None where all can."""
    size = scores.shape[0]
    count = most_channels(size, ratio)
    if count == size:
        return None
    return jnp.argsort(-scores)[:count].astype(jnp.int32)


def _pool(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the 2×2 maxima, and each one's place as two planes of bits.

    Of equal maxima the first takes the gradient.
    """
    best = windows(x)
    places = jnp.broadcast_to(_order(best.shape[2], best.shape[4]), best.shape)
    for axis in (4, 2):
        (best, *others), (places, *other_places) = (
            jnp.unstack(array, axis=axis) for array in (best, places)
        )
        for other, place in zip(others, other_places, strict=True):
            first = wins(best, other)
            best = jnp.where(first, best, other)
            places = jnp.where(first, places, place)
    planes = [jnp.packbits((places >> bit) & 1) for bit in range(2)]
    return best, jnp.stack(planes)


def _order(rows: int, columns: int) -> jax.Array:
    """Return the number of each place of a window, shaped like `windows` gives it."""
    order = jnp.arange(rows * columns, dtype=jnp.uint8)
    return order.reshape(1, 1, rows, 1, columns, 1)


# ------------------------------------------------------------------------ backward


def _backward(
    block: Block,
    choice: Choice,
    passes: bool,
    weights: dict[str, Any],
    modules: dict[str, Any],
    kept: PyTree,
    gradient: jax.Array,
) -> tuple[Gradients, jax.Array | None]:
    """Return the gradients of the trained layers, and of the input where wanted."""
    found: Gradients = {}

    def through(units: tuple[Unit, ...], gradient: jax.Array, until: int) -> Any:
        for i, unit in reversed(list(enumerate(units))):
            below = [layer for own in units[:i] for layer in own.layers]
            if not passes and not _any_trained([*below, *unit.layers], choice):
                return None
            if unit.relu and i < until:
                bits = kept[f"{unit.layer.path} relu"]
                gradient = _rectify(gradient, bits, block.slope)
            for j, layer in reversed(list(enumerate(unit.layers))):
                wanted = passes or _any_trained([*below, *unit.layers[:j]], choice)
                own, gradient = _through_layer(
                    layer, choice, weights, modules, kept[layer.path], gradient, wanted
                )
                found.update(own)
                if not wanted:
                    return None
        return gradient

    if block.ends_in_relu:
        gradient = _rectify(gradient, kept["relu"], block.slope)
    if block.pool:
        gradient = _unpool(gradient, kept["pool"], block.unpooled)
    passed = through(block.units, gradient, until=len(block.units) - 1)
    if block.shortcut is not None:
        beside = through((block.shortcut,), gradient, until=0)
        passed = passed + beside if passes else None
    return found, passed


def _through_layer(
    layer: Layer,
    choice: Choice,
    weights: dict[str, Any],
    modules: dict[str, Any],
    kept: dict[str, jax.Array],
    gradient: jax.Array,
    wanted: bool,
) -> tuple[Gradients, jax.Array]:
    """Return a layer's weight gradient if it is trained, and the gradient below it."""
    found = {}
    if layer.path in choice.trained:
        found[layer.path] = _weight_gradient(
            layer, choice, modules[layer.path], kept, gradient
        )
    if not wanted:
        return found, gradient
    own = weights[layer.path]
    if layer.kind == "norm":
        detached = choice.norm_gradient == "detached"
        standardised = None if detached else kept["seen"]
        below = through_norm(
            layer, own["scale"], standardised, kept["factor"], gradient
        )
    else:
        anything = jnp.zeros((gradient.shape[0], *layer.inputs), gradient.dtype)
        _, pull = jax.vjp(lambda x: product_of(layer)(x, own["kernel"]), anything)
        (below,) = pull(gradient)  # linear, so at any input
    return found, below


def _weight_gradient(
    layer: Layer,
    choice: Choice,
    modules: Any,
    kept: dict[str, jax.Array],
    gradient: jax.Array,
) -> Any:
    """Return the gradient of a trained layer's weights, zero where channels are cut."""
    ratio, out, outputs = choice.attention.backward, None, None
    if ratio is not None:
        ones = jnp.ones(gradient.shape[0], gradient.dtype)
        seen = normalised_gradients(gradient, ones)
        outputs = channel_scores(modules["backward"], seen, ones, ratio)
    if layer.kind == "norm":
        return _norm_gradient(layer, kept, gradient, outputs)
    if outputs is not None:
        out = _survivors(outputs, ratio or 0.0)
        if out is not None:
            gradient = jnp.take(gradient, out, axis=-1)
            outputs = outputs[out]
        gradient = gradient * along(outputs, gradient)
    seen = kept["seen"]
    places = () if layer.kind == "dense" else (layer.kernel_size,) * 2
    anything = jnp.zeros((*places, seen.shape[-1], gradient.shape[-1]), seen.dtype)
    _, pull = jax.vjp(functools.partial(product_of(layer), seen), anything)
    (kernel,) = pull(gradient)
    if "scores" in kept:
        kernel = kernel * along(kept["scores"], kernel, -2)
    width = layer.outputs[-1]
    kernel = _spread(kernel, out, -1, width)
    kernel = _spread(kernel, kept.get("channels"), -2, layer.inputs[-1])
    if layer.kind == "conv":
        return {"kernel": kernel}
    return {"kernel": kernel, "bias": _spread(gradient.sum(0), out, -1, width)}


def _norm_gradient(
    layer: Layer,
    kept: dict[str, jax.Array],
    gradient: jax.Array,
    outputs: jax.Array | None,
) -> Any:
    channels, scores = kept.get("channels"), kept.get("scores")
    if channels is not None:
        gradient = jnp.take(gradient, channels, axis=-1)
    positions = gradient.shape[1] * gradient.shape[2]
    seen = kept["seen"].astype(gradient.dtype)
    bias, scale = channel_means(gradient, seen)
    sums = {"scale": scale.sum(0) * positions, "bias": bias.sum(0) * positions}
    if scores is not None:
        sums = {name: x * scores for name, x in sums.items()}
    size = layer.outputs[-1]
    sums = {name: _spread(x, channels, -1, size) for name, x in sums.items()}
    if outputs is not None:
        sums = {name: x * outputs for name, x in sums.items()}
    return sums


def _spread(x: jax.Array, places: jax.Array | None, axis: int, size: int) -> jax.Array:
    """Return `x` with its entries along an axis at their places among `size` zeros."""
    if places is None:
        return x
    shape = list(x.shape)
    shape[axis] = size
    spread = jnp.moveaxis(jnp.zeros(shape, x.dtype), axis, 0)
    return jnp.moveaxis(spread.at[places].set(jnp.moveaxis(x, axis, 0)), 0, axis)


def _rectify(gradient: jax.Array, bits: jax.Array, slope: float) -> jax.Array:
    positive = jnp.unpackbits(bits, count=gradient.size).reshape(gradient.shape)
    return jnp.where(
        positive == 1, gradient, jnp.asarray(slope, gradient.dtype) * gradient
    )


def _unpool(
    gradient: jax.Array, planes: jax.Array, unpooled: tuple[int, ...]
) -> jax.Array:
    """Return the gradient of the images, at the winners' places."""
    count, height, width, channels = gradient.shape
    low, high = (
        jnp.unpackbits(bits, count=gradient.size).reshape(gradient.shape)
        for bits in planes
    )
    places = low + 2 * high
    rows, columns = min(unpooled[0], 2), min(unpooled[1], 2)
    wide = (count, height, 1, width, 1, channels)
    spread = jnp.where(
        places.reshape(wide) == _order(rows, columns), gradient.reshape(wide), 0
    )
    images = spread.reshape(count, rows * height, columns * width, channels)
    rest = [
        (0, full - size)
        for full, size in zip(unpooled[:2], images.shape[1:3], strict=True)
    ]
    # Otherwise XLA:CPU writes the images twice, in two shapes.
    return lax.optimization_barrier(jnp.pad(images, ((0, 0), *rest, (0, 0))))


def _any_trained(layers: Any, choice: Choice) -> bool:
    return any(layer.path in choice.trained for layer in layers)


sparse_block.defvjp(_block_forward, _block_backward)
