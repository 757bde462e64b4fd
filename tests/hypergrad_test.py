"""Hypergradient estimators against closed forms and dense solves, in float64."""

import functools
import logging

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from estimates import cosine, estimate, products_of, relative_error
from jax.sharding import Mesh, PartitionSpec

from lite_jax import UserError, lite_sum, per_example
from lite_jax.hypergrad import (
    Problem,
    conjugate_gradient,
    dense,
    identity,
    neumann,
    sama,
    unrolled,
)
from lite_jax.hypergrad.solvers import solve_by_conjugate_gradient as solve_cg
from tests import bilevel

# ------------------------------------------------------------------- exact answers


@pytest.mark.parametrize("make", [bilevel.ridge, bilevel.biased_regression])
@pytest.mark.parametrize(
    "estimator",
    [dense(), conjugate_gradient(8), conjugate_gradient(30, tolerance=1e-12),
     conjugate_gradient(8, mode="reverse"), neumann(2000, 0.3)],
    ids=["dense", "cg", "cg until converged", "reverse over reverse", "neumann"],
)  # fmt: skip
def test_closed_forms(make, estimator, key):
    problem, exact = make(key)
    found = estimate(estimator, *problem)
    assert relative_error(found.grads, exact) < 1e-8
    assert found.diagnostics["residual"] < 1e-8
    assert found.diagnostics["inner_grad_norm"] < 1e-12


@functools.cache
def solver():
    """One program for all systems of a size, whose steps are an argument."""

    @jax.jit
    def solve(hessian, target, steps):
        start = jnp.zeros_like(target)
        return solve_cg(lambda v: hessian @ v, target, start, steps, 0.0).vector

    return solve


@pytest.mark.parametrize("condition", [10, 100, 1000])
def test_conjugate_gradients_converge_as_their_bound_says(condition):
    """‖v_k − v‖_H ≤ 2 ρ^k ‖v‖_H; rounding asks for more steps than unknowns."""
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(rng.normal(size=(40, 40)))
    hessian = turn * np.geomspace(1 / condition, 1, 40) @ turn.T
    target = rng.normal(size=40)
    exact = np.linalg.solve(hessian, target)

    def size(vector):
        return np.sqrt(vector @ hessian @ vector)

    rate = (np.sqrt(condition) - 1) / (np.sqrt(condition) + 1)
    for steps in (15, 20, 30, 39):
        found = solver()(hessian, target, steps)
        bound = 2 * rate**steps
        assert bound < 1 and size(found - exact) < bound * size(exact)
    assert size(solver()(hessian, target, 80) - exact) < 1e-9 * size(exact)


@pytest.mark.parametrize("condition", [10, 1000])
def test_conjugate_gradients_of_many_steps_give_the_hypergradient(condition):
    problem, exact = bilevel.quadratic(condition)
    found = estimate(conjugate_gradient(80), *problem)
    assert relative_error(found.grads, exact) < 1e-9


def test_unrolled_steps_reach_the_hypergradient_and_all_ways_agree(key):
    problem, exact = bilevel.ridge(key)
    errors = []
    for steps in (5, 50, 500):
        found = estimate(unrolled(steps, optax.sgd(0.3)), *problem)
        errors.append(relative_error(found.grads, exact))
    assert errors[0] > errors[1] > errors[2] < 1e-8
    plain = estimate(unrolled(7, optax.sgd(0.3, momentum=0.9)), *problem).grads
    for options in (
        {"remat": True}, {"mixed_mode": True}, {"remat": True, "mixed_mode": True},
    ):  # fmt: skip
        same = estimate(unrolled(7, optax.sgd(0.3, momentum=0.9), **options), *problem)
        np.testing.assert_allclose(same.grads, plain, rtol=1e-10)


def test_neumann_is_unrolling_at_a_fixed_point(key):
    """K steps of size η at an inner solution are the series of K terms."""
    problem, _ = bilevel.ridge(key)
    for steps in (1, 4, 9):
        series = estimate(neumann(steps, 0.25), *problem).grads
        steps_taken = estimate(unrolled(steps, optax.sgd(0.25)), *problem).grads
        np.testing.assert_allclose(series, steps_taken, rtol=1e-9)


@pytest.fixture(scope="module")
def cleaning():
    fast, solution, weights, batches = bilevel.hyper_cleaning()
    problem = fast._replace(outputs=None, combine=None)
    exact = estimate(dense(), problem, solution, weights, batches)
    assert exact.diagnostics["inner_grad_norm"] < 1e-12
    return problem, fast, solution, weights, batches, exact.grads


