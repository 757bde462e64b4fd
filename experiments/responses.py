"""The gradient under any draw, from its responses to one example at a time.

With w_s[n] the weight of example n in the s-th sum over the support, and every value
exact, the gradient is linear in each w_s. So it is known for all draws once it is known
for the (N + 1)^S choices of one example, or none, in each of S sums; thousands of draws
of any estimator then cost a matrix product. Gradients are kept as count sketches
(Charikar, Chen, Farach-Colton 2002), which are linear and keep squared norms within
√(2 / buckets), 3 %.
"""

from __future__ import annotations

import functools
import itertools
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.operators import Operator
from lite_jax import Learner, Sampler, SetSum, Task, episode_grad, exact_sum, lite_sum
from lite_jax.lite.sampling import LABELS, SCORES, Draw, Population, sample_uniform
from lite_jax.types import Key, Params, PyTree

BUCKETS = 2048
Sketch = dict[str, Any]
"""Name of a group of parameters → its gradient in `[…, BUCKETS]`."""


class Responses:
    """All that draws can make of the gradient of one task.

    Attributes:
        groups: Names of the groups of parameters.
        populations: What each sum's sampler is told.
        exact: The exact gradient, sketched.
    """

    def __init__(self, learner: Learner, params: Params, task: Task, batch: int = 50):
        """Compute the responses; the task has no padding."""
        self.num_support = int(task.support.mask.sum())
        self.populations = populations(learner, params, task)
        self._num_sums = len(self.populations)
        picks = np.indices([self.num_support + 1] * self._num_sums)
        picks = picks.reshape(self._num_sums, -1).T  # N stands for no example
        run = _responses_program(learner, batch)
        found = run(params, task, jnp.asarray(picks, jnp.int32))
        found = jax.tree.map(np.asarray, found)
        self._coefficients = {name: self._differences(x) for name, x in found.items()}
        self.groups = sorted(found)
        exact = _exact_program(learner)
        self.exact = jax.tree.map(np.asarray, exact(params, task, jax.random.key(0)))

    def _differences(self, responses: np.ndarray) -> np.ndarray:
        """Turn responses to unit weights into coefficients of products of weights."""
        size = self.num_support + 1
        found = responses.reshape(*[size] * self._num_sums, -1).astype(np.float64)
        for axis in range(self._num_sums):
            none = np.take(found, [self.num_support], axis)
            change = np.delete(found, self.num_support, axis) - none
            found = np.concatenate([change, none], axis)
        return found.reshape(size**self._num_sums, -1)

    def gradients(self, weights: list[np.ndarray]) -> Sketch:
        """Return the gradients `[t, BUCKETS]` under draws of weights `[t, n]` a sum."""
        rows = [np.pad(w, [(0, 0), (0, 1)], constant_values=1.0) for w in weights]
        products = functools.reduce(
            lambda x, y: (x[:, :, None] * y[:, None, :]).reshape(len(x), -1), rows
        )
        return {name: products @ c for name, c in self._coefficients.items()}

    def norms(self, group: str) -> np.ndarray:
        """Return the norms of the examples' own gradients `[n]`, for one sum."""
        assert self._num_sums == 1, "norms of single examples are those of one sum"
        return np.linalg.norm(self._coefficients[group][: self.num_support], axis=1)


def sketched_grad(
    learner: Learner, set_sum: SetSum
) -> Callable[[Params, Task, Key], Sketch]:
    """Return `(params, task, key) -> sketch` of what the learner learns."""

    def gradient(params: Params, task: Task, key: Key) -> Sketch:
        _, grads = episode_grad(learner, set_sum)(params, task, key)
        return {name: sketch(name, x) for name, x in grads.items()}

    return gradient


@functools.cache
def _exact_program(learner: Learner) -> Callable[[Params, Task, Key], Sketch]:
    """Return `(params, task, key) -> sketch` of the exact gradient, jitted."""
    return jax.jit(sketched_grad(learner, exact_sum()))


