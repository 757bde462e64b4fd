"""p-Meta's method: masked gradients, attention, sparse step sizes: a rule of MAML."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from described import NETWORKS, case_of, double, drawn_anew
from learners import gradient, task_of_images
from runs import load_config

from lite_jax import (
    UserError,
    exact_sum,
    factory,
    lite_sum,
    maml,
    models,
    nn,
)
from lite_jax.architecture import at_path, conv4
from lite_jax.learners import inner_rules
from lite_jax.pmeta.attention import (
    NO_ATTENTION,
    Attention,
    channel_scores,
    clip_and_normalise,
    init_attention,
    most_channels,
    normalised_gradients,
)
from lite_jax.pmeta.layers import (
    compute_layer,
    features_of,
    standardise,
)
from lite_jax.pmeta.masked import mask_gradient, masked_features
from lite_jax.types import Task
from tests import toys

BOTH = Attention(0.3, 0.2)


# ------------------------------------------------------------------------ attention


def test_at_most_as_many_channels_survive_as_said():
    for size in (1, 2, 3, 20, 32, 100):
        for ratio in (0.0, 0.1, 0.3, 0.5, 0.99):
            keys = jax.random.split(jax.random.key(size), 50)
            draw = jax.vmap(lambda k, n=size: 5 * jax.random.normal(k, (n,)))
            scores = jax.nn.softmax(draw(keys) * jnp.linspace(0, 1, 50)[:, None])
            found = jax.vmap(functools.partial(clip_and_normalise, ratio=ratio))(scores)
            kept = (found > 0).sum(1)
            assert jnp.isfinite(found).all() and (kept >= 1).all()
            np.testing.assert_allclose(found.mean(1), 1, rtol=1e-9)
            assert (kept <= most_channels(size, ratio)).all()
            if ratio:
                cut = jnp.where(found == 0, scores, 0).sum(1)
                least = jnp.where(found > 0, scores, 1).min(1)
                enough = (cut >= ratio - 1e-12) | (kept == 1)
                needed = cut - jnp.where(found == 0, scores, 0).max(1) < ratio + 1e-12
                assert (enough & needed).all()
                assert (jnp.where(found == 0, scores, 0).max(1) <= least).all()


def test_cutting_passes_the_gradient_straight_through():
    scores = jnp.array([0.1, 0.2, 0.3, 0.4])
    weights = jnp.array([1.0, 2.0, -1.0, 0.5])
    found = jax.grad(lambda s: (clip_and_normalise(s, 0.25) * weights).sum())(scores)
    np.testing.assert_allclose(found, 4 * weights)


def test_scores_are_of_the_mean_over_real_examples_before_the_softmax():
    _, architecture, _, _, modules = case_of("conv4", BOTH)
    module = at_path(modules, "blocks.1/conv")["forward"]
    x = jax.random.normal(jax.random.key(0), (3, 4, 4, 4))
    counted = jnp.array([1.0, 0.0, 2.0])
    with_padding = channel_scores(module, x, counted, 0.0)
    without = channel_scores(module, x[jnp.array([0, 2])], jnp.ones(2), 0.0)
    np.testing.assert_allclose(with_padding, without, rtol=1e-12)
    each = [channel_scores(module, x[i : i + 1], jnp.ones(1), 0.0) for i in (0, 2)]
    assert jnp.abs(with_padding - (each[0] + each[1]) / 2).max() > 1e-3


def test_gradients_are_looked_at_alike_alone_and_in_a_mean():
    g = jax.random.normal(jax.random.key(0), (3, 2, 2, 4))
    weights = jnp.array([0.04, 0.0, 25.0])
    seen = normalised_gradients(g * weights.reshape(3, 1, 1, 1), weights)
    np.testing.assert_allclose((seen**2).mean((1, 2, 3)), [1, 0, 1], rtol=1e-9)
    alone = normalised_gradients(g, jnp.ones(3))
    np.testing.assert_allclose(seen[0], alone[0], rtol=1e-9)
    np.testing.assert_allclose(seen[2], alone[2], rtol=1e-9)


def test_attention_starts_equal():
    _, architecture, _, inputs, _ = case_of("conv4", BOTH)
    modules = init_attention(jax.random.key(0), architecture, Attention(0.0, None))
    module = at_path(modules, "blocks.0/conv")
    assert set(module) == {"forward"}
    np.testing.assert_allclose(
        channel_scores(module["forward"], inputs, jnp.ones(4), 0.0), jnp.ones(3)
    )


# ------------------------------------------------------------------ masked gradients


@pytest.mark.parametrize("name", NETWORKS)
def test_layer_by_layer_is_the_network(name):
    network, architecture, params, inputs, modules = case_of(name, BOTH)
    with jax.numpy_dtype_promotion("standard"):
        expected = network.apply(params, inputs)
    found = jax.jit(features_of, static_argnums=(0, 3))(
        architecture, params, inputs, compute_layer
    )
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11)
    masked = jax.jit(masked_features, static_argnums=(0, 1, 2))(
        architecture, BOTH, "exact", modules, params, inputs, jnp.ones(len(inputs))
    )
    np.testing.assert_allclose(masked, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", NETWORKS)
def test_without_attention_the_masked_gradient_is_the_plain_one(name):
    network, architecture, params, inputs, _ = case_of(name, BOTH)

    def loss(apply, params):
        return (jnp.sin(apply(params, inputs)) ** 2).sum()

    with jax.numpy_dtype_promotion("standard"):
        expected = jax.jit(jax.grad(functools.partial(loss, network.apply)))(params)
    modules = init_attention(jax.random.key(0), architecture, NO_ATTENTION)
    plain = functools.partial(
        masked_features, architecture, NO_ATTENTION, "exact", modules,
        counted=jnp.ones(len(inputs)),
    )  # fmt: skip
    found = jax.jit(jax.grad(functools.partial(loss, plain)))(params)
    assert toys.relative_error(found, expected) < 1e-6


def by_probes(architecture, modules, params, inputs, counted, loss):
    """The masked gradient by plain differentiation alone.

    A zero is added to what every layer gives; the derivative by it is g(y). No rule of
    our own is used: what arrives at the weights is the plain gradient times γ of what
    was seen on the way.
    """
    layers = architecture.layers[:-1]

    def run(params, probes):
        seen = {}

        def compute(layer, weights, x):
            seen[layer.path] = (
                standardise(x, layer.groups)[0] if layer.kind == "norm" else x
            )
            return compute_layer(layer, weights, x) + probes[layer.path]

        return loss(features_of(architecture, params, inputs, compute)), seen

    probes = {x.path: jnp.zeros((len(inputs), *x.outputs)) for x in layers}
    plain, passed = jax.grad(lambda *args: run(*args)[0], (0, 1))(params, probes)
    seen = run(params, probes)[1]
    found = {}
    for layer in layers:
        own = at_path(modules, layer.path)
        inner = channel_scores(own["forward"], seen[layer.path], counted, BOTH.forward)
        gradients = normalised_gradients(passed[layer.path], counted)
        outer = channel_scores(own["backward"], gradients, counted, BOTH.backward)
        weights = at_path(plain, layer.path)
        found[layer.path] = mask_gradient(layer, weights, inner, outer)
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_masked_gradients_and_their_own_gradients_are_those_of_plain_autodiff(name):
    """First order, and second order through them, by weights and by attention."""
    _, architecture, params, inputs, modules = case_of(name, BOTH)
    counted = jnp.array([1.0, 2.0, 0.0, 0.5])
    labels = jnp.array([0, 1, 2, 1])
    size = architecture.head.inputs[0]
    head = jax.random.normal(jax.random.key(9), (size, 5)) / 3

    def loss(features):
        losses = optax.softmax_cross_entropy_with_integer_labels(
            features @ head, labels
        )
        return counted @ losses

    def ours(params, modules):
        def own(params):
            return loss(
                masked_features(
                    architecture, BOTH, "exact", modules, params, inputs, counted
                )
            )

        found = jax.grad(own)(params)
        return {x.path: at_path(found, x.path) for x in architecture.layers[:-1]}

    def expected(params, modules):
        return by_probes(architecture, modules, params, inputs, counted, loss)

    first, wanted = jax.jit(ours)(params, modules), jax.jit(expected)(params, modules)
    assert toys.relative_error(first, wanted) < 1e-9

    def unmasked(params):
        return loss(features_of(architecture, params, inputs, compute_layer))

    path = architecture.layers[0].path
    plain = at_path(jax.jit(jax.grad(unmasked))(params), path)
    assert toys.relative_error(first[path], plain) > 0.1

    def outer(function, params, modules):
        leaves = jax.tree.leaves(function(params, modules))
        return sum((jnp.sin(x) * jnp.arange(1.0, x.size + 1).reshape(x.shape)).sum()
                   for x in leaves)  # fmt: skip

    second, wanted = (
        jax.jit(jax.grad(functools.partial(outer, function), (0, 1)))(params, modules)
        for function in (ours, expected)
    )
    for found, right in zip(second, wanted, strict=True):
        assert toys.relative_error(found, right) < 1e-8
    assert toys.flat(second[1]).any()


# ---------------------------------------------------------------------- as a rule


def learner_of(**options):
    rule = inner_rules.p_meta(0.1, **options)
    network = nn.conv4(4, norm_groups=2)
    return maml(network, way=5, steps=2, rule=rule, learned_head=True)


def params_of(learner, shape=(16, 16, 3)):
    spec = jax.ShapeDtypeStruct(shape, jnp.uint8)
    return learner.init(jax.random.key(0), spec)


def float_task(count, size=16):
    """Images as float64 in [0, 1]."""
    task = task_of_images(count, size)

    def scaled(examples):
        return examples._replace(inputs=examples.inputs.astype(jnp.float64) / 255)

    return Task(scaled(task.support), scaled(task.query))


@pytest.mark.parametrize("rule", ["sgd", "anil", "boil", "learned_sgd"])
def test_settings_of_it_are_the_other_rules(rule):
    adapts = {"anil": inner_rules.head_only, "boil": inner_rules.body_only}
    options = {"way": 5, "steps": 2, "learned_head": True}
    other = maml(
        nn.conv4(4, norm_groups=2), rule=getattr(inner_rules, rule)(0.1), **options
    )
    same = learner_of(penalty=0.0, adapts=adapts.get(rule, inner_rules.everything))
    task = float_task(10)
    with jax.numpy_dtype_promotion("standard"):
        params, sizes = double(params_of(other)), params_of(same)["inner_rule"]
        theirs = gradient(other, params, task=task)
        shared = {name: params[name] for name in ("backbone", "head")}
        ours = gradient(same, shared | {"inner_rule": double(sizes)}, task=task)
    for name in shared:
        assert toys.relative_error(ours[name], theirs[name]) < 1e-5
    if rule == "learned_sgd":  # one step size a layer sums those of its tensors
        conv = theirs["inner_rule"]["backbone"]["blocks.0"]["conv"]["kernel"]
        norm = theirs["inner_rule"]["backbone"]["blocks.0"]["norm"]["group"]
        mine = ours["inner_rule"]["backbone"]["blocks.0"]
        np.testing.assert_allclose(mine["conv"], conv, rtol=1e-5)
        total = norm["scale"] + norm["bias"]
        np.testing.assert_allclose(mine["norm"]["group"], total, rtol=1e-5)


def test_every_layer_has_a_step_size_for_each_step_and_the_input_none():
    with jax.numpy_dtype_promotion("standard"):
        params = params_of(learner_of())
    sizes = params["inner_rule"]
    assert "input" not in sizes["backbone"] or sizes["backbone"]["input"] is None
    assert len(jax.tree.leaves(sizes)) == 9
    assert all(x.shape == (2,) for x in jax.tree.leaves(sizes))


def test_attention_leaves_the_start_of_all_else_as_it_is():
    with jax.numpy_dtype_promotion("standard"):
        plain, looks = (
            params_of(learner_of(attention=a)) for a in (NO_ATTENTION, BOTH)
        )
    assert jax.tree.leaves(looks.pop("attention"))
    assert jax.tree.structure(looks) == jax.tree.structure(plain)
    assert all(map(jnp.array_equal, jax.tree.leaves(looks), jax.tree.leaves(plain)))


@pytest.mark.parametrize("penalty_on", ["inputs", "memory"])
def test_the_penalty_weighs_layers_by_what_they_store(penalty_on):
    learner = learner_of(penalty=2.0, penalty_on=penalty_on)
    with jax.numpy_dtype_promotion("standard"):
        params = params_of(learner)
    task = task_of_images(5)
    sizes = double(params["inner_rule"])
    slope = jax.grad(lambda x: learner.penalty({"inner_rule": x}, task))(sizes)
    layers = conv4((16, 16, 3), 5, width=4, groups=2).layers
    memory = {x.path: x.input_size for x in layers}
    if penalty_on == "memory":
        assert memory["blocks.1/conv"] == 4 * 8 * 8
        memory = {x.path: memory[x.path] + x.num_weights for x in layers}
        assert memory["blocks.1/conv"] == 4 * 8 * 8 + 4 * 4 * 9
    for layer in layers:
        tree = slope if layer.path == "head" else slope["backbone"]
        own = at_path(tree, layer.path)
        share = memory[layer.path] / sum(memory.values())
        np.testing.assert_allclose(own, 2 * share, rtol=1e-6)


def attentive(**options):
    """A perceptron as learner, quick to compile, and parameters that attend."""
    rule = inner_rules.p_meta(0.1, attention=BOTH, **options)
    learner = maml(nn.mlp(6, 2), way=5, steps=2, rule=rule, learned_head=True)
    with jax.numpy_dtype_promotion("standard"):
        params = double(params_of(learner, (4, 4, 3)))
    return learner, params | {"attention": drawn_anew(params["attention"], 5)}


def test_attention_over_single_examples_is_additive():
    """Chunks change nothing, and neither does LITE with all drawn."""
    task = float_task(6, size=4)
    learner, params = attentive(each=True)
    whole = gradient(learner, params, exact_sum(), task)
    assert toys.flat(whole["attention"]).any()
    for operator in (exact_sum(2), lite_sum(6, chunk_size=2)):
        found = gradient(learner, params, operator, task)
        assert toys.relative_error(found, whole) < 1e-9
    together = gradient(*attentive(), exact_sum(), task)
    assert toys.relative_error(together, whole) > 1e-3


def test_padding_does_not_count():
    task = float_task(10, size=4)
    learner, params = attentive()
    padded = jax.tree.map(lambda x: jnp.concatenate([x, x[:3]]), task.support)
    padded = padded._replace(mask=jnp.arange(13) < 10)
    expected = gradient(learner, params, task=task)
    found = gradient(learner, params, task=Task(padded, task.query))
    assert toys.relative_error(found, expected) < 1e-9


@pytest.mark.parametrize(
    "variants,changes,message",
    [
        ("", {"inner__attention_forward": 1.0}, "attention_forward=1.0"),
        ("", {"inner__attention_backward": -0.1}, "attention_backward=-0.1"),
        ("", {"inner__penalty": -1.0}, "inner.penalty=-1.0"),
        ("", {"inner__penalty_on": "weights"}, "unknown inner.penalty_on 'weights'"),
        ("", {"inner__attention": "sideways"}, "unknown inner.attention 'sideways'"),
        ("", {"inner__attention_over": "all"}, "unknown inner.attention_over 'all'"),
        ("", {"gradient__estimator": "lite"}, "looks at all of a support at once"),
        ("", {"gradient__estimator": "exact", "gradient__chunk_size": 24}, "=25 or"),
        ("", {"backbone__norm": "batch"}, "backbone.norm=batch: memory is counted"),
        ("", {"backbone__name": "efficientnet_b0"}, "does not describe its own"),
        ("", {"backbone__dtype": "bfloat16"}, "does not describe its own"),
        ("", {"inner__film": True}, "inner.film"),
    ],
)
def test_bad_settings_are_named(variants, changes, message):
    config = load_config("pmeta", variants, **changes)
    with pytest.raises(UserError, match=message):
        learner = models.make_tested_learner(config, 5)
        params_of(learner, (28, 28, 3))


def test_training_makes_step_sizes_exactly_zero_and_never_negative(as_users_run_it):
    config = load_config("pmeta", "synthetic", inner__penalty=100.0, train__steps=30,
                         backbone__width=8, optimizer__schedule="constant",
                         optimizer__learning_rate=1e-2)  # fmt: skip
    optimizer = factory.make_optimizer(config)
    params = {"inner_rule": {"a": jnp.array([0.05, 0.1])}, "head": jnp.array([0.05])}
    state = optimizer.init(params)
    for _ in range(20):
        grads = jax.tree.map(jnp.ones_like, params)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(params["inner_rule"]["a"], [0.0, 0.0])
    assert params["head"] < 0  # nothing else is projected
    grads = jax.tree.map(lambda x: -jnp.ones_like(x), params)
    for _ in range(40):  # a layer can come back
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    assert (params["inner_rule"]["a"] > 0).all()
