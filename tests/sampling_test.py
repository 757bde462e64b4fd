"""The draws of `lite_sum`: unbiased by enumeration, with the variance they promise."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lite_jax import (
    Pooled,
    UserError,
    episode_loss,
    exact_grad,
    exact_sum,
    lite_grad,
    lite_sum,
    maml,
    protonets,
)
from lite_jax.lite.sampling import (
    SAMPLERS,
    UNIFORM_SHARE,
    Population,
    Sampler,
    draw_from,
    inclusion_probabilities,
    sample_uniform,
    step_length,
    ticks_of,
)
from tests import toys

BY_SIZE = ["stratified", "sensitivity", "stratified_sensitivity"]


def population(mask, way=3):
    """Examples of `way` classes; their scores differ much, and one is 0."""
    rows = jnp.arange(mask.size, dtype=jnp.int32)
    scores = jnp.where(rows % 4 == 1, 0, 1.7 ** rows.astype(float))
    return Population(mask, rows % way, scores)


@functools.partial(jax.jit, static_argnames=["sampling", "num_backprop", "count"])
def draws(sampling, mask, num_backprop, count=6000):
    keys = jax.random.split(jax.random.key(0), count)
    draw = SAMPLERS[sampling].draw
    return jax.vmap(lambda key: draw(key, population(mask), num_backprop))(keys)


draw_at = jax.jit(draw_from, static_argnames="num_backprop")


# ------------------------------------------------------------ uniform, as in the paper


def test_uniform_draws_every_subset_equally_often():
    mask = jnp.array([True, False, True, True, True, False])
    picked = draws("uniform", mask, 2)
    found, counts = np.unique(np.sort(picked.indices, 1), axis=0, return_counts=True)
    assert [tuple(x) for x in found] == list(itertools.combinations([0, 2, 3, 4], 2))
    expected = 6000 / 6
    assert ((counts - expected) ** 2 / expected).sum() < 20.5  # χ²(5), p = 0.001
    assert np.all(picked.weights == 4 / 2) and np.all(picked.num_drawn == 2)


def test_with_replacement_draws_independently():
    mask = jnp.array([True, False, True, True])
    picked = draws("with_replacement", mask, 2)
    pairs, counts = np.unique(picked.indices, axis=0, return_counts=True)
    assert [tuple(x) for x in pairs] == list(itertools.product([0, 2, 3], repeat=2))
    expected = 6000 / 9
    assert ((counts - expected) ** 2 / expected).sum() < 26.1  # χ²(8), p = 0.001
    assert np.all(picked.weights == 3 / 2)


@pytest.mark.parametrize("sampling", SAMPLERS)
def test_weights_are_horvitz_thompson(sampling):
    """E Σ_h w_h v[i_h] = Σ_n v[n], within four standard errors."""
    mask, values = jnp.arange(8) < 5, jnp.arange(8.0) ** 2
    picked = draws(sampling, mask, 3)
    estimates = (picked.weights * values[picked.indices]).sum(1)
    error = float(estimates.mean() - values[:5].sum())
    assert abs(error) < 4 * float(estimates.std()) / np.sqrt(6000)


def test_variance_without_replacement_has_the_finite_population_factor():
    """Var = (N²/H) σ² (N-H)/(N-1), against (N²/H) σ² with replacement."""
    mask, values = jnp.ones(8, bool), jnp.arange(8.0) ** 2
    for sampling, factor in [("uniform", (8 - 3) / (8 - 1)), ("with_replacement", 1)]:
        picked = draws(sampling, mask, 3, count=20000)
        found = (picked.weights * values[picked.indices]).sum(1).var()
        np.testing.assert_allclose(found, 64 / 3 * values.var() * factor, rtol=0.05)


def test_draw_is_the_same_whatever_the_padding():
    short = sample_uniform(jax.random.key(5), Population(jnp.ones(6, bool)), 3)
    long = sample_uniform(jax.random.key(5), Population(jnp.arange(11) < 6), 3)
    chex.assert_trees_all_equal(short, long)


def test_fewer_examples_than_h_are_all_drawn_once():
    few = Population(jnp.arange(6) < 2)
    picked = sample_uniform(jax.random.key(0), few, 4)
    assert sorted(picked.indices[:2].tolist()) == [0, 1]
    assert picked.weights.tolist() == [1, 1, 0, 0] and picked.num_drawn == 2


# ------------------------------------------------------------------- by size or class


def mean_weights(order, chances, num_backprop):
    """E Σ_h w_h 1{i_h = n} for every n, over *all* first ticks of a systematic draw.

    The draw changes where a place passes the end of an example; between two such ticks
    it is the same, which is checked at both ends.
    """
    count = jnp.minimum(num_backprop, (chances > 0).sum(dtype=jnp.int32))
    ticks = ticks_of(chances, num_backprop)
    step = int(step_length(ticks, count))
    ends = np.cumsum(np.asarray(ticks[order], np.int64)) % step
    starts = np.unique(np.append(0, ends))
    after = np.append(starts[1:], step)

    def at(first):
        return draw_at(
            jnp.uint32(first), order, ticks, count, num_backprop=num_backprop
        )

    mean = np.zeros(order.size)
    for start, end in zip(starts, after, strict=True):
        draw = at(start)
        chex.assert_trees_all_equal(draw, at(end - 1))
        np.add.at(mean, draw.indices, np.asarray(draw.weights) * (end - start) / step)
    return mean


@pytest.mark.parametrize("num_backprop", [1, 2, 5, 9, 10])
@pytest.mark.parametrize("kind", ["equal", "unequal", "rounded", "padded"])
def test_systematic_draws_are_unbiased_over_all_starts(kind, num_backprop):
    rng = np.random.default_rng(0)
    sizes = {
        "equal": np.full(10, 0.1),
        "unequal": 3.0 ** np.arange(10),
        "rounded": rng.random(10).astype(np.float16).astype(float),
        "padded": np.where(np.arange(10) < 9, rng.random(10) + 0.1, 0),
    }[kind]
    count = jnp.minimum(num_backprop, jnp.int32((sizes > 0).sum()))
    chances = inclusion_probabilities(jnp.array(sizes), count)
    order = jnp.array(rng.permutation(10), jnp.int32)
    expected = (sizes > 0).astype(float)
    found = mean_weights(order, chances, num_backprop)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_systematic_draws_are_unbiased_whatever_the_precision_of_chances():
    """Chances that are not quite what they should be change the variance alone."""
    chances = jnp.array([0.3, 1.0, 0.5, 0.21], jnp.float32)
    found = mean_weights(jnp.arange(4, dtype=jnp.int32), chances, 2)
    np.testing.assert_allclose(found, np.ones(4), rtol=1e-12)


@pytest.mark.parametrize("count", [1, 3, 4, 6])
def test_inclusion_probabilities_are_proportional_to_size_up_to_one(count):
    sizes = np.array([0.0, 1.0, 2.0, 3.0, 30.0, 4.0, 5.0])
    found = np.asarray(inclusion_probabilities(jnp.array(sizes), jnp.int32(count)))
    np.testing.assert_allclose(found.sum(), count, rtol=1e-12)
    assert found[0] == 0 and found.max() <= 1
    free = (found > 0) & (found < 1)
    if free.any():
        slopes = found[free] / sizes[free]
        np.testing.assert_allclose(slopes, slopes[0], rtol=1e-12)
        assert np.all(sizes[found == 1] * slopes[0] >= 1 - 1e-12)


@pytest.mark.parametrize("num_backprop", [1, 2, 3, 4, 7, 12])
def test_every_class_gives_its_share(num_backprop):
    """Class sizes 1, 3, 8: between ⌊H N_k/N⌋ and ⌈H N_k/N⌉ draws, none left out."""
    labels = jnp.array([2, 0, 1, 2, 2, 1, 2, 2, 1, 2, 2, 2], jnp.int32)
    keys = jax.random.split(jax.random.key(0), 500)
    draw = functools.partial(
        SAMPLERS["stratified"].draw,
        population=Population(jnp.ones(12, bool), labels),
        num_backprop=num_backprop,
    )
    picked = jax.jit(jax.vmap(lambda key: draw(key)))(keys)
    counts = np.stack([(labels[picked.indices] == k).sum(1) for k in range(3)], 1)
    shares = num_backprop * np.array([1, 3, 8]) / 12
    assert np.all(counts >= np.floor(shares)) and np.all(counts <= np.ceil(shares))
    assert np.all(counts.max(0) > 0)
    np.testing.assert_allclose(picked.weights, 12 / num_backprop, rtol=1e-7)
    assert all(len(set(row)) == num_backprop for row in picked.indices.tolist())


@pytest.mark.parametrize("sampling", ["sensitivity", "stratified_sensitivity"])
def test_weights_are_bounded(sampling):
    mask = jnp.ones(20, bool)
    picked = draws(sampling, mask, 4, count=500)
    assert picked.weights.max() <= 20 / (UNIFORM_SHARE * 4) * (1 + 1e-6)
    assert picked.weights.min() >= 1 - 1e-6


@pytest.mark.parametrize("lost", [jnp.inf, -jnp.inf, jnp.nan])
def test_chances_are_scores_mixed_with_uniform_ones(lost):
    """H = 1: an example's chance is its size; a score that is lost counts as none."""
    scores = jnp.array([1.0, 3.0, lost, 0.0])
    whole = Population(jnp.ones(4, bool), None, scores)
    draw = jax.jit(SAMPLERS["sensitivity"].draw, static_argnums=2)
    weights = {}
    for seed in range(200):
        picked = draw(jax.random.key(seed), whole, 1)
        weights[int(picked.indices[0])] = float(picked.weights[0])
    shares = np.array([0.25, 0.75, 0.0, 0.0])
    expected = (1 - UNIFORM_SHARE) * shares + UNIFORM_SHARE / 4
    chances = [1 / weights[index] for index in range(4)]
    np.testing.assert_allclose(chances, expected, rtol=1e-6)


