"""Meta-learners: functions of hyper-parameters that return a `Learner`."""

from lite_jax.learners import inner_rules
from lite_jax.learners.classifier import classifier
from lite_jax.learners.cnaps import cnaps, simple_cnaps
from lite_jax.learners.finetuner import finetuner
from lite_jax.learners.imaml import imaml
from lite_jax.learners.maml import maml
from lite_jax.learners.mrml import mrml
from lite_jax.learners.protonets import protonets

__all__ = [
    "classifier",
    "cnaps",
    "finetuner",
    "imaml",
    "inner_rules",
    "maml",
    "mrml",
    "protonets",
    "simple_cnaps",
]
