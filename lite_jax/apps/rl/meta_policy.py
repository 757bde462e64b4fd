"""MAML's policy gradient: adaptation to a task, outer loss and divergence."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lite_jax.apps.rl.episodes import Episodes, advantages, masked_mean
from lite_jax.apps.rl.policy import Gaussian, Policy
from lite_jax.errors import UserError
from lite_jax.learners.inner_rules import InnerRule, check_network, init_with_rule
from lite_jax.nn.description import Architecture
from lite_jax.trees import merge, split
from lite_jax.types import Key, Params, PyTree


class Played(NamedTuple):
    """The data of the outer loss, of a task or of several.

    Attributes:
        inner: The episodes of each inner step, in order.
        outer: The episodes of the adapted policy.
        actions: The distributions from which the actions of `outer` were drawn.
    """

    inner: tuple[Episodes, ...]
    outer: Episodes
    actions: Gaussian


class MetaPolicy(NamedTuple):
    """MAML's policy gradient, with any inner rule.

    θ_{k+1} = θ_k − α_k γ ⊙ ∇ −E[log π_θ(a | o) A], over the episodes played with θ_k

    Inner steps change the network and its head, layer by layer, as in classification.
    The deviation of actions is learned in the outer loop only.

    Attributes:
        policy: The policy.
        rule: The update of an inner step, from `lite_jax.learners.inner_rules`. Where
            the rule computes features for each example, an example is an episode.
        steps: K, the number of inner steps.
        discount: γ of advantages.
        gae_lambda: λ of advantages.
    """

    policy: Policy
    rule: InnerRule
    steps: int = 1
    discount: float = 0.99
    gae_lambda: float = 1.0

    def check(self) -> MetaPolicy:
        """Return the learner itself if its arguments are valid.

        Raises:
            UserError: Steps under 1, or a rule that needs the layers of the network
                with a network that does not describe them.
        """
        if self.steps < 1:
            raise UserError(f"inner.steps={self.steps}: expected 1 or more")
        check_network(self.rule, self.policy.network, "lite_jax.nn.mlp")
        return self

    def init(self, key: Key) -> Params:
        """Return the initial parameters of the policy and of the rule."""
        return init_with_rule(
            self.rule,
            key,
            init=self.policy.init,
            inner=_adapted_params,
            steps=self.steps,
            describe=lambda: self.architecture,
        )

    def adapt(self, params: Params, inner: Sequence[Episodes]) -> Params:
        """Return the policy's parameters after an inner step on each of `inner`."""
        adapted, fixed = split(_adapted_params(params), self.rule.adapts)
        state = self.rule.begin(adapted)
        for k, episodes in enumerate(inner):
            gradient = self._gradient(params, adapted, fixed, episodes)
            sizes = jax.tree.map(operator.itemgetter(k), params.get("inner_rule", {}))
            adapted, state = self.rule.update(sizes, state, adapted, gradient)
        return merge(adapted, fixed) | {"log_std": params["log_std"]}

    def loss(self, params: Params, played: Played) -> jax.Array:
        """Return −E[A π / π_played] of the adapted policy, plus the rule's penalty."""
        episodes, before = played.outer, played.actions
        now, actions = self._distribution(params, played), episodes.actions
        ratio = jnp.exp(now.log_density(actions) - before.log_density(actions))
        advantage = self._advantages(episodes)
        loss = -masked_mean(ratio * advantage, episodes.mask)
        if self.rule.penalty is None:
            return loss
        return loss + self.rule.penalty(params["inner_rule"], self.architecture)

    def divergence(self, params: Params, played: Played) -> jax.Array:
        """Return the mean of KL(played ‖ adapted) over the steps of `outer`."""
        now = self._distribution(params, played)
        return masked_mean(played.actions.divergence(now), played.outer.mask)

    def _distribution(self, params: Params, played: Played) -> Gaussian:
        """Return the adapted policy's distributions at the outer observations."""
        adapted = self.adapt(params, played.inner)
        return self.policy.distribution(adapted, played.outer.observations)

    def _gradient(
        self, params: Params, adapted: PyTree, fixed: PyTree, episodes: Episodes
    ) -> PyTree:
        """Return the gradient of the mean policy-gradient loss over the episodes."""
        advantage = self._advantages(episodes)
        weights = episodes.mask.astype(advantage.dtype)
        weights = weights / jnp.maximum(weights.sum(), 1)

        def loss(
            adapted: PyTree, episodes: Episodes, advantage: Any, weights: Any
        ) -> Any:
            policy = merge(adapted, fixed) | {"log_std": params["log_std"]}

            def masked(backbone: Params, observations: jax.Array) -> jax.Array:
                assert self.rule.features is not None
                feature_params, counted = params["inner_features"], weights.reshape(-1)
                return self.rule.features(
                    self.architecture, feature_params, backbone, observations, counted
                )

            apply = None if self.rule.features is None else masked
            distribution = self.policy.distribution(
                policy, episodes.observations, apply
            )
            return -(
                distribution.log_density(episodes.actions) * advantage * weights
            ).sum()

        gradient = jax.grad(loss)
        if not self.rule.each:
            return gradient(adapted, episodes, advantage, weights)
        each = jax.vmap(gradient, (None, 0, 0, 0))(
            adapted, episodes, advantage, weights
        )
        return jax.tree.map(lambda x: x.sum(0), each)

    def _advantages(self, episodes: Episodes) -> jax.Array:
        return advantages(episodes, discount=self.discount, gae_lambda=self.gae_lambda)

    @property
    def architecture(self) -> Architecture:
        """The description of the policy's network and head."""
        assert self.policy.network.describe is not None
        shape = (self.policy.observation_size,)
        return self.policy.network.describe(shape, self.policy.action_size)


def _adapted_params(params: Params) -> PyTree:
    return {name: params[name] for name in ("backbone", "head")}
