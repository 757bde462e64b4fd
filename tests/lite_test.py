"""The heart: unbiasedness by enumeration, sampling, memory of derivatives, messages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lite_jax import (
    UserError,
    batched,
    check_additive,
    exact_grad,
    exact_sum,
    exact_value_and_grad,
    lite_grad,
    lite_sum,
    lite_value_and_grad,
    per_example,
    subsample_sum,
)
from lite_jax.lite.sampling import Sampler, sample_uniform
from tests import toys

pytestmark = pytest.mark.optimised

square = per_example(lambda a, x: a * x**2)

# ------------------------------------------------------------------- unbiasedness


def nested_means(shared):
    params, task = toys.nested_params(jax.random.key(1)), toys.task(5, way=2)
    exact = exact_grad(toys.nested_loss)(params, task, jax.random.key(2))
    mean = toys.mean_over_subsets(
        toys.nested_loss, (params, task, jax.random.key(3)),
        num_support=5, num_backprop=2, sum_keys=jax.random.split, shared=shared,
    )  # fmt: skip
    return toys.relative_error(mean, exact)


def test_nested_sums_with_a_subset_each_are_unbiased():
    assert nested_means(shared=False) < 1e-10


def test_nested_sums_that_share_a_subset_are_biased():
    assert nested_means(shared=True) > 0.05


def test_one_key_for_two_sums_raises():
    def shared_key_loss(a, x, key, *, set_sum):
        total = set_sum(square, a, x, key)
        return set_sum(square, total, x, key)

    with pytest.raises(jax.errors.KeyReuseError):
        lite_grad(shared_key_loss, num_backprop=2)(
            1.0, jnp.arange(4.0), jax.random.key(0)
        )


@pytest.mark.parametrize("num_backprop", [1, 2, 3, 5])
def test_mean_over_subsets_is_exact_at_every_h(num_backprop):
    params, task = toys.nested_params(jax.random.key(1)), toys.task(5, way=2)

    def one_stage(params, task, key, *, set_sum):
        encode = lambda p, ex: jnp.tanh(ex.inputs.reshape(-1, 4) @ p["embed"])  # noqa: E731
        total = set_sum(batched(encode), params, task.support, key, task.support.mask)
        return jnp.sin(total).sum() + (total**3).sum()

    exact = exact_grad(one_stage)(params, task, None)["embed"]
    mean = toys.mean_over_subsets(
        one_stage, (params, task, jax.random.key(2)), 5, num_backprop
    )["embed"]
    assert toys.relative_error(mean, exact) < 1e-10


def test_subsampling_the_set_is_biased_where_lite_is_not():
    """The comparison of the paper's §5.3, enumerated: E[g] of a sub-sampled task."""
    x, subsets = jnp.array([0.3, 1.0, 2.0, 0.1]), toys.subsets(4, 2)

    def loss(a, set_sum):
        return jnp.sin(set_sum(square, a, x, jax.random.key(0)))

    def sub_sampled(rows):
        return jax.grad(lambda a: jnp.sin(2 * (a * x[rows] ** 2).sum()))(0.5)

    exact = jax.grad(loss)(0.5, exact_sum())
    biased = jnp.stack([sub_sampled(rows) for rows in subsets]).mean()
    assert abs(biased - exact) > 0.1 * abs(exact)
    drawn = jax.grad(loss)(0.5, subsample_sum(2))
    assert any(jnp.allclose(drawn, sub_sampled(rows)) for rows in subsets)


# ------------------------------------------------------------------------ samplers


def test_empty_set_sums_to_zero_with_zero_gradient():
    empty = jnp.zeros(4, bool)
    for set_sum in (exact_sum(), exact_sum(2), lite_sum(2, 2), subsample_sum(2)):
        total = functools.partial(set_sum, square)
        found = jax.value_and_grad(total)(3.0, jnp.ones(4), jax.random.key(0), empty)
        assert found == (0, 0)


def test_a_sampler_of_ones_own_is_used():
    def first_only(key, population, num_backprop):
        draw = sample_uniform(key, population, num_backprop)
        return draw._replace(indices=jnp.zeros_like(draw.indices))

    total = functools.partial(lite_sum(1, sampling=Sampler(first_only)), square)
    gradient = jax.grad(total)(1.0, jnp.array([5.0, 1.0]), jax.random.key(0))
    assert gradient == 2 * 5.0**2


# ---------------------------------------------------------------------- transform


