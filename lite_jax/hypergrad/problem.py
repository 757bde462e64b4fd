"""Bilevel problems, and what a hypergradient estimator is.

An outer loss f is minimised over meta-parameters λ, at inner parameters θ that minimise
an inner loss g(θ, λ). At such a θ the hypergradient is

    dF/dλ = ∂f/∂λ − (∂²g/∂λ∂θ) v,    (∂²g/∂θ²) v = ∂f/∂θ,

and estimators differ in how they solve for v, or do without. Source: Yang, Ma and Yu,
"Memory-Reduced Meta-Learning with Guaranteed Convergence", AAAI 2025 (MRML); Choe et
al., "Making Scalable Meta Learning Practical", NeurIPS 2023 (SAMA).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from lite_jax.errors import UserError
from lite_jax.types import PyTree

Loss = Callable[..., Any]
"""`(inner_params, meta_params, batch, *, set_sum) -> scalar`."""


class Problem(NamedTuple):
    """Two losses.

    Attributes:
        inner: g, `(inner_params, meta_params, batch, *, set_sum) -> scalar`. A sum over
            examples is formed with `set_sum`, so that it can be sampled; a loss
            without one takes the keyword and leaves it.
        outer: f, of the same signature.
        outputs: For inner losses that the meta-parameters enter after the network, as
            example weights and corrected labels do: `(inner_params, batch) -> outputs`,
            any tree. Mixed products then take one forward-mode pass through the
            network and keep none of its activations.
        combine: With `outputs`, `(meta_params, outputs, batch) -> scalar`, equal to
            `inner`.
    """

    inner: Loss
    outer: Loss
    outputs: Callable[[PyTree, Any], PyTree] | None = None
    combine: Callable[[PyTree, PyTree, Any], Any] | None = None


class InnerStep(NamedTuple):
    """The last update of the inner parameters, from which SAMA adapts.

    Attributes:
        grads: The gradient that the optimiser was given.
        opt_state: Its state before the update.
        params: The inner parameters before the update.
    """

    grads: PyTree
    opt_state: Any
    params: PyTree


class Hypergrad(NamedTuple):
    """What an estimator returns.

    Attributes:
        grads: Estimate of dF/dλ, shaped like the meta-parameters.
        state: For the next call.
        diagnostics: Scalars by name; estimators that solve give "residual", the
            ‖H v − b‖ / ‖b‖ of the v they used, "steps", and "curvature", the least
            pᵀH p / pᵀp met; all give "inner_grad_norm", which is 0 at an inner
            solution, and tells how far the formula above is from holding; it is of the
            `inner_step` where that is handed in, and else takes a pass of its own.
    """

    grads: PyTree
    state: Any
    diagnostics: dict[str, jax.Array]


class HypergradFn(Protocol):
    """See `Estimator.hypergrad`."""

    def __call__(
        self,
        problem: Problem,
        inner_params: PyTree,
        meta_params: PyTree,
        batches: tuple[Any, Any],
        state: Any,
        *,
        inner_step: InnerStep | None = None,
    ) -> Hypergrad:
        """Return the estimate at `inner_params`."""
        ...


class Estimator(NamedTuple):
    """A way of estimating hypergradients, as two pure functions.

    Attributes:
        init: `(inner_params, meta_params) -> state`.
        hypergrad: `(problem, inner_params, meta_params, (inner_batch, outer_batch),
            state, *, inner_step=None) -> Hypergrad`.
    """

    init: Callable[[PyTree, PyTree], Any]
    hypergrad: HypergradFn


def check_problem(
    problem: Problem,
    inner_params: PyTree,
    meta_params: PyTree,
    batch: Any,
    set_sum: Any,
) -> None:
    """Raise unless the inner loss is a scalar that the meta-parameters reach.

    Nothing is computed: the loss is traced.

    Raises:
        UserError: The loss cannot be evaluated at these parameters, is no scalar, or
            does not depend on the meta-parameters, so that every mixed product would
            silently be zero.
    """

    def inner(meta_params: PyTree) -> jax.Array:
        return problem.inner(inner_params, meta_params, batch, set_sum=set_sum)

    try:
        traced = jax.make_jaxpr(inner)(meta_params)
    except (TypeError, ValueError) as error:
        shapes = jax.tree.map(jnp.shape, inner_params)
        raise UserError(
            f"problem.inner cannot be evaluated at inner_params of shapes {shapes} "
            f"({error}): give the inner solution that belongs to this loss"
        ) from error
    shapes = [x.shape for x in traced.out_avals]
    if shapes != [()]:
        raise UserError(
            f"problem.inner returns shapes {shapes}: expected one scalar, the mean or "
            "sum over the batch"
        )
    if not _reached(traced.jaxpr):
        raise UserError(
            "problem.inner does not depend on meta_params, so its hypergradient "
            "through the inner solution would be zero: use them in the inner loss"
        )


def _reached(jaxpr: Any) -> bool:
    """Return whether an output of a jaxpr needs any of its inputs."""
    needed = {id(x) for x in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if any(id(x) in needed for x in equation.outvars):
            needed |= {id(x) for x in equation.invars}
    return any(id(x) in needed for x in jaxpr.invars)
