"""Layers whose weight gradient is masked by meta attention, for meta-training.

Outputs are those of the plain layer. A layer's weight gradient is multiplied by γ; the
gradient of its input is not. The backward pass stores whole tensors and can be
differentiated again, so the gradient of an inner step has a gradient too.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from lite_jax.nn.description import Architecture, Layer, at_path
from lite_jax.pmeta.attention import (
    Attention,
    channel_scores,
    normalised_gradients,
)
from lite_jax.pmeta.layers import (
    LayerWeights,
    NormGradient,
    along,
    as_kept,
    compute_features,
    compute_layer,
    scale_and_shift,
    standardise,
    through_norm,
)
from lite_jax.types import Params


def masked_features(
    architecture: Architecture,
    attention: Attention,
    norm_gradient: NormGradient,
    modules: Any,
    params: Params,
    inputs: jax.Array,
    counted: jax.Array,
) -> jax.Array:
    """Return a backbone's features `[n, d]`, with weight gradients masked by attention.

    Args:
        architecture: The backbone's layers.
        attention: Ratios of meta attention.
        norm_gradient: How gradients pass norms, "exact", "bfloat16" or "detached".
        modules: Modules of meta attention, from `init_attention`.
        params: The backbone's parameters.
        inputs: `[n, …]` images, as the backbone takes them.
        counted: `[n]`, the weight of each example's loss; 0 for padding.
    """

    def compute(layer: Layer, weights: LayerWeights, x: jax.Array) -> jax.Array:
        layer_modules = at_path(modules, layer.path)
        settings = layer, attention, norm_gradient
        return _layer_output(*settings, weights, layer_modules, counted, x)

    return compute_features(architecture, params, inputs, compute)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _layer_output(
    layer: Layer,
    attention: Attention,
    norm_gradient: NormGradient,
    weights: LayerWeights,
    modules: Any,
    counted: jax.Array,
    x: jax.Array,
) -> jax.Array:
    return compute_layer(layer, weights, x)


def _layer_forward(layer, attention, norm_gradient, weights, modules, counted, x):
    return compute_layer(layer, weights, x), (weights, modules, counted, x)


def _layer_backward(layer, attention, norm_gradient, residuals, cotangent):
    weights, modules, counted, x = residuals
    if layer.kind == "norm":
        activations, factor = standardise(x, layer.groups)
        rounded = as_kept(norm_gradient, activations).astype(activations.dtype)
        standardised = None if norm_gradient == "detached" else rounded
        input_gradient = through_norm(
            layer, weights["scale"], standardised, factor, cotangent
        )
        rule = functools.partial(scale_and_shift, standardised=rounded)
        (weight_gradient,) = jax.vjp(rule, weights)[1](cotangent)
    else:
        activations = x
        _, pull = jax.vjp(functools.partial(compute_layer, layer), weights, x)
        weight_gradient, input_gradient = pull(cotangent)
    inputs = outputs = None
    if attention.forward is not None:
        module = modules["forward"]
        inputs = channel_scores(module, activations, counted, attention.forward)
    if attention.backward is not None:
        gradients = normalised_gradients(cotangent, counted)
        module = modules["backward"]
        outputs = channel_scores(module, gradients, counted, attention.backward)
    zeros = jax.tree.map(jnp.zeros_like, (modules, counted))
    masked = mask_gradient(layer, weight_gradient, inputs, outputs)
    return masked, *zeros, input_gradient


_layer_output.defvjp(_layer_forward, _layer_backward)


def mask_gradient(
    layer: Layer,
    gradient: LayerWeights,
    inputs: jax.Array | None,
    outputs: jax.Array | None,
) -> LayerWeights:
    """Return a layer's weight gradient times γ of its input and output channels.

    An entry of a kernel is multiplied by both, and a dense layer's bias by that of its
    output. A norm's scale and shift are multiplied by both, since its input and output
    have the same channels.

    Args:
        layer: The layer.
        gradient: The gradient of its weights.
        inputs: γ of the input channels, `[c]`; None for no mask.
        outputs: γ of the output channels, `[c]`; None for no mask.
    """
    masked = dict(gradient)
    if inputs is not None and layer.kind == "norm":
        masked = {name: x * inputs for name, x in masked.items()}
    elif inputs is not None:
        masked["kernel"] = masked["kernel"] * along(inputs, masked["kernel"], -2)
    if outputs is not None:
        masked = {name: x * along(outputs, x, -1) for name, x in masked.items()}
    return masked
