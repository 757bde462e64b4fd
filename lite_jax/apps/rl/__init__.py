"""Meta-reinforcement learning: policies that adapt by a few policy-gradient steps."""

from lite_jax.apps.rl.run import evaluate_policy, run_policy

__all__ = ["evaluate_policy", "run_policy"]
