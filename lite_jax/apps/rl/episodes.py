"""What a policy met and did, and how much better than expected each action was."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

_RIDGE = 1e-5


class Episodes(NamedTuple):
    """Episodes of one task, of equal static length; several tasks have an axis more.

    Attributes:
        observations: `[e, t, o]`, each the one that an action was chosen at.
        actions: `[e, t, a]`, as the policy drew them.
        rewards: `[e, t]`, 0 after an episode's end.
        mask: `[e, t]` bool, False after an episode's end.
    """

    observations: Any
    actions: Any
    rewards: Any
    mask: Any

    def returns(self) -> jax.Array:
        """Return each episode's sum of rewards, not discounted, `[…, e]`."""
        return self.rewards.sum(-1)


def advantages(
    episodes: Episodes, *, discount: float = 0.99, gae_lambda: float = 1.0
) -> jax.Array:
    """Return generalised advantages `[e, t]`, of mean 0 and variance 1 over all steps.

    What is expected is a linear function of observation and time, fitted to these very
    episodes' discounted returns (Duan et al. 2016). 0 after an episode's end. At
    `gae_lambda=1` an advantage is the discounted return less what was expected.

    Args:
        episodes: Of one task.
        discount: γ, from 0 to 1.
        gae_lambda: λ, from 0 to 1.

    References:
        Schulman et al., "High-Dimensional Continuous Control Using Generalized
        Advantage Estimation", ICLR 2016, eq. 16.
    """
    rewards, mask = episodes.rewards, episodes.mask.astype(episodes.rewards.dtype)
    values = _expected(episodes, _discounted(rewards, discount)) * mask
    following = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
    surprises = (rewards + discount * following - values) * mask
    found = _discounted(surprises, discount * gae_lambda)
    mean = masked_mean(found, mask)
    deviation = jnp.sqrt(masked_mean((found - mean) ** 2, mask))
    return (found - mean) / (deviation + 1e-8) * mask


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the mean over the steps that took place."""
    weights = mask.astype(values.dtype)
    return (values * weights).sum() / jnp.maximum(weights.sum(), 1)


def _discounted(values: jax.Array, discount: float) -> jax.Array:
    """Return Σ_k γᵏ v[t + k], `[e, t]`."""

    def back(later: jax.Array, own: jax.Array) -> tuple[jax.Array, jax.Array]:
        total = own + jnp.asarray(discount, own.dtype) * later
        return total, total

    start = jnp.zeros_like(values[:, 0])
    return lax.scan(back, start, values.T, reverse=True)[1].T


def _expected(episodes: Episodes, returns: jax.Array) -> jax.Array:
    """Return returns `[e, t]` as a linear baseline fitted to them predicts them.

    The ridge is relative to the number of steps, so that float32 can solve it however
    many there are.
    """
    count, horizon = returns.shape
    dtype = returns.dtype
    seen = jnp.clip(episodes.observations, -10, 10).astype(dtype)
    time = jnp.broadcast_to(jnp.arange(horizon, dtype=dtype) / 100, (count, horizon))
    powers = jnp.stack([time, time**2, time**3, jnp.ones_like(time)], -1)
    features = jnp.concatenate([seen, seen**2, powers], -1)
    features = features.reshape(count * horizon, -1)
    mask = episodes.mask.reshape(-1).astype(dtype)
    total = jnp.maximum(mask.sum(), 1)
    weighted = features * mask[:, None] / total
    gram = weighted.T @ features + _RIDGE * jnp.eye(features.shape[1], dtype=dtype)
    weights = jnp.linalg.solve(gram, weighted.T @ returns.reshape(-1))
    return (features @ weights).reshape(count, horizon)
