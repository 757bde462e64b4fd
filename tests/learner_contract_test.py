"""What every learner must do; a new learner adds a row to `LEARNERS`."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from lite_jax import (
    Examples,
    Task,
    check_additive,
    episode_loss,
    exact_grad,
    exact_sum,
    exact_value_and_grad,
    lite_grad,
    lite_sum,
    lite_value_and_grad,
    per_example,
    protonets,
)

WAY, NUM_SUPPORT = 3, 6
LEARNERS = {
    # name: (learner of `way` classes, number of set sums over the support)
    "protonets": (lambda way: protonets(toys.network(), way=way), 1),
}


@pytest.fixture(params=LEARNERS)
def case(request):
    make, num_sums = LEARNERS[request.param]
    learner = make(WAY)
    spec = jax.ShapeDtypeStruct((2, 2, 1), jnp.float64)
    return learner, learner.init(jax.random.key(7), spec), num_sums


def test_mean_gradient_over_all_subsets_is_exact(case, key):
    learner, params, num_sums = case
    task = toys.task(NUM_SUPPORT)
    loss_fn = episode_loss(learner)
    exact = exact_grad(loss_fn, has_aux=True)(params, task, jax.random.key(1))[0]
    mean = toys.mean_over_subsets(
        lambda *args, set_sum: loss_fn(*args, set_sum=set_sum)[0],
        (params, task, key), NUM_SUPPORT, 2, num_sums,
    )  # fmt: skip
    assert toys.relative_error(mean, exact) < 1e-10


def test_one_draw_is_not_the_exact_gradient(case, key):
    learner, params, _ = case
    args = params, toys.task(NUM_SUPPORT), key
    loss_fn = episode_loss(learner)
    drawn = lite_grad(loss_fn, num_backprop=2, has_aux=True)(*args)[0]
    args = params, toys.task(NUM_SUPPORT), jax.random.key(0)
    exact = exact_grad(loss_fn, has_aux=True)(*args)[0]
    assert toys.relative_error(drawn, exact) > 1e-3


@pytest.mark.parametrize("chunk_size", [None, 1, 4, 6])
def test_all_examples_back_propagated_is_the_plain_gradient(case, key, chunk_size):
    learner, params, _ = case
    task = toys.task(NUM_SUPPORT)

    def plain(params):
        """The loss without any operator of ours: `exact_sum()` is a plain call."""
        state = learner.adapt(params, task.support, key_for_plain, exact_sum())
        logits = learner.predict(params, state, task.query.inputs)
        log_probs = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(log_probs, task.query.labels[:, None], 1).mean()

    key_for_plain = jax.random.key(1)
    full = lite_grad(
        episode_loss(learner), num_backprop=NUM_SUPPORT, chunk_size=chunk_size,
        has_aux=True,
    )  # fmt: skip
    assert (
        toys.relative_error(full(params, task, key)[0], jax.grad(plain)(params)) < 1e-10
    )


@pytest.mark.parametrize("chunk_size", [None, 1, 4, 6])
def test_loss_under_lite_equals_loss_under_exact(case, chunk_size):
    learner, params, _ = case
    loss_fn, task = episode_loss(learner), toys.task(NUM_SUPPORT, support_padding=3)

    def loss(set_sum):
        bound = functools.partial(loss_fn, set_sum=set_sum)
        return jax.jit(bound)(params, task, jax.random.key(3))

    chex.assert_trees_all_equal(
        loss(lite_sum(2, chunk_size)), loss(exact_sum(chunk_size))
    )


def test_loss_beside_the_gradient_equals_loss_under_exact(case):
    learner, params, _ = case
    loss_fn, task = episode_loss(learner), toys.task(NUM_SUPPORT)
    lite = jax.jit(
        lite_value_and_grad(loss_fn, num_backprop=2, chunk_size=4, has_aux=True)
    )
    exact = jax.jit(exact_value_and_grad(loss_fn, chunk_size=4, has_aux=True))
    (found, _), _ = lite(params, task, jax.random.key(0))
    (expected, _), _ = exact(params, task, jax.random.key(0))
    assert found == expected


def test_chunk_size_changes_nothing(case):
    learner, params, _ = case
    task = toys.task(NUM_SUPPORT)

    def gradient(chunk_size, query_chunk_size):
        loss_fn = episode_loss(learner, query_chunk_size=query_chunk_size)
        lite = lite_grad(loss_fn, num_backprop=3, chunk_size=chunk_size, has_aux=True)
        return lite(params, task, jax.random.key(0))

    for sizes in [(1, 1), (2, 3), (4, 100), (100, None)]:
        chex.assert_trees_all_close(gradient(*sizes), gradient(None, None), rtol=1e-12)


def test_padding_changes_nothing(case):
    learner, params, _ = case
    lite = lite_grad(episode_loss(learner), num_backprop=3, chunk_size=2, has_aux=True)
    plain = lite(params, toys.task(NUM_SUPPORT), jax.random.key(0))
    task = toys.task(NUM_SUPPORT)
    padded = jax.tree.map(lambda x: jnp.concatenate([x, x[:1], x[:2]]), task)
    padded = padded._replace(
        support=_pad_with_rubbish(padded.support, NUM_SUPPORT),
        query=_pad_with_rubbish(padded.query, 4),
    )
    chex.assert_trees_all_close(
        lite(params, padded, jax.random.key(0)), plain, rtol=1e-12
    )


def _pad_with_rubbish(examples, count):
    mask = jnp.arange(len(examples.mask)) < count
    image_mask = mask.reshape(-1, 1, 1, 1)
    inputs = jnp.where(image_mask, examples.inputs, 1e6)
    return Examples(inputs, examples.labels, mask)


def test_order_of_the_support_changes_nothing(case):
    learner, params, _ = case
    task = toys.task(NUM_SUPPORT)
    order = np.random.default_rng(0).permutation(NUM_SUPPORT)
    shuffled = task._replace(support=jax.tree.map(lambda x: x[order], task.support))
    exact = exact_value_and_grad(episode_loss(learner), chunk_size=4, has_aux=True)
    chex.assert_trees_all_close(
        exact(params, shuffled, jax.random.key(0)),
        exact(params, task, jax.random.key(0)), rtol=1e-12,
    )  # fmt: skip


def test_permuted_labels_permute_the_logits(case):
    learner, params, _ = case
    task = toys.task(NUM_SUPPORT)
    renamed = np.array([2, 0, 1])
    support = task.support._replace(labels=jnp.array(renamed)[task.support.labels])

    def logits(support):
        state = learner.adapt(params, support, jax.random.key(0), exact_sum())
        return learner.predict(params, state, task.query.inputs)

    chex.assert_trees_all_close(
        logits(support)[:, renamed], logits(task.support), rtol=1e-12
    )


def test_what_the_learner_sums_is_additive(case):
    learner, params, _ = case
    support = toys.task(NUM_SUPPORT).support
    seen = []

    def recording_sum(additive, args, examples, key, mask=None):
        seen.append((additive, args, examples))
        return exact_sum()(additive, args, examples, key, mask)

    learner.adapt(params, support, jax.random.key(0), recording_sum)
    for additive, args, examples in seen:
        check_additive(additive, args, examples, rtol=1e-12)
    assert len(seen) == case[2]


def test_encode_gives_the_terms_of_the_sum(case):
    learner, params, _ = case
    support = toys.task(NUM_SUPPORT).support
    sums = []

    def recording_sum(additive, args, examples, key, mask=None):
        total = exact_sum()(additive, args, examples, key, mask)
        sums.append((args, total))
        return total

    learner.adapt(params, support, jax.random.key(0), recording_sum)
    args, total = sums[-1]
    from_encode = exact_sum()(per_example(learner.encode), args, support, None)
    chex.assert_trees_all_close(from_encode, total, rtol=1e-12)


def test_one_back_propagated_example_is_finite(case, key):
    learner, params, _ = case
    lite = lite_grad(episode_loss(learner), num_backprop=1, chunk_size=1, has_aux=True)
    grads, _ = lite(params, toys.task(NUM_SUPPORT, support_padding=2), key)
    chex.assert_tree_all_finite(grads)
    assert any(jnp.any(g != 0) for g in jax.tree.leaves(grads))


def test_jit_equals_eager(case):
    learner, params, _ = case
    lite = lite_value_and_grad(
        episode_loss(learner, query_chunk_size=3), num_backprop=2, chunk_size=2,
        has_aux=True,
    )  # fmt: skip
    task = toys.task(NUM_SUPPORT, support_padding=1)
    eager = lite(params, task, jax.random.key(0))
    chex.assert_trees_all_close(
        jax.jit(lite)(params, task, jax.random.key(0)), eager, rtol=1e-12
    )


def test_one_compilation_serves_all_task_sizes(case):
    learner, params, _ = case
    lite = lite_grad(episode_loss(learner), num_backprop=2, chunk_size=2, has_aux=True)
    traces = []

    @jax.jit
    def traced(*args):
        traces.append(args)
        return lite(*args)

    for support, query in [(6, 4), (4, 2), (3, 6), (9, 1)]:
        task = toys.task(
            support, query, support_padding=9 - support, query_padding=6 - query
        )
        grads, _ = traced(params, task, jax.random.key(support))
        chex.assert_tree_all_finite(grads)
    assert len(traces) == 1


def test_absent_class_gets_no_probability_and_no_nan(case, key):
    learner, params, _ = case
    support = toys.task(NUM_SUPPORT).support
    support = support._replace(mask=support.labels != 1)
    task = toys.task(NUM_SUPPORT)
    query = task.query._replace(mask=task.query.labels != 1)
    state = learner.adapt(params, support, key, exact_sum())
    logits = learner.predict(params, state, query.inputs)
    assert jnp.all(logits[:, 1] == -jnp.inf) and jnp.all(
        jnp.isfinite(logits[:, [0, 2]])
    )
    lite = lite_value_and_grad(
        episode_loss(learner, query_chunk_size=2), num_backprop=2, has_aux=True
    )
    chex.assert_tree_all_finite(lite(params, Task(support, query), jax.random.key(1)))


def test_shapes_are_as_documented(case):
    learner, params, _ = case
    task = toys.task(NUM_SUPPORT, num_query=5)
    state = jax.eval_shape(
        lambda p, s, k: learner.adapt(p, s, k, exact_sum()),
        params, task.support, jax.random.key(0),
    )  # fmt: skip
    logits = jax.eval_shape(learner.predict, params, state, task.query.inputs)
    assert logits.shape == (5, WAY)


@pytest.mark.parametrize("way", [-1, 0, 1])
@pytest.mark.parametrize("name", LEARNERS)
def test_fewer_than_two_classes_are_refused(name, way):
    with pytest.raises(ValueError, match=f"way={way}"):
        LEARNERS[name][0](way)
