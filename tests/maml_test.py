"""MAML beyond the contract: inner rules, several steps, first order, the fine-tuner."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learners import EXACT, first_blocks, flat, relative_error

from lite_jax import (
    Examples,
    Task,
    UserError,
    episode_loss,
    exact_grad,
    exact_sum,
    finetuner,
    lite_grad,
    lite_sum,
    maml,
    nn,
)
from lite_jax.heads.class_means import LinearClassifier, linear_logits
from lite_jax.learners import inner_rules
from tests import toys

WAY = 3
SPEC = jax.ShapeDtypeStruct((2, 2, 1), jnp.float64)


SGD = inner_rules.sgd(0.5)


def made(learner):
    return learner, learner.init(jax.random.key(7), SPEC)


@functools.partial(jax.jit, static_argnums=3)
def by_hand(params, task, learning_rates, trained):
    """The inner loop as printed: full-batch gradient descent on chosen parameters."""
    net = toys.network()
    inner = {
        "backbone": params["backbone"],
        "head": params.get("head")
        or {"weights": jnp.zeros((WAY, 3)), "biases": jnp.zeros(WAY)},
    }

    def logits(inner, inputs):
        head = LinearClassifier(**inner["head"], present=jnp.ones(WAY, bool))
        return linear_logits(head, net.apply(inner["backbone"], inputs))

    def loss(inner, examples):
        return optax.softmax_cross_entropy_with_integer_labels(
            logits(inner, examples.inputs), examples.labels
        ).mean()

    for rate in learning_rates:
        gradient = jax.grad(loss)(inner, task.support)
        for name in trained:
            inner[name] = jax.tree.map(
                lambda x, g, rate=rate: x - rate * g, inner[name], gradient[name]
            )
    return logits(inner, task.query.inputs)


@functools.cache
def predictions(learner, set_sum):
    """Compiled: `(params, task, key) -> (task state, the query's logits)`."""

    def predict(params, task, key):
        state = learner.adapt(params, task.support, key, set_sum)
        return state, learner.predict(params, state, task.query.inputs)

    return jax.jit(predict)


RULES = {
    "sgd": (inner_rules.sgd(0.5), False, ("backbone", "head")),
    "anil": (inner_rules.anil(0.5), False, ("head",)),
    "boil": (inner_rules.boil(0.5), True, ("backbone",)),
    "learned_sgd": (inner_rules.learned_sgd(0.5), False, ("backbone", "head")),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_inner_steps_are_gradient_descent_on_what_the_rule_names(name, chunk_size):
    rule, learned_head, trained = RULES[name]
    learner, params = made(
        maml(toys.network(), way=WAY, steps=2, rule=rule, learned_head=learned_head)
    )
    task, key = toys.task(6), jax.random.key(0)
    state, found = predictions(learner, exact_sum(chunk_size))(params, task, key)
    expected = by_hand(params, task, [0.5, 0.5], trained)
    chex.assert_trees_all_close(found, expected, rtol=1e-9)
    for part in ("backbone", "head"):
        start = params.get(
            part, {"weights": jnp.zeros((WAY, 3)), "biases": jnp.zeros(3)}
        )
        moved = any(
            np.any(np.asarray(a) != np.asarray(b))
            for a, b in zip(
                jax.tree.leaves(state.inner_params[part]),
                jax.tree.leaves(start),
                strict=True,
            )
        )
        assert moved == (part in trained)


def test_step_sizes_are_learned_for_each_tensor_and_step():
    rule = inner_rules.learned_sgd(0.5)
    learner, params = made(maml(toys.network(), way=WAY, steps=2, rule=rule))
    sizes = params["inner_rule"]
    assert jax.tree.map(jnp.shape, sizes) == {
        "backbone": {"first": (2,), "second": (2,)},
        "head": {"weights": (2,), "biases": (2,)},
    }
    task, key = toys.task(6), jax.random.key(0)
    gradient = jax.jit(exact_grad(episode_loss(learner), has_aux=True))(
        params, task, key
    )[0]
    changed = jax.tree.map(lambda x: np.asarray(x) + [0.25, -0.25], sizes)
    expected = by_hand(params, task, [0.75, 0.25], ("backbone", "head"))
    changed = params | {"inner_rule": changed}
    found = predictions(learner, EXACT)(changed, task, jax.random.key(1))[1]
    chex.assert_trees_all_close(found, expected, rtol=1e-9)
    # A head that starts at 0 gives the body no gradient in the first step.
    assert float(gradient["inner_rule"]["backbone"]["first"][0]) == 0
    assert float(gradient["inner_rule"]["backbone"]["first"][1]) != 0
    assert np.all(np.asarray(gradient["inner_rule"]["head"]["weights"]) != 0)


def test_outer_gradient_agrees_with_finite_differences():
    learner, params = made(maml(toys.network(), way=WAY, steps=3, rule=SGD))
    loss_fn = functools.partial(episode_loss(learner), set_sum=exact_sum(4))
    run = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda x: rng.normal(size=x.shape), params)

    def loss(params):
        return run(params, toys.task(6), jax.random.key(0))

    def moved(size):
        at = jax.tree.map(lambda x, d: np.asarray(x) + size * d, params, direction)
        return float(loss(at)[0][0])

    slope = (moved(1e-5) - moved(-1e-5)) / 2e-5
    found = flat(loss(params)[1]) @ flat(direction)
    assert found == pytest.approx(slope, rel=1e-6)


def test_lite_is_unbiased_through_four_steps_by_monte_carlo():
    """|mean of 4000 draws - exact| within 4.5 standard errors, leaf by leaf."""
    learner, params = made(maml(toys.network(), way=WAY, steps=4, rule=SGD))
    task, loss_fn, draws = toys.task(6), episode_loss(learner), 4000
    exact = jax.jit(exact_grad(loss_fn, has_aux=True))(params, task, jax.random.key(0))[
        0
    ]
    lite = lite_grad(loss_fn, num_backprop=2, has_aux=True)

    @jax.jit
    def all_draws(params, task, seeds):
        def draw(seed):
            return lite(params, task, jax.random.wrap_key_data(seed))[0]

        return jax.lax.map(draw, seeds)

    seeds = jax.random.key_data(jax.random.split(jax.random.key(1), draws))
    each = all_draws(params, task, seeds)

    def z_score(found, expected):
        found = np.asarray(found)
        error = found.std(0) / draws**0.5
        assert error.min() > 0
        return np.abs((found.mean(0) - expected) / error).max()

    assert max(jax.tree.leaves(jax.tree.map(z_score, each, exact))) < 4.5


def test_first_order_is_the_gradient_at_the_adapted_parameters_whatever_the_draw(key):
    learner, params = made(
        maml(
            toys.network(),
            way=WAY,
            steps=2,
            rule=SGD,
            first_order=True,
        )
    )
    task, loss_fn = toys.task(6), episode_loss(learner)
    lite = jax.jit(lite_grad(loss_fn, num_backprop=1, has_aux=True))
    found = lite(params, task, key)[0]
    state, _ = predictions(learner, EXACT)(params, task, jax.random.key(1))

    def query_loss(inner, state, task):
        at = state._replace(inner_params=state.inner_params | {"backbone": inner})
        logits = learner.predict(params, at, task.query.inputs)
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, task.query.labels
        ).mean()

    expected = jax.jit(jax.grad(query_loss))(
        state.inner_params["backbone"], state, task
    )
    chex.assert_trees_all_close(found["backbone"], expected, rtol=1e-9)
    second = maml(toys.network(), way=WAY, steps=2, rule=SGD)
    full = jax.jit(exact_grad(episode_loss(second), has_aux=True))(
        params, task, jax.random.key(2)
    )
    assert relative_error(found, full[0]) > 1e-3


@pytest.mark.optimised
def test_memory_of_lite_maml_does_not_grow_with_the_support():
    """Compiled for 16-pixel images: a chunk at a time, at second order too."""
    learner = maml(first_blocks(nn.conv4(8), 1), way=5, steps=2)
    spec = jax.ShapeDtypeStruct((16, 16, 3), jnp.uint8)
    params = jax.eval_shape(lambda key: learner.init(key, spec), jax.random.key(0))

    def temp(operator, count):
        examples = Examples(
            jax.ShapeDtypeStruct((count, 16, 16, 3), jnp.uint8),
            jax.ShapeDtypeStruct((count,), jnp.int32),
            jax.ShapeDtypeStruct((count,), jnp.bool_),
        )
        loss = functools.partial(
            episode_loss(learner, query_chunk_size=4), set_sum=operator
        )
        step = jax.jit(jax.grad(loss, has_aux=True))
        with jax.numpy_dtype_promotion("standard"):
            lowered = step.lower(params, Task(examples, examples), jax.random.key(0))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    many, few = (temp(lite_sum(4, chunk_size=4), count) for count in (64, 16))
    assert many < 1.2 * few
    assert temp(exact_sum(), 64) > 10 * many  # all of the support at once


@pytest.mark.parametrize("steps", [0, -1])
@pytest.mark.parametrize("make", [maml, finetuner])
def test_no_inner_steps_are_refused(make, steps):
    with pytest.raises(UserError, match=f"steps={steps}.*1 or more"):
        make(toys.network(), way=WAY, steps=steps)


def test_a_rule_that_leaves_a_zero_head_is_refused():
    with pytest.raises(UserError, match="learned_head=True"):
        maml(toys.network(), way=WAY, rule=inner_rules.boil())


def test_film_asked_of_a_backbone_without_it_is_refused():
    with pytest.raises(UserError, match="FiLM"):
        maml(toys.network(), way=WAY, film=True)
    with pytest.raises(UserError, match="FiLM"):
        finetuner(toys.network(), way=WAY, film=True)


@pytest.mark.parametrize("rate", [0, -0.1, float("nan")])
@pytest.mark.parametrize("rule", [inner_rules.sgd, inner_rules.learned_sgd])
def test_a_step_size_that_is_not_positive_is_refused(rule, rate):
    with pytest.raises(UserError, match="learning_rate=.*expected > 0"):
        rule(rate)


# --------------------------------------------------------------------- fine-tuning


@pytest.mark.parametrize("optimizer", [optax.sgd(0.3), optax.sgd(0.1, momentum=0.9)])
def test_cached_features_give_the_head_that_full_passes_give(optimizer):
    """The same learner as a MAML whose rule adapts the head, from one pass not K."""
    task = toys.task(6, support_padding=2)
    quick = finetuner(toys.network(), way=WAY, steps=5, optimizer=optimizer)
    rule = inner_rules.optax_rule(optimizer, adapts=inner_rules.head_only)
    slow = maml(toys.network(), way=WAY, steps=5, rule=rule)
    params = quick.init(jax.random.key(7), SPEC)

    def logits(learner):
        return predictions(learner, exact_sum(4))(params, task, jax.random.key(0))[1]

    chex.assert_trees_all_close(logits(quick), logits(slow), rtol=1e-9)


def test_film_is_trained_at_test_time_where_asked():
    learner = finetuner(toys.film_network(), way=WAY, steps=3, film=True)
    params = learner.init(jax.random.key(7), SPEC)
    task = toys.task(6)
    state, _ = predictions(learner, EXACT)(params, task, jax.random.key(0))
    inner = jax.tree.map(np.asarray, state.inner_params)
    assert np.any(inner["film"]["scale"] != 1) and np.any(inner["head"]["weights"] != 0)
    chex.assert_trees_all_equal(inner["backbone"], params["backbone"])
