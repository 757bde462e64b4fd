"""What a policy acts in: the interface, and 2D navigation in pure JAX."""

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
"""`(policy, params, tasks, key, episodes, horizon) -> Episodes`: a number of episodes
of each task; all arrays, those of `params` too, begin with an axis of tasks."""


class Environment(NamedTuple):
    """A family of tasks that differ in what is rewarded.

    Attributes:
        observation_size: o.
        action_size: a.
        draw_tasks: `(key, count) -> tasks`, arrays that begin with an axis of `count`.
        play: See `Play`. What it leaves is data: nothing is differentiated through it.
    """

    observation_size: int
    action_size: int
    draw_tasks: Callable[[Key, int], PyTree]
    play: Play


_STEP = 0.1  # the longest way in each direction
_NEAR = 0.01  # an episode ends as near as this in both directions


def navigation() -> Environment:
    """Return 2D navigation: a point walks to a goal that it does not see.

    It starts at the origin and observes its position; an action in [−1, 1]² moves it by
    up to 0.1 in each direction; the reward is minus the distance to the goal, which is
    uniform in [−0.5, 0.5]². An episode ends within 0.01 of the goal in both directions.

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
            moved = position + _STEP * jnp.clip(action, -1, 1)
            way = moved - goal[None]
            reward = -jnp.sqrt((way**2).sum(-1)) * alive
            met = Episodes(position, action, reward, alive)
            return (moved, alive & ~(jnp.abs(way) < _NEAR).all(-1)), met

        start = jnp.zeros((episodes, 2)), jnp.ones(episodes, bool)
        noise = jax.random.normal(key, (horizon, episodes, 2))
        _, met = lax.scan(step, start, noise)
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), met)

    return jax.vmap(play)(params, goals, jax.random.split(key, len(goals)))