def test_transform_mirrors_jax_grad():
    def fun(a, b, x, key, *, set_sum):
        total = set_sum(per_example(lambda ab, x: ab[0] * x + ab[1]), (a, b), x, key)
        return total**2, {"total": total}

    x = jnp.array([1.0, 2.0])
    options = {"num_backprop": 2, "argnums": (0, 1), "has_aux": True}
    (value, aux), grads = lite_value_and_grad(fun, **options)(
        1.0, 2.0, x, jax.random.key(0)
    )
    assert value == 7.0**2 and aux == {"total": 7.0}
    assert grads == (2 * 7 * 3, 2 * 7 * 2)
    assert lite_grad(fun, **options)(1.0, 2.0, x, jax.random.key(0)) == (grads, aux)


def test_function_without_set_sum_is_refused_at_once():
    def fun(a, x):
        return a * x.sum()

    for transform in (functools.partial(lite_grad, num_backprop=2), exact_grad):
        with pytest.raises(TypeError, match=r"fun\(a, x\) takes no 'set_sum' keyword"):
            transform(fun)


def test_keyword_arguments_function_is_accepted():
    def fun(a, **options):
        return options["set_sum"](square, a, jnp.ones(2), jax.random.key(0))

    assert lite_grad(fun, num_backprop=2)(1.0) == 2


def test_second_derivatives_of_the_plain_sum_and_none_of_the_chunked():
    x = jnp.array([1.0, 2.0])

    def loss(a, set_sum):
        return set_sum(per_example(lambda a, x: (a * x) ** 3), a, x, None)

    assert jax.hessian(loss)(1.0, exact_sum()) == 6 * (1 + 8)
    with pytest.raises(UserError, match="second derivatives"):
        jax.hessian(loss)(1.0, exact_sum(1))


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jitted"])
@pytest.mark.parametrize(
    "operator",
    [exact_sum(1), exact_sum(9), lite_sum(1), lite_sum(2), lite_sum(3), lite_sum(3, 2),
     lite_sum(2, 2, "with_replacement")],
    ids=["exact 1", "exact 9", "H=1", "H=2", "H=N", "H=N in chunks", "replacement"],
)  # fmt: skip
def test_second_derivatives_in_reverse_mode_are_refused(operator, transform):
    """They would be 2 to 6 % off: grad of grad, a MAML step, a gradient's penalty."""
    x, key = jnp.array([1.0, 2.0, 3.0]), jax.random.PRNGKey(0)

    def loss(a):
        return operator(per_example(lambda a, x: (a * x) ** 3), a, x, key) ** 2

    def step(a):
        return loss(a - 0.1 * jax.grad(loss)(a))

    for second in (jax.grad(jax.grad(loss)), jax.grad(step)):
        with pytest.raises(UserError, match="second derivatives .* refused: use"):
            transform(second)(1.0)
    rows = functools.partial(operator.map, lambda a, x: (a * x) ** 3)
    with pytest.raises(UserError, match="second derivatives"):
        transform(jax.grad(jax.grad(lambda a: rows(a, x, key).sum())))(1.0)
    assert jnp.isfinite(transform(jax.grad(jax.checkpoint(loss)))(1.0))


# ----------------------------------------------------------------------- messages


@pytest.mark.parametrize("bad", [0, -1, 2.0, True, "4", None])
def test_num_backprop_must_be_a_positive_integer(bad):
    with pytest.raises(ValueError, match=f"num_backprop: .*{bad!r}"):
        lite_sum(bad)
    with pytest.raises(ValueError, match=f"num_examples: .*{bad!r}"):
        subsample_sum(bad)


@pytest.mark.parametrize("bad", [0, -1, 2.0, "auto"])
def test_chunk_size_must_be_a_positive_integer_or_none(bad):
    for make in (exact_sum, functools.partial(lite_sum, 1)):
        with pytest.raises(ValueError, match=f"chunk_size: .*{bad!r}"):
            make(bad)


def test_unknown_sampling_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'uniform'"):
        lite_sum(2, sampling="unifrom")


def test_h_above_n_is_refused_where_n_is_fixed_and_clipped_where_it_varies():
    x = jnp.arange(3.0)
    with pytest.raises(ValueError, match="num_backprop=4 is more than the 3 examples"):
        lite_sum(4)(square, 1.0, x, jax.random.key(0))
    with pytest.warns(UserWarning, match="num_backprop=4 is more than the 3"):
        total = functools.partial(lite_sum(4), square)
        grad = jax.grad(total)(
            1.0, x, jax.random.key(0), jnp.array([True, True, False])
        )
    assert grad == 0 + 1


def test_missing_key_is_named():
    for set_sum in (lite_sum(1), subsample_sum(1)):
        with pytest.raises(ValueError, match="key: .* got None"):
            set_sum(square, 1.0, jnp.ones(3), None)


