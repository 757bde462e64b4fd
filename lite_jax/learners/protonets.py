"""Prototypical networks (Snell et al. 2017), as in §3.1 and eq. 4 of the LITE paper."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax

from lite_jax.errors import UserError
from lite_jax.heads.class_means import (
    ClassSums,
    check_labels,
    check_way,
    class_means,
    class_sums,
    classes_present,
    euclidean_logits,
)
from lite_jax.lite.additive import Pooled
from lite_jax.types import Examples, Key, Learner, Network, Params, SetSum


class ProtoNetsState(NamedTuple):
    """The task state of prototypical networks.

    Attributes:
        prototypes: `[way, d]`, the class means c_k.
        present: `[way]` bool, the classes that the support has examples of.
    """

    prototypes: jax.Array
    present: jax.Array


def protonets(backbone: Network, *, way: int, scale: float = 1.0) -> Learner:
    """Return prototypical networks with squared Euclidean distance.

    p(y = k | x) ∝ exp(-α ‖f_φ(x) - c_k‖²),   c_k = (1/N_k) Σ_{n: y_n = k} f_φ(x_n)

    The set sum over the support is that of the per-class features and counts. The whole
    backbone is learned. At H = N support examples the gradient is exact.

    Args:
        backbone: The feature extractor f_φ.
        way: Static maximum of classes in a task; a task may have fewer.
        scale: α > 0, the factor of the squared distances. The default is the paper's.
            Squared distances of pretrained features can be in the hundreds; training
            then works better if α makes them of order 1 (Oreshkin et al. 2018).

    Returns:
        A `Learner` with parameters "backbone".

    Raises:
        UserError: `scale` is not positive and finite, or `way` is less than 2.

    >>> import jax.numpy as jnp
    >>> from lite_jax import exact_sum, nn
    >>> learner = protonets(nn.pixels(), way=2)
    >>> images = jnp.array([0.0, 0.25, 0.75, 1.0]).reshape(4, 1, 1, 1)
    >>> support = Examples(images, jnp.array([0, 0, 1, 1]), jnp.ones(4, bool))
    >>> state = learner.adapt({"backbone": {}}, support, None, exact_sum())
    >>> print(state.prototypes.ravel())
    [0.125 0.875]
    >>> print(learner.predict({"backbone": {}}, state, images[1:2]))
    [[-0.015625 -0.390625]]

    References:
        Snell, Swersky, Zemel, "Prototypical Networks for Few-shot Learning", 2017.
        Oreshkin, Rodríguez, Lacoste, "TADAM: Task dependent adaptive metric for
        improved few-shot learning", 2018.
        Bronskill et al., "Memory Efficient Meta-Learning with Large Images", 2021.
    """
    check_way(way)
    if not 0 < scale < math.inf:
        raise UserError(f"scale={scale}: distances are multiplied by a positive number")

    def init(key: Key, example_spec: Any) -> Params:
        return {"backbone": backbone.init(key, example_spec)}

    def features(params: Params, examples: Examples) -> jax.Array:
        return backbone.apply(params["backbone"], examples.inputs)

    def pool(features: jax.Array, examples: Examples, weights: jax.Array) -> ClassSums:
        return class_sums(features, examples.labels, weights, way)

    additive = Pooled(features, pool)

    def adapt(
        params: Params, support: Examples, key: Key, set_sum: SetSum
    ) -> ProtoNetsState:
        check_labels(support.labels, support.mask, way)
        totals = set_sum(additive, params, support, key, support.mask)
        present = classes_present(support.labels, support.mask, way)
        return ProtoNetsState(class_means(totals), present)

    def predict(params: Params, task_state: ProtoNetsState, inputs: jax.Array):
        features = backbone.apply(params["backbone"], inputs)
        distances = euclidean_logits(
            features, task_state.prototypes, task_state.present
        )
        return scale * distances

    return Learner(init, additive.term, adapt, predict, fixed_features=True)
