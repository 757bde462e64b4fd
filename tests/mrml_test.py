"""MRML: the implicit gradient of a solved head, its memory, its switches."""

import functools
import logging

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from learners import gradient, params_of, task_of_images, temporary_bytes

from lite_jax import (
    Examples,
    Task,
    UserError,
    episode_grad,
    episode_loss,
    exact_sum,
    lite_sum,
    mrml,
    nn,
)
from lite_jax.heads.class_means import linear_logits
from lite_jax.heads.linear import SupportLabels, curvature_bound, head_loss, zero_head
from lite_jax.hypergrad import (
    conjugate_gradient,
    dense,
    identity,
    neumann,
    sama,
    unrolled,
)
from tests import toys

WAY = 3
CONVERGED = {"steps": 4000, "learning_rate": 0.5, "weight_decay": 0.1}


def learner(**options):
    return mrml(toys.network(), way=WAY, **(CONVERGED | options))


def test_the_gradient_is_that_of_the_solved_problem():
    """Against finite differences of the loss at heads that are solved anew."""
    made = learner(solver=conjugate_gradient(30))
    params = params_of(made)
    grads = gradient(made, params)
    loss = jax.jit(functools.partial(episode_loss(made), set_sum=exact_sum()))
    for leaf in range(len(jax.tree.leaves(params))):
        leaves, tree = jax.tree.flatten(params)
        direction = jnp.cos(jnp.arange(leaves[leaf].size * 1.0))
        direction = direction.reshape(leaves[leaf].shape)

        def value(step, leaf=leaf, leaves=leaves, tree=tree, direction=direction):
            moved = [x + step * direction if i == leaf else x
                     for i, x in enumerate(leaves)]  # fmt: skip
            return loss(jax.tree.unflatten(tree, moved), toys.task(), None)[0]

        slope = (value(1e-5) - value(-1e-5)) / 2e-5
        found = (jax.tree.leaves(grads)[leaf] * direction).sum()
        np.testing.assert_allclose(found, slope, rtol=1e-6)


@pytest.fixture(scope="module")
def exact_gradient():
    made = learner(solver=conjugate_gradient(40))
    return gradient(made, params_of(made))


@pytest.mark.parametrize(
    "solver,least,most",
    [
        (None, 0.0, 1e-7),
        (neumann(3000, 0.5), 0.0, 1e-7),
        (conjugate_gradient(2), 1e-6, 0.5),
        (conjugate_gradient(40, 1e-3), 1e-6, 0.05),
        (identity(), 0.1, 10.0),
        (dense(), 0.0, 1e-7),
    ],
    ids=["unrolled", "neumann", "2 steps", "damped", "identity", "dense"],
)
def test_solvers_agree_where_the_inner_problem_is_solved(
    solver, least, most, exact_gradient
):
    made = learner(solver=solver)
    found = gradient(made, params_of(made))
    assert least <= toys.relative_error(found, exact_gradient) < most


def fit_of(scale):
    """Return features of 3 classes, some of them padding, and what to fit to them."""
    keys = jax.random.split(jax.random.key(7), 2)
    table = scale * (1 + jax.random.normal(keys[0], (9, 5)))
    labels = jnp.arange(9, dtype=jnp.int32) % 3
    return table, SupportLabels(labels, jnp.arange(9) < 7, jnp.ones(3, bool))


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_the_curvature_of_the_head_is_bounded(scale):
    """By the dense Hessian at the flat start, at random heads and at an even split."""
    table, fit = fit_of(scale)
    bound = curvature_bound(table, fit, 0.1)
    start, unravel = ravel_pytree(zero_head(3, table))

    @jax.jit
    def largest(head):
        hessian = jax.hessian(lambda x: head_loss(unravel(x), table, fit, 0.1))(head)
        return jnp.linalg.eigvalsh(hessian)[-1]

    even = start.at[-1].set(-40.0)  # the third class is out of the question
    heads = [jax.random.normal(jax.random.key(i), start.shape) for i in range(4)]
    found = [float(largest(head)) for head in (start, even, *heads)]
    assert max(found) < bound
    assert max(found) > 0.7 * bound  # and not by much: features of one sign


@pytest.fixture(scope="module")
def losses_of_heads():
    """The inner loss of the flat start, of plain steps, and of adapted heads."""
    support, rate = toys.task().support, CONVERGED["learning_rate"]

    @jax.jit
    def losses(params):
        table = toys.network().apply(params["backbone"], support.inputs)
        fit = SupportLabels(support.labels, support.mask, jnp.ones(WAY, bool))

        def loss(head):
            return head_loss(head, table, fit, CONVERGED["weight_decay"])

        def adapted(**options):
            made = learner(steps=50, **options)
            found = made.adapt(params, support, jax.random.key(0), exact_sum())
            return {"weights": found.weights, "biases": found.biases}

        def descent(_, head):
            return jax.tree.map(lambda x, g: x - rate * g, head, jax.grad(loss)(head))

        start = zero_head(WAY, table)
        plain = jax.lax.fori_loop(0, 50, descent, start)
        return {
            "start": loss(start), "plain": loss(plain), "adapted": loss(adapted()),
            "heads": (plain, adapted(solver=None)),
        }  # fmt: skip

    return losses


