"""Weights of training examples, learned by hypergradients: noisy labels, pruning."""

from lite_jax.apps.reweight.run import run_reweighting
from lite_jax.apps.reweight.sets import LabelledSet, Sets, make_sets
from lite_jax.apps.reweight.training import (
    State,
    make_plain_training,
    make_round,
    reweighting_problem,
)
from lite_jax.apps.reweight.weightings import Weighting, meta_weight_net, per_example

__all__ = [
    "LabelledSet",
    "Sets",
    "State",
    "Weighting",
    "make_plain_training",
    "make_round",
    "make_sets",
    "meta_weight_net",
    "per_example",
    "reweighting_problem",
    "run_reweighting",
]