def test_the_exact_gradient_of_hyper_cleaning_is_that_of_differences(cleaning):
    problem, _, solution, weights, batches, exact = cleaning
    direction = jnp.sin(jnp.arange(1000.0))
    start, unravel = jax.flatten_util.ravel_pytree(solution)

    @jax.jit
    def value(step):
        """Return the outer loss where the inner one is solved anew, by Newton."""
        moved = weights + step * direction

        def loss(x):
            return problem.inner(unravel(x), moved, batches[0], set_sum=None)

        def iterate(_, x):
            return x - jnp.linalg.solve(jax.hessian(loss)(x), jax.grad(loss)(x))

        again = unravel(jax.lax.fori_loop(0, 2, iterate, start))
        return problem.outer(again, moved, batches[1], set_sum=None)

    slope = (value(1e-4) - value(-1e-4)) / 2e-4
    np.testing.assert_allclose(exact @ direction, slope, rtol=1e-6)


# A table of the same estimators, measured independently: cosine and relative error.
@pytest.mark.parametrize(
    "estimator,published,error",
    [(identity(), 0.4835, 0.968), (conjugate_gradient(1), 0.4835, 0.877),
     (conjugate_gradient(3), 0.910, 0.414), (conjugate_gradient(5), 0.957, 0.292),
     (conjugate_gradient(10), 0.991, 0.134), (conjugate_gradient(20), 0.99995, 0.010),
     (conjugate_gradient(100), 1.0, 0.0),
     # The table counts Hessian products, which are one fewer than terms.
     (neumann(6, 1 / 0.6043), 0.843, 0.780), (neumann(21, 1 / 0.6043), 0.926, 0.504),
     (neumann(101, 1 / 0.6043), 0.976, 0.229),
     (neumann(1001, 1 / 0.6043), 0.9999, 0.014),
     (unrolled(5, optax.sgd(1 / 0.6043)), 0.815, 0.81),
     (unrolled(20, optax.sgd(1 / 0.6043), remat=True), 0.925, 0.52),
     (conjugate_gradient(400, 1e-3), 0.996, 0.11),
     (conjugate_gradient(400, 1e-2), 0.961, 0.40),
     (conjugate_gradient(400, 1e-1), 0.859, 0.81)],
    ids=["identity", "cg 1", "cg 3", "cg 5", "cg 10", "cg 20", "cg 100", "neumann 5",
         "neumann 20", "neumann 100", "neumann 1000",
         "itd 5", "itd 20", "1e-3", "1e-2", "1e-1"],
)  # fmt: skip
def test_the_table_of_hyper_cleaning(cleaning, estimator, published, error):
    problem, _, solution, weights, batches, exact = cleaning
    found = estimate(estimator, problem, solution, weights, batches).grads
    assert cosine(found, exact) == pytest.approx(published, abs=6e-4)
    assert relative_error(found, exact) == pytest.approx(error, abs=6e-3)


# ------------------------------------------------------------------------- products


def test_products_agree_in_all_forms(cleaning, key):
    problem, fast, solution, weights, batches, _ = cleaning
    keys = iter(jax.random.split(key, 2))
    vector = jax.tree.map(lambda x: jax.random.normal(next(keys), x.shape), solution)
    forms = [
        products_of(problem, solution, weights, batches),
        products_of(problem, solution, weights, batches, mode="reverse"),
        products_of(problem, solution, weights, batches, mode="sums"),
        products_of(fast, solution, weights, batches),
    ]
    hessians = [jax.jit(form.hessian)(vector) for form in forms]
    mixed = [jax.jit(form.mixed)(vector) for form in forms]
    for one in hessians[1:]:
        chex.assert_trees_all_close(one, hessians[0], rtol=1e-9, atol=1e-14)
    for one in mixed[1:]:
        np.testing.assert_allclose(one, mixed[0], rtol=1e-7, atol=1e-14)


def test_reverse_products_ask_for_no_forward_mode(key):
    """A product with a derivative rule of its own, as convolutions on CPU have."""

    @jax.custom_vjp
    def predict(a, w):
        return a @ w

    def pull(a, slope):
        return None, predict(a.T, slope)

    predict.defvjp(lambda a, w: (predict(a, w), a), pull)

    def squares(w, batch):
        a, y = batch
        return ((predict(a, w) - y) ** 2).mean() / 2

    def inner(w, t, batch, *, set_sum):
        return squares(w, batch) + (jnp.exp(t) * w**2).sum() / 2

    def outer(w, t, batch, *, set_sum):
        return squares(w, batch)

    case, exact = bilevel.ridge(key)
    case = case._replace(problem=Problem(inner, outer))
    found = estimate(conjugate_gradient(8, mode="reverse"), *case)
    assert relative_error(found.grads, exact) < 1e-8
    with pytest.raises(TypeError, match="custom_vjp"):
        estimate(conjugate_gradient(8), *case)


