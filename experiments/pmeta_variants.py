"""What p-Meta's ablations put in the place of a part: rules, and networks."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from lite_jax import Network, nn
from lite_jax.learners.inner_rules import InnerRule, everything
from lite_jax.nn.description import Architecture, Layer, at_path, layer_at, with_layers
from lite_jax.nn.layers import max_pool, windows
from lite_jax.pmeta.attention import (
    Attention,
    channel_scores,
    init_attention,
    normalised_gradients,
)
from lite_jax.pmeta.layers import (
    along,
    compute_features,
    compute_layer,
    flattened,
    network_inputs,
    rectified,
    scale_and_shift,
)
from lite_jax.pmeta.masked import mask_gradient
from lite_jax.types import Params, PyTree

POOLS = {"max": max_pool, "average": lambda x: windows(x).mean((2, 4))}


def channel_steps(learning_rate: float, architecture: Architecture) -> InnerRule:
    """Return steps of a learned size for each layer and each of its channels.

    α_l · a_in · a_out: what meta attention would do if it looked at nothing.
    """
    body = {layer.path for layer in architecture.body}

    def init(adapted: PyTree, steps: int) -> Params:
        del adapted
        found: Params = {}
        for layer in architecture.layers:
            found[layer.path] = {"size": jnp.full(steps, learning_rate, float)}
            if layer.path in body:
                found[layer.path] |= {
                    "inputs": jnp.ones((steps, layer.inputs[-1])),
                    "outputs": jnp.ones((steps, layer.outputs[-1])),
                }
        return found

    def update(sizes: Params, state: Any, adapted: PyTree, gradient: PyTree) -> Any:
        moved = {}
        for layer in architecture.layers:
            own, start = sizes[layer.path], layer_at(adapted, layer.path)
            slope = mask_gradient(
                layer, layer_at(gradient, layer.path), own.get("inputs"),
                own.get("outputs"),
            )  # fmt: skip
            moved[layer.path] = jax.tree.map(
                lambda x, g, size=own["size"]: x - size * g, start, slope
            )
        return with_layers(adapted, moved), state

    def adapts(path: str) -> bool:
        return everything(path) and not path.startswith("backbone/input/")

    return InnerRule(init, adapts, lambda adapted: (), update, lower_bound=0.0)


def passed_on(rule: InnerRule, attention: Attention) -> InnerRule:
    """Return a rule whose scores multiply what layers pass on.

    A layer's input where attention looks forward, and the gradient of its output where
    it looks backward; the paper's Table 7 shows that neither should be done.
    """

    def features(
        architecture: Architecture,
        modules: Any,
        params: Params,
        inputs: jax.Array,
        counted: jax.Array,
    ) -> jax.Array:
        def compute(layer: Layer, weights: Any, x: jax.Array) -> jax.Array:
            own = at_path(modules, layer.path)
            if attention.forward is not None:
                seen = jax.lax.stop_gradient(x)
                scores = channel_scores(
                    own["forward"], seen, counted, attention.forward
                )
                x = x * along(scores, x)
            y = compute_layer(layer, weights, x)
            if attention.backward is None:
                return y
            return _scaled(attention.backward, own["backward"], counted, y)

        return compute_features(architecture, params, inputs, compute)

    return rule._replace(
        features=features,
        init_features=lambda key, network: init_attention(key, network, attention),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scaled(ratio: float, module: Params, counted: jax.Array, y: jax.Array):
    return y


def _scaled_forward(ratio, module, counted, y):
    return y, (module, counted)


def _scaled_backward(ratio, kept, gradient):
    module, counted = kept
    seen = normalised_gradients(gradient, counted)
    scores = channel_scores(module, seen, counted, ratio)
    zeros = jax.tree.map(jnp.zeros_like, kept)
    return *zeros, gradient * along(scores, gradient)


_scaled.defvjp(_scaled_forward, _scaled_backward)


def conv4_with(pool: str, norm: str) -> Network:
    """Return Conv-4 of 32 channels with another pool or norm.

    Args:
        pool: "max" or "average".
        norm: "group", or "batch": by the statistics of what is computed at once, so
            that one image alone has its own.
    """
    original = nn.conv4(32)

    def compute(layer: Layer, weights: Any, x: jax.Array) -> jax.Array:
        if layer.kind != "norm" or norm == "group":
            return compute_layer(layer, weights, x)
        mean = x.mean((0, 1, 2), keepdims=True)
        variance = ((x - mean) ** 2).mean((0, 1, 2), keepdims=True)
        return scale_and_shift(weights, (x - mean) * jax.lax.rsqrt(variance + 1e-5))

    def apply(params: Params, inputs: jax.Array) -> jax.Array:
        assert original.describe is not None
        architecture = original.describe(inputs.shape[1:], 2)
        x = network_inputs(params, inputs)
        for block in architecture.blocks:
            for layer in block.layers:
                x = compute(layer, at_path(params, layer.path), x)
            x = POOLS[pool](rectified(x, block.slope))
        return flattened(architecture, x)

    return Network(original.init, apply)