@pytest.mark.parametrize("scores", [jnp.zeros(6), jnp.full(6, jnp.nan)])
def test_without_usable_scores_the_draw_is_uniform(scores):
    whole = Population(jnp.ones(6, bool), None, scores)
    draw = SAMPLERS["sensitivity"].draw(jax.random.key(0), whole, 2)
    np.testing.assert_allclose(draw.weights, 3, rtol=1e-7)


@pytest.mark.parametrize("sampling", BY_SIZE)
def test_all_examples_are_drawn_once_at_h_equal_n(sampling):
    for mask in (jnp.ones(6, bool), jnp.arange(6) < 4):
        real = int(mask.sum())
        draw = SAMPLERS[sampling].draw(jax.random.key(0), population(mask), 6)
        assert sorted(draw.indices[:real].tolist()) == list(range(real))
        assert draw.weights.tolist() == [1.0] * real + [0.0] * (6 - real)


def test_large_draws_do_not_overflow():
    """N = 100,000: ticks add up within 32 bits."""
    whole = population(jnp.ones(100_000, bool))._replace(scores=jnp.arange(1e5))
    draw = SAMPLERS["stratified_sensitivity"].draw(jax.random.key(0), whole, 40_000)
    assert len(set(draw.indices.tolist())) == 40_000 and draw.weights.min() >= 1
    np.testing.assert_allclose(draw.weights.sum(), 100_000, rtol=0.02)


