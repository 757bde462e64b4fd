"""Networks made from Flax modules, and networks derived from other networks."""

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
    """Return the network of a Flax module, with normalisation of the input.

    The mean and standard deviation of the input are parameters of the network, under
    "input" and without gradient. Every checkpoint thus holds them beside the weights
    that were trained with them.

    Args:
        module: Flax module on normalised images `[n, height, width, channels]`.
        mean: Mean of pixels in [0, 1], subtracted from them: a number, or one for each
            channel.
        std: Standard deviation by which the difference is divided, likewise.
        least_size: Smallest side of an image, in pixels.
        multiple: Number of pixels that must divide both sides of an image.
        film: Whether the module has FiLM layers.
        describe: `(image shape, way) -> Architecture`; None for none.

    Returns:
        A `Network`. Its `init` raises a `UserError` for images of other sizes.
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
        shapes = jax.eval_shape(module.init, jax.random.key(0), images)["film"]
        fill = {"scale": jnp.ones, "shift": jnp.zeros}
        return jax.tree_util.tree_map_with_path(
            lambda path, x: fill[path[-1].key](x.shape, x.dtype), shapes
        )

    return Network(init, apply, identity_film if film else None, describe)


def in_bfloat16(network: Network) -> Network:
    """Return the network with products and activations in bfloat16.

    Activations need half the memory, and products use the tensor cores of a GPU.
    Parameters stay float32: `apply` rounds them, so their gradients and updates are
    float32. The statistics of norms, FiLM, the average over positions and the returned
    features are float32 too, and with the features all sums over a support set. The
    returned network has no description.
    """

    def apply(params: Params, inputs: jax.Array, *film: PyTree) -> jax.Array:
        return network.apply(_rounded(params), inputs, *film).astype(jnp.float32)

    return network._replace(apply=apply, describe=None)


def over_clips(network: Network) -> Network:
    """Return a network on clips, whose features are the mean of the frames' features.

    A clip is one example `[length, height, width, channels]`; inputs are
    `[n, length, height, width, channels]`. The returned network has no description.
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
    """Return the parameters with kernels, and biases beside a kernel, in bfloat16.

    The parameters of norms, which have no kernel, stay as they are.
    """
    if "kernel" in params:
        return jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    return {k: _rounded(v) if isinstance(v, dict) else v for k, v in params.items()}


def feature_size(backbone: Network, params: Params, image: Any) -> int:
    """Return d, the number of features of an image.

    Args:
        backbone: The network.
        params: Its parameters, as arrays or shapes.
        image: Array or `jax.ShapeDtypeStruct` of one image.
    """
    batch = jax.ShapeDtypeStruct((1, *image.shape), image.dtype)
    return jax.eval_shape(backbone.apply, params, batch).shape[1]


def normalise(inputs: jax.Array, mean: Any, std: Any) -> jax.Array:
    """Return `(pixels - mean) / std`, without gradient by `mean` and `std`.

    Args:
        inputs: Images `[n, height, width, channels]`: floats in [0, 1], or integers in
            0 … 255, which are divided by 255.
        mean: A number, or one for each channel.
        std: Likewise.
    """
    if jnp.issubdtype(inputs.dtype, jnp.integer):
        inputs = inputs.astype(jnp.float32) / 255
    mean, std = (
        lax.stop_gradient(jnp.asarray(x, inputs.dtype)).reshape(1, 1, 1, -1)
        for x in (mean, std)
    )
    return (inputs - mean) / std


def _fill(value: float | tuple[float, ...], channels: int) -> jax.Array:
    """Return `[channels]` float32: one statistic for each channel.

    Where the number of values is neither 1 nor `channels`, as for grey images, every
    channel has their mean.
    """
    values = jnp.atleast_1d(jnp.asarray(value, jnp.float32))
    if values.size not in (1, channels):
        values = values.mean(keepdims=True)
    return jnp.broadcast_to(values, (channels,))


def _check_size(name: str, sides: tuple[int, int], least: int, multiple: int) -> None:
    """Raise a `UserError` unless both sides, in pixels, are accepted by the network."""
    if min(sides) < least or any(side % multiple for side in sides):
        step = f", a multiple of {multiple}" if multiple > 1 else ""
        raise UserError(
            f"{name} needs images of {least} pixels a side or more{step}, got "
            f"{sides[0]} × {sides[1]}: change image_size"
        )
