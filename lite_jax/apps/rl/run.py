"""The program `policies`: meta-training by trust-region steps, and tests."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from lite_jax import errors, nn
from lite_jax.apps.rl.environments import Environment, navigation
from lite_jax.apps.rl.episodes import Episodes
from lite_jax.apps.rl.half_cheetah import half_cheetah
from lite_jax.apps.rl.meta_policy import MetaPolicy, Played
from lite_jax.apps.rl.policy import Policy
from lite_jax.apps.rl.settings import PolicySettings
from lite_jax.apps.rl.trust_region import TrustRegion, trust_region_step
from lite_jax.errors import UserError
from lite_jax.run.build_learner import make_inner_rule
from lite_jax.run.configs import check_at_least, read_settings
from lite_jax.run.evaluate import format_table
from lite_jax.run.loop import Folder, open_folder, take_steps
from lite_jax.run.metrics import Interval, interval
from lite_jax.run.progress import Reporter
from lite_jax.run.restore import open_run
from lite_jax.types import Key, Params, PyTree


class PolicySetup(NamedTuple):
    """The environment and the learner of a run.

    Attributes:
        config: All settings.
        environment: The environment.
        learner: The policy and its adaptation.
    """

    config: PolicySettings
    environment: Environment
    learner: MetaPolicy

    def key(self, use: str, index: int = 0) -> Key:
        """Return the key of a use, one of `_USES`, and of a step or batch."""
        key = jax.random.fold_in(jax.random.key(self.config.seed), _USES.index(use))
        return jax.random.fold_in(key, index)


_USES = ("init", "train", "test")


class PolicyState(NamedTuple):
    """The state of training; with the seed it determines the next step.

    Attributes:
        step: int32 scalar, the number of steps so far.
        params: Parameters of the learner.
        best: The highest mean return after adaptation, over the steps between two
            regular checkpoints.
        returns: `[train.valid_every]`, the mean return after adaptation of each step
            since the last regular checkpoint.
    """

    step: Any
    params: Params
    best: Any
    returns: Any


def run_policy(config: ConfigDict | PolicySettings, workdir: Path) -> str:
    """Meta-train a policy, or resume it; test the best parameters; return the table.

    Writes `config.json`, `metrics.jsonl`, `tensorboard/` and `checkpoints/{last,best}`
    to the workdir. A checkpoint's score is the mean return after adaptation, over the
    `train.valid_every` steps up to it. The best parameters have the highest score.

    Raises:
        UserError: A setting out of range, or a workdir of another run.
        Preempted: SIGTERM came in training, and a checkpoint of that step is saved.
    """
    config = read_settings(config, PolicySettings)
    setup = make_setup(config)
    params = setup.learner.init(setup.key("init"))
    returns = np.zeros(config.train.valid_every, np.float32)
    start = PolicyState(np.int32(0), params, np.float32(-math.inf), returns)
    with open_folder(workdir, config, start, lambda saved: saved.step) as folder:
        _train(setup, folder)
        results = _test(setup, folder.best.restore(params))
        for name, result in results.items():
            row = {"policy": name, **result._asdict()}
            folder.writer.write("test", config.train.steps, row)
    return _table(results)


def evaluate_policy(config: ConfigDict | PolicySettings, folder: Path) -> str:
    """Test the best policy of a workdir; test settings may differ from the run's.

    Raises:
        UserError: The workdir has no checkpoint, or a run of other settings.
    """
    config = read_settings(config, PolicySettings)
    return _table(_test(*restore_policy(config, folder)))


def restore_policy(config: PolicySettings, folder: Path) -> tuple[PolicySetup, Params]:
    """Return the environment and learner of a workdir, and its best parameters.

    Raises:
        UserError: The workdir has no checkpoint, or a run of other settings.
    """
    setup = make_setup(config)
    run = open_run(folder, config)
    run.check_fits(jax.eval_shape(setup.learner.init, setup.key("init")))
    return setup, run.params


def make_setup(config: PolicySettings) -> PolicySetup:
    """Return the environment and learner of a configuration.

    Raises:
        UserError: An unknown name, or a setting out of range.
    """
    check_at_least(
        config,
        1,
        "train.steps",
        "train.tasks_per_step",
        "train.valid_every",
        "test.tasks",
        "inner.steps",
        "rl.episodes",
        "rl.horizon",
        "rl.width",
        "rl.depth",
        "rl.solver_steps",
    )
    settings = config.rl
    shares = {"discount": settings.discount, "gae_lambda": settings.gae_lambda}
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise UserError(f"rl.{name}={share}: expected 0 to 1")
    if not settings.divergence > 0:
        raise UserError(f"rl.divergence={settings.divergence}: expected > 0")
    if settings.damping < 0:
        raise UserError(f"rl.damping={settings.damping}: expected 0 or more")
    makers: dict[str, Callable[[], Environment]] = {
        "half_cheetah": lambda: half_cheetah(settings.frame_skip),
        "navigation": navigation,
    }
    environment = errors.pick("rl.environment", settings.environment, makers)()
    network = nn.mlp(settings.width, settings.depth)
    policy = Policy(network, environment.observation_size, environment.action_size)
    learner = MetaPolicy(
        policy,
        make_inner_rule(config.inner),
        config.inner.steps,
        settings.discount,
        settings.gae_lambda,
    ).check()
    return PolicySetup(config, environment, learner)


def play(setup: PolicySetup, params: Params, tasks: PyTree, key: Key) -> Played:
    """Return the episodes of every task, before and after adaptation.

    Args:
        setup: The environment and the learner.
        params: Parameters of the learner.
        tasks: Arrays with a leading axis of tasks.
        key: Key of the episodes.
    """
    learner, settings = setup.learner, setup.config.rl
    count = len(jax.tree.leaves(tasks)[0])

    def collect(policies: Params, key: Key) -> Episodes:
        sizes = settings.episodes, settings.horizon
        return setup.environment.play(learner.policy, policies, tasks, key, *sizes)

    policies = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (count, *x.shape)), _policy_params(params)
    )
    inner: tuple[Episodes, ...] = ()
    *keys, last_key = jax.random.split(key, learner.steps + 1)
    for step_key in keys:
        inner += (collect(policies, step_key),)
        policies = _adapted_policies(learner, params, inner)
    outer = collect(policies, last_key)
    actions = _distributions(learner, policies, outer.observations)
    return Played(inner, outer, actions)


def _policy_params(params: Params) -> Params:
    return {name: params[name] for name in ("backbone", "head", "log_std")}


@functools.partial(jax.jit, static_argnums=0)
def _adapted_policies(learner: MetaPolicy, params: Params, collected: Any) -> Params:
    return jax.vmap(learner.adapt, (None, 0))(params, collected)


@functools.partial(jax.jit, static_argnums=0)
def _distributions(learner: MetaPolicy, policies: Params, observations: Any) -> Any:
    return jax.vmap(learner.policy.distribution)(policies, observations)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _trust_region_step(
    learner: MetaPolicy, params: Params, played: Played, settings: TrustRegion
) -> Any:
    floor = jax.tree.map(lambda x: jnp.full_like(x, -jnp.inf), params)
    if "inner_rule" in params:
        least = learner.rule.lower_bound
        rule_params = params["inner_rule"]
        floor["inner_rule"] = jax.tree.map(
            lambda x: jnp.full_like(x, least), rule_params
        )
    return trust_region_step(
        learner.loss, learner.divergence, params, played, settings, floor
    )


def _train(setup: PolicySetup, folder: Folder) -> None:
    """Take the trust-region steps left."""
    config, every = setup.config, setup.config.train.valid_every
    width = config.train.tasks_per_step
    region = TrustRegion(
        config.rl.divergence, config.rl.solver_steps, config.rl.damping
    )
    state: PolicyState = folder.saved
    params, best = jax.tree.map(jnp.asarray, state.params), float(state.best)
    returns = np.array(state.returns)

    def take(step: int, report: Reporter) -> dict[str, Any]:
        nonlocal params
        task_key, play_key = jax.random.split(setup.key("train", step))
        tasks = setup.environment.draw_tasks(task_key, width)
        played = play(setup, params, tasks, play_key)
        params, outcome = _trust_region_step(setup.learner, params, played, region)
        after = played.outer.returns().mean()
        returns[(step - 1) % every] = after
        before = played.inner[0].returns().mean()
        return outcome._asdict() | {"return": after, "return_before": before}

    def save(step: int, due: bool, report: Reporter) -> None:
        nonlocal best
        mean = float(np.mean(returns[: (step - 1) % every + 1]))
        if due and mean > best:
            best = mean
            folder.best.save(step, params)
        saved = PolicyState(np.int32(step), params, np.float32(best), returns)
        folder.last.save(step, saved)

    steps = range(int(state.step) + 1, config.train.steps + 1)
    take_steps(steps, folder.writer, take=take, save=save, every=every, width=width)


def _test(setup: PolicySetup, params: Params) -> dict[str, Interval]:
    """Return the mean returns of new tasks, before and after adaptation."""
    config = setup.config
    params = jax.tree.map(jnp.asarray, params)
    width = config.train.tasks_per_step
    returns: dict[str, list[float]] = {"before adaptation": [], "after adaptation": []}
    batches = range(0, config.test.tasks, width)
    for index, first in enumerate(tqdm(batches, "testing", leave=False)):
        task_key, play_key = jax.random.split(setup.key("test", index))
        tasks = setup.environment.draw_tasks(task_key, width)
        played = play(setup, params, tasks, play_key)
        count = min(width, config.test.tasks - first)
        for name, episodes in zip(
            returns, (played.inner[0], played.outer), strict=True
        ):
            returns[name] += np.asarray(episodes.returns().mean(1))[:count].tolist()
    return {name: interval(values) for name, values in returns.items()}


def _table(results: dict[str, Interval]) -> str:
    rows = [
        [name, f"{x.mean:.2f} ± {x.half_width:.2f}", str(x.num_tasks)]
        for name, x in results.items()
    ]
    return format_table(["policy", "return", "tasks"], rows)
