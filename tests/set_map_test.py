"""Maps over a set: any loss of the rows, unbiased by LITE; and corners of the heart."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lite_jax import (
    Pooled,
    batched,
    exact_grad,
    exact_map,
    exact_sum,
    lite_grad,
    lite_map,
    lite_sum,
    per_example,
    subsample_sum,
)
from lite_jax.lite.backward import row_norms
from lite_jax.lite.functions import Function
from lite_jax.lite.sampling import Draw, Sampler

N = 6


def encode(w, x):
    """Rows `[n, 3]` of examples `[n, 2]`."""
    return jnp.tanh(x @ w)


def softmax_pooled(rows):
    """Attention pooling: a stable softmax over scores of the rows."""
    attention = jax.nn.softmax(rows[:, 0] * 3)
    return jnp.sin(attention @ rows).sum()


def contrastive(rows):
    """InfoNCE of neighbours: every row meets every other."""
    logits = rows @ jnp.roll(rows, 1, 0).T
    return -jnp.diagonal(jax.nn.log_softmax(logits)).mean()


def covariance(rows):
    """VICReg's: squares of the covariances between features."""
    centred = rows - rows.mean(0)[None]
    square = centred.T @ centred / (len(rows) - 1)
    return (square**2).sum() - (jnp.diagonal(square) ** 2).sum()


LOSSES = [softmax_pooled, contrastive, covariance]
losses = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    return jnp.array(rng.normal(size=(2, 3))), jnp.array(rng.normal(size=(N, 2)))


def drawn(indices):
    """An operator that draws these rows, each with the weight N/H."""
    indices = jnp.asarray(indices)
    weights = jnp.full(indices.size, N / indices.size)
    draw = Draw(indices.astype(jnp.int32), weights, jnp.int32(indices.size))
    return Sampler(lambda key, population, size: draw)


@losses
@pytest.mark.parametrize("chunk_size", [None, 2, (3, 1)])
def test_the_mean_over_all_subsets_is_the_exact_gradient(loss, chunk_size, problem):
    """By the parameters, by the examples and by what the encoder closes over."""

    def gradient(operator):
        def value(w, x, scale, key):
            rows = operator.map(lambda w, x: scale * encode(w, x), w, x, key)
            return loss(rows)

        return jax.grad(value, argnums=(0, 1, 2))

    w, x = problem
    key = jax.random.PRNGKey(0)
    exact = jax.jit(gradient(exact_sum()))(w, x, 0.7, key)
    subsets = list(itertools.combinations(range(N), 2))

    @jax.jit
    def each(indices):
        operator = lite_sum(2, chunk_size, drawn(indices))
        return gradient(operator)(w, x, 0.7, key)

    means = jax.tree.map(lambda x: x.mean(0), jax.lax.map(each, jnp.array(subsets)))
    chex.assert_trees_all_close(means, exact, rtol=1e-10)
    whole = jax.jit(gradient(lite_sum(N, chunk_size)))(w, x, 0.7, key)
    chex.assert_trees_all_close(whole, exact, rtol=1e-10)


@losses
@pytest.mark.parametrize("operator", [exact_map(4), exact_map((2, 6)), lite_map(6, 4)])
def test_rows_are_exact_and_padding_is_zero(loss, operator, problem):
    w, x = problem
    mask = jnp.arange(N + 2) < N
    padded = jnp.concatenate([x, jnp.full((2, 2), jnp.nan)])
    rows = jax.jit(functools.partial(operator, encode))
    found = rows(w, padded, jax.random.key(0), mask)
    np.testing.assert_allclose(found[:N], encode(w, x), rtol=1e-12)
    assert not found[N:].any()

    def value(w):
        return loss(operator(encode, w, padded, jax.random.key(0), mask)[:N])

    expected = jax.grad(lambda w: loss(encode(w, x)))(w)
    np.testing.assert_allclose(jax.jit(jax.grad(value))(w), expected, rtol=1e-10)


def test_sensitivity_draws_rows_by_the_norms_of_their_cotangents(problem):
    w, x = problem
    chances = jnp.array([8.0, 0, 0, 4.0, 0, 0])

    def value(w, key):
        rows = lite_map(2, sampling="sensitivity")(encode, w, x, key)
        return (chances[:, None] * rows).sum()

    keys = jax.random.split(jax.random.key(0), 400)
    found = jax.jit(jax.vmap(jax.grad(value), (None, 0)))(w, keys)
    exact = jax.grad(lambda w: (chances[:, None] * encode(w, x)).sum())(w)
    error = np.abs(found.mean(0) - exact)
    assert (error < 6 * found.std(0) / 20 + 1e-9).all()
    uniform = jax.jit(jax.vmap(jax.grad(
        lambda w, key: (chances[:, None] * lite_map(2)(encode, w, x, key)).sum()
    ), (None, 0)))(w, jax.random.split(jax.random.key(1), 400))  # fmt: skip
    assert found.std() < 0.5 * uniform.std()


