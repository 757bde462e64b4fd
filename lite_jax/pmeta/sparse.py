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
from typing import Any

import jax
import jax.numpy as jnp

from lite_jax.nn.description import Architecture, Block, at_path
from lite_jax.pmeta.choice import Choice, any_trained
from lite_jax.pmeta.layers import flattened, network_inputs
from lite_jax.pmeta.sparse_backward import block_gradients
from lite_jax.pmeta.sparse_forward import output_and_residuals
from lite_jax.types import Params


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
        if passes or any_trained(block.layers, choice):
            x = sparse_block(block, choice, passes, weights, block_modules, x)
            passes = True
        else:
            settings = block, choice, False
            x, _ = output_and_residuals(*settings, weights, block_modules, x)
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
    return output_and_residuals(block, choice, passes, weights, modules, x)[0]


def _block_forward(block, choice, passes, weights, modules, x):
    settings = block, choice, passes
    y, residuals = output_and_residuals(*settings, weights, modules, x)
    return y, (residuals, weights, modules)


def _block_backward(block, choice, passes, residuals_and_params, cotangent):
    residuals, weights, modules = residuals_and_params
    weight_gradients, input_gradient = block_gradients(
        block, choice, passes, weights, modules, residuals, cotangent
    )
    if input_gradient is None:
        shape = (cotangent.shape[0], *block.inputs)
        input_gradient = jnp.zeros(shape, cotangent.dtype)
    zeros = jax.tree.map(jnp.zeros_like, (weights, modules))
    return {**zeros[0], **weight_gradients}, zeros[1], input_gradient


sparse_block.defvjp(_block_forward, _block_backward)
