"""p-Meta's inner rule: learned, sparse step sizes and meta attention."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lite_jax.errors import UserError, unknown_name
from lite_jax.learners.inner_rules import (
    Exported,
    InnerRule,
    check_positive,
    everything,
)
from lite_jax.nn.description import Architecture, Layer, layer_at
from lite_jax.pmeta.attention import NO_ATTENTION, Attention, init_attention
from lite_jax.pmeta.export import export_plan, plan_costs
from lite_jax.pmeta.layers import NormGradient, check_norm_gradient
from lite_jax.pmeta.masked import masked_features
from lite_jax.pmeta.plan import learned_plan
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
    """Return p-Meta's rule, with a learned sparse step size for each layer and step.

    θ_l ← θ_l − α_l^k (γ_l ⊙ g_l),   penalty λ Σ_{l,k} m_l α_l^k

    A layer is a convolution, a dense layer, a norm or the head. The penalty is a Lasso,
    in which m_l is the memory of the layer's weight gradient. Step sizes are projected
    to 0 or above after each outer step. Many are then exactly 0, and the layer is not
    trained at that step. γ is the mask of meta attention (`lite_jax.pmeta.attention`).

    Without penalty and attention the rule is MAML++ with one step size a layer. With
    equal and fixed step sizes it would be MAML, and with those of some layers at 0 ANIL
    or BOIL.

    Args:
        learning_rate: The step sizes α at first, above 0.
        penalty: λ, 0 or more. The m_l are shares of the sum over all layers, so λ has
            the same meaning for every network. The paper leaves its unit open.
        penalty_on: What m_l counts: "inputs", the numbers of the layer's input, as in
            the paper, or "memory", those and its weights. A device accumulates the
            gradient of the weights; with small images it is most of a layer's memory.
        attention: Ratios of meta attention.
        each: Compute the masks of each example apart, as a device does that accumulates
            gradients example by example. Every set sum can then be used. Otherwise the
            masks are those of a chunk, and the support has to be one chunk.
        norm_gradient: How gradients pass norms, which decides what a device has to
            store: "exact", "bfloat16" or "detached" (`lite_jax.pmeta.layers`). Train
            with the one that is deployed.
        adapts: `path -> bool`, whether the steps may change an inner parameter.

    Returns:
        The rule for `maml`.

    Raises:
        UserError: A learning rate that is not positive, a ratio outside [0, 1), a
            negative penalty, or an unknown `penalty_on` or `norm_gradient`.

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

    def layer_adapts(path: str) -> bool:
        return adapts(path) and not path.startswith("backbone/input/")

    def init(adapted: PyTree, steps: int) -> Params:
        def layer_sizes(layer: Params) -> jax.Array | None:
            leaves = jax.tree.leaves(layer)
            return jnp.full(steps, learning_rate, leaves[0].dtype) if leaves else None

        return _map_layers(layer_sizes, adapted)

    def update(sizes: Params, state: Any, adapted: PyTree, gradient: PyTree) -> Any:
        def updated_layer(layer: Params, size: Any, gradient: Params) -> Params:
            return jax.tree.map(lambda x, g: x - size * g, layer, gradient)

        return _map_layers(updated_layer, adapted, sizes, gradient), state

    def lasso(sizes: Params, architecture: Architecture) -> jax.Array:
        memory = {x.path: _SIZES[penalty_on](x) for x in architecture.layers}
        layer_sizes = {path: layer_at(sizes, path) for path in memory}
        total = sum(memory.values())
        terms = [
            memory[path] / total * step_sizes.sum()
            for path, step_sizes in layer_sizes.items()
            if step_sizes is not None
        ]
        return penalty * sum(terms, start=jnp.zeros((), terms[0].dtype))

    def export(path: Path, architecture: Architecture, params: Params) -> Exported:
        plan = learned_plan(
            architecture, params, attention=attention, norm_gradient=norm_gradient
        )
        header, rows = plan_costs(plan)
        return Exported(export_plan(path, plan, params), header, rows)

    rule = InnerRule(
        init, layer_adapts, lambda adapted: (), update, penalty=lasso, lower_bound=0.0,
        export=export,
    )  # fmt: skip
    if attention == NO_ATTENTION and norm_gradient == "exact":
        return rule

    def features(architecture: Architecture, modules: Any, *inputs: Any) -> jax.Array:
        return masked_features(architecture, attention, norm_gradient, modules, *inputs)

    def init_features(key: Key, architecture: Architecture) -> Params:
        return init_attention(key, architecture, attention)

    return rule._replace(features=features, init_features=init_features, each=each)


def _map_layers(function: Callable[..., Any], tree: PyTree, *others: PyTree) -> PyTree:
    """Return `function(layer, *others)` for each layer of nested dictionaries.

    Args:
        function: Called with a layer and its entries in the other trees.
        tree: A layer is a dictionary without dictionaries in it: of arrays, or None in
            place of arrays that are not adapted.
        others: Trees with an entry for each layer, or None.
    """
    if not any(isinstance(x, dict) for x in tree.values()):
        return function(tree, *others)
    return {
        name: _map_layers(
            function, x, *(None if y is None else y[name] for y in others)
        )
        for name, x in tree.items()
    }