@functools.cache
def _responses_program(learner: Learner, batch: int) -> Callable[..., Sketch]:
    """Return `(params, task, picks [t, s]) -> sketches [t, …]`, jitted."""

    @jax.jit
    def run(params: Params, task: Task, picks: jax.Array) -> Sketch:
        num_support = task.support.mask.size

        def response(pick: jax.Array) -> Sketch:
            set_sum = in_turn([_one_example(n, num_support) for n in pick])
            return sketched_grad(learner, set_sum)(params, task, jax.random.key(0))

        return lax.map(response, picks, batch_size=batch)

    return run


def sketch(name: str, tree: PyTree) -> jax.Array:
    """Return the count sketch `[BUCKETS]` of a group of parameters' gradient."""
    numbers = jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(tree)])
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    buckets = rng.integers(BUCKETS, size=numbers.size)
    signs = rng.choice(np.array([-1, 1], numbers.dtype), numbers.size)
    return jax.ops.segment_sum(numbers * signs, buckets, BUCKETS)


def in_turn(operators: list[SetSum]) -> SetSum:
    """Return an operator that is each of the given ones in turn, over and over."""
    turns = itertools.cycle(operators)
    return Operator(
        lambda *inputs: next(turns)(*inputs), lambda *inputs: next(turns).map(*inputs)
    )


def _one_example(pick: jax.Array, num_support: int) -> SetSum:
    """Return the operator of exact value and the gradient of one example or none."""
    index, weight = pick % num_support, (pick < num_support).astype(float)

    def picked(examples):
        return jax.tree.map(lambda x: x[index][None], examples)

    def total(additive, args, examples, key, mask):
        value = exact_sum()(additive, lax.stop_gradient(args), examples, None, mask)
        term = additive(args, picked(examples), weight[None])
        return jax.tree.map(lambda t, x: t + (x - lax.stop_gradient(x)), value, term)

    def rows(encode, args, examples, key, mask):
        table = exact_sum().map(encode, lax.stop_gradient(args), examples, None, mask)
        row = encode(args, picked(examples))
        return jax.tree.map(
            lambda t, x: t.at[index].add(
                weight.astype(t.dtype) * (x - lax.stop_gradient(x))[0]
            ),
            table, row,
        )  # fmt: skip

    return Operator(total, rows)


def populations(learner: Learner, params: Params, task: Task) -> list[Population]:
    """Return what each sum's sampler is told, in the order of the sums.

    Under sensitivity the first sum's scores could depend on the second's draw; those of
    a set encoder do not, since its mean treats all examples alike.
    """
    gradient, seen = _recording_program(learner)
    seen.clear()
    jax.block_until_ready(gradient(params, task, jax.random.key(0)))
    jax.effects_barrier()
    return seen[::-1]  # backward passes come last sum first


@functools.cache
def _recording_program(
    learner: Learner,
) -> tuple[Callable[..., Any], list[Population]]:
    """Return a gradient, jitted, and the list that it appends its populations to."""
    seen: list[Population] = []

    def record(key: Key, population: Population, num_backprop: int) -> Draw:
        jax.debug.callback(lambda told: seen.append(told), population, ordered=True)
        return sample_uniform(key, Population(population.mask), num_backprop)

    operator = lite_sum(1, sampling=Sampler(record, (LABELS, SCORES)))
    return jax.jit(episode_grad(learner, operator)), seen


def draw_weights(
    sampler: Sampler, population: Population, num_backprop: int, count: int, seed: int
) -> np.ndarray:
    """Return the weights `[count, n]` of independent draws; 0 is not drawn."""
    keys = jax.random.split(jax.random.key(seed), count)
    return np.asarray(_weights(sampler, population, num_backprop, keys), np.float64)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _weights(
    sampler: Sampler, population: Population, num_backprop: int, keys: Key
) -> jax.Array:
    def weights(key: Key) -> jax.Array:
        drawn = sampler.draw(key, population, num_backprop)
        none = jnp.zeros(population.mask.size)
        return none.at[drawn.indices].add(drawn.weights)

    return jax.vmap(weights)(keys)
