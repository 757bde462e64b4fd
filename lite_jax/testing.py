"""Checks of the contract of `Learner`, for learners of users and of this library."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lite_jax.learners.episode_loss import episode_loss
from lite_jax.lite import batched, exact_sum, lite_sum
from lite_jax.lite.additive import leading_axis
from lite_jax.lite.sampling import Draw, Population, Sampler
from lite_jax.types import (
    Additive,
    Examples,
    Key,
    Learner,
    Params,
    PyTree,
    SetMap,
    SetSum,
    Task,
)

MOST_DRAWS = 2000
"""The largest number of draws that `lite_is_unbiased` enumerates."""


def check_learner(
    learner: Learner, params: Params, task: Task, *, rtol: float = 1e-3
) -> None:
    """Raise unless a learner keeps the contract of `lite_jax.Learner`.

    It checks, in this order, that

    1. the functions that `adapt` sums are additive, and `encode` gives the terms of the
       last sum;
    2. the loss under LITE is the exact loss;
    3. the mean of LITE's gradients over all draws of one example a sum is the exact
       gradient, by enumeration;
    4. chunks, the order of the support and padding do not change loss and gradient,
       whatever values the padding holds;
    5. exactly the class that is removed from the support has logits of −∞;
    6. one compilation serves sets of all sizes under a mask.

    Args:
        learner: The learner to check.
        params: Its parameters.
        task: A small task without padding, of 4 to 8 support images. The support has
            examples of all classes from 0 to its largest label.
        rtol: Largest accepted deviation, relative to the norm of the expected values.
            1e-9 is enough in float64.

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
"""The methods of `LearnerChecks`, in the order in which `check_learner` calls them."""