def test_subsampled_rows_are_unbiased(problem):
    w, x = problem
    keys = jax.random.split(jax.random.key(0), 3000)
    rows = jax.vmap(lambda key: subsample_sum(2).map(encode, w, x, key))(keys)
    assert ((rows != 0).any(2).sum(1) == 2).all()
    error = np.abs(rows.mean(0) - encode(w, x))
    assert (error < 6 * rows.std(0) / 3000**0.5).all()


def test_the_transforms_bind_what_is_asked_for(problem):
    w, x = problem

    def both(w, x, keys, *, set_sum, set_map):
        total = set_sum(batched(encode), w, x, keys[0])
        return softmax_pooled(set_map(encode, w, x, keys[1])) + total.sum() ** 2

    def mapped(w, x, keys, *, set_map):
        return softmax_pooled(set_map(encode, w, x, keys[1]))

    for fun in (both, mapped):
        keys = jax.random.split(jax.random.PRNGKey(0))
        exact = exact_grad(fun)(w, x, keys)
        found = lite_grad(fun, num_backprop=N, chunk_size=2)(w, x, keys)
        np.testing.assert_allclose(found, exact, rtol=1e-10)


# ------------------------------------------------------------------- values, closures


def test_operators_are_values():
    for make in (
        lambda: exact_sum(3), lambda: lite_sum(3, (4, 2), "stratified"),
        lambda: subsample_sum(2), lambda: lite_map(3), lambda: exact_map(2),
    ):  # fmt: skip
        assert make() == make() and hash(make()) == hash(make())
    assert lite_sum(3) != lite_sum(4) and lite_sum(3).map != lite_sum(3)
    assert lite_sum(3, sampling="stratified") != lite_sum(3)


TRACES = []


def test_eager_calls_of_functions_made_anew_share_a_compilation():
    """They compiled anew, in half a second and 4 MiB a call."""

    def loss(w, x, key, *, set_sum):
        def encode(w, x):
            TRACES.append(1)
            return jnp.tanh(x @ w)

        return jnp.sum(set_sum(batched(encode), w, x, key) ** 2)

    w, x = jnp.ones((4, 3)), jnp.ones((20, 4))
    gradient = lite_grad(loss, num_backprop=4, chunk_size=5)
    first = gradient(w, x, jax.random.key(0))
    count = len(TRACES)
    for seed in range(5):
        gradient(w, x, jax.random.key(seed))
    assert len(TRACES) == count > 0
    assert jnp.isfinite(first).all()


def test_functions_are_compared_by_code_and_closure():
    def made(factor, other=None):
        return lambda a, x: factor * a * x

    assert Function(made(2.0)) == Function(made(2.0)) != Function(made(3.0))
    assert Function(made(2)) != Function(made(2.0))
    array = np.ones(3)
    assert Function(made(array)) == Function(made(array)) != Function(made(np.ones(3)))
    assert Function(functools.partial(made, 2.0)) == Function(
        functools.partial(made, 2.0)
    )
    assert Function(jax.vmap(made(2.0))) == Function(jax.vmap(made(2.0)))
    assert Function(jax.vmap(made(2.0))) != Function(jax.vmap(made(2.0), in_axes=1))

    one, two = jnp.ones(3), jnp.zeros(3)
    assert Function(made(one)) == Function(made(one)) != Function(made(two))

    class Tagged(float):
        pass

    first, second = Tagged(1.0), Tagged(2.0)
    first.tag = second.tag = "same"
    assert Function(made(first)) != Function(made(second))

    def itself(n):
        return itself(n - 1) if n else 0

    assert Function(itself) == Function(itself)


OPERATORS = [
    exact_sum(),
    exact_sum(2),
    lite_sum(N),
    lite_sum(N, 4),
    lite_sum(N, (4, 2)),
]
operators_ = pytest.mark.parametrize("operator", OPERATORS)


