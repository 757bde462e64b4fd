"""Settings of the program `policies`."""

from __future__ import annotations

from dataclasses import dataclass

from ml_collections import ConfigDict

from lite_jax.run.configs import as_config
from lite_jax.run.settings import InnerRuleSettings, ProgramSettings


@dataclass(frozen=True)
class PolicyTrainSettings:
    """Meta-training of a policy."""

    steps: int = 200  # trust-region steps
    tasks_per_step: int = 1  # tasks whose losses are averaged
    valid_every: int = 100  # steps between checkpoints


@dataclass(frozen=True)
class PolicyTestSettings:
    """The tests of a policy."""

    tasks: int = 600


@dataclass(frozen=True)
class RlSettings:
    """The environment, the policy and the trust-region step."""

    environment: str = "navigation"  # navigation | half_cheetah
    episodes: int = 20  # of each task, for each inner step and for the outer loss
    horizon: int = 200  # most steps of an episode
    width: int = 100  # units of each layer of the policy
    depth: int = 2  # layers of the policy
    discount: float = 0.99  # γ of returns and advantages, 0 to 1
    gae_lambda: float = 1.0  # λ of generalised advantages, 0 to 1
    divergence: float = 0.01  # largest mean KL of a trust-region step, in nats
    solver_steps: int = 10  # iterations of conjugate gradients
    damping: float = 1e-5  # added to the divergence's Hessian
    frame_skip: int = 5  # half_cheetah: steps of simulation in an action


@dataclass(frozen=True)
class PolicySettings(ProgramSettings):
    """All settings; the defaults are navigation by MAML."""

    program: str = "policies"
    name: str = "policies"
    inner: InnerRuleSettings = InnerRuleSettings()
    train: PolicyTrainSettings = PolicyTrainSettings()
    test: PolicyTestSettings = PolicyTestSettings()
    rl: RlSettings = RlSettings()


def policy_config() -> ConfigDict:
    """Return all settings, unlocked, for files in `configs/`."""
    return as_config(PolicySettings())


def shrink(config: ConfigDict) -> None:
    """Shorten a run of any other variants to seconds: the `smoke` variant."""
    config.train.steps, config.train.valid_every = min(config.train.steps, 4), 2
    config.train.tasks_per_step = min(config.train.tasks_per_step, 2)
    config.test.tasks = 10
    config.rl.episodes = min(config.rl.episodes, 4)
    config.rl.horizon = min(config.rl.horizon, 20)