# ------------------------------------------------------------------------ in lite_sum


def test_scores_are_the_derivatives_by_the_features():
    """‖∂L/∂f_n‖ for L = sin(Σ_n w_n f_n²), that is |2 f_n w_n cos(Σ)|."""
    seen = {}

    def remember(key, population, num_backprop):
        jax.debug.callback(lambda x: seen.update(scores=x), population.scores)
        return sample_uniform(key, Population(population.mask), num_backprop)

    squares = Pooled(lambda a, x: a * x, lambda f, x, weights: jnp.dot(weights, f**2))
    x, mask = jnp.array([1.0, -2.0, 3.0, 0.5]), jnp.array([True, True, True, False])
    for chunk_size in (None, 2):
        operator = lite_sum(2, chunk_size, Sampler(remember, ("scores",)))

        def loss(a, operator=operator):
            return jnp.sin(operator(squares, a, x, jax.random.key(0), mask))

        jax.grad(loss)(0.3)
        jax.effects_barrier()
        features = 0.3 * x
        total = (features[:3] ** 2).sum()
        expected = jnp.where(mask, jnp.abs(2 * features * jnp.cos(total)), 0)
        np.testing.assert_allclose(seen["scores"], expected, rtol=1e-12)


LEARNERS = ("protonets", "cnaps", "simple_cnaps")


@functools.cache
def exact_of(name):
    """A learner's loss, its inputs, and the exact gradient and accuracy."""
    learner, params = toys.make_learner(name)
    loss, task = episode_loss(learner), toys.task(9, support_padding=2)
    exact = jax.jit(exact_grad(loss, has_aux=True))
    return loss, params, task, exact(params, task, jax.random.key(0))


