"""p-Meta's inner rule: learned, sparse step sizes, and meta attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lite_jax.errors import UserError, unknown_name
from lite_jax.learners.inner_rules import InnerRule, check_positive, everything
from lite_jax.nn.description import Architecture, Layer, layer_at
from lite_jax.pmeta.attention import NO_ATTENTION, Attention, init_attention
from lite_jax.pmeta.layers import NormGradient, check_norm_gradient
from lite_jax.pmeta.masked import masked_features
from lite_jax.types import Key, Params, PyTree

_SIZES: dict[str, Callable[[Layer], int]] = {
    "inputs": lambda layer: layer.input_size,
    "memory": lambda layer: layer.input_size + layer.num_weights,
}


def p_meta(
    learning_rate: float = 0.01,
    *,
    penalty: float = 1.0,
    penalty_on: str = "inputs",
    attention: Attention = NO_ATTENTION,
    each: bool = False,
    norm_gradient: NormGradient = "exact",
    adapts: Callable[[str], bool] = everything,
) -> InnerRule:
    """Return p-Meta's rule: a learned step size a layer and step, many of them 0.

    θ_l ← θ_l − α_l^k (γ_l ⊙ g_l). The step sizes are kept sparse by a Lasso that weighs
    a layer by what its weight gradient stores, λ Σ_{l,k} m_l α_l^k. Their lower bound
    is 0: projected after each outer step, many are exactly 0, and the layer is not
    trained at that step. γ is meta attention (`lite_jax.pmeta.attention`). A layer is
    what has weights of its own: a convolution, a norm, the head.

    Without penalty and attention this is MAML++ with one step size a layer; with fixed
    ones it would be MAML, and with some layers left out ANIL or BOIL.

    Args:
        learning_rate: α at first.
        penalty: λ. Sizes m_l are shares of all layers' sizes, so that it means the same
            for every network; the paper leaves its unit open.
        penalty_on: What m_l counts: "inputs", the layer's input, as in the paper, or
            "memory", its weights as well, whose gradient a device accumulates; with
            small images that is most of a layer's memory.
        attention: Ratios of meta attention.
        each: Give each example channels of its own, as on a device that accumulates
            gradients example by example; then any operator serves. Otherwise the
            support has to be computed at once.
        norm_gradient: How gradients pass norms, which decides what a device has to
            keep: "exact", "bfloat16" or "detached" (`lite_jax.pmeta.layers`). Train
            with what is deployed.
        adapts: `path -> bool`, which parameters are changed at all.

    Raises:
        UserError: A ratio outside [0, 1), a negative penalty, another name of what it
            counts, or another way through norms.

    References:
        Qu, Zhou, Thiele, "p-Meta: Towards On-device Deep Model Adaptation", KDD 2022.
    """
    check_positive(learning_rate)
    if penalty < 0:
        raise UserError(f"penalty={penalty}: expected 0 or more")
    if penalty_on not in _SIZES:
        raise unknown_name("penalty_on", penalty_on, _SIZES)
    check_norm_gradient(norm_gradient)
    attention.check()

    def chosen(path: str) -> bool:
        return adapts(path) and not path.startswith("backbone/input/")

    def init(adapted: PyTree, steps: int) -> Params:
        def own(layer: Params) -> jax.Array | None:
            leaves = jax.tree.leaves(layer)
            return jnp.full(steps, learning_rate, leaves[0].dtype) if leaves else None

        return _by_layer(own, adapted)

    def update(sizes: Params, state: Any, adapted: PyTree, gradient: PyTree) -> Any:
        def own(layer: Params, size: Any, gradient: Params) -> Params:
            return jax.tree.map(lambda x, g: x - size * g, layer, gradient)

        return _by_layer(own, adapted, sizes, gradient), state

    def lasso(sizes: Params, architecture: Architecture) -> jax.Array:
        layers = {x.path: _SIZES[penalty_on](x) for x in architecture.layers}
        found = {path: layer_at(sizes, path) for path in layers}
        total = sum(layers.values())
        terms = [
            layers[path] / total * own.sum()
            for path, own in found.items()
            if own is not None
        ]
        return penalty * sum(terms, start=jnp.zeros((), terms[0].dtype))

    rule = InnerRule(
        init, chosen, lambda adapted: (), update, penalty=lasso, lower_bound=0.0
    )
    if attention == NO_ATTENTION and norm_gradient == "exact":
        return rule

    def features(architecture: Architecture, modules: Any, *inputs: Any) -> jax.Array:
        return masked_features(architecture, attention, norm_gradient, modules, *inputs)

    def begun(key: Key, architecture: Architecture) -> Params:
        return init_attention(key, architecture, attention)

    return rule._replace(features=features, init_features=begun, each=each)


def _by_layer(function: Callable[..., Any], tree: PyTree, *others: PyTree) -> PyTree:
    """Map over layers: dictionaries that hold arrays, or nothing in their place."""
    if not any(isinstance(x, dict) for x in tree.values()):
        return function(tree, *others)
    return {
        name: _by_layer(function, x, *(None if y is None else y[name] for y in others))
        for name, x in tree.items()
    }
