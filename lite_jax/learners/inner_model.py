"""The classifier that an inner loop adapts: a backbone, a head and optional FiLM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lite_jax.errors import UserError
from lite_jax.heads.class_means import (
    LinearClassifier,
    check_labels,
    check_way,
    classes_present,
    draw_linear,
    linear_logits,
)
from lite_jax.nn import feature_size
from lite_jax.types import Examples, Key, Network, Params

Apply = Callable[..., jax.Array]
"""`(params, inputs [n, …][, film]) -> features [n, d]`, a network's `apply`."""


class AdaptedState(NamedTuple):
    """The task state of learners with an inner loop.

    Attributes:
        inner_params: The adapted parameters `{"backbone", "head"[, "film"]}`.
        present: `[way]` bool, the classes that the support has examples of.
    """

    inner_params: Params
    present: jax.Array


class InnerModel:
    """A classifier whose inner parameters a task adapts from a learned start."""

    def __init__(
        self, backbone: Network, way: int, *, learned_head: bool, film: bool = False
    ):
        """Store the parts.

        Args:
            backbone: The feature extractor.
            way: Static maximum of classes in a task.
            learned_head: Learn the head's start. Otherwise it is 0, and results do not
                depend on the order of the classes.
            film: Adapt FiLM parameters too, starting from the identity.

        Raises:
            UserError: `way` under 2, or `film` with a backbone without FiLM.
        """
        check_way(way)
        self._backbone, self._way = backbone, way
        self._learned_head, self._film = learned_head, film
        if film and backbone.identity_film is None:
            raise UserError(
                "backbone: FiLM is to be adapted, and this one has no places"
            )

    def init(self, key: Key, example_spec: Any) -> Params:
        """Return the initial meta-parameters: "backbone", and "head" if learned."""
        backbone_key, head_key = jax.random.split(key)
        params = {"backbone": self._backbone.init(backbone_key, example_spec)}
        if self._learned_head:
            size = feature_size(self._backbone, params["backbone"], example_spec)
            params["head"] = draw_linear(head_key, self._way, size)
        return params

    def start(self, params: Params, image: jax.ShapeDtypeStruct) -> Params:
        """Return the inner parameters before the first step.

        Args:
            params: The meta-parameters.
            image: Shape and dtype of one image.
        """
        inner = {"backbone": params["backbone"]}
        if self._learned_head:
            inner["head"] = params["head"]
        else:
            size = feature_size(self._backbone, params["backbone"], image)
            weights = jnp.zeros((self._way, size))
            inner["head"] = {"weights": weights, "biases": jnp.zeros(self._way)}
        if self._film:
            assert self._backbone.identity_film is not None
            inner["film"] = self._backbone.identity_film()
        return inner

    def start_on(self, params: Params, support: Examples) -> AdaptedState:
        """Return the state before the first step on a support.

        Raises:
            UserError: A label outside `0 … way-1`, where labels are concrete.
        """
        check_labels(support.labels, support.mask, self._way)
        present = classes_present(support.labels, support.mask, self._way)
        image = jax.ShapeDtypeStruct(support.inputs.shape[1:], support.inputs.dtype)
        return AdaptedState(self.start(params, image), present)

    def logits(
        self, state: AdaptedState, inputs: jax.Array, apply: Apply | None = None
    ) -> jax.Array:
        """Return logits `[n, way]`, −∞ for classes that the support lacks.

        Args:
            state: The inner parameters and the classes present.
            inputs: `[n, …]` images.
            apply: Computes the features; by default the backbone's `apply`.
        """
        inner = state.inner_params
        modulation = (inner["film"],) if self._film else ()
        apply = apply or self._backbone.apply
        features = apply(inner["backbone"], inputs, *modulation)
        head = LinearClassifier(**inner["head"], present=state.present)
        return linear_logits(head, features)

    def loss(
        self,
        state: AdaptedState,
        examples: Examples,
        weights: jax.Array,
        apply: Apply | None = None,
    ) -> jax.Array:
        """Return Σ_n w_n · cross-entropy of example n, a scalar.

        Args:
            state: The inner parameters and the classes present.
            examples: The examples.
            weights: w, `[n]`.
            apply: Computes the features; by default the backbone's `apply`.
        """
        losses = optax.softmax_cross_entropy_with_integer_labels(
            self.logits(state, examples.inputs, apply), examples.labels
        )
        return jnp.dot(weights.astype(losses.dtype), losses)
