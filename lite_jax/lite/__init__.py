"""LITE: exact sums over a support set, with a choice of backward pass.

A meta-learner depends on its support set through sums of per-example terms,
e(φ) = Σ_n e_φ(x_n, y_n). The primitive of this package is such a sum, the *set sum*.
LITE is one of its backward passes: the value is exact, and the gradient
L'(e) Σ_n ∂e_n is estimated from H sampled examples. The examples are weighted so that
the mean of the estimate is the exact gradient.

    additive(args, examples, weights) -> aggregate        Σ_n w_n · term(args, x_n)
    set_sum(additive, args, examples, key, mask) -> aggregate

`per_example` and `batched` (`lite_jax.lite.additive`) make an additive function from an
encoder; `exact_sum`, `lite_sum` and `subsample_sum` are the operators; `lite_grad`
substitutes one into any function that takes a `set_sum` keyword.

Reference: Bronskill et al., "Memory Efficient Meta-Learning with Large Images",
NeurIPS 2021, https://arxiv.org/abs/2107.01105.
"""

from lite_jax.lite.additive import Pooled, batched, per_example
from lite_jax.lite.operators import (
    exact_map,
    exact_sum,
    lite_map,
    lite_sum,
    subsample_sum,
)
from lite_jax.lite.sampling import Sampler
from lite_jax.lite.transforms import (
    exact_grad,
    exact_value_and_grad,
    lite_grad,
    lite_value_and_grad,
)

__all__ = [
    "Pooled",
    "Sampler",
    "batched",
    "exact_grad",
    "exact_map",
    "exact_sum",
    "exact_value_and_grad",
    "lite_grad",
    "lite_map",
    "lite_sum",
    "lite_value_and_grad",
    "per_example",
    "subsample_sum",
]
