"""Hessian and mixed products of an inner loss, exact or of sampled examples."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from lite_jax import trees
from lite_jax.hypergrad.problem import InnerStep, Problem
from lite_jax.types import PyTree, SetSum

Mode = Literal["forward", "reverse", "sums"]


class Products:
    """Products of vectors with the second derivatives of an inner loss at one point.

    Three ways to the same numbers:

    - "forward": forward over reverse, `jvp` of the gradient; the leanest.
    - "reverse": reverse over reverse, for networks without a forward mode (those of
      `lite_jax.nn` on CPU, whose convolutions have a derivative rule of their own).
    - "sums": reverse over the derivative along v, in which every set sum becomes the
      set sum of its terms' derivatives. Such a sum is differentiated once, in reverse,
      so any operator will do: `lite_sum` makes products of H sampled examples a sum,
      unbiased for the given v, in the memory of a chunk.

    Under data parallelism, products are averaged over the mesh axis.
    """

    def __init__(
        self,
        problem: Problem,
        inner_params: PyTree,
        meta_params: PyTree,
        batches: tuple[Any, Any],
        set_sum: SetSum,
        mode: Mode = "forward",
        axis_name: str | None = None,
    ):
        """Fix the point; nothing is computed yet."""
        self._problem, self._set_sum, self._mode = problem, set_sum, mode
        self._inner_params, self._meta_params = inner_params, meta_params
        self._inner_batch, self._outer_batch = batches
        self._axis_name = axis_name

    def mean(self, tree: PyTree) -> PyTree:
        """Return the mean over the devices that share the batches out."""
        return lax.pmean(tree, self._axis_name) if self._axis_name else tree

    def outer_grads(self) -> tuple[PyTree, PyTree]:
        """Return ∂f/∂θ and ∂f/∂λ of this device's batch."""

        def outer(inner_params: PyTree, meta_params: PyTree) -> jax.Array:
            batch, set_sum = self._outer_batch, self._set_sum
            return self._problem.outer(
                inner_params, meta_params, batch, set_sum=set_sum
            )

        return jax.grad(outer, argnums=(0, 1))(self._inner_params, self._meta_params)

    def inner_grad_norm(self, vector: PyTree, step: InnerStep | None) -> jax.Array:
        """Return ‖∂g/∂θ‖: of the step if there is one, else computed after `vector`."""
        if step is not None:
            return trees.norm(step.grads)
        point = trees.delay_until(self._inner_params, vector)
        return trees.norm(self.mean(jax.grad(self.inner)(point, self._meta_params)))

    def inner(
        self, inner_params: PyTree, meta_params: PyTree, set_sum: SetSum | None = None
    ) -> jax.Array:
        """Return g(θ, λ)."""
        return self._problem.inner(
            inner_params,
            meta_params,
            self._inner_batch,
            set_sum=set_sum or self._set_sum,
        )

    def hessian(self, vector: PyTree) -> PyTree:
        """Return (∂²g/∂θ²) v."""
        point = trees.delay_until(self._inner_params, vector)
        meta_params = self._meta_params
        if self._mode == "sums":
            found = jax.grad(self._slope)(point, meta_params, vector)
        elif self._mode == "reverse":
            gradient = jax.grad(self.inner)
            _, pull = jax.vjp(lambda x: gradient(x, meta_params), point)
            (found,) = pull(vector)
        else:
            gradient = jax.grad(self.inner)
            _, found = jax.jvp(lambda x: gradient(x, meta_params), (point,), (vector,))
        return self.mean(found)

    def mixed(self, vector: PyTree) -> PyTree:
        """Return (∂²g/∂λ∂θ) v of this device's batch, exactly."""
        if self._problem.outputs is not None:
            return self._mixed_after_outputs(vector)
        point = trees.delay_until(self._inner_params, vector)
        if self._mode == "reverse":
            gradient = jax.grad(self.inner)
            _, pull = jax.vjp(lambda meta: gradient(point, meta), self._meta_params)
            return pull(vector)[0]
        return jax.grad(self._slope, 1)(point, self._meta_params, vector)

    def mixed_by_differences(self, vector: PyTree, radius: float) -> PyTree:
        """Return (∂²g/∂λ∂θ) v by central differences of ∂g/∂λ, as SAMA has it.

        θ moves by `radius` / ‖v‖ along v. Wrong, not only inexact, where a
        stop-gradient stands between θ and λ (Meta-Weight-Net on detached losses).
        """
        step = radius / jnp.maximum(trees.norm(vector), 1e-30)

        def at(sign: float) -> PyTree:
            moved = trees.add(self._inner_params, vector, sign * step)
            return jax.grad(self.inner, 1)(moved, self._meta_params)

        return trees.times(trees.add(at(1.0), at(-1.0), -1.0), 1 / (2 * step))

    def _slope(
        self, inner_params: PyTree, meta_params: PyTree, vector: PyTree
    ) -> jax.Array:
        """Return the derivative of g along v in θ."""
        set_sum = self._set_sum
        if self._mode == "sums":
            set_sum = with_slopes(set_sum)

        def inner(inner_params: PyTree) -> jax.Array:
            return self.inner(inner_params, meta_params, set_sum)

        return jax.jvp(inner, (inner_params,), (vector,))[1]

    def _mixed_after_outputs(self, vector: PyTree) -> PyTree:
        """Return the mixed product by one forward-mode pass through the network."""
        problem, batch = self._problem, self._inner_batch
        assert problem.outputs is not None and problem.combine is not None
        outputs, slopes = jax.jvp(
            lambda x: problem.outputs(x, batch),  # type: ignore[misc]
            (trees.delay_until(self._inner_params, vector),),
            (vector,),
        )

        def slope(meta_params: PyTree) -> jax.Array:
            def combine(outputs: PyTree) -> jax.Array:
                return problem.combine(meta_params, outputs, batch)  # type: ignore[misc]

            return jax.jvp(combine, (outputs,), (slopes,))[1]

        return jax.grad(slope)(self._meta_params)


def with_slopes(set_sum: SetSum) -> SetSum:
    """Return the operator with a forward derivative: the set sum of the terms' slopes.

    Both the sum and its derivative are then differentiable once, in reverse, by the
    operator's own rule, each with a key of its own.
    """

    def sloped(additive, args, examples, key, mask=None):
        keys = (None, None) if key is None else jax.random.split(key)

        def slopes(args_and_tangents, examples, weights):
            args, tangents = args_and_tangents
            return jax.jvp(
                lambda args: additive(args, examples, weights), (args,), (tangents,)
            )[1]

        @jax.custom_jvp
        def total(args):
            return set_sum(additive, args, examples, keys[0], mask)

        @total.defjvp
        def rule(primals, tangents):
            value = set_sum(additive, primals[0], examples, keys[0], mask)
            pair = primals[0], tangents[0]
            return value, set_sum(slopes, pair, examples, keys[1], mask)

        return total(args)

    return sloped
