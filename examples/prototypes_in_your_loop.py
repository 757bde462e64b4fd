"""Prototypical networks in a training loop of your own, with plain JAX and optax.

A task has 100 support images of 5 digits; 20 are back-propagated.

    python examples/prototypes_in_your_loop.py
"""

import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

from lite_jax import batched, exact_sum, lite_value_and_grad

WAY, SHOT, QUERY = 5, 20, 10


def init(key):
    """Return the parameters of a network of two layers."""
    first, last = jax.random.split(key)
    draw = jax.nn.initializers.he_normal()
    return {"hidden": draw(first, (64, 128)), "features": draw(last, (128, 32))}


def embed(params, images):
    """Return features [n, 32] of images [n, 64]."""
    return jax.nn.relu(images @ params["hidden"]) @ params["features"]


@batched  # computes all terms at once, `[n, …]`; the operator sums them
def class_terms(params, examples):
    """Return the terms of two sums over the support: features by class, and counts."""
    images, labels = examples
    one_hot = jax.nn.one_hot(labels, WAY)
    return one_hot[:, :, None] * embed(params, images)[:, None], one_hot


def query_logits(params, support, queries, key, set_sum):
    """Return minus the squared distances of queries to the class means."""
    sums, counts = set_sum(class_terms, params, support, key)
    prototypes = sums / counts[:, None]
    offsets = embed(params, queries)[:, None] - prototypes[None]
    return -(offsets**2).sum(-1)


def loss(params, support, query, key, *, set_sum):
    """Return the cross-entropy of the query images."""
    images, labels = query
    logits = query_logits(params, support, images, key, set_sum)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def draw_task(rng, images, labels, digits):
    """Return the support and the query of one task, as (images, labels)."""
    chosen = rng.permutation(digits)[:WAY]
    rows = np.stack(
        [rng.permutation(np.flatnonzero(labels == x))[: SHOT + QUERY] for x in chosen]
    )
    parts = rows[:, :SHOT], rows[:, SHOT:]
    return [(images[x.ravel()], np.arange(WAY).repeat(x.shape[1])) for x in parts]


def main(steps=300, tasks=100):
    """Train, and return the accuracy on new digits before and after."""
    digits = load_digits()
    images, labels = np.float32(digits.data / 16), digits.target
    value_and_grad = lite_value_and_grad(loss, num_backprop=20, chunk_size=50)
    optimizer, params = optax.adam(1e-3), init(jax.random.key(0))
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, support, query, key):
        value, grads = value_and_grad(params, support, query, key)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, value

    @jax.jit
    def accuracy(params, support, query):
        logits = query_logits(params, support, query[0], None, exact_sum())
        return (logits.argmax(1) == query[1]).mean()

    def test(params):
        rng = np.random.default_rng(1)
        draws = [draw_task(rng, images, labels, [1, 3, 5, 7, 9]) for _ in range(tasks)]
        return float(np.mean([accuracy(params, *task) for task in draws]))

    before, rng = test(params), np.random.default_rng(0)
    for index in range(steps):
        support, query = draw_task(rng, images, labels, [0, 2, 4, 6, 8])
        key = jax.random.fold_in(jax.random.key(2), index)
        params, state, value = step(params, state, support, query, key)
        if index % 100 == 0:
            print(f"step {index}: loss {value:.3f}")
    after = test(params)
    print(f"accuracy on digits never trained on: {before:.3f}, then {after:.3f}")
    return before, after


if __name__ == "__main__":
    main()