@pytest.mark.parametrize("scale", [30.0, 1000.0])
def test_inner_steps_do_not_overshoot_however_large_the_features(
    scale, losses_of_heads
):
    """Where steps as long as they are told to be, which ITD takes, end far above."""
    params = params_of(learner())
    params["backbone"]["second"] = scale * params["backbone"]["second"]
    found = losses_of_heads(params)
    chex.assert_trees_all_close(*found["heads"], rtol=1e-12)
    assert found["adapted"] < found["start"] < found["plain"]


def test_a_learned_start_has_a_gradient_and_the_default_has_none():
    made = learner(learned_head=True, steps=3)
    params = params_of(made)
    grads = gradient(made, params)
    assert set(grads) == {"backbone", "head"}
    # The loss's derivative by the head that three steps end at, by finite differences.
    task, key = toys.task(), jax.random.key(0)
    state = made.adapt(params, task.support, key, exact_sum())

    @jax.jit
    def loss(weights):
        features = toys.network().apply(params["backbone"], task.query.inputs)
        logits = linear_logits(state._replace(weights=weights), features)
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, task.query.labels
        ).mean()

    shape = state.weights.shape
    direction = jnp.cos(jnp.arange(state.weights.size * 1.0)).reshape(shape)
    slope = loss(state.weights + 1e-5 * direction)
    slope = (slope - loss(state.weights - 1e-5 * direction)) / 2e-5
    found = jnp.vdot(grads["head"]["weights"].astype(slope.dtype), direction)
    np.testing.assert_allclose(found, slope, rtol=1e-5)
    assert set(gradient(learner(steps=3), params_of(learner()))) == {"backbone"}


def test_the_series_takes_no_longer_steps_than_the_descent(exact_gradient):
    """At a step of 1000 it would diverge at once, and the best partial sum be 0."""
    made = learner(solver=neumann(3000, 1000.0))
    found = gradient(made, params_of(made))
    assert toys.relative_error(found, exact_gradient) < 1e-7


@pytest.mark.optimised
def test_memory_does_not_grow_with_the_inner_steps(as_users_run_it):
    def bytes_of(**options):
        return temporary_bytes(mrml(toys.network(8), way=5, **options))

    few, many = (bytes_of(steps=steps) for steps in (5, 500))
    assert many == few
    few, many = (bytes_of(steps=s, solver=None) for s in (5, 500))
    assert many > few + 400 * 5 * 8  # every step's head at least


def test_it_runs_with_lite_on_a_network(as_users_run_it):
    made = mrml(nn.conv4(8), way=5)
    spec = jax.ShapeDtypeStruct((16, 16, 3), jnp.uint8)
    params = jax.jit(made.init, static_argnums=1)(jax.random.key(0), spec)
    run = jax.jit(episode_grad(made, lite_sum(5, 5), query_chunk_size=5))
    task = task_of_images(25)
    (loss, aux), grads = run(params, task, jax.random.key(0))
    whole = jax.jit(functools.partial(episode_loss(made), set_sum=exact_sum()))
    expected, other = whole(params, task, jax.random.key(0))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert aux["accuracy"] == other["accuracy"]
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(grads))
    learned = {
        bool((x != 0).any())
        for path, x in jax.tree_util.tree_leaves_with_path(grads)
        if path[-1].key == "kernel"
    }
    assert learned == {True}


def test_an_inner_problem_without_curvature_is_told_of(caplog):
    """Two support images span two of four features: the rest of the head is free."""
    made = learner(weight_decay=0.0, steps=5, solver=conjugate_gradient(30))
    images = jax.random.normal(jax.random.key(3), (8, 2, 2, 1))
    labels = jnp.arange(8, dtype=jnp.int32) % 2
    everything = Examples(images, labels, jnp.ones(8, bool))
    support = jax.tree.map(lambda x: x[:2], everything)
    with caplog.at_level(logging.WARNING, "lite_jax"):
        run = jax.jit(episode_grad(made, exact_sum()))
        task = Task(support, everything)
        _, grads = run(params_of(made), task, jax.random.key(0))
        jax.effects_barrier()
    assert "add damping, or a regulariser" in caplog.text
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    "options,message",
    [
        ({"solver": unrolled(2, optax.sgd(0.1))}, "solves for no vector"),
        ({"solver": conjugate_gradient(2, warm_start=True)}, "keeps a state"),
        ({"solver": sama(optax.sgd(0.1))}, "needs the last inner update"),
        ({"solver": "conjugate_gradient"}, "expected an estimator of lite_jax"),
        ({"weight_decay": float("nan")}, "weight_decay=nan"),
        ({"steps": 2.5}, "steps=2.5: expected a whole number"),
        ({"steps": 0}, "^steps=0"),
        ({"weight_decay": -1.0}, "weight_decay=-1"),
        ({"learning_rate": 0.0}, "learning_rate=0"),
    ],
)
def test_settings_that_make_no_sense_are_named(options, message):
    with pytest.raises(UserError, match=message):
        learner(**options)