@pytest.mark.parametrize(
    "mask", [jnp.ones(2, bool), jnp.ones(3), jnp.ones((3, 1), bool)]
)
def test_mask_must_be_bool_of_the_sets_size(mask):
    for set_sum in (exact_sum(), exact_sum(2), lite_sum(1), subsample_sum(1)):
        with pytest.raises(ValueError, match=r"mask: expected bool \[3\]"):
            set_sum(square, 1.0, jnp.ones(3), jax.random.key(0), mask)


@pytest.mark.parametrize("bad", [{"a": 3, "b": 2}, {"a": (), "b": 2}])
def test_examples_need_one_leading_axis(bad):
    examples = jax.tree.map(jnp.ones, bad, is_leaf=lambda x: isinstance(x, tuple))
    with pytest.raises(ValueError, match="same leading axis N, got shapes"):
        exact_sum()(square, 1.0, examples, None)


def mixing(kind):
    def encode(a, x):
        if kind == "batch statistics":
            return a * (x - x.mean()) ** 2 / x.var()
        if kind == "attention":
            return a * jax.nn.softmax(x @ x.T) @ x
        return a * x + jnp.arange(float(len(x)))[:, None]  # position in the batch

    return batched(encode)


@pytest.mark.parametrize("kind", ["batch statistics", "attention", "position"])
def test_encoder_that_mixes_examples_is_told(kind):
    x = jax.random.normal(jax.random.key(0), (6, 2))
    with pytest.raises(ValueError, match="not additive: .* Does the encoder mix"):
        check_additive(mixing(kind), 2.0, x)


def test_forgotten_weights_are_told():
    x = jnp.arange(1.0, 7.0)
    with pytest.raises(ValueError, match="examples of weight 0 change the sum"):
        check_additive(lambda a, x, weights: a * x.sum(), 2.0, x)
    with pytest.raises(ValueError, match="doubling the weights"):
        check_additive(lambda a, x, weights: a * (x * weights**2).sum(), 2.0, x)


def test_not_finite_is_not_additive():
    with pytest.raises(ValueError, match="not additive"):
        check_additive(batched(lambda a, x: a / x), 1.0, jnp.array([0.0, 1.0]))


def test_one_example_cannot_be_checked():
    with pytest.raises(ValueError, match="2 or more examples, got 1"):
        check_additive(square, 1.0, jnp.ones(1))


@pytest.mark.parametrize(
    "set_sum",
    [exact_sum(), exact_sum(2), lite_sum(3), lite_sum(3, 2), subsample_sum(3)],
)
def test_numpy_inputs_will_do(set_sum):
    x, mask = np.arange(5.0), np.arange(5) < 3

    def total(a, mask):
        return set_sum(square, a, x, jax.random.key(0), mask)

    assert jax.grad(total)(1.0, mask) == jax.jit(jax.grad(total))(1.0, mask) == 1 + 4


@pytest.mark.parametrize("features", [100, 20_000, 100_000])
def test_sums_of_large_terms_are_right_when_compiled(features):
    """XLA:CPU has got Σ_n w_n · t_n wrong for large terms: compare with NumPy."""
    rng = np.random.default_rng(0)
    terms = rng.random((25, 5, features), np.float32)
    weights = rng.random(25).astype(np.float32)
    total = jax.jit(batched(lambda args, x: x))(None, terms, jnp.array(weights))
    np.testing.assert_allclose(total, np.einsum("n,nkd->kd", weights, terms), rtol=1e-4)


@pytest.mark.parametrize("transform", [lite_grad, lite_value_and_grad])
def test_transforms_pass_the_sampling_on(transform):
    drawn = []

    def draw(key, population, num_backprop):
        drawn.append(num_backprop)
        return sample_uniform(key, population, num_backprop)

    def fun(a, x, key, *, set_sum):
        return set_sum(per_example(lambda a, x: a * x), a, x, key)

    gradient = transform(fun, num_backprop=3, sampling=Sampler(draw))
    gradient(1.0, jnp.arange(5.0), jax.random.key(0))
    assert drawn and set(drawn) == {3}


@pytest.mark.parametrize(
    "transform",
    [
        exact_grad,
        exact_value_and_grad,
        functools.partial(lite_grad, num_backprop=4),
        functools.partial(lite_value_and_grad, num_backprop=4),
    ],
    ids=["exact", "exact value", "lite", "lite value"],
)
def test_transforms_pass_the_chunk_size_on(transform):
    """No encoder sees more examples at once, forward or backward."""
    seen = []

    def fun(a, x, key, *, set_sum):
        def encode(a, x):
            seen.append(len(x))
            assert transform  # in the closure: equal functions are traced once
            return a * x

        return set_sum(batched(encode), a, x, key)

    x = jnp.arange(5.0)
    transform(fun, chunk_size=2)(1.0, x, jax.random.key(0))
    assert max(seen) == 2
    transform(fun)(1.0, x, jax.random.key(0))
    assert max(seen) == 5