@pytest.mark.parametrize("sampling", BY_SIZE)
@pytest.mark.parametrize(
    "name,chunk_size", [("protonets", None), *((name, 2) for name in LEARNERS)]
)
def test_gradients_of_learners_are_unbiased(name, sampling, chunk_size):
    """The mean of 3000 draws is as far from exact as their own deviation says."""
    loss, params, task, (exact, aux) = exact_of(name)
    gradient = lite_grad(
        loss, num_backprop=3, chunk_size=chunk_size, sampling=sampling, has_aux=True
    )

    def one(key):
        gradients, aux = gradient(params, task, key)
        return toys.flat(gradients), aux

    keys = jax.random.split(jax.random.key(2), 3000)
    with jax.debug_key_reuse(False):  # its tracer has no rule for a batched loop
        each, found = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=100))(keys)
    spread = float(jnp.sqrt(each.var(0).sum() / len(keys)))
    error = float(jnp.linalg.norm(each.mean(0) - toys.flat(exact)))
    assert 0 < spread < 0.2 * float(jnp.linalg.norm(toys.flat(exact)))
    assert error < 2 * spread
    np.testing.assert_allclose(found["accuracy"], float(aux["accuracy"]))


@functools.cache
def loss_under(sampling, chunk_size):
    """The loss beside its gradient; `sampling` None stands for the exact sum."""
    task = toys.task(9, support_padding=2)
    operator = (
        exact_sum(chunk_size) if sampling is None else lite_sum(3, chunk_size, sampling)
    )
    learner = protonets(toys.network(), way=3)
    params = learner.init(jax.random.key(1), task.support.inputs[0])
    fun = functools.partial(episode_loss(learner), set_sum=operator)
    differentiated = jax.jit(jax.value_and_grad(fun, has_aux=True))
    return differentiated(params, task, jax.random.key(0))[0][0]


@pytest.mark.parametrize("sampling", BY_SIZE)
def test_value_is_that_of_the_exact_sum_bit_for_bit(sampling):
    for chunk_size in (None, 2):
        assert loss_under(sampling, chunk_size) == loss_under(None, chunk_size)


def test_sensitivity_by_class_halves_the_variance_of_the_paper():
    """On a task whose examples matter unequally, at equal H."""
    rng = np.random.default_rng(0)
    labels = jnp.array(np.arange(40) % 4, jnp.int32)
    x = jnp.array(rng.normal(size=40) + 3 * np.asarray(labels))
    far = jnp.where(jnp.arange(40) < 8, 10 * x, 0.1 * x)
    pooled = Pooled(lambda a, ex: a * ex["x"], lambda f, ex, w: jnp.dot(w, f**2))

    def spread(sampling):
        operator = lite_sum(8, sampling=sampling)
        examples = {"x": far, "labels": labels}

        def gradient(key):
            return jax.grad(lambda a: operator(pooled, a, examples, key))(1.0)

        keys = jax.random.split(jax.random.key(0), 2000)
        return jax.jit(jax.vmap(gradient))(keys).var()

    assert spread("stratified_sensitivity") < 0.5 * spread("with_replacement")


# ------------------------------------------------------------------------- bad input


def test_strata_need_labels():
    with pytest.raises(UserError, match="attribute or key 'labels'"):
        lite_sum(1, sampling="stratified")(
            lambda a, x, w: w @ x, 1.0, jnp.ones(3), jax.random.key(0)
        )


def test_sensitivity_needs_features():
    learner, task = maml(toys.network(), way=3, steps=1), toys.task()
    params = learner.init(jax.random.key(0), task.support.inputs[0])
    operator = lite_sum(2, sampling="sensitivity")
    with pytest.raises(UserError, match=r"exposes none: make it with lite_jax\.Pooled"):
        learner.adapt(params, task.support, jax.random.key(0), operator)


def test_scores_are_of_all_features_of_an_example():
    """The norm of ∂L/∂(f_n, g_n), for features that are a tree of rows of any rank."""
    seen = {}

    def remember(key, population, num_backprop):
        jax.debug.callback(lambda x: seen.update(scores=x), population.scores)
        return sample_uniform(key, Population(population.mask), num_backprop)

    pair = Pooled(
        lambda a, x: {"f": a * x, "g": a * jnp.stack([x, 2 * x], 1)},
        lambda features, x, weights: weights @ (features["f"] + features["g"].sum(1)),
    )
    operator = lite_sum(2, sampling=Sampler(remember, ("scores",)))
    x = jnp.array([1.0, -2.0, 3.0])
    jax.grad(lambda a: 5 * operator(pair, a, x, jax.random.key(0)))(0.3)
    jax.effects_barrier()
    np.testing.assert_allclose(seen["scores"], 5 * np.sqrt(3), rtol=1e-12)
