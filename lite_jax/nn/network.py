"""From a Flax module to a `Network`: pure functions over plain dictionaries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from lite_jax.errors import UserError
from lite_jax.nn.description import Architecture
from lite_jax.types import Network, Params, PyTree

INPUT = "input"


def make_network(
    module: nn.Module,
    *,
    mean: float | tuple[float, ...],
    std: float | tuple[float, ...],
    least_size: int,
    multiple: int = 1,
    film: bool = True,
    describe: Callable[[tuple[int, ...], int], Architecture] | None = None,
) -> Network:
    """Return a network that normalises its own input.

    The statistics of the input are parameters of the network (under "input", without
    gradient), so that they stay with the weights they belong to, in every checkpoint.

    Args:
        module: Takes normalised images `[n, height, width, channels]`.
        mean: Subtracted from pixels in [0, 1]: one number, or one a channel.
        std: What pixels are divided by afterwards.
        least_size: Smallest side of an image that the module can take.
        multiple: What both sides must be a multiple of.
        film: Whether the module has FiLM places.
        describe: The network's description, if it has one.
    """
    name = type(module).__name__

    def init(key: Any, example_spec: Any) -> Any:
        _check_size(name, example_spec.shape[:2], least_size, multiple)
        images = jax.ShapeDtypeStruct((1, *example_spec.shape), jnp.float32)
        channels = example_spec.shape[2]
        params = module.lazy_init(key, images).get("params", {})
        statistics = {"mean": _fill(mean, channels), "std": _fill(std, channels)}
        return {INPUT: statistics, **params}

    def apply(params: Any, inputs: jax.Array, film: Any = None) -> Any:
        weights = {k: v for k, v in params.items() if k != INPUT}
        collections = {"params": weights} | ({} if film is None else {"film": film})
        images = normalise(inputs, **params[INPUT])
        if any(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(weights)):
            images = images.astype(jnp.bfloat16)
        return module.apply(collections, images)

    def identity_film() -> PyTree:
        size = -(-max(least_size, multiple) // multiple) * multiple
        images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        found = jax.eval_shape(module.init, jax.random.key(0), images)["film"]
        fill = {"scale": jnp.ones, "shift": jnp.zeros}
        return jax.tree_util.tree_map_with_path(
            lambda path, x: fill[path[-1].key](x.shape, x.dtype), found
        )

    return Network(init, apply, identity_film if film else None, describe)


def in_bfloat16(network: Network) -> Network:
    """Return the network with its products and activations in bfloat16.

    Half the memory of activations, and the tensor cores of a GPU. Parameters stay
    float32 (they are rounded on the way in, so gradients and updates are float32);
    so do the statistics of norms, FiLM, the final average and the features returned,
    and with them all sums over a support.
    """

    def apply(params: Params, inputs: jax.Array, *film: PyTree) -> jax.Array:
        return network.apply(_rounded(params), inputs, *film).astype(jnp.float32)

    return network._replace(apply=apply, describe=None)


def over_clips(network: Network) -> Network:
    """Return the network for clips: it gives the mean of their frames' features.

    A clip is `[length, height, width, channels]`, so inputs are `[n, length, …]`. The
    mean is taken before anything is summed over a set: a clip is one example.
    """

    def init(key: Any, example_spec: Any) -> Params:
        frame = jax.ShapeDtypeStruct(example_spec.shape[1:], example_spec.dtype)
        return network.init(key, frame)

    def apply(params: Params, inputs: jax.Array, *film: PyTree) -> jax.Array:
        count, length = inputs.shape[:2]
        frames = inputs.reshape(count * length, *inputs.shape[2:])
        features = network.apply(params, frames, *film)
        return features.reshape(count, length, -1).mean(1)

    return network._replace(init=init, apply=apply, describe=None)


def _rounded(params: Params) -> Params:
    """Return kernels, and the biases beside them, in bfloat16; norms have none."""
    if "kernel" in params:
        return jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    return {k: _rounded(v) if isinstance(v, dict) else v for k, v in params.items()}


def feature_size(backbone: Network, params: Params, image: Any) -> int:
    """Return d for images of the shape and dtype of `image`."""
    one = jax.ShapeDtypeStruct((1, *image.shape), image.dtype)
    return jax.eval_shape(backbone.apply, params, one).shape[1]


def normalise(inputs: jax.Array, mean: Any, std: Any) -> jax.Array:
    """Return `(pixels - mean) / std`, with uint8 pixels first scaled to [0, 1]."""
    if jnp.issubdtype(inputs.dtype, jnp.integer):
        inputs = inputs.astype(jnp.float32) / 255
    mean, std = (
        lax.stop_gradient(jnp.asarray(x, inputs.dtype)).reshape(1, 1, 1, -1)
        for x in (mean, std)
    )
    return (inputs - mean) / std


def _fill(value: float | tuple[float, ...], channels: int) -> jax.Array:
    """Return one statistic for each channel; a grey image has their mean."""
    values = jnp.atleast_1d(jnp.asarray(value, jnp.float32))
    if values.size not in (1, channels):
        values = values.mean(keepdims=True)
    return jnp.broadcast_to(values, (channels,))


def _check_size(name: str, sides: tuple[int, int], least: int, multiple: int) -> None:
    if min(sides) < least or any(side % multiple for side in sides):
        step = f", a multiple of {multiple}" if multiple > 1 else ""
        raise UserError(
            f"{name} needs images of {least} pixels a side or more{step}, got "
            f"{sides[0]} × {sides[1]}: change image_size"
        )