@operators_
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jitted"])
def test_closures_over_traced_values_are_differentiated(operator, transform, problem):
    w, x = problem

    def value(w, scale, x):
        shifts = jnp.arange(3) * 2  # whole numbers, traced under jit

        def body(carry, key):
            total = operator(
                per_example(lambda bias, x: jnp.tanh(scale * (x @ w) + bias + carry)),
                shifts.astype(w.dtype), x, key,
            )  # fmt: skip
            offset = shifts[0].astype(w.dtype)
            rows = operator.map(lambda a, x: x @ w * scale + offset, 1.0, x, key)
            return jnp.sin(total.sum() + rows.sum()), None

        keys = jax.random.split(jax.random.key(0), 3)
        return jax.lax.scan(body, 0.1, jax.random.key_data(keys))[0]

    def plain(w, scale, x):
        carry = 0.1
        for _ in range(3):
            bias = jnp.arange(3.0) * 2
            total = jnp.tanh(scale * (x @ w) + bias[None] + carry).sum()
            carry = jnp.sin(total + (x @ w * scale).sum())
        return carry

    found = transform(jax.grad(value, (0, 1, 2)))(w, 0.7, x)
    expected = jax.grad(plain, (0, 1, 2))(w, 0.7, x)
    chex.assert_trees_all_close(found, expected, rtol=1e-9)


@operators_
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jitted"])
def test_traced_values_in_objects_and_jitted_functions_are_found(operator, transform):
    class Layer:
        def __init__(self, w):
            self.w = w

        def __call__(self, x):
            return self.w * x

    def value(w):
        layer, shift = Layer(w), jax.jit(lambda x: x + w)
        encode = per_example(lambda _, x: shift(layer(x)))
        return operator(encode, (), jnp.arange(6.0), jax.random.key(0))

    np.testing.assert_allclose(transform(jax.grad(value))(0.3), 15 + 6, rtol=1e-6)


@operators_
def test_which_of_equal_shapes_is_which_is_seen(operator):
    """Two functions of one code, whose third value is the first or the second."""

    def total(a, b, c):
        return lambda _, x: a * x + b * x**2 + c

    def value(a, b, swap):
        additive = per_example(total(a, b, b if swap else a))
        return operator(additive, (), jnp.arange(6.0), jax.random.PRNGKey(0))

    found = [jax.grad(value, (0, 1))(0.3, 0.7, swap) for swap in (False, True)]
    np.testing.assert_allclose(found, [[15 + 6, 55], [15, 55 + 6]], rtol=1e-6)


@operators_
def test_leaves_that_are_no_arrays_are_constants(operator):
    """As in a module whose activation is one of its leaves."""

    def value(w):
        module = {"w": w, "activation": jnp.tanh, "name": "layer"}
        encode = per_example(lambda m, x: m["activation"](m["w"] * x))
        return operator(encode, module, jnp.arange(6.0), jax.random.key(0))

    expected = jax.grad(lambda w: jnp.tanh(w * jnp.arange(6.0)).sum())(0.3)
    np.testing.assert_allclose(jax.grad(value)(0.3), expected, rtol=1e-6)


@operators_
def test_keys_among_the_examples_raise_no_false_alarm(operator):
    """A key for each example, as dropout takes."""

    def value(w, examples, key):
        def term(w, example):
            x, key = example
            return w * x * jax.random.bernoulli(key, 0.5).astype(x.dtype)

        return operator(per_example(term), w, examples, key)

    with jax.debug_key_reuse(True):
        keys = jax.random.split(jax.random.key(1), N)
        found = jax.jit(jax.grad(value))(
            2.0, (jnp.arange(6.0), keys), jax.random.key(0)
        )
    keep = jax.vmap(jax.random.bernoulli)(jax.random.split(jax.random.key(1), N))
    np.testing.assert_allclose(found, jnp.arange(6.0) @ keep.astype(float), rtol=1e-6)


# ------------------------------------------------------------------ corners of numbers


@pytest.mark.parametrize(
    "operator",
    [exact_sum(), exact_sum(2), lite_sum(2), lite_sum(2, 1),
     lite_sum(2, 2, "stratified"), lite_sum(2, 2, "stratified_sensitivity"),
     subsample_sum(2)],
)  # fmt: skip
def test_an_empty_set_has_value_and_gradient_zero(operator):
    """The padding is what no encoder can take."""
    examples = {"x": jnp.full((4, 2), jnp.nan), "labels": jnp.zeros(4, jnp.int32)}
    mask = jnp.zeros(4, bool)
    squares = Pooled(lambda a, e: jnp.log(a * e["x"]), lambda f, e, w: w @ f**2)

    def value(a, x):
        inputs = a, {**examples, "x": x}, jax.random.PRNGKey(0), mask
        rows = operator.map(lambda a, e: jnp.log(a * e["x"]), *inputs)
        return operator(squares, *inputs).sum() + rows.sum()

    found, grads = jax.jit(jax.value_and_grad(value, (0, 1)))(2.0, examples["x"])
    assert found == 0 and grads[0] == 0 and not grads[1].any()


