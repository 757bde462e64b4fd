"""The transfer baseline: a linear head trained by gradient steps at test time."""

from __future__ import annotations

from typing import Any

import jax
import optax

from lite_jax.errors import check_whole
from lite_jax.heads.class_means import LinearClassifier, check_way, linear_logits
from lite_jax.heads.linear import (
    descend,
    encoder_of,
    head_loss,
    tabulate_support,
    zero_head,
)
from lite_jax.learners.inner_rules import optax_rule
from lite_jax.learners.maml import maml
from lite_jax.lite.additive import row_of
from lite_jax.types import Examples, Key, Learner, Network, Params, SetSum


def finetuner(
    backbone: Network,
    *,
    way: int,
    steps: int = 50,
    optimizer: optax.GradientTransformation | None = None,
    film: bool = False,
) -> Learner:
    """Return the fine-tuner, which trains a linear head on a frozen backbone.

    The head starts at 0 and takes `steps` full-batch steps on the support's mean
    cross-entropy. The features of a frozen backbone do not change, so they are computed
    once, as a table of stacked features `[n, d]`. With `film`, FiLM parameters are
    trained too, and every step is a pass over the support; the learner is then `maml`
    with another rule.

    Nothing is meta-learned. Train for 0 steps, with pretrained weights.

    Args:
        backbone: The feature extractor.
        way: Static maximum of classes in a task; a task may have fewer.
        steps: Optimiser steps at test time, 1 or more.
        optimizer: An optax optimiser; by default SGD at 0.1, as in the LITE paper's
            code.
        film: Train FiLM parameters too.

    Returns:
        A `Learner` with parameters "backbone" (frozen). Without `film`, `encode` takes
        a `Slotted`, an image and its row.

    Raises:
        UserError: `steps` under 1, `way` under 2, or `film` with a backbone without
            FiLM.

    >>> import jax.numpy as jnp
    >>> from lite_jax import exact_sum
    >>> flat = Network(lambda key, spec: {}, lambda params, x: x.reshape(len(x), -1))
    >>> learner = finetuner(flat, way=2, steps=1, optimizer=optax.sgd(1.0))
    >>> images = jnp.array([-1.0, 1.0]).reshape(2, 1, 1, 1)
    >>> support = Examples(images, jnp.array([0, 1]), jnp.ones(2, bool))
    >>> state = learner.adapt({"backbone": {}}, support, None, exact_sum())
    >>> print(state.weights.ravel())
    [-0.5  0.5]
    """
    optimizer = optimizer or optax.sgd(0.1)
    if film:
        rule = optax_rule(optimizer, adapts=_film_and_head)
        learner = maml(backbone, way=way, steps=steps, rule=rule, film=True)
        return learner._replace(frozen=("backbone",))
    check_way(way)
    check_whole("steps", steps)

    def init(key: Key, example_spec: Any) -> Params:
        return {"backbone": backbone.init(key, example_spec)}

    encode = encoder_of(backbone)

    def adapt(
        params: Params, support: Examples, key: Key, set_sum: SetSum
    ) -> LinearClassifier:
        inputs = params["backbone"], support, key, set_sum
        table, fit = tabulate_support(encode, *inputs, way)

        def loss(head: Params) -> jax.Array:
            return head_loss(head, table, fit)

        head = descend(loss, zero_head(way, table), optimizer, steps)
        return LinearClassifier(**head, present=fit.present)

    def predict(params: Params, task_state: LinearClassifier, inputs: jax.Array) -> Any:
        features = backbone.apply(params["backbone"], inputs)
        return linear_logits(task_state, features)

    return Learner(
        init, row_of(encode), adapt, predict, frozen=("backbone",), fixed_features=True
    )


def _film_and_head(path: str) -> bool:
    return path.startswith(("film/", "head/"))
