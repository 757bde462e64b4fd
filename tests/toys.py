"""Small float64 problems whose gradients can be enumerated."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from lite_jax import Examples, Network, Task, batched, lite_sum
from lite_jax.sampling import Draw, Sampler


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


def film_network(features=3):
    """The same with one FiLM place, and a smooth layer after it."""
    plain = network(features)

    def apply(params, inputs, film=None):
        found = plain.apply(params, inputs)
        if film is not None:
            found = found * film["scale"][None, :] + film["shift"][None, :]
        return jnp.tanh(found)

    def identity_film():
        return {"scale": jnp.ones(features), "shift": jnp.zeros(features)}

    return Network(plain.init, apply, identity_film)


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


def mean_over_subsets(
    fun, args, num_support, num_backprop, sum_keys=lambda key: [key], shared=False
):
    """Enumerate the mean gradient of `fun(params, task, key, set_sum)` over all draws.

    The subset of a sum is read off its key, and keys are searched for until every
    combination of subsets has one. `sum_keys(key)` are the keys of the sums that `fun`
    forms with `key`: were they others, combinations would be missed and the mean wrong.
    With `shared`, one subset serves all sums.
    """
    choices = subsets(num_support, num_backprop)
    params, task, key = args

    def chosen(key):
        words = jax.random.key_data(key)[..., 0]
        return (words % np.uint32(len(choices))).astype(jnp.int32)

    def combination(seed):
        used = [
            jax.random.split(k, 1)[0] for k in sum_keys(jax.random.wrap_key_data(seed))
        ]
        return jnp.stack([chosen(k) for k in used])

    seeds = jax.random.key_data(jax.random.split(key, 5000))
    with jax.debug_key_reuse(False):  # seeds are tried, then used
        found = np.asarray(jax.vmap(combination)(seeds))
    seed_of = {tuple(c): i for i, c in enumerate(found.tolist())}
    if shared:
        seed_of = {c: i for c, i in seed_of.items() if len(set(c)) == 1}
    num_free = 1 if shared else found.shape[1]
    assert len(seed_of) == len(choices) ** num_free

    def draw(key, population, size):
        del population
        weights = jnp.full(size, num_support / size)
        return Draw(choices[chosen(key)], weights, jnp.int32(size))

    operator = lite_sum(num_backprop, chunk_size=1, sampling=Sampler(draw))

    def gradient(seed):
        key = jax.random.wrap_key_data(seed)
        return jax.grad(lambda params: fun(params, task, key, set_sum=operator))(params)

    used = seeds[np.array(list(seed_of.values()))]
    each = jax.jit(lambda seeds: jax.lax.map(gradient, seeds))(used)
    return jax.tree.map(lambda g: g.mean(0), each)


def relative_error(found, expected):
    """The norm of the difference relative to that of `expected`, over all leaves."""
    found, expected = (jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(t)])
                       for t in (found, expected))  # fmt: skip
    return float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected))
