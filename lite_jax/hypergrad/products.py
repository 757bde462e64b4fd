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

    The mode says how they are formed. With exact sums, all modes give the same numbers:

    - "forward": forward over reverse, the `jvp` of the gradient. It takes the least
      memory.
    - "reverse": reverse over reverse. Networks without a forward mode need it: on CPU
      those of `lite_jax.nn`, whose convolutions have a custom derivative rule.
    - "sums": reverse mode over the derivative of g along v, in which every set sum
      becomes the set sum of its terms' derivatives. Such a sum is differentiated once,
      in reverse mode, so every operator can form it. With `lite_sum` a product is
      sampled from H examples a sum. It is unbiased for a given v and takes the memory
      of one chunk.

    With `axis_name`, `hessian` returns means over the devices; the other products are
    those of this device's batch.
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
        """Store the losses and the point, without computing anything.

        Args:
            problem: The inner loss g and the outer loss f.
            inner_params: θ.
            meta_params: λ.
            batches: The batches of g and of f.
            set_sum: Operator that the losses sum over examples with.
            mode: How products are formed, "forward", "reverse" or "sums".
            axis_name: Mesh axis that the batches are split over, inside
                `jax.shard_map`. None for one device.
        """
        self._problem, self._set_sum, self._mode = problem, set_sum, mode
        self._inner_params, self._meta_params = inner_params, meta_params
        self._inner_batch, self._outer_batch = batches
        self._axis_name = axis_name

    def mean(self, tree: PyTree) -> PyTree:
        """Return a tree's mean over the devices that the batches are split over."""
        return lax.pmean(tree, self._axis_name) if self._axis_name else tree

    def outer_grads(self) -> tuple[PyTree, PyTree]:
        """Return ∂f/∂θ and ∂f/∂λ on this device's batch."""

        def outer(inner_params: PyTree, meta_params: PyTree) -> jax.Array:
            batch, set_sum = self._outer_batch, self._set_sum
            return self._problem.outer(
                inner_params, meta_params, batch, set_sum=set_sum
            )

        return jax.grad(outer, argnums=(0, 1))(self._inner_params, self._meta_params)

    def inner_grad_norm(self, vector: PyTree, step: InnerStep | None) -> jax.Array:
        """Return ‖∂g/∂θ‖: that of the step's gradient, or of a gradient formed here.

        Args:
            vector: v. The gradient formed here depends on it, so that XLA computes it
                after v.
            step: The last update of θ, or None.
        """
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
        """Return (∂²g/∂θ²) v, averaged over the devices."""
        point = trees.delay_until(self._inner_params, vector)
        meta_params = self._meta_params
        if self._mode == "sums":
            product = jax.grad(self._slope)(point, meta_params, vector)
        elif self._mode == "reverse":
            gradient = jax.grad(self.inner)
            _, pull = jax.vjp(lambda x: gradient(x, meta_params), point)
            (product,) = pull(vector)
        else:
            gradient = jax.grad(self.inner)
            _, product = jax.jvp(
                lambda x: gradient(x, meta_params), (point,), (vector,)
            )
        return self.mean(product)

    def mixed(self, vector: PyTree) -> PyTree:
        """Return (∂²g/∂λ∂θ) v on this device's batch, by automatic differentiation."""
        if self._problem.outputs is not None:
            return self._mixed_after_outputs(vector)
        point = trees.delay_until(self._inner_params, vector)
        if self._mode == "reverse":
            gradient = jax.grad(self.inner)
            _, pull = jax.vjp(lambda meta: gradient(point, meta), self._meta_params)
            return pull(vector)[0]
        return jax.grad(self._slope, 1)(point, self._meta_params, vector)

    def mixed_by_differences(self, vector: PyTree, radius: float) -> PyTree:
        """Return (∂²g/∂λ∂θ) v by central differences of ∂g/∂λ, as in SAMA's paper.

        θ moves by ± `radius` · v / ‖v‖. The result is wrong if the inner loss stops
        gradients between θ and λ, as Meta-Weight-Net on detached losses does: values
        behind a `stop_gradient` move with θ too.

        Args:
            vector: v.
            radius: Distance that θ moves, above 0.
        """
        step = radius / jnp.maximum(trees.norm(vector), 1e-30)

        def meta_grad_at(sign: float) -> PyTree:
            moved = trees.add(self._inner_params, vector, sign * step)
            return jax.grad(self.inner, 1)(moved, self._meta_params)

        difference = trees.add(meta_grad_at(1.0), meta_grad_at(-1.0), -1.0)
        return trees.times(difference, 1 / (2 * step))

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
        """Return (∂²g/∂λ∂θ) v by one forward-mode pass through the network."""
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


def with_slopes(set_sum: SetSum) -> Any:
    """Return an operator whose forward derivative is the set sum of the terms' slopes.

    A slope is the derivative of a term along the tangent of `args`. The sum and its
    forward derivative are each differentiable once more, in reverse mode, by the rule
    of `set_sum`. A key is split in two, one for each.

    Args:
        set_sum: The operator that forms both sums.
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
            args_and_tangents = primals[0], tangents[0]
            return value, set_sum(slopes, args_and_tangents, examples, keys[1], mask)

        return total(args)

    return sloped
