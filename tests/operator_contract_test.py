"""What every set-sum operator must do; a new operator adds a row to `OPERATORS`."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lite_jax import Pooled, exact_sum, lite_sum, subsample_sum
from lite_jax.lite.additive import weighted_sum

pytestmark = pytest.mark.optimised

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


@functools.partial(jax.jit, static_argnames="mask")
def expected_sum(args, examples, mask=(True,) * N):
    """The sum of the examples in the mask, one by one."""

    def term(n):
        return encode(args, jax.tree.map(lambda x: x[n], examples))

    kept = [term(n) for n in range(N) if mask[n]]
    return jax.tree.map(lambda *x: sum(x), *kept)


def pool(terms, examples, weights):
    """A plain sum that does not say so: sensitivity warns of `per_example`'s."""
    return weighted_sum(terms, examples, weights)


TERMS = Pooled(jax.vmap(encode, (None, 0)), pool)


def loss_of(set_sum):
    def loss(w, args, examples, key, mask=None):
        total = set_sum(TERMS, {**args, "w": w}, examples, key, mask)
        return jnp.exp(total["wave"].mean()) + total["scaled"].sum(), total

    return loss


def gradient_of(set_sum):
    """`(w, args, examples, key, mask) -> ((loss, sum), gradient)`."""
    return jax.value_and_grad(loss_of(set_sum), has_aux=True)


@functools.cache
def compiled(name, num_backprop):
    make, *_ = OPERATORS[name]
    return jax.jit(gradient_of(make(num_backprop)))


def first(count):
    return jnp.arange(N) < count


@rows
def test_value_is_the_sum(name, problem):
    args, examples = problem
    (_, found), _ = compiled(name, N)(args["w"], args, examples, jax.random.key(0))
    chex.assert_trees_all_close(found, expected_sum(args, examples), rtol=1e-12)


@rows
def test_value_is_the_sum_of_what_the_mask_holds(name, problem):
    value_is_exact = OPERATORS[name][1]
    args, examples = problem
    kept = [0, 2, 3, 5] if value_is_exact else [2, 5]  # H = 2 are all
    mask = tuple(n in kept for n in range(N))
    (_, found), _ = compiled(name, 2)(
        args["w"], args, examples, jax.random.key(0), jnp.array(mask)
    )
    chex.assert_trees_all_close(found, expected_sum(args, examples, mask), rtol=1e-12)


@pytest.mark.parametrize("name", [n for n in OPERATORS if n.startswith("lite")])
def test_value_beside_the_gradient_is_that_of_the_exact_sum_bit_for_bit(name, problem):
    """But for rounding where features are pooled apart, because the draw reads them."""
    chunked = name not in ("lite", "lite by sensitivity")
    args, examples = problem
    inputs = args["w"], args, examples
    found, _ = compiled(name, N)(*inputs, jax.random.key(0))
    exact = compiled("exact chunked" if chunked else "exact", N)
    expected, _ = exact(*inputs, jax.random.key(0))
    if name in ("lite by sensitivity", "lite by both"):
        chex.assert_trees_all_close(found, expected, rtol=1e-14)
    else:
        chex.assert_trees_all_equal(found, expected)


@rows
@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_gradient_at_h_equal_n(name, make_key, problem):
    exact_at_n = OPERATORS[name][2]
    args, examples = problem

    @jax.jit
    @jax.grad
    def plain(w):
        total = expected_sum({**args, "w": w}, examples)
        return jnp.exp(total["wave"].mean()) + total["scaled"].sum()

    _, found = compiled(name, N)(args["w"], args, examples, make_key(0))
    if exact_at_n:
        chex.assert_trees_all_close(found, plain(args["w"]), rtol=1e-10)
    else:
        assert not np.allclose(found, plain(args["w"]), rtol=1e-3)


