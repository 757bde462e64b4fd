"""What is not differentiated costs nothing, and trainers leave it as it is."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learners import filled

from lite_jax import (
    batched,
    episode_grad,
    exact_sum,
    lite_sum,
    simple_cnaps,
)
from lite_jax.run.train import init_state, make_train_step
from tests import toys


@jax.custom_vjp
def untouchable(x):
    """The identity, which refuses to be differentiated."""
    return x


def _refuse(residuals, cotangent):
    raise AssertionError("a frozen argument was differentiated")


untouchable.defvjp(lambda x: (x, None), _refuse)


def untouched(params, examples):
    return jnp.tanh(examples.inputs.reshape(len(examples.mask), -1) @ params["learned"]
                    * untouchable(params["frozen"]))  # fmt: skip


OPERATORS = {
    "exact": exact_sum(chunk_size=2),
    "lite": lite_sum(3, chunk_size=2),
    "lite without chunks": lite_sum(3),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_do_not_differentiate_what_is_not_asked_for(name, key):
    support = toys.task(6).support

    def loss(args, support, key):
        total = OPERATORS[name](batched(untouched), args, support, key, support.mask)
        return jnp.sin(total).sum()

    def of_learned(learned, frozen, *others):
        return loss({"learned": learned, "frozen": frozen}, *others)

    learned, frozen = jnp.array(np.full((4, 3), 1 / 3)), jnp.float64(0.7)
    found = np.asarray(jax.jit(jax.grad(of_learned))(learned, frozen, support, key))
    assert np.all(np.isfinite(found)) and np.any(found != 0)
    with pytest.raises(AssertionError, match="frozen argument"):
        asked = jax.grad(of_learned, argnums=1)
        jax.eval_shape(asked, learned, frozen, support, jax.random.key(1))


def test_an_unused_output_of_a_sum_has_a_zero_cotangent(key):
    """Symbolic zeros among the cotangents of an aggregate of several parts."""
    support = toys.task(6).support

    def additive(a, examples, weights):
        flat = examples.inputs.reshape(len(weights), -1)
        return {"used": weights @ flat * a, "unused": weights @ flat**2 * a}

    @jax.jit
    @jax.grad
    def gradient(a, support, key):
        total = lite_sum(6, chunk_size=2)(additive, a, support, key)
        return total["used"].sum()

    found = gradient(2.0, support, key)
    assert float(found) == pytest.approx(float(support.inputs.sum()), rel=1e-12)


def drawn(learner):
    """Parameters of the learner's shapes."""
    image = jax.ShapeDtypeStruct((2, 2, 1), jnp.float64)
    return filled(
        jax.eval_shape(lambda key: learner.init(key, image), jax.random.key(1))
    )


def test_gradient_of_a_learner_never_reaches_its_frozen_backbone(key):
    plain = toys.film_network()

    def apply(params, inputs, film=None):
        return plain.apply(jax.tree.map(untouchable, params), inputs, film)

    backbone = plain._replace(apply=apply)
    learner = simple_cnaps(backbone, way=3, embedding=toys.network(4), embedding_size=4)
    params, task = drawn(learner), toys.task(6)
    grad_fn = episode_grad(learner, lite_sum(3, chunk_size=2), query_chunk_size=3)
    _, grads = jax.jit(grad_fn)(params, task, key)
    assert set(grads) == {"set_encoder", "film"}
    chex.assert_tree_all_finite(grads)


def test_a_training_step_leaves_frozen_parameters_and_keeps_no_momentum_of_them(key):
    learner = simple_cnaps(
        toys.film_network(), way=3, embedding=toys.network(4), embedding_size=4
    )
    params = drawn(learner)
    optimizer = optax.sgd(0.1, momentum=0.9)
    state = init_state(optimizer, params, learner.frozen)
    names = ("set_encoder", "film")
    kept = sum(x.size for x in jax.tree.leaves(state.opt_state))
    learned = sum(x.size for k in names for x in jax.tree.leaves(params[k]))
    assert kept == learned  # one momentum each
    before = jax.device_get(params)
    step = make_train_step(episode_grad(learner, exact_sum(3)), optimizer)
    tasks = jax.tree.map(lambda x: np.stack([x, x]), toys.task(6))
    after = jax.device_get(step(state, tasks, key)[0].params)
    chex.assert_trees_all_equal(after["backbone"], before["backbone"])
    for name in names:
        pairs = zip(*map(jax.tree.leaves, (after[name], before[name])), strict=True)
        assert all(np.any(a != b) for a, b in pairs)
