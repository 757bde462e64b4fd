"""iMAML, and SAMA for few-shot tasks: the implicit gradient of a network kept near."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from estimates import estimate
from learners import (
    filled,
    first_blocks,
    gradient,
    params_of,
    relative_error,
    task_of_images,
    temporary_bytes,
)

from lite_jax import (
    UserError,
    episode_grad,
    episode_loss,
    exact_sum,
    hypergrad,
    imaml,
    lite_sum,
    maml,
    nn,
)
from lite_jax.heads.class_means import LinearClassifier, linear_logits
from tests import toys

WAY = 3
BETA = 2.0
CONVERGED_SOLVER = hypergrad.conjugate_gradient(60)
CONVERGED = {"steps": 300, "optimizer": optax.sgd(0.3), "proximity": BETA}


@functools.cache
def learner(**options):
    return imaml(toys.network(), way=WAY, **(CONVERGED | options))


@pytest.mark.parametrize("learned_head", [False, True])
def test_the_gradient_is_that_of_the_solved_problem(learned_head):
    """Against finite differences of the loss at parameters that are solved anew."""
    made = learner(solver=CONVERGED_SOLVER, learned_head=learned_head)
    params = params_of(made)
    grads = gradient(made, params)
    loss = jax.jit(functools.partial(episode_loss(made), set_sum=exact_sum()))
    directions = jax.tree.map(lambda x: np.cos(np.arange(x.size)), params)

    def value(step):
        moved = jax.tree.map(
            lambda x, d: np.asarray(x) + step * d.reshape(x.shape), params, directions
        )
        return loss(moved, toys.task(), jax.random.key(0))[0]

    slope = (value(1e-5) - value(-1e-5)) / 2e-5
    parts = jax.tree.map(lambda g, d: np.ravel(g) @ d, grads, directions)
    np.testing.assert_allclose(sum(jax.tree.leaves(parts)), slope, rtol=1e-6)


def test_solvers_differ_and_the_identity_is_first_order_maml():
    exact = gradient(learner(solver=CONVERGED_SOLVER), params_of(learner()))
    series = learner(solver=hypergrad.neumann(300, 0.3))
    assert relative_error(gradient(series, params_of(series)), exact) < 1e-8
    # Without the pull to the start, two steps are those of MAML.
    near = imaml(
        toys.network(), way=WAY, steps=2, optimizer=optax.sgd(0.2), proximity=1e-12,
        solver=hypergrad.identity(),
    )  # fmt: skip
    rule = maml(
        toys.network(), way=WAY, steps=2, first_order=True,
        rule=toys.inner_rules.sgd(0.2),
    )  # fmt: skip
    params = params_of(near)
    identity = jax.tree.map(lambda x: x / 1e-12, gradient(near, params))
    assert relative_error(identity, gradient(rule, params)) < 1e-9
    assert relative_error(identity, exact) > 0.05


@pytest.mark.parametrize(
    "options",
    [
        {"solver": CONVERGED_SOLVER},
        {"solver": hypergrad.sama(CONVERGED["optimizer"]), "steps": 3},
    ],
    ids=["conjugate_gradient", "sama"],
)
def test_draws_do_not_change_the_gradient(options):
    made = learner(**options)
    params = params_of(made)
    exact = gradient(made, params)
    sampled = gradient(made, params, lite_sum(2, 2))
    assert relative_error(sampled, exact) < 1e-12


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys_of_every_type_give_the_same_gradient(impl):
    made = learner(solver=hypergrad.conjugate_gradient(5), steps=3)
    params = params_of(made)
    run = jax.jit(episode_grad(made, lite_sum(2, 2)))
    _, grads = run(params, toys.task(), jax.random.key(0, impl=impl))
    assert relative_error(grads, gradient(made, params)) < 1e-12


def test_negative_curvature_is_told_of(caplog):
    """A weak pull leaves the network's own curvature, which is not positive."""
    made = imaml(
        toys.network(), way=WAY, steps=1, proximity=1e-6,
        solver=hypergrad.conjugate_gradient(20), learned_head=True,
    )  # fmt: skip
    with caplog.at_level(logging.WARNING, "lite_jax"):
        grads = gradient(made, params_of(made))
        jax.effects_barrier()
    assert "add damping" in caplog.text
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(grads))


@functools.cache
def explicit_problem():
    """The same inner problem and query loss, written down for `hypergrad`."""
    network, present = toys.network(), jnp.ones(WAY, bool)

    def mean(inner, examples):
        features = network.apply(inner["backbone"], examples.inputs)
        logits = linear_logits(
            LinearClassifier(**inner["head"], present=present), features
        )
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, examples.labels
        ).mean()

    def inner(inner, start, support, *, set_sum):
        off = jax.tree.map(lambda x, y: ((x - y) ** 2).sum(), inner, start)
        return mean(inner, support) + BETA / 2 * sum(jax.tree.leaves(off))

    def outer(inner, start, query, *, set_sum):
        return mean(inner, query)

    return hypergrad.Problem(inner, outer)


