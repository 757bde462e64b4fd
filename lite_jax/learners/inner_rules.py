"""Inner rules: which parameters an inner step changes, and how.

MAML, ANIL, BOIL and MAML++ share one inner loop (`lite_jax.learners.maml`) and differ
in its rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lite_jax.errors import UserError
from lite_jax.nn.description import Architecture
from lite_jax.trees import split
from lite_jax.types import Key, Network, Params, PyTree


class Exported(NamedTuple):
    """What an export has written, and what it costs.

    Attributes:
        sizes: Part of the file → its bytes.
        header: The columns of the table of costs.
        rows: The rows of the table.
    """

    sizes: dict[str, int]
    header: list[str]
    rows: list[list[str]]


class InnerRule(NamedTuple):
    """The update rule of an inner loop.

    Attributes:
        init: `(adapted, steps) -> rule_params`, the parameters of the rule, which the
            outer loop learns. Every leaf has a leading axis of `steps`. Empty for a
            rule without parameters.
        adapts: `path -> bool`, whether the steps change an inner parameter. Paths are
            `backbone/…`, `film/…` and `head/…`. The inner loss is not differentiated
            by the other parameters.
        begin: `adapted -> state`, the state before a task's first step.
        update: `(rule_params of the step, state, adapted, gradient) -> (adapted,
            state)`. `gradient` is that of the mean loss over the support.
        features: `(architecture, feature_params, params, inputs, weights) -> [n, d]`,
            the features of the inner loss, with `weights [n]` those of the examples'
            losses. The values are the backbone's, the gradients may be others. None for
            the backbone itself.
        init_features: `(key, architecture) -> feature_params`, the parameters of
            `features`, which the outer loop learns. None if there are none.
        each: Whether `features` is called on one example at a time. Otherwise it is
            called on a chunk, and its gradient depends on which examples share a chunk.
        penalty: `(rule_params, architecture) -> scalar`, added to a task's loss. None
            for none.
        lower_bound: The least value of each rule parameter. Outer steps are projected
            to it.
        export: `(path, architecture, params) -> Exported`; writes a file with which a
            device adapts as the rule has learned. None for a rule without such a file.
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
    export: Callable[[Path, Architecture, Params], Exported] | None = None


def everything(path: str) -> bool:
    """Return True: all inner parameters are adapted."""
    del path
    return True


def head_only(path: str) -> bool:
    """Return whether a path is one of the head's."""
    return path.startswith("head/")


def body_only(path: str) -> bool:
    """Return whether a path is not one of the head's."""
    return not head_only(path)


def sgd(
    learning_rate: float = 0.01, *, adapts: Callable[[str], bool] = everything
) -> InnerRule:
    """Return MAML's rule θ ← θ - α g (Finn et al. 2017).

    Args:
        learning_rate: α > 0.
        adapts: `path -> bool`, whether the steps change an inner parameter.

    Raises:
        UserError: A learning rate that is not positive.
    """
    return optax_rule(optax.sgd(check_positive(learning_rate)), adapts=adapts)


def anil(learning_rate: float = 0.01) -> InnerRule:
    """Return ANIL's rule, which adapts the head only.

    Args:
        learning_rate: α > 0.

    Raises:
        UserError: A learning rate that is not positive.

    References:
        Raghu et al., "Rapid Learning or Feature Reuse?", ICLR 2020.
    """
    return sgd(learning_rate, adapts=head_only)


def boil(learning_rate: float = 0.01) -> InnerRule:
    """Return BOIL's rule, which adapts all but the head; its start must be learned.

    Args:
        learning_rate: α > 0.

    Raises:
        UserError: A learning rate that is not positive.

    References:
        Oh et al., "BOIL: Towards Representation Change for Few-shot Learning", ICLR
        2021.
    """
    return sgd(learning_rate, adapts=body_only)


def learned_sgd(
    learning_rate: float = 0.01, *, adapts: Callable[[str], bool] = everything
) -> InnerRule:
    """Return MAML++'s rule: a learned step size for each tensor and each step.

    Args:
        learning_rate: The step sizes at first, above 0.
        adapts: `path -> bool`, whether the steps change an inner parameter.

    Raises:
        UserError: A learning rate that is not positive.

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
    """Return a model's initial parameters and those of its inner rule.

    Args:
        rule: The inner rule.
        key: Key of the initialisation.
        init: `key -> params`, the model's parameters, a dictionary.
        inner: `params -> inner parameters` before a task's first step; only their
            shapes are used.
        steps: K, the number of inner steps.
        describe: Returns the network's layers; called if the rule has features.

    Returns:
        The model's parameters, which are the same for every rule, with "inner_rule" and
        "inner_features" if the rule has them.
    """
    params = init(key)
    adapted, _ = split(jax.eval_shape(inner, params), rule.adapts)
    learned = rule.init(adapted, steps)
    params |= {"inner_rule": learned} if jax.tree.leaves(learned) else {}
    if rule.init_features is None:
        return params
    features_key = jax.random.fold_in(key, _FEATURES)
    return params | {"inner_features": rule.init_features(features_key, describe())}


_FEATURES = 2**31 - 1  # unlike 0 and 1, which `jax.random.split` folds into a key


def constraint(rule: InnerRule) -> optax.GradientTransformation | None:
    """Return the transformation that projects rule parameters to their lower bound.

    It is meant as the last part of an optimiser of a learner's whole parameters, and
    acts on "inner_rule" only. None for a rule without a lower bound.
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
    """Raise if a rule needs the layers of a network that does not describe them.

    Args:
        rule: The inner rule.
        network: The network that it adapts.
        known: Names of networks that describe their layers, for the message.

    Raises:
        UserError: The rule has a penalty or features, and the network no `describe`.
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
    """Return the rule that updates by an optax optimiser with fixed settings.

    Args:
        optimizer: The optimiser; its state starts anew in each task.
        adapts: `path -> bool`, whether the steps change an inner parameter.
    """

    def update(_: Params, state: Any, adapted: PyTree, gradient: PyTree) -> Any:
        updates, state = optimizer.update(gradient, state, adapted)
        return optax.apply_updates(adapted, updates), state

    return InnerRule(lambda adapted, steps: {}, adapts, optimizer.init, update)


def check_positive(learning_rate: float) -> float:
    """Return a learning rate that is positive.

    Raises:
        UserError: The learning rate is 0 or less, or NaN.
    """
    if not learning_rate > 0:
        raise UserError(f"learning_rate={learning_rate}: expected > 0")
    return learning_rate