def test_scores_neither_overflow_nor_underflow():
    rows = jnp.array([[3e22, 4e22], [3e-30, 4e-30], [0.0, 0.0]], jnp.float32)
    np.testing.assert_allclose(row_norms(rows), [5e22, 5e-30, 0], rtol=1e-6)
    half = jnp.array([[6e4] * 4, [1.0] * 4], jnp.float16)
    np.testing.assert_allclose(row_norms(half), [1.2e5, 2.0], rtol=1e-3)
    turned = jnp.array([[3j, 4.0], [1.0, 0.0]], jnp.complex64)
    np.testing.assert_allclose(row_norms(turned), [5, 1], rtol=1e-6)
    two = {"a": rows[:, :1], "b": rows[:, 1:]}
    np.testing.assert_allclose(row_norms(two), [5e22, 5e-30, 0], rtol=1e-6)


def test_strata_are_met_in_random_order():
    """With one example a class and H = 10 of 20, all of 10 of 20 can be drawn."""
    examples = {"x": jnp.eye(20), "labels": jnp.arange(20, dtype=jnp.int32)}
    operator = lite_sum(10, sampling="stratified")

    def counts(key):
        return jax.grad(
            lambda a: operator(per_example(lambda a, e: a @ e["x"]), a, examples, key)
        )(jnp.ones(20))

    found = jax.vmap(counts)(jax.random.split(jax.random.key(0), 300))
    assert len({tuple(row) for row in np.asarray(found).tolist()}) > 250
    assert ((found != 0).sum(1) == 10).all()
    np.testing.assert_allclose(found.mean(0), 1, atol=6 / 300**0.5)
    together = (found[:, 0] != 0) & (found[:, 1] != 0)
    assert 0.1 < together.mean() < 0.4  # 0.24 by chance


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: lite_sum(2, sampling="stratified")(
            per_example(lambda a, e: a), 1.0,
            {"labels": jnp.eye(3)}, jax.random.key(0)), r"argmax\(-1\)"),
        (lambda: exact_sum()(batched(lambda a, x: x), 1.0, jnp.ones((0, 2)), None),
         r"empty \(N = 0\): pad it"),
        (lambda: exact_map()(lambda a, x: x.sum(), 1.0, jnp.ones((3, 2)), None),
         "expected rows with the leading axis 3"),
        (lambda: exact_map(2)(lambda a, x: x.T, 1.0, jnp.ones((3, 4)), None),
         "expected rows with the leading axis"),
        (lambda: exact_sum((1, 2, 3)), "a pair"),
        (lambda: exact_sum((1, 0)), "positive integer"),
    ],
    ids=["one-hot", "N=0", "no leading axis", "turned", "triple", "zero"],
)  # fmt: skip
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_numpy_s_whole_numbers_will_do():
    operator = lite_sum(np.int64(2), np.int32(3))
    assert operator == lite_sum(2, 3)


def test_sensitivity_of_a_plain_sum_is_warned_of_and_uniform():
    x = jnp.arange(6.0)
    operator = lite_sum(3, sampling="sensitivity")
    with pytest.warns(UserWarning, match="equally sensitive to all terms"):
        grad = jax.grad(
            lambda a: operator(per_example(lambda a, x: a * x), a, x, jax.random.key(0))
        )(1.0)
    uniform_weights = {sum(c) * 2.0 for c in itertools.combinations(range(6), 3)}
    assert float(grad) in uniform_weights


def test_memory_of_a_map_is_flat_beside_its_table(as_users_run_it):
    """Bytes as compiled, beyond inputs, the table and its cotangent."""

    def extra(num):
        x = jax.ShapeDtypeStruct((num, 8), jnp.float32)
        w = jax.ShapeDtypeStruct((8, 128), jnp.float32)

        def value(w, x, key):
            rows = lite_map(16, 50)(lambda w, x: jnp.tanh(x @ w) @ w.T @ w, w, x, key)
            return jnp.square(rows).sum()

        key = jax.ShapeDtypeStruct((2,), jnp.uint32)
        compiled = jax.jit(jax.grad(value)).lower(w, x, key).compile()
        return compiled.memory_analysis().temp_size_in_bytes - 2 * num * 128 * 4

    small, large = extra(4096), extra(65_536)
    assert large - small < 0.05 * 2 * 65_536 * 128 * 4
