"""Small float64 problems whose gradients can be enumerated."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from lite_jax import Examples, Network, Task, batched, lite_sum
from lite_jax.sampling import Draw


def network(features=3):
    """A smooth two-layer network on images of any size, in float64."""

    def init(key, example_spec):
        first, second = jax.random.split(key)
        pixels = int(np.prod(example_spec.shape))
        return {
            "first": jax.random.normal(first, (pixels, 4)) / 2,
            "second": jax.random.normal(second, (4, features)),
        }

    def apply(params, inputs):
        flat = inputs.reshape(inputs.shape[0], -1)
        return jnp.tanh(flat @ params["first"]) @ params["second"]

    return Network(init, apply)


def task(num_support=6, num_query=4, way=3, support_padding=0, query_padding=0, seed=0):
    """A task of 2×2 images; the padding holds rubbish that must not count."""
    rng = np.random.default_rng(seed)

    def examples(count, padding):
        inputs = rng.normal(size=(count + padding, 2, 2, 1))
        labels = np.arange(count + padding) % way
        mask = np.arange(count + padding) < count
        inputs[count:] = 1e6
        return Examples(
            jnp.array(inputs), jnp.array(labels, jnp.int32), jnp.array(mask)
        )

    return Task(
        examples(num_support, support_padding), examples(num_query, query_padding)
    )


def nested_params(key):
    """Parameters of `nested_loss`."""
    first, second = jax.random.split(key)
    return {
        "embed": jax.random.normal(first, (4, 3)) / 2,
        "head": jax.random.normal(second, (4, 3)),
    }


def nested_loss(params, task, key, *, set_sum):
    """A two-stage learner in CNAPs' manner: the mean embedding shapes the features."""
    keys = jax.random.split(key)
    support, count = task.support, task.support.mask.sum(dtype=float)

    def embed(params, examples):
        return jnp.tanh(_flat(examples.inputs) @ params["embed"])

    total = set_sum(batched(embed), params, support, keys[0], support.mask)
    task_embedding = total / count

    def adapted(args, examples):
        params, task_embedding = args
        hidden = _flat(examples.inputs) @ params["head"]
        return jnp.tanh(hidden * (1 + task_embedding[None, :]))

    total = set_sum(
        batched(adapted), (params, task_embedding), support, keys[1], support.mask
    )
    query = adapted((params, task_embedding), task.query)
    distances = ((query - (total / count)[None, :]) ** 2).sum(-1)
    return jnp.where(task.query.mask, jnp.sin(distances), 0).sum()


def _flat(inputs):
    return inputs.reshape(inputs.shape[0], -1)


def subsets(count, size):
    """All subsets of `size` of `count` examples, `[number, size]`."""
    return jnp.array(list(itertools.combinations(range(count), size)), jnp.int32)


def mean_over_subsets(fun, args, num_support, num_backprop, num_sums, shared=False):
    """Enumerate the mean gradient of `fun(params, task, key, set_sum)` over all draws.

    Each of the `num_sums` sums that `fun` forms has a subset of its own, and all
    combinations count alike; with `shared`, one subset serves all of them.
    """
    choices = subsets(num_support, num_backprop)
    if shared:
        combinations = jnp.stack([choices] * num_sums, 1)
    else:
        rows = itertools.product(range(len(choices)), repeat=num_sums)
        combinations = choices[jnp.array(list(rows))]

    params, task, key = args

    def gradient(chosen_and_key):
        chosen, key = chosen_and_key
        operators = iter([_fixed_lite_sum(c, num_support) for c in chosen])

        def set_sum(*args):
            return next(operators)(*args)

        return jax.grad(lambda params: fun(params, task, key, set_sum=set_sum))(params)

    keys = jax.random.split(key, len(combinations))
    each = jax.jit(lambda draws: jax.lax.map(gradient, draws))((combinations, keys))
    return jax.tree.map(lambda g: g.mean(0), each)


def _fixed_lite_sum(indices, num_support):
    size = len(indices)

    def sampler(key, mask, num_backprop):
        del key, mask
        weights = jnp.full(num_backprop, num_support / num_backprop)
        return Draw(indices, weights, jnp.int32(num_backprop))

    return lite_sum(size, chunk_size=1, sampling=sampler)


def relative_error(found, expected):
    """The norm of the difference relative to that of `expected`, over all leaves."""
    found, expected = (jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(t)])
                       for t in (found, expected))  # fmt: skip
    return float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected))