def test_differences_have_second_order_and_miss_a_stop_gradient(cleaning):
    problem, _, solution, weights, batches, _ = cleaning
    vector = jax.tree.map(lambda x: jnp.sin(jnp.arange(x.size * 1.0)), solution)
    vector = jax.tree.map(lambda v, x: v.reshape(x.shape), vector, solution)
    form = products_of(problem, solution, weights, batches)
    exact = jax.jit(form.mixed)(vector)
    by_differences = jax.jit(form.mixed_by_differences)
    errors = [
        relative_error(by_differences(vector, radius), exact) for radius in (1.0, 0.1)
    ]
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.1)

    def detached(w, t, batch, *, set_sum):  # weights from losses, without gradient
        images, labels = batch
        losses = bilevel.softmax_loss(images @ w["kernel"] + w["bias"][None], labels)
        return (jax.nn.sigmoid(t * jax.lax.stop_gradient(losses)) * losses).mean()

    form = products_of(Problem(detached, problem.outer), solution, weights, batches)
    gap = relative_error(form.mixed_by_differences(vector, 1e-4), form.mixed(vector))
    assert gap > 0.1


def sampled_problem():
    """A loss formed with `set_sum`, nonlinear in its sum."""

    def term(args, example):
        w, t = args
        x, y = example
        return jnp.exp(t) * jnp.cosh(x @ w - y)

    def inner(w, t, batch, *, set_sum):
        examples, key = batch
        return set_sum(per_example(term), (w, t), examples, key) ** 2 / 10

    return Problem(inner, lambda w, t, batch, *, set_sum: (w**2).sum())


def test_sampled_products_are_unbiased_for_a_given_vector(key):
    """Enumerated over all pairs of draws, one for each of the two sums."""
    problem, keys = sampled_problem(), jax.random.split(key, 4)
    examples = jax.random.normal(keys[0], (4, 3)), jax.random.normal(keys[1], (4,))
    w, t = jax.random.normal(keys[2], (3,)) / 3, jnp.float64(0.3)
    vector = jnp.array([1.0, -2.0, 0.5])
    exact = products_of(problem, w, t, ((examples, None), None))

    @jax.jit
    def sampled(words):
        form = products_of(
            problem, w, t, ((examples, words), None), set_sum=lite_sum(2, 3),
            mode="sums",
        )  # fmt: skip
        return form.hessian(vector), form.mixed(vector)

    words = jax.vmap(jax.random.key_data)(jax.random.split(keys[3], 3000))
    hessians, mixed = jax.lax.map(sampled, words)
    hessian, slope = jax.jit(lambda v: (exact.hessian(v), exact.mixed(v)))(vector)
    for draws, expected in ((hessians, hessian), (mixed[:, None], slope[None])):
        spread = 4.5 * draws.std(0) / np.sqrt(3000)
        assert (np.abs(draws.mean(0) - expected) < spread).all()
        assert (draws.std(0) > 0.1 * np.abs(expected)).all()
    whole = products_of(
        problem, w, t, ((examples, words[0]), None), set_sum=lite_sum(4, 3), mode="sums"
    )
    np.testing.assert_allclose(jax.jit(whole.hessian)(vector), hessian, rtol=1e-9)


def test_a_solve_with_sampled_products_uses_one_draw(key):
    """The operator of a loss linear in its sum is then symmetric, and solved."""

    def term(args, example):
        w, t = args
        x, y = example
        return jnp.exp(t) * jnp.cosh(x @ w - y)

    def inner(w, t, batch, *, set_sum):
        examples, key = batch
        return set_sum(per_example(term), (w, t), examples, key) + (w**2).sum()

    problem = Problem(inner, inner)
    keys = jax.random.split(key, 3)
    examples = jax.random.normal(keys[0], (6, 3)), jax.random.normal(keys[1], (6,))
    batch = (examples, jax.random.key_data(keys[2]))
    w, t = jnp.ones(3) / 4, jnp.float64(0.0)
    sampling = conjugate_gradient(3, set_sum=lite_sum(4, 2), mode="sums")
    found = estimate(sampling, problem, w, t, (batch, batch))
    assert found.diagnostics["residual"] < 1e-8  # 3 unknowns, one operator


