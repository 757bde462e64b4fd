"""Gaussian policies: a network, a linear head, and a deviation for each action."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lite_jax.heads.class_means import draw_linear, linear_products
from lite_jax.nn import feature_size
from lite_jax.types import Key, Network, Params

_LEAST_LOG_DEVIATION = math.log(1e-6)


class Gaussian(NamedTuple):
    """Normal distributions of actions with independent components.

    Attributes:
        mean: `[…, a]`.
        log_deviation: `[a]`, the logarithms of the standard deviations.
    """

    mean: Any
    log_deviation: Any

    def draw(self, noise: jax.Array) -> jax.Array:
        """Return actions `[…, a]`, from standard normal noise of the same shape."""
        return self.mean + self._broadcast(jnp.exp(self.log_deviation)) * noise

    def log_density(self, actions: jax.Array) -> jax.Array:
        """Return log π(a), `[…]`."""
        scaled = (actions - self.mean) * self._broadcast(jnp.exp(-self.log_deviation))
        constant = self.log_deviation.sum() + 0.5 * math.log(2 * math.pi) * len(
            self.log_deviation
        )
        return -0.5 * (scaled**2).sum(-1) - constant

    def divergence(self, other: Gaussian) -> jax.Array:
        """Return KL(self ‖ other), `[…]`, in nats."""
        ratio = jnp.exp(2 * (self.log_deviation - other.log_deviation))
        shift = (self.mean - other.mean) * self._broadcast(
            jnp.exp(-other.log_deviation)
        )
        spread = (0.5 * (ratio - 1) + other.log_deviation - self.log_deviation).sum()
        return 0.5 * (shift**2).sum(-1) + spread

    def _broadcast(self, vector: jax.Array) -> jax.Array:
        """Return a vector with leading axes of size 1, for the shape of the mean."""
        return vector.reshape((1,) * (self.mean.ndim - 1) + vector.shape)


class Policy(NamedTuple):
    """A policy as a function of its parameters `{"backbone", "head", "log_std"}`.

    Attributes:
        network: Maps observations `[n, o]` to features.
        observation_size: o, numbers in an observation.
        action_size: a, numbers in an action.
    """

    network: Network
    observation_size: int
    action_size: int

    def init(self, key: Key) -> Params:
        """Return initial parameters; the deviation of each action is 1."""
        backbone_key, head_key = jax.random.split(key)
        spec = jax.ShapeDtypeStruct((self.observation_size,), jnp.float32)
        backbone = self.network.init(backbone_key, spec)
        size = feature_size(self.network, backbone, spec)
        return {
            "backbone": backbone,
            "head": draw_linear(head_key, self.action_size, size),
            "log_std": jnp.zeros(self.action_size),
        }

    def distribution(
        self,
        params: Params,
        observations: jax.Array,
        apply: Callable[..., jax.Array] | None = None,
    ) -> Gaussian:
        """Return the distribution of actions at observations `[…, o]`.

        Args:
            params: Parameters of the policy.
            observations: `[…, o]`.
            apply: Computes features in place of `network.apply`.
        """
        flat = observations.reshape(-1, self.observation_size)
        features = (apply or self.network.apply)(params["backbone"], flat)
        means = linear_products(**params["head"], features=features)
        mean = means.reshape(*observations.shape[:-1], self.action_size)
        return Gaussian(mean, jnp.maximum(params["log_std"], _LEAST_LOG_DEVIATION))
