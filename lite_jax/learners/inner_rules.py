"""Inner rules: which parameters an inner step changes, and how.

MAML, ANIL, BOIL and MAML++ share one inner loop (`lite_jax.learners.maml`) and differ
in the rule it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lite_jax.errors import UserError
from lite_jax.types import Params, PyTree


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
    """

    init: Callable[[PyTree, int], Params]
    adapts: Callable[[str], bool]
    begin: Callable[[PyTree], PyTree]
    update: Callable[[Params, PyTree, PyTree, PyTree], tuple[PyTree, PyTree]]


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
