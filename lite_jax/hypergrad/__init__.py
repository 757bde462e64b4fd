"""Estimators of hypergradients, the derivatives of an outer loss by meta-parameters.

All estimators have the signature of `Estimator`.
"""

from lite_jax.hypergrad import solvers
from lite_jax.hypergrad.implicit import conjugate_gradient, dense, identity, neumann
from lite_jax.hypergrad.problem import (
    Estimator,
    Hypergrad,
    InnerStep,
    Problem,
    SolveFn,
    solve_of,
)
from lite_jax.hypergrad.products import Products, with_slopes
from lite_jax.hypergrad.sama import adapted, check_adaptation, sama
from lite_jax.hypergrad.unrolled import mixed_mode_grad, unrolled

__all__ = [
    "Estimator",
    "Hypergrad",
    "InnerStep",
    "Problem",
    "Products",
    "SolveFn",
    "adapted",
    "check_adaptation",
    "conjugate_gradient",
    "dense",
    "identity",
    "mixed_mode_grad",
    "neumann",
    "sama",
    "solve_of",
    "solvers",
    "unrolled",
    "with_slopes",
]
