"""Memory-efficient meta-learning in JAX.

Write a loss over a support set with one `set_sum` in it; `lite_grad` gives its
unbiased gradient at the memory of one chunk of examples. See `lite_jax.lite`.
"""

from lite_jax.classify import load
from lite_jax.errors import UserError
from lite_jax.learners import (
    cnaps,
    finetuner,
    imaml,
    maml,
    mrml,
    protonets,
    simple_cnaps,
)
from lite_jax.lite import (
    Pooled,
    Sampler,
    batched,
    check_additive,
    exact_grad,
    exact_sum,
    exact_value_and_grad,
    lite_grad,
    lite_sum,
    lite_value_and_grad,
    per_example,
    subsample_sum,
)
from lite_jax.objectives import episode_grad, episode_loss
from lite_jax.types import Examples, GradFn, Learner, Network, SetSum, Task

__version__ = "0.1.0"

__all__ = [
    "Examples",
    "GradFn",
    "Learner",
    "Network",
    "Pooled",
    "Sampler",
    "SetSum",
    "Task",
    "UserError",
    "batched",
    "check_additive",
    "cnaps",
    "episode_grad",
    "episode_loss",
    "exact_grad",
    "exact_sum",
    "exact_value_and_grad",
    "finetuner",
    "imaml",
    "lite_grad",
    "lite_sum",
    "lite_value_and_grad",
    "load",
    "maml",
    "mrml",
    "per_example",
    "protonets",
    "simple_cnaps",
    "subsample_sum",
]