@rows
def test_gradient_is_linear_in_the_cotangent(name, problem):
    """The draw must not depend on the cotangent: uniform rules are linear maps."""
    make, *_ = OPERATORS[name]
    args, examples = problem

    @jax.jit
    def pull_back(cotangent):
        _, vjp = jax.vjp(
            lambda w: make(3)(TERMS, {**args, "w": w}, examples, jax.random.key(4))[
                "wave"
            ],
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
    run, masks = gradient_of(make(2)), jnp.stack([first(7), first(4), first(1)])

    def gradient(program, mask, key):
        return program(args["w"], args, examples, key, mask)[1]

    def keys():
        return jax.random.split(jax.random.key(0), 3)

    jitted = functools.partial(gradient, compiled(name, 2))
    one_by_one = jnp.stack([jitted(*pair) for pair in zip(masks, keys(), strict=True)])
    eager = gradient(run, masks[1], keys()[1])
    chex.assert_trees_all_close(one_by_one[1], eager, rtol=1e-10)
    together = jax.jit(jax.vmap(functools.partial(gradient, run)))(masks, keys())
    chex.assert_trees_all_close(together, one_by_one, rtol=1e-10)


@rows
def test_gradient_of_a_mean_over_tasks_is_the_mean_gradient(name, problem):
    make, *_ = OPERATORS[name]
    args, examples = problem
    tasks = jax.tree.map(lambda x: jnp.stack([x, x[::-1], x]), examples)

    def loss(w, args, examples, key):
        return loss_of(make(N - 1))(w, args, examples, key)[0]

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

    one = jax.jit(jax.grad(loss))
    each = [one(args["w"], args, task(i), k) for i, k in enumerate(keys())]
    for mean in (by_vmap, by_scan):
        found = jax.jit(jax.grad(mean))(args["w"])
        chex.assert_trees_all_close(found, sum(each) / 3, rtol=1e-10)


@rows
def test_sums_are_in_float32_at_least(name):
    make, *_ = OPERATORS[name]
    terms = {
        "x": jnp.full(N, 0.1, jnp.bfloat16),
        "labels": jnp.arange(N, dtype=jnp.int32),
    }

    def total(w, dtype):
        def scaled(w, terms):
            return w.astype(dtype) * terms["x"].astype(dtype)

        return make(N)(Pooled(scaled, pool), w, terms, jax.random.key(0))

    def dtype_of(fun, dtype):
        return jax.eval_shape(lambda w: fun(w, dtype), dtype(1)).dtype

    assert dtype_of(total, jnp.bfloat16) == jnp.float32
    assert dtype_of(jax.grad(total), jnp.bfloat16) == jnp.bfloat16
    assert dtype_of(total, jnp.float64) == jnp.float64


@functools.cache
def by_examples(name, num_backprop, linear=False):
    """The gradient by the examples; with `linear`, of a loss linear in the sum."""
    make, *_ = OPERATORS[name]

    def loss(x, args, examples, key, mask):
        changed = {**examples, "x": x}
        loss, total = loss_of(make(num_backprop))(args["w"], args, changed, key, mask)
        return sum(x.sum() for x in total.values()) if linear else loss

    return jax.jit(jax.grad(loss))


@rows
def test_gradient_by_examples_at_h_equal_n(name, problem):
    args, examples = problem
    inputs = examples["x"], args, examples, jax.random.key(0)
    found = by_examples(name, N)(*inputs, first(5))
    expected = by_examples("exact", N)(*inputs, first(5))
    assert not jnp.any(expected[5:]) and jnp.all(jnp.any(expected[:5] != 0, axis=1))
    assert not jnp.any(found[5:])  # of padding
    if OPERATORS[name][2]:
        chex.assert_trees_all_close(found, expected, rtol=1e-10)
    else:
        assert not np.allclose(found, expected, rtol=1e-3)


@rows
def test_gradient_by_examples_is_that_of_the_drawn_and_unbiased(name, problem):
    """The mean of 2000 draws, within six of its standard errors."""
    args, examples = problem
    keys = jax.random.split(jax.random.key(3), 2000)
    run = jax.vmap(by_examples(name, 2, linear=True), (None, None, None, 0, None))
    found = run(examples["x"], args, examples, keys, first(5))
    if name.startswith("exact"):
        chex.assert_trees_all_close(found.std(0), jnp.zeros((N, 3)), atol=1e-12)
    else:
        drawn = jnp.any(found != 0, axis=2).sum(1)
        assert drawn.max() == 2 and drawn.min() >= 1
    expected = by_examples("exact", N, linear=True)(
        examples["x"], args, examples, jax.random.key(0), first(5)
    )
    error = jnp.abs(found.mean(0) - expected)
    assert jnp.all(error <= 6 * found.std(0) / len(keys) ** 0.5 + 1e-12)


@rows
def test_rubbish_in_the_padding_does_not_count(name, problem):
    args, examples = problem
    rubbish = jnp.where(first(4)[:, None], examples["x"], jnp.nan)

    def both(x):
        changed = {**examples, "x": x}
        return compiled(name, 2)(args["w"], args, changed, jax.random.key(0), first(4))

    chex.assert_trees_all_equal(both(rubbish), both(examples["x"]))


@pytest.mark.parametrize("name", [n for n in OPERATORS if not n.startswith("exact")])
def test_second_use_of_a_key_is_found(name, problem):
    make, *_ = OPERATORS[name]
    args, examples = problem

    def nested(w, key):
        first = make(2)(TERMS, {**args, "w": w}, examples, key)
        w = w * first["scaled"].sum()
        return make(2)(TERMS, {**args, "w": w}, examples, key)["wave"].sum()

    with pytest.raises(jax.errors.KeyReuseError):
        jax.jit(jax.grad(nested)).trace(args["w"], jax.random.key(0))
