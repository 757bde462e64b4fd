"""Inner rules: which parameters an inner step changes, and how.

MAML, ANIL, BOIL, MAML++ and p-Meta share one inner loop (`lite_jax.learners.maml`), and
differ in the rule it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lite_jax.errors import UserError, unknown_name
from lite_jax.nn.description import Architecture, Layer, layer_at
from lite_jax.pmeta.attention import NO_ATTENTION, Attention, init_attention
from lite_jax.pmeta.layers import NormGradient, check_norm_gradient
from lite_jax.pmeta.masked import masked_features
from lite_jax.trees import split
from lite_jax.types import Key, Network, Params, PyTree


class InnerRule(NamedTuple):
    """One way to take the steps of an inner loop.

    Attributes:
        init: `(adapted, steps) -> rule_params`, what the outer loop learns of the
            rule; every leaf has a leading axis of `steps`. Empty for a fixed rule.
        adapts: `path -> bool`, which inner parameters the steps change; paths are
            `backbone/…`, `film/…` and `head/…`. Nothing is differentiated with respect
            to the others.
        begin: `adapted -> state`, what a task's first step finds.
        update: `(rule_params of the step, state, adapted, gradient) -> (adapted,
            state)`; `gradient` is that of the mean loss over the support.
        features: What the loss is computed on, where it is not what the backbone gives:
            `(architecture, attention, params, inputs, counted) -> [n, d]`; p-Meta's
            masks what arrives at the backbone's weights.
        init_attention: `(key, architecture) -> attention`, what the outer loop learns
            for `features`.
        each: Whether examples have `features` of their own; otherwise those that are
            computed together are looked at together.
        penalty: `(rule_params, architecture) -> scalar`, added to a task's loss.
    """

    init: Callable[[PyTree, int], Params]
    adapts: Callable[[str], bool]
    begin: Callable[[PyTree], PyTree]
    update: Callable[[Params, PyTree, PyTree, PyTree], tuple[PyTree, PyTree]]
    features: Callable[..., jax.Array] | None = None
    init_attention: Callable[[Key, Architecture], Params] | None = None
    each: bool = False
    penalty: Callable[[Params, Architecture], jax.Array] | None = None


def everything(path: str) -> bool:
    """Adapt all inner parameters."""
    del path
    return True


def head_only(path: str) -> bool:
    """Adapt the classifier alone."""
    return path.startswith("head/")


def body_only(path: str) -> bool:
    """Adapt all but the classifier."""
    return not head_only(path)


def sgd(
    learning_rate: float = 0.01, *, adapts: Callable[[str], bool] = everything
) -> InnerRule:
    """Return MAML's rule θ ← θ - α g (Finn et al. 2017)."""
    return optax_rule(optax.sgd(_positive(learning_rate)), adapts=adapts)


def anil(learning_rate: float = 0.01) -> InnerRule:
    """Return ANIL's rule: steps on the head alone.

    References:
        Raghu et al., "Rapid Learning or Feature Reuse?", ICLR 2020.
    """
    return sgd(learning_rate, adapts=head_only)


def boil(learning_rate: float = 0.01) -> InnerRule:
    """Return BOIL's rule: steps on the body alone, so the head must be learned.

    References:
        Oh et al., "BOIL: Towards Representation Change for Few-shot Learning", ICLR
        2021.
    """
    return sgd(learning_rate, adapts=body_only)


