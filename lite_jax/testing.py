"""Checks of the contract that learners keep, for your own and for this library's."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lite_jax.learners.episode_loss import episode_loss
from lite_jax.lite import exact_sum, lite_sum, per_example
from lite_jax.lite.additive import check_additive, leading_axis
from lite_jax.lite.sampling import Draw, Population, Sampler
from lite_jax.types import (
    Additive,
    Examples,
    Key,
    Learner,
    Params,
    PyTree,
    SetSum,
    Task,
)

MOST_DRAWS = 2000


def check_learner(
    learner: Learner, params: Params, task: Task, *, rtol: float = 1e-3
) -> None:
    """Raise unless a learner keeps the contract of `lite_jax.Learner`.

    Checks, in this order, that

    1. what `adapt` sums is additive, and `encode` gives the terms of its last sum;
    2. the loss under LITE is the exact one;
    3. the mean of LITE's gradients over all draws of one example a sum is the exact
       gradient, by enumeration;
    4. chunks, the order of the support, and padding change nothing, whatever the
       padding holds;
    5. a class that the support lacks gets logits of −∞, and no other does;
    6. one compilation serves sets of all sizes.

    Args:
        learner: What is checked.
        params: Its parameters.
        task: A small task without padding, of 4 to 8 support images; its last class has
            no lower number than any other.
        rtol: Largest accepted deviation, relative to the norm of what is compared. In
            float64 1e-9 will do.

    Raises:
        ValueError: Part of the contract is not kept; the message says which.

    >>> from lite_jax import nn, protonets
    >>> images = jnp.linspace(0.0, 1.0, 24).reshape(6, 2, 2, 1)
    >>> examples = Examples(images, jnp.array([0, 1, 2] * 2), jnp.ones(6, bool))
    >>> task = Task(examples, examples)
    >>> check_learner(protonets(nn.pixels(), way=3), {"backbone": {}}, task)
    """
    checks = LearnerChecks(learner, params, task, rtol=rtol)
    for check in CHECKS:
        getattr(checks, check)()


CHECKS = (
    "sums_are_additive",
    "encode_gives_the_terms",
    "loss_under_lite_is_exact",
    "lite_is_unbiased",
    "chunks_change_nothing",
    "order_changes_nothing",
    "padding_changes_nothing",
    "absent_classes_get_no_probability",
    "one_compilation_serves_all_sizes",
)
"""The methods of `LearnerChecks`, as `check_learner` calls them."""


class LearnerChecks:
    """The checks of one learner; they share compiled programs.

    Arguments are those of `check_learner`.
    """

    def __init__(
        self, learner: Learner, params: Params, task: Task, *, rtol: float = 1e-3
    ):
        """Keep what is checked; nothing is computed yet."""
        self.learner, self.params, self.task, self.rtol = learner, params, task, rtol
        self.traces = 0

    @property
    def key(self) -> Key:
        """A fresh key: always of the same numbers."""
        return jax.random.key(0)

    def sums_are_additive(self) -> None:
        """Raise unless all that `adapt` sums is additive."""
        for additive, args, examples, _ in self.sums[0]:
            check_additive(additive, args, examples, rtol=self.rtol)

    def encode_gives_the_terms(self) -> None:
        """Raise unless `encode` gives the terms of the last sum."""
        sums, _ = self.sums
        if not sums:
            raise ValueError("adapt: it forms no sum over the support by set_sum")
        _, args, examples, total = sums[-1]
        terms = per_example(self.learner.encode)
        self._compare(
            "encode: the sum of its terms is not what adapt sums last",
            exact_sum()(terms, args, examples, None),
            total,
        )

    def loss_under_lite_is_exact(self) -> None:
        """Raise unless LITE changes the gradient alone."""
        (loss, _), _ = self.lite_grad(self.params, self.task, self.key)
        self._compare("loss: LITE changes it", loss, self.exact[0])

    def lite_is_unbiased(self) -> None:
        """Raise unless LITE's gradient, averaged over all draws, is the exact one.

        Sums that share a key share their draw. Where there are more than `MOST_DRAWS`
        combinations of draws, a few of them have to agree with the exact gradient each,
        as they do where sums enter by their values alone.
        """
        num_support, (_, key_of) = leading_axis(self.task.support), self.sums
        shape = [num_support] * (max(key_of) + 1)
        if num_support ** len(shape) <= MOST_DRAWS:
            draws = np.indices(shape).reshape(len(shape), -1).T
            means = jax.tree.map(lambda x: x.mean(0), self._grads_of(draws))
            self._compare("gradient: LITE's is biased", means, self.exact[1])
            return
        draws = np.random.default_rng(0).integers(num_support, size=(8, len(shape)))
        grads = self._grads_of(draws)
        for index in range(len(draws)):
            drawn = jax.tree.map(lambda x, i=index: x[i], grads)
            self._compare(
                "gradient: LITE's depends on the draw, and adapt forms too many sums "
                "for all draws to be enumerated (give a smaller support): one draw's",
                drawn,
                self.exact[1],
            )

    def chunks_change_nothing(self) -> None:
        """Raise unless loss and gradient are the same one image at a time."""
        (loss, _), grads = self.chunked_grad(self.params, self.task, self.key)
        self._compare("chunks: they change loss or gradient", (loss, grads), self.exact)

    def order_changes_nothing(self) -> None:
        """Raise unless the order of the support does not matter."""
        turned = jax.tree.map(lambda x: x[::-1], self.task.support)
        (loss, _), grads = self.chunked_grad(
            self.params, self.task._replace(support=turned), self.key
        )
        self._compare(
            "order of the support: it changes loss or gradient",
            (loss, grads),
            self.exact,
        )

    def padding_changes_nothing(self) -> None:
        """Raise unless examples under the mask never count, whatever they hold."""
        for value in (3.0, jnp.nan):
            task = Task(*(_padded(examples, value) for examples in self.task))
            (loss, _), grads = self.chunked_grad(self.params, task, self.key)
            self._compare(
                f"padding of {value}: it changes loss or gradient",
                (loss, grads),
                self.exact,
            )

    def absent_classes_get_no_probability(self) -> None:
        """Raise unless exactly the classes without support have logits of −∞."""
        support = self.task.support
        absent = int(support.labels.max())
        mask = support.mask & (support.labels != absent)
        logits = self._logits(support._replace(mask=mask))
        if not bool(jnp.all(logits[:, absent] == -jnp.inf)):
            raise ValueError(
                f"logits: class {absent} is absent from the support, and its logits "
                "are not −∞"
            )
        if not bool(jnp.all(jnp.isfinite(logits[:, :absent]))):
            raise ValueError(
                "logits: a class of the support has some that are not finite"
            )

    def one_compilation_serves_all_sizes(self) -> None:
        """Raise if a set of another size, under its mask, is compiled anew."""
        for size in range(2, leading_axis(self.task.support) + 1):
            mask = jnp.arange(leading_axis(self.task.support)) < size
            support = self.task.support._replace(mask=mask)
            self.lite_grad(self.params, self.task._replace(support=support), self.key)
        if self.traces != 1:
            raise ValueError(
                f"compilation: {self.traces} programs for sets of one padded size: "
                "shapes or Python values depend on the mask"
            )

    @functools.cached_property
    def sums(self) -> tuple[list[tuple[Additive, PyTree, PyTree, PyTree]], list[int]]:
        """The sums of an eager `adapt`, and the number of the key of each.

        A sum is `(additive, args, examples, total)`. Equal keys have equal numbers.
        """
        sums: list[tuple[Additive, PyTree, PyTree, PyTree]] = []
        numbers: dict[bytes, int] = {}
        key_of: list[int] = []

        def recording_sum(additive, args, examples, key, mask=None):
            total = exact_sum()(additive, args, examples, key, mask)
            sums.append((additive, args, examples, total))
            words = jax.random.key_data(key) if _is_typed(key) else key
            key_of.append(numbers.setdefault(np.asarray(words).tobytes(), len(numbers)))
            return total

        with jax.disable_jit():  # a scan then runs step by step
            self.learner.adapt(self.params, self.task.support, self.key, recording_sum)
        return sums, key_of

    @functools.cached_property
    def exact(self) -> tuple[jax.Array, Params]:
        """The loss, and its gradient by what is learned, without any chunks."""
        grad_fn = jax.jit(self._value_and_grad(exact_sum()))
        (loss, _), grads = grad_fn(self.params, self.task, self.key)
        return loss, grads

    @functools.cached_property
    def chunked_grad(self) -> Callable[..., Any]:
        """Loss and exact gradient, one image at a time."""
        return jax.jit(self._value_and_grad(exact_sum(1), query_chunk_size=1))

    @functools.cached_property
    def lite_grad(self) -> Callable[..., Any]:
        """Loss and LITE's gradient at H = 1; counts how often it is traced."""
        grad_fn = self._value_and_grad(lite_sum(1, 1), query_chunk_size=1)

        def counted(*args: Any) -> Any:
            self.traces += 1
            return grad_fn(*args)

        return jax.jit(counted)

    def _value_and_grad(
        self, set_sum: SetSum, query_chunk_size: int | None = None
    ) -> Callable[..., Any]:
        """Return `(params, task, key) -> ((loss, aux), grads)` by what is learned."""
        loss_fn = episode_loss(self.learner, query_chunk_size=query_chunk_size)
        frozen = self.learner.frozen

        def run(params: Params, task: Task, key: Key) -> Any:
            fixed = {k: v for k, v in params.items() if k in frozen}
            learned = {k: v for k, v in params.items() if k not in frozen}

            def loss(learned: Params) -> Any:
                return loss_fn(fixed | learned, task, key, set_sum=set_sum)

            return jax.value_and_grad(loss, has_aux=True)(learned)

        return run

    def _grads_of(self, draws: np.ndarray) -> Params:
        """Return LITE's gradients `[t, …]` of draws `[t, sums]` of one example each."""

        def gradient(draw: jax.Array) -> Params:
            with jax.disable_jit():  # so that every sum of a scan is met
                run = self._value_and_grad(_in_turn(draw, self.sums[1]))
                return run(self.params, self.task, self.key)[1]

        return jax.jit(lambda draws: lax.map(gradient, draws))(jnp.asarray(draws))

    def _logits(self, support: Examples) -> jax.Array:
        def run(params: Params, support: Examples, inputs: jax.Array) -> jax.Array:
            state = self.learner.adapt(params, support, self.key, exact_sum())
            return self.learner.predict(params, state, inputs)

        return jax.jit(run)(self.params, support, self.task.query.inputs)

    def _compare(self, what: str, actual: PyTree, expected: PyTree) -> None:
        """Raise unless two trees are equal within the tolerance."""
        pairs = list(
            zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
        )
        squares = [float(jnp.sum((x - y) ** 2)) for x, y in pairs]
        size = sum(float(jnp.sum(y**2)) for _, y in pairs)
        error = (sum(squares) / size) ** 0.5 if size else sum(squares) ** 0.5
        if not error <= self.rtol:
            raise ValueError(f"{what}, by {error:.2g} (relative)")


