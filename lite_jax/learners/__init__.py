"""Meta-learners: factories that take hyper-parameters and return a `Learner`."""

from lite_jax.learners.protonets import protonets

__all__ = ["protonets"]
