"""Inner rules: which parameters an inner step changes, and how.

MAML, ANIL, BOIL, MAML++ and p-Meta share one inner loop (`lite_jax.learners.maml`), and
differ in the rule it is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lite_jax.errors import UserError
from lite_jax.nn.description import Architecture
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
        features: `(architecture, feature_params, params, inputs, weights) -> [n, d]`,
            the features of the inner loss; None for the backbone's own. `weights [n]`
            are those of the examples' losses. Values are the backbone's; gradients
            need not be.
        init_features: `(key, architecture) -> feature_params`, what the outer loop
            learns for `features`.
        each: Whether `features` takes one example at a time. Otherwise it takes a
            chunk at once, and its gradient depends on which examples share a chunk.
        penalty: `(rule_params, architecture) -> scalar`, added to a task's loss.
        lower_bound: The least value of each rule parameter; an outer step is projected
            to it.
    """

    init: Callable[[PyTree, int], Params]
    adapts: Callable[[str], bool]
    begin: Callable[[PyTree], PyTree]
    update: Callable[[Params, PyTree, PyTree, PyTree], tuple[PyTree, PyTree]]
    features: Callable[..., jax.Array] | None = None
    init_features: Callable[[Key, Architecture], Params] | None = None
    each: bool = False
    penalty: Callable[[Params, Architecture], jax.Array] | None = None
    lower_bound: float = -math.inf


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
    return optax_rule(optax.sgd(check_positive(learning_rate)), adapts=adapts)


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
    check_positive(learning_rate)

    def init(adapted: PyTree, steps: int) -> Params:
        return jax.tree.map(lambda x: jnp.full(steps, learning_rate, x.dtype), adapted)

    def update(sizes: Params, state: Any, adapted: PyTree, gradient: PyTree) -> Any:
        moved = jax.tree.map(lambda a, x, g: x - a * g, sizes, adapted, gradient)
        return moved, state

    return InnerRule(init, adapts, lambda adapted: (), update)


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
        describe: Returns the network's layers; called where the rule has features.

    Returns:
        The parameters with "inner_rule" and "inner_features" where they are learned.
        The model's own are the same for every rule.
    """
    params = init(key)
    adapted, _ = split(jax.eval_shape(inner, params), rule.adapts)
    learned = rule.init(adapted, steps)
    params |= {"inner_rule": learned} if jax.tree.leaves(learned) else {}
    if rule.init_features is None:
        return params
    features_key = jax.random.fold_in(key, _FEATURES)
    return params | {"inner_features": rule.init_features(features_key, describe())}


_FEATURES = 2**31 - 1  # apart from the halves of a model's key, which fold in 0 and 1


def constraint(rule: InnerRule) -> optax.GradientTransformation | None:
    """Return what keeps rule parameters at their lower bound or above; None for none.

    It is the last part of an optimiser of the whole parameters.
    """
    if rule.lower_bound == -math.inf:
        return None

    def update(updates: PyTree, state: Any, params: PyTree) -> tuple[PyTree, Any]:
        least = rule.lower_bound
        bounded = jax.tree.map(
            lambda u, p: jnp.where(p + u < least, least - p, u), updates, params
        )
        return bounded, state

    bound = optax.GradientTransformation(lambda params: optax.EmptyState(), update)
    return optax.masked(bound, lambda params: {k: k == "inner_rule" for k in params})


def check_network(rule: InnerRule, network: Network, known: str) -> None:
    """Refuse a rule that goes by layers where a network does not describe its own.

    Args:
        rule: The inner rule.
        network: What it is to adapt.
        known: Networks that would serve, for the message.

    Raises:
        UserError: It does not.
    """
    by_layers = rule.penalty is not None or rule.features is not None
    if by_layers and network.describe is None:
        raise UserError(
            "rule: it goes by layers, and this network does not describe its own: "
            f"choose {known}"
        )


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


def check_positive(learning_rate: float) -> float:
    """Return a learning rate.

    Raises:
        UserError: It is 0 or less, or not a number.
    """
    if not learning_rate > 0:
        raise UserError(f"learning_rate={learning_rate}: expected > 0")
    return learning_rate
