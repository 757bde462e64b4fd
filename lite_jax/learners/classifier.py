"""A linear classifier of all training classes, for pretraining a backbone."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lite_jax.heads.class_means import LinearClassifier, check_way, linear_logits
from lite_jax.nn import feature_size
from lite_jax.types import Examples, Key, Learner, Network, Params, SetSum


def classifier(backbone: Network, *, num_classes: int) -> Learner:
    """Return a linear classifier of all training classes, as a learner.

    It adapts nothing. A task's support is empty, its query is a batch, and its labels
    are the numbers of the classes. It serves to train a backbone.

    Args:
        backbone: The feature extractor.
        num_classes: Number of classes of the training set, 2 or more.

    Returns:
        A `Learner` with parameters "backbone" and "head".

    Raises:
        UserError: `num_classes` under 2.
    """
    check_way(num_classes)

    def init(key: Key, example_spec: Any) -> Params:
        params = backbone.init(key, example_spec)
        size = feature_size(backbone, params, example_spec)
        head = {
            "weights": jnp.zeros((num_classes, size)),
            "biases": jnp.zeros(num_classes),
        }
        return {"backbone": params, "head": head}

    def encode(params: Params, example: Examples) -> jax.Array:
        return backbone.apply(params["backbone"], example.inputs[None])[0]

    def adapt(params: Params, support: Examples, key: Key, set_sum: SetSum) -> tuple:
        del params, support, key, set_sum
        return ()

    def predict(params: Params, task_state: tuple, inputs: jax.Array) -> jax.Array:
        del task_state
        features = backbone.apply(params["backbone"], inputs)
        present = jnp.ones(num_classes, bool)
        return linear_logits(
            LinearClassifier(**params["head"], present=present), features
        )

    return Learner(init, encode, adapt, predict)