def learned_sgd(
    learning_rate: float = 0.01, *, adapts: Callable[[str], bool] = everything
) -> InnerRule:
    """Return MAML++'s rule: a learned step size for each tensor and each step.

    References:
        Antoniou, Edwards, Storkey, "How to Train Your MAML", ICLR 2019, LSLR.
    """
    _positive(learning_rate)

    def init(adapted: PyTree, steps: int) -> Params:
        return jax.tree.map(lambda x: jnp.full(steps, learning_rate, x.dtype), adapted)

    def update(sizes: Params, state: Any, adapted: PyTree, gradient: PyTree) -> Any:
        moved = jax.tree.map(lambda a, x, g: x - a * g, sizes, adapted, gradient)
        return moved, state

    return InnerRule(init, adapts, lambda adapted: (), update)


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
    a layer by what its weight gradient stores, λ Σ_{l,k} m_l α_l^k, and are to stay at
    0 or above: project them after each update, as
    `lite_jax.run.build_gradient.make_optimizer` does. Then many are exactly 0, and
    the layer is not trained at that step. γ is meta
    attention (`lite_jax.pmeta.attention`). A layer is what has weights of its own: a
    convolution, a norm, the head.

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
    _positive(learning_rate)
    if penalty < 0:
        raise UserError(f"inner.penalty={penalty}: expected 0 or more")
    if penalty_on not in _SIZES:
        raise unknown_name("inner.penalty_on", penalty_on, _SIZES)
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

    rule = InnerRule(init, chosen, lambda adapted: (), update, penalty=lasso)
    if attention == NO_ATTENTION and norm_gradient == "exact":
        return rule

    def features(architecture: Architecture, modules: Any, *inputs: Any) -> jax.Array:
        return masked_features(architecture, attention, norm_gradient, modules, *inputs)

    def begun(key: Key, architecture: Architecture) -> Params:
        return init_attention(key, architecture, attention)

    return rule._replace(features=features, init_attention=begun, each=each)


def init_with_rule(
    rule: InnerRule,
    key: Key,
    init: Callable[[Key], Params],
    inner: Callable[[Params], PyTree],
    steps: int,
    describe: Callable[[], Architecture],
) -> Params:
    """Return a model's parameters, and with them what is learned of the rule.

    Args:
        rule: The inner rule.
        key: Of what is drawn.
        init: The model's own, `key -> params`.
        inner: `params -> start of a task`, arrays or their shapes.
        steps: K, inner steps.
        describe: The network's layers, asked for where attention is learned.

    Returns:
        The parameters with "inner_rule" and "attention" where they are learned; the
        model's own are the same for every rule.
    """
    params = init(key)
    adapted, _ = split(jax.eval_shape(inner, params), rule.adapts)
    learned = rule.init(adapted, steps)
    params |= {"inner_rule": learned} if jax.tree.leaves(learned) else {}
    if rule.init_attention is None:
        return params
    own_key = jax.random.fold_in(key, _OWN)
    return params | {"attention": rule.init_attention(own_key, describe())}


_OWN = 2**31 - 1  # apart from the halves of a model's key, which fold in 0 and 1


def check_network(rule: InnerRule, network: Network, known: str) -> None:
    """Refuse a rule that goes by layers where a network does not describe its own.

    Args:
        rule: The inner rule.
        network: What it is to adapt.
        known: Networks that would serve, for the message.

    Raises:
        UserError: It does not.
    """
    if rule.penalty is not None and network.describe is None:
        raise UserError(
            "inner.rule=p_meta goes by layers, and this network does not describe its "
            f"own: choose {known}"
        )


def _by_layer(function: Callable[..., Any], tree: PyTree, *others: PyTree) -> PyTree:
    """Map over layers: dictionaries that hold arrays, or nothing in their place."""
    if not any(isinstance(x, dict) for x in tree.values()):
        return function(tree, *others)
    return {
        name: _by_layer(function, x, *(None if y is None else y[name] for y in others))
        for name, x in tree.items()
    }


def optax_rule(
    optimizer: optax.GradientTransformation,
    *,
    adapts: Callable[[str], bool] = everything,
) -> InnerRule:
    """Return the rule of any optimiser with fixed settings."""

    def update(_: Params, state: Any, adapted: PyTree, gradient: PyTree) -> Any:
        updates, state = optimizer.update(gradient, state, adapted)
        return optax.apply_updates(adapted, updates), state

    return InnerRule(lambda adapted, steps: {}, adapts, optimizer.init, update)


def _positive(learning_rate: float) -> float:
    if not learning_rate > 0:
        raise UserError(f"inner learning_rate={learning_rate}: expected > 0")
    return learning_rate