# ------------------------------------------------------- warm starts, many devices


def test_a_warm_start_goes_on_where_the_last_call_ended(cleaning):
    problem, _, solution, weights, batches, exact = cleaning
    warm = conjugate_gradient(5, warm_start=True)
    hypergrad = jax.jit(functools.partial(warm.hypergrad, problem))
    state, errors = warm.init(solution, weights), []
    for _ in range(4):
        found = hypergrad(solution, weights, batches, state)
        state = found.state
        errors.append(relative_error(found.grads, exact))
    assert errors[0] == pytest.approx(0.292, abs=5e-3)
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.12
    # A start that is worse than none is not used.
    far = jax.tree.map(lambda x: 1e6 * jnp.ones_like(x), solution)
    found = hypergrad(solution, weights, batches, far)
    assert relative_error(found.grads, exact) == pytest.approx(errors[0], rel=1e-6)


@pytest.mark.parametrize(
    "make",
    [functools.partial(conjugate_gradient, 5), functools.partial(neumann, 5, 1.0),
     identity, functools.partial(sama, adaptation=False)],
    ids=["cg", "neumann", "identity", "sama"],
)  # fmt: skip
def test_sharded_batches_give_what_one_device_gives(cleaning, make):
    problem, _, solution, weights, batches, _ = cleaning
    shared = jnp.linspace(-1, 1, 10)

    def weighted(w, t, batch, *, set_sum):  # a weight a class, the same on all devices
        images, labels = batch
        losses = bilevel.softmax_loss(images @ w["kernel"] + w["bias"][None], labels)
        decay = sum((x**2).sum() for x in jax.tree.leaves(w))
        return (jax.nn.sigmoid(t)[labels] * losses).mean() + 1e-2 * decay

    problem = Problem(weighted, problem.outer)
    batches = jax.tree.map(lambda x: x[: len(x) // 8 * 8], batches)
    alone = estimate(make(), problem, solution, shared, batches).grads
    mesh = Mesh(np.array(jax.devices()[:4]), "d")

    def one_device(solution, meta, batches):
        estimator = make(axis_name="d")
        state = estimator.init(solution, meta)
        return estimator.hypergrad(problem, solution, meta, batches, state).grads

    spec = PartitionSpec("d")
    sharded = jax.jit(
        jax.shard_map(
            one_device, mesh=mesh, in_specs=(PartitionSpec(), PartitionSpec(), spec),
            out_specs=PartitionSpec(), check_vma=False,
        )
    )(solution, shared, batches)  # fmt: skip
    np.testing.assert_allclose(sharded, alone, rtol=1e-8)


def test_a_local_vector_is_near_and_not_the_same(cleaning):
    problem, _, solution, _, batches, _ = cleaning
    shared = jnp.linspace(-1, 1, 10)

    def weighted(w, t, batch, *, set_sum):
        images, labels = batch
        losses = bilevel.softmax_loss(images @ w["kernel"] + w["bias"][None], labels)
        return (jax.nn.sigmoid(t)[labels] * losses).mean()

    problem = Problem(weighted, problem.outer)
    found = {}
    for vector in ("global", "local"):
        estimator = sama(adaptation=False, axis_name="d", vector=vector)

        def one_device(batches, estimator=estimator):
            return estimator.hypergrad(problem, solution, shared, batches, ()).grads

        mesh, spec = Mesh(np.array(jax.devices()[:4]), "d"), PartitionSpec("d")
        run = jax.shard_map(
            one_device, mesh=mesh, in_specs=(spec,), out_specs=PartitionSpec(),
            check_vma=False,
        )  # fmt: skip
        found[vector] = jax.jit(run)(batches)
    assert 1e-3 < relative_error(found["local"], found["global"]) < 0.5
    assert cosine(found["local"], found["global"]) > 0.95


def test_tasks_are_vectorised(key):
    estimator = conjugate_gradient(8)
    keys = jax.random.split(key, 3)
    made = [bilevel.ridge(k) for k in keys]
    problem = made[0][0].problem
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *[(*m[0][1:], m[1]) for m in made])
    solutions, metas, batches, exact = stacked

    def one(solution, meta, batches):
        return estimator.hypergrad(problem, solution, meta, batches, ()).grads

    found = jax.vmap(one)(solutions, metas, batches)
    np.testing.assert_allclose(found, exact, rtol=1e-7)


# ------------------------------------------------------------------------ bad input


def flat_problem():
    def inner(y, x, batch, *, set_sum):
        return y @ x

    return Problem(inner, lambda y, x, batch, *, set_sum: ((y - 1) ** 2).sum())


def test_an_inner_problem_without_curvature_is_told_of(caplog):
    y = x = jnp.ones(3)
    with caplog.at_level(logging.WARNING, "lite_jax"):
        found = estimate(conjugate_gradient(3), flat_problem(), 2 * y, x, (None, None))
        jax.effects_barrier()
    assert "curvature 0 along" in caplog.text and "residual of 1 times b" in caplog.text
    assert jnp.isfinite(found.grads).all() and found.diagnostics["curvature"] == 0
    caplog.clear()
    damped = conjugate_gradient(3, damping=0.5)
    found = estimate(damped, flat_problem(), 2 * y, x, (None, None))
    jax.effects_barrier()
    assert not caplog.text
    np.testing.assert_allclose(found.grads, -2 * y / 0.5)  # v = b / damping


def test_negative_curvature_returns_what_was_found_before_it():
    hessian = jnp.diag(jnp.array([1.0, 2.0, -1.0]))
    target = jnp.array([1.0, 1.0, 0.1])
    solve = functools.partial(
        solve_cg, lambda v: hessian @ v, target, jnp.zeros(3), tolerance=0.0
    )
    found, before = solve(steps=10), solve(steps=2)
    assert found.curvature < 0 < before.curvature
    assert found.steps == 3  # the last one, along which H is negative, is not taken
    np.testing.assert_array_equal(found.vector, before.vector)
    residual = jnp.linalg.norm(hessian @ found.vector - target)
    residual = residual / jnp.linalg.norm(target)
    np.testing.assert_allclose(found.residual, residual, rtol=1e-12)
    assert residual < 0.3


def test_a_singular_system_keeps_its_best_iterate():
    """Rank 10 in 400 unknowns, b outside the range: the search runs away."""
    rng = np.random.default_rng(0)
    factor = jnp.array(rng.normal(size=(400, 10)), jnp.float32)
    target = jnp.array(rng.normal(size=400), jnp.float32)
    found = jax.jit(
        lambda b: solve_cg(lambda v: factor @ (factor.T @ v), b, 0 * b, 40, 0.0)
    )(target)
    assert jnp.isfinite(found.vector).all() and found.diverged
    assert jnp.linalg.norm(found.vector) < 1e3


def test_a_target_of_zero_has_the_solution_zero():
    found = solve_cg(lambda v: 2 * v, jnp.zeros(3), jnp.zeros(3), 5, 0.0)
    assert (found.vector == 0).all() and found.residual == 0


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: conjugate_gradient(0), "steps=0"),
        (lambda: conjugate_gradient(3, damping=-1.0), "damping=-1"),
        (lambda: neumann(0, 0.1), "steps=0"),
        (lambda: neumann(3, 0.0), "step_size=0"),
        (lambda: unrolled(0, optax.sgd(0.1)), "steps=0"),
        (lambda: sama(), "needs the optimizer"),
        (lambda: sama(optax.lion(1e-3)), "goes by the sign"),
        (lambda: sama(optax.sign_sgd(1e-3)), "goes by the sign"),
        (lambda: sama(adaptation=False, mixed="exakt"), "did you mean 'exact'"),
        (lambda: sama(adaptation=False, vector="loca"), "did you mean 'local'"),
        (lambda: sama(adaptation=False, radius=0.0), "radius=0"),
    ],
)
def test_settings_that_make_no_sense_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_meta_parameters_that_do_not_reach_the_inner_loss_are_an_error(key):
    (problem, solution, meta, batches), _ = bilevel.ridge(key)
    lost = problem._replace(inner=lambda w, t, batch, *, set_sum: (w**2).sum())
    with pytest.raises(UserError, match="does not depend on meta_params"):
        identity().hypergrad(lost, solution, meta, batches, ())


def test_losses_and_solutions_of_other_shapes_are_an_error(key):
    (problem, solution, meta, batches), _ = bilevel.ridge(key)
    with pytest.raises(UserError, match=r"cannot be evaluated at .*\(3,\)"):
        identity().hypergrad(problem, jnp.ones(3), meta, batches, ())
    vector = problem._replace(inner=lambda w, t, batch, *, set_sum: w * t)
    with pytest.raises(UserError, match=r"returns shapes \[\(8,\)\]: expected one"):
        identity().hypergrad(vector, solution, meta, batches, ())
