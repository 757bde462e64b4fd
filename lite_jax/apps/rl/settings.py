"""Settings of the program `policies`."""

from __future__ import annotations

from ml_collections import ConfigDict

from lite_jax.run.settings import selected


def policy_config() -> ConfigDict:
    """Return all settings, unlocked: navigation by MAML."""
    config = selected(
        inner=(
            "steps", "learning_rate", "rule", "penalty", "penalty_on", "attention",
            "attention_forward", "attention_backward", "attention_over",
            "norm_gradient",
        ),
        train=("steps", "tasks_per_step", "valid_every"),
        test=("tasks",),
    )  # fmt: skip
    config.program = "policies"
    config.rl = ConfigDict(
        {
            "environment": "navigation",  # navigation | half_cheetah
            "episodes": 20,  # of each task, for each inner step and for the outer loss
            "horizon": 200,  # most steps of an episode
            "width": 100,  # units of each layer of the policy
            "depth": 2,  # layers of the policy
            "discount": 0.99,  # γ of returns and advantages, 0 to 1
            "gae_lambda": 1.0,  # λ of generalised advantages, 0 to 1
            "divergence": 0.01,  # largest mean KL of a trust-region step, in nats
            "solver_steps": 10,  # iterations of conjugate gradients
            "damping": 1e-5,  # added to the divergence's Hessian
            "frame_skip": 5,  # half_cheetah: steps of simulation in an action
        }
    )
    return config


def shrink(config: ConfigDict) -> None:
    """Shorten a run of any other variants to seconds: the `smoke` variant."""
    config.train.steps, config.train.valid_every = min(config.train.steps, 4), 2
    config.train.tasks_per_step = min(config.train.tasks_per_step, 2)
    config.test.tasks = 10
    config.rl.episodes = min(config.rl.episodes, 4)
    config.rl.horizon = min(config.rl.horizon, 20)