def _is_typed(key: Key) -> bool:
    return jnp.issubdtype(key.dtype, jax.dtypes.prng_key)


def _in_turn(draw: jax.Array, key_of: list[int]) -> SetSum:
    """Return the operator whose n-th sum back-propagates one example alone.

    Args:
        draw: The example `[keys]` of each key.
        key_of: The number of the key of each sum.
    """
    calls = itertools.count()

    def set_sum(additive, args, examples, key, mask=None):
        index = draw[key_of[next(calls) % len(key_of)]]

        def sample(key: Key, population: Population, num_backprop: int) -> Draw:
            del key, num_backprop
            weight = population.mask.sum(dtype=float)
            return Draw(index[None].astype(jnp.int32), weight[None], jnp.int32(1))

        operator = lite_sum(1, sampling=Sampler(sample))
        return operator(additive, args, examples, key, mask)

    return set_sum


def _padded(examples: Examples, value: Any) -> Examples:
    """Return the examples and two more under the mask, of one value everywhere."""

    def longer(x: jax.Array, fill: Any) -> jax.Array:
        return jnp.concatenate([x, jnp.full((2, *x.shape[1:]), fill, x.dtype)])

    inputs = examples.inputs
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        value = 200
    return Examples(
        longer(inputs, value), longer(examples.labels, 0), longer(examples.mask, False)
    )
