"""Environments of policies: the interface, and 2D navigation in pure JAX."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lite_jax.apps.rl.episodes import Episodes
from lite_jax.apps.rl.policy import Policy
from lite_jax.types import Key, Params, PyTree

Play = Callable[[Policy, Params, PyTree, Key, int, int], Episodes]
"""`(policy, params, tasks, key, episodes, horizon) -> Episodes`.

Returns `episodes` episodes of each task. All arrays, also those of `params`, have a
leading axis of tasks."""


class Environment(NamedTuple):
    """A family of tasks that differ in their rewards.

    Attributes:
        observation_size: o, numbers in an observation.
        action_size: a, numbers in an action.
        draw_tasks: `(key, count) -> tasks`, arrays with a leading axis of `count`.
        play: See `Play`; never differentiated.
    """

    observation_size: int
    action_size: int
    draw_tasks: Callable[[Key, int], PyTree]
    play: Play


_STEP = 0.1  # largest move of an action along each axis
_NEAR = 0.01  # an episode ends at this distance from the goal along both axes


def navigation() -> Environment:
    """Return 2D navigation: a point moves to a goal that is not observed.

    The point starts at the origin. An observation is its position. An action, clipped
    to [−1, 1]², moves it by up to 0.1 along each axis. The reward is minus the distance
    to the goal, which is uniform in [−0.5, 0.5]². An episode ends within 0.01 of the
    goal along both axes.

    References:
        Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep
        Networks", ICML 2017, §5.3.
    """

    def draw_tasks(key: Key, count: int) -> jax.Array:
        return jax.random.uniform(key, (count, 2), minval=-0.5, maxval=0.5)

    return Environment(2, 2, draw_tasks, _navigate)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _navigate(
    policy: Policy,
    params: Params,
    goals: jax.Array,
    key: Key,
    episodes: int,
    horizon: int,
) -> Episodes:
    def play(params: Params, goal: jax.Array, key: Key) -> Episodes:
        def step(carry: tuple[jax.Array, jax.Array], noise: jax.Array) -> Any:
            position, alive = carry
            action = policy.distribution(params, position).draw(noise)
            next_position = position + _STEP * jnp.clip(action, -1, 1)
            offset = next_position - goal[None]
            reward = -jnp.sqrt((offset**2).sum(-1)) * alive
            steps = Episodes(position, action, reward, alive)
            return (next_position, alive & ~(jnp.abs(offset) < _NEAR).all(-1)), steps

        start = jnp.zeros((episodes, 2)), jnp.ones(episodes, bool)
        noise = jax.random.normal(key, (horizon, episodes, 2))
        _, steps = lax.scan(step, start, noise)
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), steps)

    return jax.vmap(play)(params, goals, jax.random.split(key, len(goals)))
