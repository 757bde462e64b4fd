"""Layers whose weight gradient is masked by meta attention, for meta-training.

Forward values and the gradients that pass on are those of the plain layer; only what
arrives at the weights is multiplied by γ. Everything is kept in full, and can be
differentiated again: the gradient of an inner step is a function like any other.
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
    NormGradient,
    Weights,
    along,
    as_kept,
    compute_layer,
    features_of,
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
    """Return a backbone's features, whose gradient reaches weights by attention.

    Args:
        architecture: Of the backbone.
        attention: Ratios.
        norm_gradient: How gradients pass norms.
        modules: From `init_attention`.
        params: The backbone's.
        inputs: `[n, …]`.
        counted: `[n]`, the weight of each example's loss; 0 for padding.
    """

    def compute(layer: Layer, weights: Weights, x: jax.Array) -> jax.Array:
        own = at_path(modules, layer.path)
        return _masked(layer, attention, norm_gradient, weights, own, counted, x)

    return features_of(architecture, params, inputs, compute)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _masked(
    layer: Layer,
    attention: Attention,
    norm_gradient: NormGradient,
    weights: Weights,
    modules: Any,
    counted: jax.Array,
    x: jax.Array,
) -> jax.Array:
    return compute_layer(layer, weights, x)


def _masked_forward(layer, attention, norm_gradient, weights, modules, counted, x):
    return compute_layer(layer, weights, x), (weights, modules, counted, x)


def _masked_backward(layer, attention, norm_gradient, kept, cotangent):
    weights, modules, counted, x = kept
    if layer.kind == "norm":
        seen, factor = standardise(x, layer.groups)
        kept_seen = as_kept(norm_gradient, seen).astype(seen.dtype)
        through = None if norm_gradient == "detached" else kept_seen
        passed = through_norm(layer, weights["scale"], through, factor, cotangent)
        rule = functools.partial(scale_and_shift, standardised=kept_seen)
        (gradient,) = jax.vjp(rule, weights)[1](cotangent)
    else:
        seen = x
        _, pull = jax.vjp(functools.partial(compute_layer, layer), weights, x)
        gradient, passed = pull(cotangent)
    inputs = outputs = None
    if attention.forward is not None:
        module = modules["forward"]
        inputs = channel_scores(module, seen, counted, attention.forward)
    if attention.backward is not None:
        seen = normalised_gradients(cotangent, counted)
        module = modules["backward"]
        outputs = channel_scores(module, seen, counted, attention.backward)
    zeros = jax.tree.map(jnp.zeros_like, (modules, counted))
    return mask_gradient(layer, gradient, inputs, outputs), *zeros, passed


_masked.defvjp(_masked_forward, _masked_backward)


def mask_gradient(
    layer: Layer,
    gradient: Weights,
    inputs: jax.Array | None,
    outputs: jax.Array | None,
) -> Weights:
    """Return a layer's weight gradient times γ of its input and output channels.

    A kernel's entry has the product of both; a bias, which no input meets, that of its
    output alone; a norm's scale and shift both, since its channels are the same.
    """
    masked = dict(gradient)
    if inputs is not None and layer.kind == "norm":
        masked = {name: x * inputs for name, x in masked.items()}
    elif inputs is not None:
        masked["kernel"] = masked["kernel"] * along(inputs, masked["kernel"], -2)
    if outputs is not None:
        masked = {name: x * along(outputs, x, -1) for name, x in masked.items()}
    return masked
