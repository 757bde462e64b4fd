"""What every set-sum operator must do; a new operator adds a row to `OPERATORS`."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lite_jax import batched, exact_sum, lite_sum, per_example, subsample_sum

N = 7
OPERATORS = {
    # name: (operator at a given H, is the value exact?, is it exact at H = N?)
    "exact": (lambda h: exact_sum(), True, True),
    "exact chunked": (lambda h: exact_sum(3), True, True),
    "lite": (lambda h: lite_sum(h), True, True),
    "lite chunked": (lambda h: lite_sum(h, 3), True, True),
    "lite with replacement": (
        lambda h: lite_sum(h, 3, "with_replacement"),
        True,
        False,
    ),
    "lite stratified": (lambda h: lite_sum(h, 3, "stratified"), True, True),
    "lite by sensitivity": (lambda h: lite_sum(h, None, "sensitivity"), True, True),
    "lite by both": (lambda h: lite_sum(h, 3, "stratified_sensitivity"), True, True),
    "subsample": (subsample_sum, False, True),
}
rows = pytest.mark.parametrize("name", OPERATORS)


def encode(args, example):
    """A term that is a pytree, of an example with integer leaves."""
    wave = jnp.sin(args["w"] @ example["x"])
    return {"wave": wave, "scaled": example["k"].astype(wave.dtype) * wave[:1] ** 2}


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    args = {"w": jnp.array(rng.normal(size=(4, 3))), "steps": jnp.int32(5)}
    examples = {
        "x": jnp.array(rng.normal(size=(N, 3))),
        "k": jnp.arange(N, dtype=jnp.int32),
        "labels": jnp.arange(N, dtype=jnp.int32) % 3,
    }
    return args, examples


def expected_sum(args, examples, mask):
    def term(n):
        return encode(args, jax.tree.map(lambda x: x[n], examples))

    kept = [term(n) for n in range(N) if mask[n]]
    return jax.tree.map(lambda *x: sum(x), *kept)


def loss_of(set_sum, mask=None):
    def loss(w, args, examples, key):
        total = set_sum(per_example(encode), {**args, "w": w}, examples, key, mask)
        return jnp.exp(total["wave"].mean()) + total["scaled"].sum()

    return loss


@rows
@pytest.mark.parametrize("masked", [False, True])
def test_value_is_the_masked_sum(name, masked, problem):
    make, value_is_exact, _ = OPERATORS[name]
    args, examples = problem
    mask = jnp.arange(N) % 3 != 1 if masked else jnp.ones(N, bool)
    num_backprop = 2 if value_is_exact else N
    found = make(num_backprop)(
        per_example(encode), args, examples, jax.random.key(0), mask if masked else None
    )
    chex.assert_trees_all_close(found, expected_sum(args, examples, mask), rtol=1e-12)


@rows
@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_gradient_at_h_equal_n(name, make_key, problem):
    make, _, exact_at_n = OPERATORS[name]
    args, examples = problem

    def plain(w):
        total = expected_sum({**args, "w": w}, examples, [True] * N)
        return jnp.exp(total["wave"].mean()) + total["scaled"].sum()

    found = jax.grad(loss_of(make(N)))(args["w"], args, examples, make_key(0))
    if exact_at_n:
        chex.assert_trees_all_close(found, jax.grad(plain)(args["w"]), rtol=1e-10)
    else:
        assert not np.allclose(found, jax.grad(plain)(args["w"]), rtol=1e-3)


@rows
def test_gradient_is_linear_in_the_cotangent(name, problem):
    """The draw must not depend on the cotangent: uniform rules are linear maps."""
    make, *_ = OPERATORS[name]
    args, examples = problem

    def pull_back(cotangent):
        _, vjp = jax.vjp(
            lambda w: make(3)(
                per_example(encode), {**args, "w": w}, examples, jax.random.key(4)
            )["wave"],
            args["w"],
        )
        return vjp(cotangent)[0]

    first, second = jnp.arange(4.0), jnp.array([1.0, -1.0, 0.5, 2.0])
    chex.assert_trees_all_close(
        pull_back(first) + 3 * pull_back(second),
        pull_back(first + 3 * second),
        rtol=1e-10,
    )


@rows
def test_jit_and_vmap_equal_eager(name, problem):
    make, *_ = OPERATORS[name]
    args, examples = problem
    masks = jnp.arange(N)[None, :] < jnp.array([7, 4, 1])[:, None]

    def gradient(mask, key):
        return jax.grad(loss_of(make(2), mask))(args["w"], args, examples, key)

    def keys():
        return jax.random.split(jax.random.key(0), 3)

    eager = jnp.stack([gradient(m, k) for m, k in zip(masks, keys(), strict=True)])
    jitted = jax.jit(gradient)
    one_by_one = jnp.stack([jitted(m, k) for m, k in zip(masks, keys(), strict=True)])
    chex.assert_trees_all_close(one_by_one, eager, rtol=1e-10)
    chex.assert_trees_all_close(jax.vmap(gradient)(masks, keys()), eager, rtol=1e-10)


@rows
def test_gradient_of_a_mean_over_tasks_is_the_mean_gradient(name, problem):
    make, *_ = OPERATORS[name]
    args, examples = problem
    tasks = jax.tree.map(lambda x: jnp.stack([x, x[::-1], x]), examples)
    loss = loss_of(make(3))

    def keys():
        return jax.random.split(jax.random.key(0), 3)

    def by_vmap(w):
        return jax.vmap(loss, (None, None, 0, 0))(w, args, tasks, keys()).mean()

    def by_scan(w):
        def add(total, task_and_key):
            return total + loss(w, args, *task_and_key) / 3, None

        return jax.lax.scan(add, jnp.zeros(()), (tasks, keys()))[0]

    def task(i):
        return jax.tree.map(lambda x: x[i], tasks)

    each = [jax.grad(loss)(args["w"], args, task(i), k) for i, k in enumerate(keys())]
    chex.assert_trees_all_close(jax.grad(by_vmap)(args["w"]), sum(each) / 3, rtol=1e-10)
    chex.assert_trees_all_close(jax.grad(by_scan)(args["w"]), sum(each) / 3, rtol=1e-10)


@rows
def test_sums_are_in_float32_at_least(name):
    make, *_ = OPERATORS[name]
    terms = {
        "x": jnp.full(N, 0.1, jnp.bfloat16),
        "labels": jnp.arange(N, dtype=jnp.int32),
    }

    def total(w, dtype):
        additive = batched(lambda w, terms: w.astype(dtype) * terms["x"].astype(dtype))
        return make(N)(additive, w, terms, jax.random.key(0))

    assert total(jnp.bfloat16(1), jnp.bfloat16).dtype == jnp.float32
    assert jax.grad(total)(jnp.bfloat16(1), jnp.bfloat16).dtype == jnp.bfloat16
    assert total(jnp.float64(1), jnp.float64).dtype == jnp.float64


@rows
def test_examples_get_no_gradient(name, problem):
    """Whatever the operator, gradient flows to `args` alone."""
    make, *_ = OPERATORS[name]
    args, examples = problem

    def loss(x):
        return loss_of(make(2))(
            args["w"], args, {**examples, "x": x}, jax.random.key(0)
        )

    assert not jnp.any(jax.grad(loss)(examples["x"]))


@rows
def test_rubbish_in_the_padding_does_not_count(name, problem):
    make, *_ = OPERATORS[name]
    args, examples = problem
    mask = jnp.arange(N) < 4
    rubbish = jnp.where(mask[:, None], examples["x"], jnp.nan)

    def both(x):
        return jax.value_and_grad(loss_of(make(4), mask))(
            args["w"], args, {**examples, "x": x}, jax.random.key(0)
        )

    chex.assert_trees_all_close(both(rubbish), both(examples["x"]), rtol=1e-12)


@pytest.mark.parametrize("name", [n for n in OPERATORS if not n.startswith("exact")])
def test_second_use_of_a_key_is_found(name, problem):
    make, *_ = OPERATORS[name]
    args, examples = problem

    def nested(w, key):
        first = make(2)(per_example(encode), {**args, "w": w}, examples, key)
        w = w * first["scaled"].sum()
        return make(2)(per_example(encode), {**args, "w": w}, examples, key)[
            "wave"
        ].sum()

    with pytest.raises(jax.errors.KeyReuseError):
        jax.jit(jax.grad(nested))(args["w"], jax.random.key(0))
