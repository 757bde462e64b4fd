"""Small problems in float64 whose gradients can be enumerated, and a tiny run."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from lite_jax import (
    Examples,
    Learner,
    Network,
    SetSum,
    Task,
    batched,
    cnaps,
    finetuner,
    imaml,
    lite_sum,
    maml,
    mrml,
    protonets,
    simple_cnaps,
)
from lite_jax.hypergrad import sama
from lite_jax.learners import inner_rules
from lite_jax.lite.sampling import Draw, Sampler
from lite_jax.run import configs, recipes
from lite_jax.types import Key, Params, PyTree


def network(features: int = 3) -> Network:
    """Return a smooth two-layer network on images of any size, in float64."""

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


def film_network(features: int = 3) -> Network:
    """Return the same with one FiLM place, and a smooth layer after it."""
    plain = network(features)

    def apply(params, inputs, film=None):
        found = plain.apply(params, inputs)
        if film is not None:
            found = found * film["scale"][None, :] + film["shift"][None, :]
        return jnp.tanh(found)

    def identity_film():
        return {"scale": jnp.ones(features), "shift": jnp.zeros(features)}

    return Network(plain.init, apply, identity_film)


def task(
    num_support: int = 6,
    num_query: int = 4,
    way: int = 3,
    support_padding: int = 0,
    query_padding: int = 0,
    seed: int = 0,
) -> Task:
    """Return a task of 2×2 images; the padding holds rubbish that must not count."""
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


SMALL_ENCODER: dict[str, Any] = {"embedding": network(4), "embedding_size": 4}
LEARNERS: dict[str, tuple[Callable[[int], Learner], Callable[[Key], Any]]] = {
    # name: (learner of `way` classes, the keys of its set sums, made from its key)
    "protonets": (lambda way: protonets(network(), way=way), lambda key: [key]),
    "cnaps": (
        lambda way: cnaps(film_network(), way=way, **SMALL_ENCODER),
        jax.random.split,
    ),
    "simple_cnaps": (
        lambda way: simple_cnaps(film_network(), way=way, **SMALL_ENCODER),
        jax.random.split,
    ),
    "simple_cnaps, more features than examples": (
        lambda way: simple_cnaps(film_network(9), way=way, **SMALL_ENCODER),
        jax.random.split,
    ),
    "maml": (
        lambda way: maml(network(), way=way, steps=2, rule=inner_rules.sgd(0.5)),
        jax.random.split,
    ),
    "maml++": (
        lambda way: maml(
            network(), way=way, steps=2, rule=inner_rules.learned_sgd(0.5)
        ),
        jax.random.split,
    ),
    "mrml": (lambda way: mrml(network(), way=way, steps=9), lambda key: [key]),
    "mrml, unrolled": (
        lambda way: mrml(network(), way=way, steps=3, solver=None),
        lambda key: [key],
    ),
    "imaml": (lambda way: imaml(network(), way=way, steps=3), lambda key: [key]),
    "imaml, sama": (
        lambda way: imaml(network(), way=way, steps=3, solver=sama(optax.sgd(0.01))),
        lambda key: [key],
    ),
    "finetuner": (
        lambda way: finetuner(network(), way=way, steps=3),
        lambda key: [key],
    ),
    "finetuner with FiLM": (
        lambda way: finetuner(film_network(), way=way, steps=2, film=True),
        jax.random.split,
    ),
}


BY_VALUE = {"imaml", "imaml, sama"}
"""Those whose sums enter by their values alone: no draw changes their gradient."""


def make_learner(name: str, way: int = 3) -> tuple[Learner, Params]:
    """Return a learner of the table, and its parameters."""
    learner = LEARNERS[name][0](way)
    spec = jax.ShapeDtypeStruct((2, 2, 1), jnp.float64)
    params = learner.init(jax.random.key(7), spec)
    if "film" in params:  # so that generated FiLM parameters matter
        params["film"]["amplitude"] *= 300
    return learner, params


def run_config(steps: int, valid_every: int = 1) -> ConfigDict:
    """Return a whole run of tiny steps on patterns, which takes seconds."""
    config = configs.base_config()
    recipes.synthetic(config)
    config.data.image_size, config.backbone.width = 16, 8
    config.gradient.num_backprop, config.gradient.chunk_size = 4, 8
    config.train.steps, config.train.valid_every = steps, valid_every
    config.train.episode = config.valid.episode = configs.episode((3, 3), (2, 2), 2)
    config.test.episodes = ConfigDict({"test": config.train.episode})
    config.valid.tasks, config.test.tasks = 1, 2
    return config


def nested_params(key: Key) -> Params:
    """Return parameters of `nested_loss`."""
    first, second = jax.random.split(key)
    return {
        "embed": jax.random.normal(first, (4, 3)) / 2,
        "head": jax.random.normal(second, (4, 3)),
    }


def nested_loss(params: Params, task: Task, key: Key, *, set_sum: SetSum) -> Any:
    """Return the loss of a learner whose mean embedding shapes its features."""
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


def _flat(inputs: jax.Array) -> jax.Array:
    return inputs.reshape(inputs.shape[0], -1)


def subsets(count: int, size: int) -> jax.Array:
    """Return all subsets of `size` of `count` examples, `[number, size]`."""
    return jnp.array(list(itertools.combinations(range(count), size)), jnp.int32)


def mean_over_subsets(
    fun: Callable[..., Any],
    args: tuple[Params, Task, Key],
    num_support: int,
    num_backprop: int,
    sum_keys: Callable[[Key], Any] = lambda key: [key],
    shared: bool = False,
) -> PyTree:
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


def relative_error(found: PyTree, expected: PyTree) -> float:
    """Return the norm of the difference relative to that of `expected`."""
    error = flat(found) - flat(expected)
    return float(jnp.linalg.norm(error) / jnp.linalg.norm(flat(expected)))


def flat(tree: PyTree) -> jax.Array:
    """Return all numbers of a tree in a row."""
    return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(tree)])
