"""Learners in tests: parameters, short networks, gradients, and programs' bytes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from lite_jax import Examples, Task, episode_grad, exact_sum
from lite_jax.nn.description import Architecture, dense_layer
from lite_jax.pmeta.layers import compute_features, compute_layer
from lite_jax.run import memory_budget
from tests import toys


def params_of(learner):
    spec = jax.ShapeDtypeStruct((2, 2, 1), jnp.float64)
    return learner.init(jax.random.key(7), spec)


@functools.cache
def gradient_program(learner, set_sum):
    return jax.jit(episode_grad(learner, set_sum))


EXACT = exact_sum()


def gradient(learner, params, set_sum=EXACT, task=None):
    """The gradient; one program a learner, operator and shapes of the others."""
    run = gradient_program(learner, set_sum or EXACT)
    return run(params, task or toys.task(), jax.random.key(0))[1]


def filled(shapes, seed=0, dtype=None, spread=0.3):
    """Arrays of these shapes by NumPy, which compiles nothing: about 1 for scales."""
    rng = np.random.default_rng(seed)

    def drawn(path, x):
        ones = jax.tree_util.keystr(path).endswith(("['scale']", "['std']"))
        return jnp.array(ones + spread * rng.normal(size=x.shape), dtype or x.dtype)

    return jax.tree_util.tree_map_with_path(drawn, shapes)


def flat(tree):
    """All numbers of a tree in a row, in NumPy: nothing compiles."""
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def relative_error(found, expected):
    """The norm of the difference relative to that of `expected`."""
    error = np.linalg.norm(flat(found) - flat(expected))
    return float(error / np.linalg.norm(flat(expected)))


def first_blocks(network, count):
    """The first blocks of a described network, computed as the description says."""

    def describe(shape, way):
        whole = network.describe(shape, way)
        blocks = whole.blocks[:count]
        outputs = blocks[-1].outputs
        size = outputs[-1] if whole.average else math.prod(outputs)
        return Architecture(blocks, dense_layer("head", size, way), whole.average)

    def init(key, spec):
        params = network.init(key, spec)
        layers = describe(spec.shape, 2).body
        used = {"input", *(x.path.split("/")[0] for x in layers)}
        return {name: x for name, x in params.items() if name in used}

    def apply(params, inputs):
        architecture = describe(inputs.shape[1:], 2)
        return compute_features(architecture, params, inputs, compute_layer)

    return network._replace(init=init, apply=apply, describe=describe)


def task_of_images(count, size=16):
    rng = np.random.default_rng(0)

    def examples(count):
        images = jnp.array(rng.integers(0, 256, (count, size, size, 3)), jnp.uint8)
        return Examples(images, jnp.arange(count) % 5, jnp.ones(count, bool))

    return Task(examples(count), examples(10))


def temporary_bytes(learner, count=25):
    """Of the gradient's program; nothing is computed but this number."""
    image = jax.ShapeDtypeStruct((16, 16, 3), jnp.uint8)
    key = jax.random.key(0)
    params = jax.eval_shape(lambda key: learner.init(key, image), key)
    run = jax.jit(episode_grad(learner, exact_sum(5), query_chunk_size=5))
    task = jax.eval_shape(lambda: task_of_images(count))
    return memory_budget.temporary_bytes(run.lower(params, task, key).compile())
