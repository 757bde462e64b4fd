"""Episodes of a policy, and the generalised advantages of its actions."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

_RIDGE = 1e-5


class Episodes(NamedTuple):
    """Episodes of a task, of equal static length; episodes of tasks have one more axis.

    Attributes:
        observations: `[e, t, o]`, each observed before the action of its step.
        actions: `[e, t, a]`, as the policy drew them.
        rewards: `[e, t]`, 0 after an episode's end.
        mask: `[e, t]` bool, False after an episode's end.
    """

    observations: Any
    actions: Any
    rewards: Any
    mask: Any

    def returns(self) -> jax.Array:
        """Return the sum of rewards of each episode, not discounted, `[…, e]`."""
        return self.rewards.sum(-1)


def advantages(
    episodes: Episodes, *, discount: float = 0.99, gae_lambda: float = 1.0
) -> jax.Array:
    """Return generalised advantages `[e, t]`, of mean 0 and variance 1 over all steps.

    The baseline is a linear function of observation and time, fitted to the discounted
    returns of these episodes (Duan et al. 2016). With `gae_lambda=1` an advantage is
    the discounted return minus the baseline. Advantages after an episode's end are 0.

    Args:
        episodes: Episodes of one task.
        discount: γ, from 0 to 1.
        gae_lambda: λ, from 0 to 1.

    References:
        Schulman et al., "High-Dimensional Continuous Control Using Generalized
        Advantage Estimation", ICLR 2016, eq. 16.
    """
    rewards, mask = episodes.rewards, episodes.mask.astype(episodes.rewards.dtype)
    values = _baseline(episodes, _discounted(rewards, discount)) * mask
    next_values = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
    residuals = (rewards + discount * next_values - values) * mask
    sums = _discounted(residuals, discount * gae_lambda)
    mean = masked_mean(sums, mask)
    deviation = jnp.sqrt(masked_mean((sums - mean) ** 2, mask))
    return (sums - mean) / (deviation + 1e-8) * mask


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the mean of the values where the mask is True; 0 where it never is."""
    weights = mask.astype(values.dtype)
    return (values * weights).sum() / jnp.maximum(weights.sum(), 1)


def _discounted(values: jax.Array, discount: float) -> jax.Array:
    """Return Σ_k γᵏ v[t + k], `[e, t]`."""

    def back(later: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
        total = value + jnp.asarray(discount, value.dtype) * later
        return total, total

    start = jnp.zeros_like(values[:, 0])
    return lax.scan(back, start, values.T, reverse=True)[1].T


def _baseline(episodes: Episodes, returns: jax.Array) -> jax.Array:
    """Return the linear baseline `[e, t]` fitted to the returns, by ridge regression.

    Normal equations are divided by the number of steps, so that the ridge keeps them
    solvable in float32 for any number of steps.
    """
    count, horizon = returns.shape
    dtype = returns.dtype
    clipped = jnp.clip(episodes.observations, -10, 10).astype(dtype)
    time = jnp.broadcast_to(jnp.arange(horizon, dtype=dtype) / 100, (count, horizon))
    powers = jnp.stack([time, time**2, time**3, jnp.ones_like(time)], -1)
    features = jnp.concatenate([clipped, clipped**2, powers], -1)
    features = features.reshape(count * horizon, -1)
    mask = episodes.mask.reshape(-1).astype(dtype)
    total = jnp.maximum(mask.sum(), 1)
    weighted = features * mask[:, None] / total
    gram = weighted.T @ features + _RIDGE * jnp.eye(features.shape[1], dtype=dtype)
    weights = jnp.linalg.solve(gram, weighted.T @ returns.reshape(-1))
    return (features @ weights).reshape(count, horizon)
