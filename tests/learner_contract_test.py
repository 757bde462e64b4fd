"""What every learner must do; a new learner adds a row to `toys.LEARNERS`.

The properties of a learner share its programs: each is compiled once, for sets of one
padded size, and a property feeds it tasks, masks, labels and keys.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lite_jax import (
    Examples,
    Task,
    episode_grad,
    episode_loss,
    exact_sum,
    lite_sum,
    lite_value_and_grad,
)
from lite_jax.testing import CHECKS, LearnerChecks
from tests import toys

WAY, NUM_SUPPORT, NUM_QUERY = 3, 6, 4
ROOM, QUERY_ROOM = 9, 6  # the sizes that sets are padded to
CLOSE = {"rtol": 1e-9, "atol": 1e-13}


class Case:
    """A learner, its parameters, and its compiled programs.

    All but `plain` and `logits` go through the support and the query in chunks.
    """

    def __init__(self, name):
        self.name = name
        self.learner, self.params = toys.make_learner(name, WAY)
        self.loss_fn = episode_loss(self.learner, query_chunk_size=3)
        task = toys.task(NUM_SUPPORT)
        self.checks = LearnerChecks(self.learner, self.params, task, rtol=1e-9)

    def logits_fn(self, params, support, key, inputs):
        state = self.learner.adapt(params, support, key, exact_sum())
        return self.learner.predict(params, state, inputs)

    @functools.cached_property
    def logits(self):
        """Logits of the query, by one call of the additive function on all examples."""
        return jax.jit(self.logits_fn)

    @functools.cached_property
    def plain(self):
        """The loss and its gradient without any operator or chunk of ours."""

        def loss(params, task, key):
            logits = self.logits_fn(params, task.support, key, task.query.inputs)
            log_probs = jax.nn.log_softmax(logits)
            loss = -jnp.take_along_axis(log_probs, task.query.labels[:, None], 1).mean()
            penalty = self.learner.penalty
            return loss if penalty is None else loss + penalty(params, task)

        return jax.jit(jax.value_and_grad(loss))

    @functools.cached_property
    def losses(self):
        """The losses under `exact_sum` and under `lite_sum`, in chunks of 1."""

        def both(params, task, exact_key, lite_key):
            return (
                self.loss_fn(params, task, exact_key, set_sum=exact_sum(1)),
                self.loss_fn(params, task, lite_key, set_sum=lite_sum(1, 1)),
            )

        return jax.jit(both)

    @functools.cached_property
    def all(self):
        """The loss and what is learned of its gradient, with H above every N."""
        return jax.jit(
            episode_grad(self.learner, lite_sum(ROOM, 4), query_chunk_size=3)
        )

    @functools.cached_property
    def one(self):
        """The loss and its LITE gradient at H = 1."""
        lite = lite_value_and_grad(
            self.loss_fn, num_backprop=1, chunk_size=1, has_aux=True
        )
        return jax.jit(lite)


made = functools.cache(Case)


@pytest.fixture(params=toys.LEARNERS)
def case(request):
    return made(request.param)


def padded_task(num_support=NUM_SUPPORT, num_query=NUM_QUERY):
    task = toys.task(num_support, num_query)
    return Task(padded(task.support, ROOM), padded(task.query, QUERY_ROOM))


def padded(examples, room):
    """The examples and others, which the mask leaves out, of huge images."""
    rows = jnp.arange(room) % len(examples.mask)
    longer = jax.tree.map(lambda x: x[rows], examples)
    longer = longer._replace(mask=jnp.arange(room) < len(examples.mask))
    return rubbish_in_the_padding(longer, 1e6)


def rubbish_in_the_padding(examples, value):
    mask = examples.mask
    inputs = jnp.where(mask.reshape(-1, 1, 1, 1), examples.inputs, value)
    return Examples(inputs, jnp.where(mask, examples.labels, 2), mask)


def learned(case, params):
    return {k: v for k, v in params.items() if k not in case.learner.frozen}


@pytest.mark.parametrize("check", CHECKS)
def test_the_public_check_passes(case, check):
    """LITE is unbiased, by enumeration; `testing_test` shows that checks can fail."""
    getattr(case.checks, check)()


def test_one_draw_is_not_the_exact_gradient(case, key):
    task = padded_task()
    _, drawn = case.one(case.params, task, key)
    _, exact = case.plain(case.params, toys.task(NUM_SUPPORT), jax.random.key(1))
    error = toys.relative_error(drawn, exact)
    assert error < 1e-12 if case.name in toys.BY_VALUE else error > 1e-3


def test_all_examples_back_propagated_is_the_plain_gradient(case, key):
    """In chunks and on padded sets; what is frozen has no gradient."""
    (loss, _), grads = case.all(case.params, padded_task(), key)
    task = toys.task(NUM_SUPPORT)
    expected, exact = case.plain(case.params, task, jax.random.key(1))
    assert float(loss) == pytest.approx(float(expected), rel=1e-12)
    assert set(grads) == set(learned(case, case.params))
    if grads:  # the fine-tuner learns nothing but at test time
        assert toys.relative_error(grads, learned(case, exact)) < 1e-10


def test_loss_under_lite_equals_loss_under_exact(case):
    """Bit for bit; beside a gradient XLA may compile the same sums in another order."""
    task, key = padded_task(), jax.random.key
    exact, lite = case.losses(case.params, task, key(1), key(2))
    chex.assert_trees_all_equal(lite, exact)
    (beside, _), _ = case.one(case.params, task, key(3))
    assert float(beside) == pytest.approx(float(exact[0]), rel=1e-12)


def test_chunk_size_changes_nothing(case):
    """Values in chunks of 1 and of 4 are those of no chunks; gradients: see above."""
    task, key = padded_task(), jax.random.key
    expected, _ = case.plain(case.params, toys.task(NUM_SUPPORT), key(0))
    (by_fours, _), _ = case.all(case.params, task, key(0))
    (by_ones, _), _ = case.losses(case.params, task, key(1), key(2))
    chex.assert_trees_all_close((by_fours, by_ones), (expected, expected), **CLOSE)


@pytest.mark.parametrize("program", ["all", "one"])
def test_padding_changes_nothing(case, program):
    """Not even one that would make numbers that are not finite."""
    run, task, key = getattr(case, program), padded_task(), jax.random.key
    other = Task(*(rubbish_in_the_padding(examples, jnp.nan) for examples in task))
    chex.assert_trees_all_equal(
        run(case.params, other, key(0)), run(case.params, task, key(0))
    )


def test_permuted_labels_permute_the_logits(case):
    task, renamed = toys.task(NUM_SUPPORT), np.array([2, 0, 1])
    support = task.support._replace(labels=jnp.array(renamed)[task.support.labels])

    def logits(support):
        return case.logits(case.params, support, jax.random.key(0), task.query.inputs)

    chex.assert_trees_all_close(
        logits(support)[:, renamed], logits(task.support), **CLOSE
    )
    assert not np.allclose(logits(support), logits(task.support))


def test_one_back_propagated_example_is_finite(case, key):
    _, grads = case.one(case.params, padded_task(), key)
    chex.assert_tree_all_finite(grads)
    assert any(jnp.any(g != 0) for g in jax.tree.leaves(grads))


def test_jit_equals_eager(case):
    """`adapt` and `predict`; `operator_contract_test` has the gradients' operators."""
    task = toys.task(NUM_SUPPORT)
    inputs = case.params, task.support
    jitted = case.logits(*inputs, jax.random.key(0), task.query.inputs)
    with jax.disable_jit():
        eager = case.logits_fn(*inputs, jax.random.key(0), task.query.inputs)
    chex.assert_trees_all_close(jitted, eager, **CLOSE)


def test_absent_class_gets_no_probability_and_no_nan(case, key):
    def without_class_1(examples):
        return examples._replace(mask=examples.mask & (examples.labels != 1))

    task = toys.task(NUM_SUPPORT)
    support = without_class_1(task.support)
    logits = case.logits(case.params, support, key, task.query.inputs)
    assert jnp.all(logits[:, 1] == -jnp.inf)
    assert jnp.all(jnp.isfinite(logits[:, [0, 2]]))
    task = Task(*(without_class_1(examples) for examples in padded_task()))
    chex.assert_tree_all_finite(case.one(case.params, task, jax.random.key(1)))


def test_shapes_are_as_documented(case):
    task = toys.task(NUM_SUPPORT, num_query=5)
    inputs = case.params, task.support, jax.random.key(0), task.query.inputs
    assert jax.eval_shape(case.logits_fn, *inputs).shape == (5, WAY)


@pytest.mark.parametrize("way", [-1, 0, 1])
@pytest.mark.parametrize("name", toys.LEARNERS)
def test_fewer_than_two_classes_are_refused(name, way):
    with pytest.raises(ValueError, match=f"way={way}"):
        toys.LEARNERS[name][0](way)
