"""A policy's learned start, and the steps by which it adapts to a task."""

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
    """What the outer loss of one task, or of several, is computed from.

    Attributes:
        inner: The episodes of every inner step, in order.
        outer: The episodes that the adapted policy played.
        actions: What it drew their actions from, when it did.
    """

    inner: tuple[Episodes, ...]
    outer: Episodes
    actions: Gaussian


class MetaPolicy(NamedTuple):
    """MAML's policy gradient, with any inner rule.

    θ_{k+1} = θ_k − α_k γ ⊙ ∇ −E[log π_θ(a | o) A], over the episodes that θ_k played

    The policy's deviation is learned by the outer loop alone: what an inner step may
    change are the network and its head, layer by layer, as in classification.

    Attributes:
        policy: The policy.
        rule: What an inner step does, from `lite_jax.learners.inner_rules`. Where it
            has features of its own for each example, an example is an episode.
        steps: K, inner steps.
        discount: γ of advantages.
        gae_lambda: λ of advantages.
    """

    policy: Policy
    rule: InnerRule
    steps: int = 1
    discount: float = 0.99
    gae_lambda: float = 1.0

    def check(self) -> MetaPolicy:
        """Return it if it can adapt.

        Raises:
            UserError: No step, or a rule that goes by layers and a network that does
                not describe its own.
        """
        if self.steps < 1:
            raise UserError(f"inner.steps={self.steps}: expected 1 or more")
        check_network(self.rule, self.policy.network, "lite_jax.nn.mlp")
        return self

    def init(self, key: Key) -> Params:
        """Return the policy's parameters and what is learned of the rule."""
        return init_with_rule(
            self.rule,
            key,
            init=self.policy.init,
            inner=_inner,
            steps=self.steps,
            describe=lambda: self.architecture,
        )

    def adapt(self, params: Params, inner: Sequence[Episodes]) -> Params:
        """Return the policy after as many inner steps as episodes are given of."""
        adapted, fixed = split(_inner(params), self.rule.adapts)
        state = self.rule.begin(adapted)
        for k, episodes in enumerate(inner):
            gradient = self._gradient(params, adapted, fixed, episodes)
            sizes = jax.tree.map(operator.itemgetter(k), params.get("inner_rule", {}))
            adapted, state = self.rule.update(sizes, state, adapted, gradient)
        return merge(adapted, fixed) | {"log_std": params["log_std"]}

    def loss(self, params: Params, played: Played) -> jax.Array:
        """Return −E[A π / π_played] of the adapted policy, and the rule's penalty."""
        episodes, before = played.outer, played.actions
        now, actions = self._distribution(params, played), episodes.actions
        ratio = jnp.exp(now.log_density(actions) - before.log_density(actions))
        better = self._advantages(episodes)
        loss = -masked_mean(ratio * better, episodes.mask)
        if self.rule.penalty is None:
            return loss
        return loss + self.rule.penalty(params["inner_rule"], self.architecture)

    def divergence(self, params: Params, played: Played) -> jax.Array:
        """Return the mean KL divergence of the adapted policy from the one played."""
        now = self._distribution(params, played)
        return masked_mean(played.actions.divergence(now), played.outer.mask)

    def _distribution(self, params: Params, played: Played) -> Gaussian:
        """Return what the adapted policy would draw the outer actions from."""
        adapted = self.adapt(params, played.inner)
        return self.policy.distribution(adapted, played.outer.observations)

    def _gradient(
        self, params: Params, adapted: PyTree, fixed: PyTree, episodes: Episodes
    ) -> PyTree:
        """Return the gradient of the mean policy-gradient loss over the episodes."""
        better = self._advantages(episodes)
        weights = episodes.mask.astype(better.dtype)
        weights = weights / jnp.maximum(weights.sum(), 1)

        def loss(adapted: PyTree, own: Episodes, better: Any, weights: Any) -> Any:
            policy = merge(adapted, fixed) | {"log_std": params["log_std"]}

            def masked(backbone: Params, observations: jax.Array) -> jax.Array:
                assert self.rule.features is not None
                feature_params, counted = params["inner_features"], weights.reshape(-1)
                return self.rule.features(
                    self.architecture, feature_params, backbone, observations, counted
                )

            apply = None if self.rule.features is None else masked
            drawn = self.policy.distribution(policy, own.observations, apply)
            return -(drawn.log_density(own.actions) * better * weights).sum()

        gradient = jax.grad(loss)
        if not self.rule.each:
            return gradient(adapted, episodes, better, weights)
        each = jax.vmap(gradient, (None, 0, 0, 0))(adapted, episodes, better, weights)
        return jax.tree.map(lambda x: x.sum(0), each)

    def _advantages(self, episodes: Episodes) -> jax.Array:
        return advantages(episodes, discount=self.discount, gae_lambda=self.gae_lambda)

    @property
    def architecture(self) -> Architecture:
        """The policy's network and head."""
        assert self.policy.network.describe is not None
        shape = (self.policy.observation_size,)
        return self.policy.network.describe(shape, self.policy.action_size)


def _inner(params: Params) -> PyTree:
    return {name: params[name] for name in ("backbone", "head")}
