"""Bilevel problems and the interface of hypergradient estimators.

An outer loss f(θ, λ) is minimised over meta-parameters λ, at inner parameters θ that
minimise an inner loss g(θ, λ). At such a θ the hypergradient is

    dF/dλ = ∂f/∂λ − (∂²g/∂λ∂θ) v,    (∂²g/∂θ²) v = ∂f/∂θ.

Most estimators differ in how they approximate v; `unrolled` differentiates inner steps
instead.

References:
    Yang, Ma and Yu, "Memory-Reduced Meta-Learning with Guaranteed Convergence", AAAI
    2025 (MRML).
    Choe et al., "Making Scalable Meta Learning Practical", NeurIPS 2023 (SAMA).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from lite_jax.errors import UserError
from lite_jax.hypergrad.solvers import Operator, Solution
from lite_jax.types import PyTree

Loss = Callable[..., Any]
"""`(inner_params, meta_params, batch, *, set_sum) -> scalar`."""


class Problem(NamedTuple):
    """The inner and the outer loss of a bilevel problem.

    Attributes:
        inner: g, `(inner_params, meta_params, batch, *, set_sum) -> scalar`. Sums over
            examples are formed with `set_sum`, so that they can be sampled. A loss
            without such sums accepts the keyword and ignores it.
        outer: f, with the same signature.
        outputs: `(inner_params, batch) -> outputs`, any tree, for inner losses in which
            the meta-parameters act on the network's outputs only, such as example
            weights and corrected labels. Mixed products then take one forward-mode
            pass through the network and store no activations. None otherwise.
        combine: `(meta_params, outputs, batch) -> scalar`, equal to `inner`. Needed
            with `outputs`.
    """

    inner: Loss
    outer: Loss
    outputs: Callable[[PyTree, Any], PyTree] | None = None
    combine: Callable[[PyTree, PyTree, Any], Any] | None = None


class InnerStep(NamedTuple):
    """The last update of the inner parameters, which SAMA differentiates.

    Attributes:
        grads: The gradient that was passed to the optimiser.
        opt_state: The optimiser's state before the update.
        params: The inner parameters before the update.
    """

    grads: PyTree
    opt_state: Any
    params: PyTree


class Hypergrad(NamedTuple):
    """A hypergradient estimate.

    Attributes:
        grads: Estimate of dF/dλ, shaped like the meta-parameters.
        state: The estimator's state for the next call.
        diagnostics: Scalars by name. All estimators give "inner_grad_norm", ‖∂g/∂θ‖,
            which is 0 at an inner solution and large where the formula of the
            hypergradient does not hold. It is the norm of `inner_step.grads` if an
            `inner_step` is passed (`unrolled` ignores it), and otherwise costs one more
            inner gradient. Estimators that solve for v also give "residual",
            ‖H v − b‖ / ‖b‖ of the v used, "steps", the number of iterations, and
            "curvature", the least pᵀH p / pᵀp over the directions p of the search.
            `unrolled` gives "steps", and `sama` "vector_norm", ‖v‖.
    """

    grads: PyTree
    state: Any
    diagnostics: dict[str, jax.Array]


class HypergradFn(Protocol):
    """The type of `Estimator.hypergrad`."""

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
        """Return the hypergradient estimate at `inner_params` and `meta_params`.

        Args:
            problem: The inner and the outer loss.
            inner_params: θ, an inner solution; for `unrolled`, the start of the steps.
            meta_params: λ.
            batches: The inner and the outer batch.
            state: The estimator's state, from `init` or the last call.
            inner_step: The last update of `inner_params`; `sama` needs it for its
                adaptation.
        """
        ...


class SolveFn(Protocol):
    """The type of `Estimator.solve`."""

    def __call__(
        self,
        operator: Operator,
        target: PyTree,
        *,
        inner_step: InnerStep | None = None,
        largest_step: Any = None,
    ) -> Solution:
        """Return the estimate of v, H v = b.

        Args:
            operator: v ↦ H v, H symmetric.
            target: b.
            inner_step: The last update of the inner parameters; `sama` needs it.
            largest_step: The largest step size at which gradient descent on vᵀH v / 2
                cannot overshoot, a scalar. `neumann` takes no longer steps. None where
                it is not known.
        """
        ...


class Estimator(NamedTuple):
    """A hypergradient estimator, as pure functions.

    Attributes:
        init: `(inner_params, meta_params) -> state`.
        hypergrad: `(problem, inner_params, meta_params, (inner_batch, outer_batch),
            state, *, inner_step=None) -> Hypergrad`.
        solve: `(operator, target, *, inner_step=None, largest_step=None) -> Solution`,
            the estimator's v for a learner that forms the products itself (`imaml`,
            `mrml`). None for an estimator that keeps a state or solves for no v.
        needs_inner_step: Whether `solve` needs `inner_step`.
    """

    init: Callable[[PyTree, PyTree], Any]
    hypergrad: HypergradFn
    solve: SolveFn | None = None
    needs_inner_step: bool = False


def solve_of(solver: Estimator, *, has_inner_step: bool) -> SolveFn:
    """Return an estimator's `solve`.

    Args:
        solver: The estimator.
        has_inner_step: Whether the caller can give `inner_step`.

    Raises:
        UserError: It is no estimator, has no `solve`, or needs an `inner_step` that the
            caller does not have.
    """
    if not isinstance(solver, Estimator):
        raise UserError(
            f"solver={solver!r}: expected an estimator of lite_jax.hypergrad, such as "
            "conjugate_gradient(5)"
        )
    if solver.solve is None:
        raise UserError(
            "solver: this estimator solves for no vector, or keeps a state (unrolled, "
            "warm_start, nudge_base): give another one, such as conjugate_gradient(5)"
        )
    if solver.needs_inner_step and not has_inner_step:
        raise UserError(
            "solver: this estimator needs the last inner update (sama with its "
            "adaptation), which this learner does not keep: give conjugate_gradient, "
            "neumann or identity"
        )
    return solver.solve


def check_problem(
    problem: Problem,
    inner_params: PyTree,
    meta_params: PyTree,
    batch: Any,
    set_sum: Any,
) -> None:
    """Raise unless the inner loss is a scalar that depends on the meta-parameters.

    The loss is traced and not computed.

    Args:
        problem: The losses; only `inner` is checked.
        inner_params: θ.
        meta_params: λ.
        batch: The inner batch.
        set_sum: Operator that the loss sums over examples with.

    Raises:
        UserError: The loss cannot be evaluated at these parameters, is not one scalar,
            or does not depend on the meta-parameters. Mixed products would then be
            zero without notice.
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
    if not _depends_on_inputs(traced.jaxpr):
        raise UserError(
            "problem.inner does not depend on meta_params, so its hypergradient "
            "through the inner solution would be zero: use them in the inner loss"
        )


def _depends_on_inputs(jaxpr: Any) -> bool:
    """Return whether any output of a jaxpr depends on any of its inputs."""
    needed = {id(x) for x in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if any(id(x) in needed for x in equation.outvars):
            needed |= {id(x) for x in equation.invars}
    return any(id(x) in needed for x in jaxpr.invars)