def check_additive(
    additive: Additive, args: PyTree, examples: PyTree, *, rtol: float = 1e-3
) -> None:
    """Raise unless `additive` is a weighted sum of independent per-example terms.

    A and B are the two halves of `examples`. Three pairs are compared: f(A) + f(B) with
    f(A ∪ B); f(A ∪ B) with B at weight 0 with f(A); f at doubled weights with 2 f.

    Args:
        additive: The function to check.
        args: Its first argument.
        examples: Two or more examples that differ from each other.
        rtol: Largest accepted deviation, relative to the norm of a leaf: the larger of
            its norms in f(A) and f(B).

    Raises:
        ValueError: `additive` is not additive, or there are fewer than two examples.
            The usual cause is an encoder that mixes examples: batch normalisation in
            training mode, attention across examples, a mean over the batch.

    >>> x = jnp.arange(6.0).reshape(6, 1)
    >>> check_additive(batched(lambda a, x: a * x), 2.0, x)
    >>> check_additive(batched(lambda a, x: a * (x - x.mean()) ** 2), 2.0, x)
    Traceback (most recent call last):
        ...
    ValueError: not additive: f(A) + f(B) differs from f(A ∪ B) by 6.8 (relative). \
Does the encoder mix examples (batch statistics, attention across examples)? Use \
GroupNorm, LayerNorm or frozen BatchNorm
    """
    size = leading_axis(examples)
    if size < 2:
        raise ValueError(f"check_additive needs 2 or more examples, got {size}")
    first = jnp.arange(size) < size // 2
    ones = jnp.ones(size)
    whole = additive(args, examples, ones)
    part_a = additive(
        args, jax.tree.map(lambda x: x[: size // 2], examples), ones[first]
    )
    part_b = additive(
        args, jax.tree.map(lambda x: x[size // 2 :], examples), ones[~first]
    )
    claims = {
        "f(A) + f(B) differs from f(A ∪ B)": (
            jax.tree.map(jnp.add, part_a, part_b),
            whole,
        ),
        "examples of weight 0 change the sum": (
            additive(args, examples, first.astype(ones.dtype)),
            part_a,
        ),
        "doubling the weights does not double the sum": (
            additive(args, examples, 2 * ones),
            jax.tree.map(jnp.add, whole, whole),
        ),
    }
    for claim, (total, expected) in claims.items():
        error = _relative_error(total, expected, scale=(part_a, part_b))
        if not error <= rtol:
            raise ValueError(
                f"not additive: {claim} by {error:.2g} (relative). Does the encoder "
                "mix examples (batch statistics, attention across examples)? Use "
                "GroupNorm, LayerNorm or frozen BatchNorm"
            )


def _relative_error(total: PyTree, expected: PyTree, scale: PyTree) -> float:
    """Return the largest ‖total - expected‖ of a leaf, relative to its norm in `scale`.

    `scale` is a tuple of trees; the largest of their norms of the leaf counts. The
    error of a leaf that is 0 in all of them is absolute.
    """

    def leaf_error(x, y, *parts):
        size = max(float(jnp.linalg.norm(jnp.ravel(p))) for p in parts)
        error = float(jnp.linalg.norm(jnp.ravel(x - y)))
        return error / size if size else error

    return max(jax.tree.leaves(jax.tree.map(leaf_error, total, expected, *scale)))


class LearnerChecks:
    """The checks of one learner, which share compiled programs.

    Args:
        learner: The learner to check.
        params: Its parameters.
        task: A small task without padding, as for `check_learner`.
        rtol: Largest accepted deviation, relative to the norm of the expected values.
    """

    def __init__(
        self, learner: Learner, params: Params, task: Task, *, rtol: float = 1e-3
    ):
        """Store the arguments, without computing anything."""
        self.learner, self.params, self.task, self.rtol = learner, params, task, rtol
        self.traces = 0

    @property
    def key(self) -> Key:
        """A new key at each access, always with the same words."""
        return jax.random.key(0)

    def sums_are_additive(self) -> None:
        """Raise unless all functions that `adapt` sums are additive.

        The rows of a map have to be independent of each other, as terms of a sum.
        """
        for call in self.calls[0]:
            additive = batched(call.fun) if call.is_map else call.fun
            check_additive(additive, call.args, call.examples, rtol=self.rtol)

    def encode_gives_the_terms(self) -> None:
        """Raise unless `encode` gives the terms of the last sum, or rows of a map."""
        calls, _ = self.calls
        if not calls:
            raise ValueError("adapt: it forms no sum over the support by set_sum")
        last = calls[-1]
        terms = jax.vmap(self.learner.encode, (None, 0))
        inputs = last.args, last.examples, None
        if last.is_map:
            what, found = "rows are not those", exact_sum().map(terms, *inputs)
        else:
            what = "the sum of its terms is not what"
            found = exact_sum()(batched(terms), *inputs)
        self._compare(f"encode: {what} adapt forms last", found, last.result)

    def loss_under_lite_is_exact(self) -> None:
        """Raise if LITE changes the loss."""
        (loss, _), _ = self.lite_grad(self.params, self.task, self.key)
        self._compare("loss: LITE changes it", loss, self.exact[0])

    def lite_is_unbiased(self) -> None:
        """Raise unless the mean of LITE's gradients over all draws is the exact one.

        Sums that share a key share their draw. If there are more than `MOST_DRAWS`
        combinations of draws, 8 random ones are checked, and the gradient of each has
        to be the exact one. That is so where no gradient passes through the sums.
        """
        num_support, (_, key_numbers) = leading_axis(self.task.support), self.calls
        shape = [num_support] * (max(key_numbers) + 1)
        if num_support ** len(shape) <= MOST_DRAWS:
            draws = np.indices(shape).reshape(len(shape), -1).T
            means = jax.tree.map(lambda x: x.mean(0), self._lite_grads(draws))
            self._compare("gradient: LITE's is biased", means, self.exact[1])
            return
        draws = np.random.default_rng(0).integers(num_support, size=(8, len(shape)))
        grads = self._lite_grads(draws)
        for index in range(len(draws)):
            draw_grads = jax.tree.map(lambda x, i=index: x[i], grads)
            self._compare(
                "gradient: LITE's depends on the draw, and adapt forms too many sums "
                "for all draws to be enumerated (give a smaller support): one draw's",
                draw_grads,
                self.exact[1],
            )

    def chunks_change_nothing(self) -> None:
        """Raise if loss or gradient differ when computed one image at a time."""
        (loss, _), grads = self.chunked_grad(self.params, self.task, self.key)
        self._compare("chunks: they change loss or gradient", (loss, grads), self.exact)

    def order_changes_nothing(self) -> None:
        """Raise if reversing the support changes loss or gradient."""
        reversed_support = jax.tree.map(lambda x: x[::-1], self.task.support)
        (loss, _), grads = self.chunked_grad(
            self.params, self.task._replace(support=reversed_support), self.key
        )
        self._compare(
            "order of the support: it changes loss or gradient",
            (loss, grads),
            self.exact,
        )

    def padding_changes_nothing(self) -> None:
        """Raise if padding changes loss or gradient, whatever values it holds."""
        for value in (3.0, jnp.nan):
            task = Task(*(_padded(examples, value) for examples in self.task))
            (loss, _), grads = self.chunked_grad(self.params, task, self.key)
            self._compare(
                f"padding of {value}: it changes loss or gradient",
                (loss, grads),
                self.exact,
            )

    def absent_classes_get_no_probability(self) -> None:
        """Raise unless exactly the class without support examples has logits of −∞.

        The examples of the largest label are masked out. The gradient has to be finite
        then, for queries of the other classes.
        """
        absent = int(self.task.support.labels.max())
        without = Task(*(
            x._replace(mask=x.mask & (x.labels != absent)) for x in self.task
        ))  # fmt: skip
        _, grads = self.chunked_grad(self.params, without, self.key)
        if not all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(grads)):
            raise ValueError(
                f"gradient: it is not finite where class {absent} is absent from the "
                "support: a division or a norm of zeros, perhaps"
            )
        logits = self._logits(without.support)
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
        """Raise if the program is compiled again for a mask of another size."""
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
    def calls(self) -> tuple[list[_Call], list[int]]:
        """The sums and maps that an eager `adapt` forms, and the number of each key.

        Equal keys have equal numbers, from 0 on.
        """
        calls: list[_Call] = []
        numbers: dict[bytes, int] = {}
        key_numbers: list[int] = []

        def record(is_map: bool, fun: Any, args: PyTree, examples: PyTree, key: Key,
                   mask: Any = None) -> PyTree:  # fmt: skip
            operator = exact_sum().map if is_map else exact_sum()
            result = operator(fun, args, examples, key, mask)
            calls.append(_Call(is_map, fun, args, examples, result))
            words = jax.random.key_data(key) if _is_typed(key) else key
            words = np.asarray(words).tobytes()
            key_numbers.append(numbers.setdefault(words, len(numbers)))
            return result

        with jax.disable_jit():  # a scan then calls the sum once for each step
            support = self.task.support
            self.learner.adapt(self.params, support, self.key, _Calling(record))
        return calls, key_numbers

    @functools.cached_property
    def exact(self) -> tuple[jax.Array, Params]:
        """The loss, and its gradient by the learned parameters, without chunks."""
        grad_fn = jax.jit(self._value_and_grad(exact_sum()))
        (loss, _), grads = grad_fn(self.params, self.task, self.key)
        return loss, grads

    @functools.cached_property
    def chunked_grad(self) -> Callable[..., Any]:
        """The jitted function of the loss and exact gradient, one image at a time."""
        return jax.jit(self._value_and_grad(exact_sum(1), query_chunk_size=1))

    @functools.cached_property
    def lite_grad(self) -> Callable[..., Any]:
        """The jitted function of the loss and LITE's gradient at H = 1.

        `traces` counts how often it is traced.
        """
        grad_fn = self._value_and_grad(lite_sum(1, 1), query_chunk_size=1)

        def counted(*args: Any) -> Any:
            self.traces += 1
            return grad_fn(*args)

        return jax.jit(counted)

    def _value_and_grad(
        self, set_sum: SetSum, query_chunk_size: int | None = None
    ) -> Callable[..., Any]:
        """Return `(params, task, key) -> ((loss, aux), grads)`.

        The gradients are those by the learned parameters.
        """
        loss_fn = episode_loss(self.learner, query_chunk_size=query_chunk_size)
        frozen = self.learner.frozen

        def run(params: Params, task: Task, key: Key) -> Any:
            fixed = {k: v for k, v in params.items() if k in frozen}
            learned = {k: v for k, v in params.items() if k not in frozen}

            def loss(learned: Params) -> Any:
                return loss_fn(fixed | learned, task, key, set_sum=set_sum)

            return jax.value_and_grad(loss, has_aux=True)(learned)

        return run

    def _lite_grads(self, draws: np.ndarray) -> Params:
        """Return LITE's gradients `[t, …]` for t draws of one example a key.

        Args:
            draws: `[t, keys]`, the index of the example that each key draws.
        """

        def gradient(draw: jax.Array) -> Params:
            with jax.disable_jit():  # a scan then calls the sum once for each step
                run = self._value_and_grad(_sum_of_draw(draw, self.calls[1]))
                return run(self.params, self.task, self.key)[1]

        return jax.jit(lambda draws: lax.map(gradient, draws))(jnp.asarray(draws))

    def _logits(self, support: Examples) -> jax.Array:
        """Return the query's logits `[m, way]` after adaptation to a support."""

        def run(params: Params, support: Examples, inputs: jax.Array) -> jax.Array:
            state = self.learner.adapt(params, support, self.key, exact_sum())
            return self.learner.predict(params, state, inputs)

        return jax.jit(run)(self.params, support, self.task.query.inputs)

    def _compare(self, what: str, actual: PyTree, expected: PyTree) -> None:
        """Raise unless two trees are equal within the tolerance.

        Args:
            what: The beginning of the message.
            actual: The tree to check.
            expected: The tree that deviations are relative to.
        """
        pairs = list(
            zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
        )
        squares = [float(jnp.sum((x - y) ** 2)) for x, y in pairs]
        size = sum(float(jnp.sum(y**2)) for _, y in pairs)
        error = (sum(squares) / size) ** 0.5 if size else sum(squares) ** 0.5
        if not error <= self.rtol:
            raise ValueError(f"{what}, by {error:.2g} (relative)")


class _Call(NamedTuple):
    """A sum or a map that a learner formed."""

    is_map: bool
    fun: Callable[..., PyTree]
    args: PyTree
    examples: PyTree
    result: PyTree


class _Calling:
    """An operator that calls one function, `(is_map, fun, args, …) -> result`."""

    def __init__(self, call: Callable[..., PyTree]):
        self._call = call

    def __call__(
        self, additive: Any, args: Any, examples: Any, key: Any, mask: Any = None
    ) -> PyTree:
        """Return the sum."""
        return self._call(False, additive, args, examples, key, mask)

    @property
    def map(self) -> SetMap:
        """The map."""
        return functools.partial(self._call, True)


def _is_typed(key: Key) -> bool:
    return jnp.issubdtype(key.dtype, jax.dtypes.prng_key)


def _sum_of_draw(draw: jax.Array, key_numbers: list[int]) -> SetSum:
    """Return a set sum that back-propagates one given example in each call.

    Args:
        draw: `[keys]`, the index of the example that each key draws.
        key_numbers: The number of the key of each call, in order.
    """
    calls = itertools.count()

    def call(is_map: bool, fun: Any, *inputs: Any) -> PyTree:
        index = draw[key_numbers[next(calls) % len(key_numbers)]]

        def sample(key: Key, population: Population, num_backprop: int) -> Draw:
            del key, num_backprop
            weight = population.mask.sum(dtype=float)
            return Draw(index[None].astype(jnp.int32), weight[None], jnp.int32(1))

        operator = lite_sum(1, sampling=Sampler(sample))
        return operator.map(fun, *inputs) if is_map else operator(fun, *inputs)

    return _Calling(call)


def _padded(examples: Examples, value: Any) -> Examples:
    """Return the examples with two of padding, whose inputs have one value.

    Inputs that are not floating-point numbers are padded with 200.
    """

    def extended(x: jax.Array, fill: Any) -> jax.Array:
        return jnp.concatenate([x, jnp.full((2, *x.shape[1:]), fill, x.dtype)])

    inputs = examples.inputs
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        value = 200
    return Examples(
        extended(inputs, value),
        extended(examples.labels, 0),
        extended(examples.mask, False),
    )
