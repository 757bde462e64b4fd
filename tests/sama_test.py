"""SAMA's adaptation and mixed products, in single precision as users run them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from estimates import estimate, products_of, relative_error

from experiments.sama import text_encoder_step, texts
from lite_jax import UserError, exact_sum, hypergrad
from lite_jax.apps.reweight.training import reweighting_problem
from lite_jax.apps.reweight.weightings import per_example_weighting
from lite_jax.hypergrad import InnerStep, Problem, identity, sama
from lite_jax.run import memory_budget
from tests import bilevel

pytestmark = pytest.mark.usefixtures("as_users_run_it")


@pytest.fixture(scope="module")
def cleaning(as_users_run_it):
    problem, *rest = bilevel.hyper_cleaning()
    return problem._replace(outputs=None, combine=None), *rest


# ----------------------------------------------------------------------- adaptation


TRANSFORMS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adam": optax.adam(1e-2),
    "adamw, clipped": optax.chain(
        optax.clip_by_global_norm(0.5), optax.adamw(1e-2, weight_decay=0.1)
    ),
    "rmsprop": optax.rmsprop(1e-2),
    "adagrad": optax.adagrad(1e-2),
    "scheduled": optax.adam(optax.cosine_decay_schedule(1e-2, 10)),
}


def after_some_steps(transform, params, count=3):
    state = transform.init(params)
    for i in range(count):
        grads = jax.tree.map(lambda x, i=i: jnp.sin(x * (i + 2) + 0.4), params)
        step = InnerStep(grads, state, params)
        updates, state = transform.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return step


@pytest.mark.parametrize("name", TRANSFORMS)
def test_adaptation_is_the_derivative_of_the_update(name):
    transform = TRANSFORMS[name]
    params = jnp.linspace(-1, 1, 7)
    vector = np.cos(np.arange(7.0, dtype=np.float32))
    along = 1e-3 * np.eye(7, dtype=np.float32)[0]

    @jax.jit
    def run(params, vector, along):
        step = after_some_steps(transform, params)

        def update(grads):
            return transform.update(grads, step.opt_state, step.params)[0]

        jacobian = jax.jacrev(update)(step.grads)
        ahead, behind = (update(step.grads + x) for x in (along, -along))
        return hypergrad.adapted(transform, step, vector), jacobian, ahead - behind

    found, jacobian, difference = map(np.asarray, run(params, vector, along))
    np.testing.assert_allclose(found, -vector @ jacobian, rtol=1e-4, atol=1e-8)
    by_differences = -difference / 2e-3
    np.testing.assert_allclose(by_differences @ vector, found[0], rtol=2e-2, atol=1e-5)


@pytest.mark.parametrize("name", ["adam", "adamw, clipped", "rmsprop", "adagrad"])
def test_adaptation_is_finite_where_nothing_ever_happened(name):
    transform, params = TRANSFORMS[name], jnp.linspace(-1, 1, 5)

    @jax.jit
    def run(params, grads):
        step = InnerStep(grads, transform.init(params), params)
        return hypergrad.adapted(transform, step, jnp.ones(5))

    found = np.asarray(run(params, jnp.array([0.0, 0.3, 0.0, -0.2, 0.1])))
    assert np.isfinite(found).all()
    if name.startswith("adam"):  # the root of moments that are 0 has no derivative
        assert found[0] == found[2] == 0
    assert np.abs(found[[1, 3, 4]]).max() > 0


def test_a_gradient_of_exactly_zero_does_not_hide_a_parameter():
    """As of a ReLU that is dead on the support and not on the query."""
    step = InnerStep(jnp.zeros(3), optax.sgd(0.1).init(jnp.zeros(3)), jnp.zeros(3))
    found = hypergrad.adapted(optax.sgd(0.1), step, jnp.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(found, [0.1, 0.2, 0.3], rtol=1e-6)


def test_an_optimizer_that_waits_for_several_gradients_is_accepted():
    hypergrad.check_adaptation(optax.MultiSteps(optax.adam(0.1), 4))
    with pytest.raises(UserError, match="goes by the sign"):
        hypergrad.check_adaptation(optax.MultiSteps(optax.lion(0.1), 4))


def test_sama_without_adaptation_is_the_identity(cleaning):
    problem, solution, weights, batches = cleaning
    plain = estimate(identity(), problem, solution, weights, batches).grads
    same = estimate(sama(adaptation=False), problem, solution, weights, batches)
    np.testing.assert_allclose(same.grads, plain, rtol=1e-12)
    by_differences = sama(adaptation=False, mixed="finite_difference", radius=0.1)
    near = estimate(by_differences, problem, solution, weights, batches).grads
    assert 1e-6 < relative_error(near, plain) < 1e-2


def test_sama_is_the_adapted_vectors_mixed_product(key):
    problem, _ = bilevel.ridge(key)
    transform = optax.adam(1e-2)
    step = jax.jit(functools.partial(after_some_steps, transform))(problem.solution)
    found = estimate(
        sama(transform, nudge_base=True, radius=0.2), *problem, inner_step=step
    )

    @jax.jit
    def by_parts(solution, meta, batches, step):
        form = products_of(problem.problem, solution, meta, batches)
        target, direct = form.outer_grads()
        vector = hypergrad.adapted(transform, step, target)
        return direct - form.mixed(vector), vector

    expected, vector = by_parts(*problem[1:], step)
    np.testing.assert_allclose(found.grads, expected, rtol=1e-4, atol=1e-7)
    inner_grad_norm = found.diagnostics["inner_grad_norm"]
    np.testing.assert_allclose(inner_grad_norm, np.linalg.norm(step.grads), rtol=1e-6)
    nudge = np.asarray(found.state)
    np.testing.assert_allclose(np.linalg.norm(nudge), 0.2, rtol=1e-4)
    assert nudge @ np.asarray(vector) < 0


def test_the_diagnostics_of_a_known_step_cost_no_pass(cleaning):
    """Compiled with all it returns, and with the hypergradient alone."""
    problem, solution, weights, batches = cleaning
    transform = optax.adam(1e-2)
    step = jax.eval_shape(functools.partial(after_some_steps, transform), solution)
    estimator = sama(transform)

    def operations(returned):
        def run(solution, weights, batches, step):
            return returned(
                estimator.hypergrad(
                    problem, solution, weights, batches, (), inner_step=step
                )
            )

        program = jax.jit(run).lower(solution, weights, batches, step).compile()
        return program.cost_analysis()["flops"]

    everything, alone = operations(lambda x: x), operations(lambda x: x.grads)
    assert everything < 1.02 * alone


def test_finite_differences_fail_in_bfloat16_and_exact_products_do_not(cleaning):
    problem, solution, weights, batches = cleaning

    def inner(w, t, batch, *, set_sum):
        images, labels = batch
        w = jax.tree.map(lambda x: x.astype(jnp.bfloat16), w)
        logits = images.astype(jnp.bfloat16) @ w["kernel"] + w["bias"][None]
        losses = bilevel.softmax_loss(logits.astype(jnp.float32), labels)
        return (jax.nn.sigmoid(t) * losses).mean()

    @jax.jit
    def products(solution, weights, batches):
        exact = products_of(problem, solution, weights, batches)
        vector = exact.outer_grads()[0]
        rounded, low_vector = jax.tree.map(
            lambda x: x.astype(jnp.bfloat16), (solution, vector)
        )
        low = products_of(Problem(inner, problem.outer), rounded, weights, batches)
        differences = low.mixed_by_differences(low_vector, 0.01)
        return exact.mixed(vector), low.mixed(low_vector), differences

    expected, low, differences = products(solution, weights, batches)
    assert relative_error(low, expected) < 0.01
    assert relative_error(differences, expected) > 0.2


def test_sama_needs_the_last_step(key):
    problem, _ = bilevel.ridge(key)
    with pytest.raises(UserError, match="needs inner_step=InnerStep"):
        sama(optax.adam(1e-2)).hypergrad(*problem, ())


# --------------------------------------------------------------------------- memory


@pytest.mark.optimised
def test_memory_is_that_of_one_product_and_not_of_what_runs_beside_it():
    """XLA would compute what does not wait for the vector ahead, and keep it."""
    networks = []

    def arrays():
        network, step = text_encoder_step(16, 1)
        networks.append(network)
        return step.params, jnp.zeros(8), texts(8), step

    arguments = jax.eval_shape(arrays)
    problem = reweighting_problem(networks[0].apply, per_example_weighting())

    def mib(function):
        program = jax.jit(function).lower(*arguments).compile()
        return memory_budget.temporary_bytes(program) / 2**20

    def of(estimator):
        def run(params, weights, batches, step):
            return estimator.hypergrad(
                problem, params, weights, batches, (), inner_step=step
            )

        return mib(run)

    def gradient(params, weights, batches, step):
        return jax.grad(problem.inner)(params, weights, batches[0], set_sum=exact_sum())

    adam = optax.adam(1e-2)
    one, by_differences = mib(gradient), of(sama(adam, mixed="finite_difference"))
    exact, solved = of(sama(adam)), of(hypergrad.conjugate_gradient(5, 100.0))
    assert one < exact < 1.1 * by_differences
    assert exact < 1.5 * one
    assert of(identity()) < 1.5 * one
    assert solved < 3.5 * one
