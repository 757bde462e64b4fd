"""The loss of a learner on one task, and its gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lite_jax.learners.loss_sum import loss_sum
from lite_jax.lite import batched
from lite_jax.lite.chunks import Chunks
from lite_jax.types import Examples, GradFn, Key, Learner, Params, PyTree, SetSum, Task


def episode_loss(
    learner: Learner,
    *,
    query_chunk_size: int | None = None,
    axis_name: str | None = None,
) -> Callable[..., tuple[jax.Array, dict[str, jax.Array]]]:
    """Return the loss of adapting on a task's support and predicting its query.

    L(φ) = (1/M) Σ_m -log p(y*_m | x*_m, adapt(φ, support)), the paper's eq. 1,
    plus the learner's penalty if it has one.

    Guarantees:
        The learner sums over the support with `set_sum` only. The query loss is an
        exact sum without a factor N/H. With a chunk size, each query chunk is
        differentiated when it is computed. So the support is back-propagated once a
        task, and no query example is computed twice.

    Args:
        learner: The meta-learner.
        query_chunk_size: Query examples predicted at once; None takes all.
        axis_name: Mesh axis whose devices share the query's chunks, inside
            `jax.shard_map`; `set_sum` has an axis of its own. None for one device.

    Returns:
        `loss(params, task, key, *, set_sum) -> (loss, aux)`: the mean cross-entropy
        over real query examples, and `{"accuracy": …}` in [0, 1]. Pass it to
        `lite_grad` or `lite_value_and_grad` with `has_aux=True`. `episode_grad` gives
        its gradient without that of frozen parameters.

    >>> from lite_jax import Network, lite_value_and_grad, protonets
    >>> scale = Network(lambda key, spec: 1.0, lambda a, x: a * x.reshape(len(x), -1))
    >>> images = jnp.array([0.0, 0.2, 0.7, 1.0]).reshape(4, 1, 1, 1)
    >>> examples = Examples(images, jnp.array([0, 0, 1, 1]), jnp.ones(4, bool))
    >>> loss_fn = episode_loss(protonets(scale, way=2))
    >>> lite = lite_value_and_grad(loss_fn, num_backprop=4, has_aux=True)
    >>> params, task = {"backbone": 1.0}, Task(examples, examples)
    >>> (loss, aux), grad = lite(params, task, jax.random.key(0))
    >>> print(f"{loss:.4f} {grad['backbone']:.4f} {aux['accuracy']:.0%}")
    0.4552 -0.3928 100%
    """
    chunks = Chunks(query_chunk_size, axis_name)

    def loss_fn(params: Params, task: Task, key: Key, *, set_sum: SetSum):
        task_state = learner.adapt(params, task.support, key, set_sum)
        additive = batched(query_scores(learner))
        args, query = (params, task_state), task.query
        totals = loss_sum(additive, args, query, query.mask, chunks)
        count = jnp.maximum(query.mask.sum(), 1)
        loss, aux = jax.tree.map(lambda x: x / count.astype(x.dtype), totals)
        if learner.penalty is not None:
            loss = loss + learner.penalty(params, task).astype(loss.dtype)
        return loss, aux

    return loss_fn


def episode_grad(
    learner: Learner,
    set_sum: SetSum,
    *,
    query_chunk_size: int | None = None,
    axis_name: str | None = None,
) -> GradFn:
    """Return the function of `episode_loss` and its gradient by the learned parameters.

    Frozen parameters are separated before differentiation, so they cost neither
    gradient memory nor time.

    Args:
        learner: The meta-learner; its parameters are a dictionary.
        set_sum: The operator that the learner sums over the support with.
        query_chunk_size: Query examples predicted at once; None takes all.
        axis_name: Mesh axis whose devices share the query's chunks, inside
            `jax.shard_map`. None for one device.

    Returns:
        `(params, task, key) -> ((loss, aux), grads)`; `grads` has no frozen names.
    """
    loss_fn = episode_loss(
        learner, query_chunk_size=query_chunk_size, axis_name=axis_name
    )

    def grad_fn(params: Params, task: Task, key: Key):
        frozen = {name: params[name] for name in learner.frozen}
        learned = {name: x for name, x in params.items() if name not in frozen}

        def loss(learned: Params):
            return loss_fn(learned | frozen, task, key, set_sum=set_sum)

        return jax.value_and_grad(loss, has_aux=True)(learned)

    return grad_fn


def query_scores(
    learner: Learner,
) -> Callable[[tuple[Params, PyTree], Examples], tuple[jax.Array, dict[str, Any]]]:
    """Return the function of each query example's cross-entropy and accuracy.

    Args:
        learner: The meta-learner.

    Returns:
        `((params, task_state), examples [m]) -> (loss [m], {"accuracy": [m]})`, with
        accuracy 1 where the prediction is right and 0 elsewhere.
    """

    def score(args: tuple[Params, PyTree], examples: Examples):
        logits = learner.predict(*args, examples.inputs)
        labels = examples.labels
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        correct = jnp.argmax(logits, -1).astype(labels.dtype) == labels
        return loss, {"accuracy": correct.astype(loss.dtype)}

    return score