def single(tree):
    """A tree in single precision."""
    return jax.tree.map(
        lambda x: jnp.asarray(x, jnp.float32) if x.dtype == np.float64 else x, tree
    )


@functools.cache
def two_steps(tx):
    """The explicit problem's start, where two steps lead, and the last of them."""
    problem, support = explicit_problem(), single(toys.task()).support
    start = single(params_of(learner(learned_head=True)))

    @jax.jit
    def step(inner, state, start):
        slope = jax.grad(functools.partial(problem.inner, set_sum=None))
        last = hypergrad.InnerStep(slope(inner, start, support), state, inner)
        updates, state = tx.update(last.grads, state, inner)
        return optax.apply_updates(inner, updates), state, last

    inner, state = start, tx.init(start)
    for _ in range(2):
        inner, state, last = step(inner, state, start)
    return start, inner, last


OPTIMIZERS = {"sgd": optax.sgd(0.3), "adamw": optax.adamw(0.05)}


@pytest.mark.parametrize(
    "name,make",
    [
        ("adamw", lambda tx: hypergrad.conjugate_gradient(3)),
        ("sgd", lambda tx: hypergrad.neumann(4, 0.1)),
        ("sgd", lambda tx: hypergrad.identity()),
        ("sgd", hypergrad.sama),
        ("adamw", hypergrad.sama),
    ],
    ids=["adamw-cg", "sgd-neumann", "sgd-identity", "sgd-sama", "adamw-sama"],
)
def test_it_is_its_solver_s_estimator_on_the_explicit_problem(
    as_users_run_it, name, make
):
    """Also where nothing has converged: after two steps, with three products."""
    tx, task = OPTIMIZERS[name], single(toys.task())
    solver = make(tx)
    made = imaml(
        toys.network(), way=WAY, steps=2, optimizer=tx, proximity=BETA,
        solver=solver, learned_head=True,
    )  # fmt: skip
    params, inner, last = two_steps(tx)
    found = estimate(
        solver, explicit_problem(), inner, params, task, inner_step=last,
    )  # fmt: skip
    error = relative_error(gradient(made, params, task=task), found.grads)
    assert error < 1e-4


NETWORK = first_blocks(nn.conv4(8), 1)


@pytest.mark.optimised
def test_memory_grows_neither_with_the_steps_nor_with_the_support(as_users_run_it):
    def bytes_of(steps, count=25):
        return temporary_bytes(imaml(NETWORK, way=5, steps=steps), count)

    base = bytes_of(2)
    assert bytes_of(50) < base * 1.01
    assert bytes_of(2, 100) < base * 1.05
    unrolled = [temporary_bytes(maml(nn.mlp(4), way=5, steps=s)) for s in (2, 50)]
    assert unrolled[1] > unrolled[0] + 40 * 4 * 1000  # a copy of the weights a step


@pytest.mark.parametrize(
    "make",
    [
        lambda tx: hypergrad.conjugate_gradient(5),
        lambda tx: hypergrad.neumann(5, 0.01),
        hypergrad.sama,
    ],
    ids=["conjugate_gradient", "neumann", "sama"],
)
def test_it_runs_on_a_network(as_users_run_it, make):
    tx = optax.adam(0.01)
    made = imaml(NETWORK, way=5, steps=2, optimizer=tx, solver=make(tx),
                 learned_head=True)  # fmt: skip
    image = jax.ShapeDtypeStruct((16, 16, 3), jnp.uint8)
    params = filled(
        jax.eval_shape(lambda key: made.init(key, image), jax.random.key(0))
    )
    run = jax.jit(episode_grad(made, exact_sum(5), query_chunk_size=5))
    (loss, aux), grads = run(params, task_of_images(25), jax.random.key(0))
    assert jnp.isfinite(loss) and 0 <= aux["accuracy"] <= 1
    assert set(grads) == {"backbone", "head"}
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(grads))
    assert any(jnp.abs(x).max() > 0 for x in jax.tree.leaves(grads["backbone"]))


@pytest.mark.parametrize(
    "options,message",
    [
        ({"solver": hypergrad.unrolled(2, optax.sgd(0.1))}, "solves for no vector"),
        (
            {"solver": hypergrad.sama(optax.sgd(0.1), nudge_base=True)},
            "or keeps a state",
        ),
        ({"solver": None}, "solver=None: expected an estimator"),
        ({"solver": hypergrad.neumann}, "expected an estimator"),
        ({"steps": 0}, "^steps=0"),
        ({"proximity": 0.0}, "proximity=0"),
    ],
)
def test_settings_that_make_no_sense_are_named(options, message):
    with pytest.raises(UserError, match=message):
        learner(**options)
