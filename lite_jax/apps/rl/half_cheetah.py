"""Half-Cheetah with a target velocity, simulated by MuJoCo; needs the extra `rl`."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lite_jax.apps.rl.environments import Environment
from lite_jax.apps.rl.episodes import Episodes
from lite_jax.apps.rl.policy import Policy
from lite_jax.errors import UserError
from lite_jax.types import Key, Params

_COST_OF_CONTROL = 0.05
_FASTEST = 2.0  # largest target velocity, metres a second


def half_cheetah(frame_skip: int = 5) -> Environment:
    """Return the environment of a planar cheetah, rewarded for running at a velocity.

    The target velocity v* is not observed. An observation is 20 numbers: positions
    without the horizontal one (8), velocities (9) and the centre of mass (3). An action
    is six torques, clipped to [−1, 1]. The reward is −|v − v*| − 0.05 ‖a‖², v the mean
    velocity of the torso over the action and v* uniform in [0, 2] m/s. Episodes begin
    near rest and have full length.

    Args:
        frame_skip: Steps of simulation, of 0.01 s each, in an action: 5 as in gym, 1
            as in rllab. Returns under different values cannot be compared.

    Raises:
        UserError: `frame_skip` under 1, or the extra `rl` is not installed.

    References:
        Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep
        Networks", ICML 2017, §5.3; the cheetah is gymnasium's.
    """
    if frame_skip < 1:
        raise UserError(f"rl.frame_skip={frame_skip}: expected 1 or more")
    play = functools.partial(_play, _Simulation(frame_skip))

    def draw_tasks(key: Key, count: int) -> jax.Array:
        return jax.random.uniform(key, (count,), maxval=_FASTEST)

    return Environment(20, 6, draw_tasks, play)


class _Simulation:
    """MuJoCo's simulation of many cheetahs at once."""

    def __init__(self, frame_skip: int):
        for name in ("mujoco", "gymnasium"):
            if importlib.util.find_spec(name) is None:
                raise UserError(
                    f"rl.environment=half_cheetah needs {name}: pip install "
                    "'lite_jax[rl]'"
                )
        import gymnasium
        import mujoco
        from mujoco import rollout

        folder = Path(gymnasium.__file__).parent / "envs/mujoco/assets"
        spec = mujoco.MjSpec.from_file(str(folder / "half_cheetah.xml"))
        spec.add_sensor(
            name="centre",
            type=mujoco.mjtSensor.mjSENS_SUBTREECOM,
            objtype=mujoco.mjtObj.mjOBJ_BODY,
            objname="torso",
        )
        mass, spec.compiler.settotalmass = spec.compiler.settotalmass, -1
        self._model = spec.compile()
        self._data = mujoco.MjData(self._model)
        mujoco.mj_setTotalmass(self._model, mass)  # the compiler's setting is outdated
        mujoco.mj_setConst(self._model, self._data)
        self._rollout, self._frame_skip = rollout, frame_skip
        self.seconds = frame_skip * self._model.opt.timestep

    def begin(self, count: int, seed: int) -> np.ndarray:
        """Return random states near rest, `[count, s]`."""
        rng = np.random.default_rng(seed)
        model, sizes = self._model, (self._model.nq, self._model.nv)
        states = np.zeros((count, 1 + sum(sizes) + model.na))
        positions = model.qpos0 + rng.uniform(-0.1, 0.1, (count, sizes[0]))
        velocities = 0.1 * rng.standard_normal((count, sizes[1]))
        states[:, 1 : 1 + sum(sizes)] = np.concatenate([positions, velocities], 1)
        return states

    def advance(
        self, states: np.ndarray, torques: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return states `[count, s]` and centres of mass `[count, 3]` after an action.

        MuJoCo computes the centres before a step moves the bodies, so they are one step
        of simulation behind the states.
        """
        paths, centres = self._simulate(states, torques, self._frame_skip)
        return paths[:, -1], centres[:, -1]

    def way(self, states: np.ndarray) -> np.ndarray:
        """Return the horizontal position of each cheetah, `[count]`, in metres."""
        return states[:, 1]

    def observe(self, states: np.ndarray, centres: np.ndarray) -> np.ndarray:
        """Return observations `[count, 20]`."""
        last = 1 + self._model.nq + self._model.nv
        return np.concatenate([states[:, 2:last], centres], 1).astype(np.float32)

    def centres(self, states: np.ndarray) -> np.ndarray:
        """Return the centres of mass `[count, 3]` of states, without an action."""
        no_torques = np.zeros((len(states), self._model.nu))
        return self._simulate(states, no_torques, 1)[1][:, 0]

    def _simulate(
        self, states: np.ndarray, torques: np.ndarray, steps: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return states and centres of mass after each step, `[count, steps, …]`."""
        repeated = np.repeat(torques[:, None], steps, axis=1)
        paths, sensors = self._rollout.rollout(
            self._model, self._data, states, repeated
        )
        return paths, sensors[..., -3:]


@functools.partial(jax.jit, static_argnums=0)
def _actions(
    policy: Policy, params: Params, observations: Any, noise: Any
) -> jax.Array:
    def act_in_task(
        params: Params, observations: jax.Array, noise: jax.Array
    ) -> jax.Array:
        return policy.distribution(params, observations).draw(noise)

    return jax.vmap(act_in_task)(params, observations, noise)


def _play(
    simulation: _Simulation,
    policy: Policy,
    params: Params,
    velocities: jax.Array,
    key: Key,
    episodes: int,
    horizon: int,
) -> Episodes:
    count = len(velocities)
    shape = (count, episodes)
    start_key, noise_key = jax.random.split(key)
    seed = int(jax.random.randint(start_key, (), 0, 2**31 - 1))
    states = simulation.begin(count * episodes, seed)
    observed = simulation.observe(states, simulation.centres(states))
    targets = np.repeat(np.asarray(velocities), episodes)
    steps = []
    for noise in jax.random.normal(noise_key, (horizon, *shape, policy.action_size)):
        observations = observed.reshape(*shape, -1)
        actions = np.asarray(_actions(policy, params, observations, noise))
        torques = np.clip(actions, -1, 1).reshape(count * episodes, -1)
        before = simulation.way(states)
        states, centres = simulation.advance(states, torques.astype(np.float64))
        velocity = (simulation.way(states) - before) / simulation.seconds
        cost = _COST_OF_CONTROL * (torques**2).sum(1)
        rewards = (-np.abs(velocity - targets) - cost).astype(np.float32)
        steps.append((observations, actions, rewards.reshape(shape)))
        observed = simulation.observe(states, centres)
    all_observations, all_actions, all_rewards = (
        jnp.asarray(np.stack(x, axis=2)) for x in zip(*steps, strict=True)
    )
    mask = jnp.ones(all_rewards.shape, bool)
    return Episodes(all_observations, all_actions, all_rewards, mask)
