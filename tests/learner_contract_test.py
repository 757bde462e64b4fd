"""What every learner must do; a new learner adds a row to `toys.LEARNERS`."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lite_jax import (
    Examples,
    Task,
    check_additive,
    episode_grad,
    episode_loss,
    exact_grad,
    exact_sum,
    exact_value_and_grad,
    lite_grad,
    lite_sum,
    lite_value_and_grad,
    per_example,
)
from tests import toys

WAY, NUM_SUPPORT = 3, 6
CLOSE = {"rtol": 1e-9, "atol": 1e-13}


@pytest.fixture(params=toys.LEARNERS)
def case(request):
    return made(request.param)


@functools.cache
def made(name):
    """The learner of a name, its parameters, and the keys of its sums."""
    return *toys.make_learner(name, WAY), toys.LEARNERS[name][1]


@functools.cache
def sums_of(name):
    """The sums that `adapt` forms, one by one: (additive, args, examples, total)."""
    learner, params, _ = made(name)
    seen = []

    def recording_sum(additive, args, examples, key, mask=None):
        total = exact_sum()(additive, args, examples, key, mask)
        seen.append((additive, args, examples, total))
        return total

    support = toys.task(NUM_SUPPORT).support
    with jax.disable_jit():  # a scan then runs step by step
        learner.adapt(params, support, jax.random.key(0), recording_sum)
    return seen


def test_mean_gradient_over_all_subsets_is_exact(case, key):
    learner, params, sum_keys = case
    task = toys.task(NUM_SUPPORT)
    loss_fn = episode_loss(learner)
    exact = jax.jit(exact_grad(loss_fn, has_aux=True))(params, task, jax.random.key(1))[
        0
    ]
    mean = toys.mean_over_subsets(
        lambda *args, set_sum: loss_fn(*args, set_sum=set_sum)[0],
        (params, task, key), NUM_SUPPORT, 2, sum_keys,
    )  # fmt: skip
    assert toys.relative_error(mean, exact) < 1e-10


@pytest.mark.parametrize("name", toys.LEARNERS)
def test_one_draw_is_not_the_exact_gradient(name, key):
    learner, params, _ = made(name)
    args = params, toys.task(NUM_SUPPORT), key
    loss_fn = episode_loss(learner)
    drawn = jax.jit(lite_grad(loss_fn, num_backprop=2, has_aux=True))(*args)[0]
    args = params, toys.task(NUM_SUPPORT), jax.random.key(0)
    exact = jax.jit(exact_grad(loss_fn, has_aux=True))(*args)[0]
    error = toys.relative_error(drawn, exact)
    assert error == 0 if name in toys.BY_VALUE else error > 1e-3


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_all_examples_back_propagated_is_the_plain_gradient(case, key, chunk_size):
    learner, params, _ = case
    task = toys.task(NUM_SUPPORT)

    def plain(params):
        """The loss without any operator of ours: `exact_sum()` is a plain call."""
        state = learner.adapt(params, task.support, key_for_plain, exact_sum())
        logits = learner.predict(params, state, task.query.inputs)
        log_probs = jax.nn.log_softmax(logits)
        loss = -jnp.take_along_axis(log_probs, task.query.labels[:, None], 1).mean()
        return loss if learner.penalty is None else loss + learner.penalty(params, task)

    key_for_plain = jax.random.key(1)
    full = jax.jit(
        lite_grad(
            episode_loss(learner), num_backprop=NUM_SUPPORT, chunk_size=chunk_size,
            has_aux=True,
        )
    )  # fmt: skip
    assert (
        toys.relative_error(full(params, task, key)[0], jax.grad(plain)(params)) < 1e-10
    )


@pytest.mark.parametrize("chunk_size", [None, 4])
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
        lite = jax.jit(
            lite_grad(loss_fn, num_backprop=3, chunk_size=chunk_size, has_aux=True)
        )
        return lite(params, task, jax.random.key(0))

    for sizes in [(1, 3), (4, 100)]:
        chex.assert_trees_all_close(gradient(*sizes), gradient(None, None), **CLOSE)


def test_padding_changes_nothing(case):
    learner, params, _ = case
    lite = jax.jit(
        lite_grad(episode_loss(learner), num_backprop=3, chunk_size=2, has_aux=True)
    )
    plain = lite(params, toys.task(NUM_SUPPORT), jax.random.key(0))
    task = toys.task(NUM_SUPPORT)
    padded = jax.tree.map(lambda x: jnp.concatenate([x, x[:1], x[:2]]), task)
    padded = padded._replace(
        support=_pad_with_rubbish(padded.support, NUM_SUPPORT),
        query=_pad_with_rubbish(padded.query, 4),
    )
    chex.assert_trees_all_close(lite(params, padded, jax.random.key(0)), plain, **CLOSE)


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
    exact = jax.jit(
        exact_value_and_grad(episode_loss(learner), chunk_size=4, has_aux=True)
    )
    chex.assert_trees_all_close(
        exact(params, shuffled, jax.random.key(0)),
        exact(params, task, jax.random.key(0)), **CLOSE,
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
        logits(support)[:, renamed], logits(task.support), **CLOSE
    )


@pytest.mark.parametrize("name", toys.LEARNERS)
def test_what_the_learner_sums_is_additive(name):
    for additive, args, examples, _ in sums_of(name):
        check_additive(additive, args, examples, rtol=1e-10)
    if name not in toys.BY_VALUE:  # those share one key
        sum_keys = toys.LEARNERS[name][1]
        assert len(sums_of(name)) == len(list(sum_keys(jax.random.key(0))))


@pytest.mark.parametrize("name", toys.LEARNERS)
def test_encode_gives_the_terms_of_the_last_sum(name):
    _, args, examples, total = sums_of(name)[-1]
    encode = made(name)[0].encode
    from_encode = exact_sum()(per_example(encode), args, examples, None)
    chex.assert_trees_all_close(from_encode, total, **CLOSE)


def test_one_back_propagated_example_is_finite(case, key):
    learner, params, _ = case
    lite = jax.jit(
        lite_grad(episode_loss(learner), num_backprop=1, chunk_size=1, has_aux=True)
    )
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
        jax.jit(lite)(params, task, jax.random.key(0)), eager, **CLOSE
    )


def test_one_compilation_serves_all_task_sizes(case):
    learner, params, _ = case
    lite = jax.jit(
        lite_grad(episode_loss(learner), num_backprop=2, chunk_size=2, has_aux=True)
    )
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
@pytest.mark.parametrize("name", toys.LEARNERS)
def test_fewer_than_two_classes_are_refused(name, way):
    with pytest.raises(ValueError, match=f"way={way}"):
        toys.LEARNERS[name][0](way)


def test_frozen_parameters_have_no_gradient_and_the_others_the_plain_one(case, key):
    learner, params, _ = case
    task = toys.task(NUM_SUPPORT)
    operator = lite_sum(NUM_SUPPORT, chunk_size=2)
    learned = {k: v for k, v in params.items() if k not in learner.frozen}
    if not learned:
        pytest.skip("the fine-tuner learns nothing but at test time")
    (loss, _), grads = episode_grad(learner, operator)(params, task, key)
    exact = jax.jit(exact_value_and_grad(episode_loss(learner), has_aux=True))
    (expected, _), every = exact(params, task, jax.random.key(1))
    assert set(grads) == set(learned)
    assert float(loss) == pytest.approx(float(expected), rel=1e-12)
    chex.assert_trees_all_close(grads, {name: every[name] for name in learned}, **CLOSE)
