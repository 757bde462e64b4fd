"""p-Meta's method: masked gradients, attention, sparse step sizes: a rule of MAML."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from described import NETWORKS
from learners import (
    filled,
    first_blocks,
    flat,
    gradient,
    relative_error,
    task_of_images,
)
from runs import load_config
from scipy import special

from lite_jax import UserError, exact_sum, lite_sum, maml, nn
from lite_jax.learners import inner_rules
from lite_jax.nn.description import at_path, describe_conv4
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
    compute_features,
    compute_layer,
    standardise,
)
from lite_jax.pmeta.masked import masked_features
from lite_jax.pmeta.rule import p_meta
from lite_jax.run import build_gradient, build_learner
from lite_jax.types import Task

BOTH = Attention(0.3, 0.2)
FEW_BLOCKS = {
    "conv4": (first_blocks(NETWORKS["conv4"][0], 2), NETWORKS["conv4"][1]),
    "resnet12": (first_blocks(NETWORKS["resnet12"][0], 1), NETWORKS["resnet12"][1]),
    "mlp": NETWORKS["mlp"],
}


def described(network, shape):
    """Description, parameters, four inputs, and modules of attention."""
    architecture = network.describe(shape, 5)
    with jax.numpy_dtype_promotion("standard"):
        params = shapes_of(network, shape)
    modules = jax.eval_shape(
        lambda key: init_attention(key, architecture, BOTH), jax.random.key(0)
    )
    inputs = jax.ShapeDtypeStruct((4, *shape), float)
    return (
        architecture,
        filled(params, 0, float),
        filled(inputs, 1),
        filled(modules, 2, spread=0.6),
    )


def shapes_of(initialised, shape, dtype="float32"):
    """The shapes of a network's or a learner's parameters."""
    spec = jax.ShapeDtypeStruct(shape, dtype)
    return jax.eval_shape(lambda key: initialised.init(key, spec), jax.random.key(0))


# ------------------------------------------------------------------------ attention


RATIOS = (0.0, 0.1, 0.3, 0.5, 0.99)


@jax.jit
def clipped(scores):
    """Scores `[n, c]` cut at each of the ratios."""
    return [
        jax.vmap(functools.partial(clip_and_normalise, ratio=ratio))(scores)
        for ratio in RATIOS
    ]


def test_at_most_as_many_channels_survive_as_said():
    rng = np.random.default_rng(0)
    for size in (1, 2, 3, 20, 100):
        drawn = 5 * rng.normal(size=(50, size)) * np.linspace(0, 1, 50)[:, None]
        scores = special.softmax(drawn, 1)
        for ratio, found in zip(RATIOS, map(np.asarray, clipped(scores)), strict=True):
            kept = (found > 0).sum(1)
            assert np.isfinite(found).all() and (kept >= 1).all()
            np.testing.assert_allclose(found.mean(1), 1, rtol=1e-9)
            assert (kept <= most_channels(size, ratio)).all()
            if ratio:
                cut = np.where(found == 0, scores, 0).sum(1)
                least = np.where(found > 0, scores, 1).min(1)
                greatest = np.where(found == 0, scores, 0).max(1)
                enough = (cut >= ratio - 1e-12) | (kept == 1)
                assert (enough & (cut - greatest < ratio + 1e-12)).all()
                assert (greatest <= least).all()


def test_cutting_passes_the_gradient_straight_through():
    scores = jnp.array([0.1, 0.2, 0.3, 0.4])
    weights = jnp.array([1.0, 2.0, -1.0, 0.5])
    found = jax.jit(jax.grad(lambda s: clip_and_normalise(s, 0.25) @ weights))(scores)
    np.testing.assert_allclose(found, 4 * np.asarray(weights))


def test_scores_are_of_the_mean_over_real_examples_before_the_softmax():
    modules = described(*FEW_BLOCKS["conv4"])[3]
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
    network, shape = first_blocks(NETWORKS["conv4"][0], 1), (2, 2, 3)
    architecture, inputs = network.describe(shape, 5), filled(jnp.ones((4, *shape)))
    modules = init_attention(jax.random.key(0), architecture, Attention(0.0, None))
    module = at_path(modules, "blocks.0/conv")
    assert set(module) == {"forward"}
    np.testing.assert_allclose(
        channel_scores(module["forward"], inputs, jnp.ones(4), 0.0), jnp.ones(3)
    )


# ------------------------------------------------------------------ masked gradients


@functools.cache
def whole_networks(name):
    """What a network, its description and masked layers give, and their gradients."""
    network, shape = NETWORKS[name]
    architecture, params, inputs, modules = described(network, shape)
    features = jax.ShapeDtypeStruct((4, architecture.head.inputs[0]), float)
    weights = filled(features, 4)

    def values(params, inputs, modules, weights):
        counted = jnp.ones(len(inputs))

        def by_rule(params, attention):
            return masked_features(
                architecture, attention, "exact", modules, params, inputs, counted
            )

        def with_gradient(function):
            found, pull = jax.vjp(function, params)
            return found, pull(jnp.cos(found) * weights)[0]

        found = {
            "description": compute_features(
                architecture, params, inputs, compute_layer
            ),
            "looks": by_rule(params, BOTH),
            "plain": with_gradient(lambda params: by_rule(params, NO_ATTENTION)),
        }
        with jax.numpy_dtype_promotion("standard"):
            expected = with_gradient(lambda params: network.apply(params, inputs))
        return found | {"network": expected}

    return jax.jit(values)(params, inputs, modules, weights)


@pytest.mark.parametrize("name", NETWORKS)
def test_layer_by_layer_is_the_network(name):
    found = whole_networks(name)
    for same in (found["description"], found["looks"], found["plain"][0]):
        np.testing.assert_allclose(same, found["network"][0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", NETWORKS)
def test_without_attention_the_masked_gradient_is_the_plain_one(name):
    found = whole_networks(name)
    assert flat(found["network"][1]).any()
    assert relative_error(found["plain"][1], found["network"][1]) < 1e-6


def by_probes(architecture, modules, params, inputs, counted, loss):
    """The masked gradient by plain differentiation alone, and the plain gradient.

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

        return loss(compute_features(architecture, params, inputs, compute)), seen

    probes = {x.path: jnp.zeros((len(inputs), *x.outputs)) for x in layers}
    plain, passed = jax.grad(lambda *args: run(*args)[0], (0, 1))(params, probes)
    seen = run(params, probes)[1]
    found = {}, {}
    for layer in layers:
        own = at_path(modules, layer.path)
        inner = channel_scores(own["forward"], seen[layer.path], counted, BOTH.forward)
        gradients = normalised_gradients(passed[layer.path], counted)
        outer = channel_scores(own["backward"], gradients, counted, BOTH.backward)
        weights = at_path(plain, layer.path)
        if layer.kind == "norm":  # the channels are its inputs and outputs
            masks = {"scale": inner * outer, "bias": inner * outer}
        else:  # a bias is met by no input
            masks = {"kernel": inner[:, None] * outer[None], "bias": outer}
        found[0][layer.path] = {
            name: x * jnp.broadcast_to(masks[name], x.shape)
            for name, x in weights.items()
        }
        found[1][layer.path] = weights
    return found


@pytest.mark.parametrize("name", FEW_BLOCKS)
def test_masked_gradients_and_their_own_gradients_are_those_of_plain_autodiff(name):
    """First order, and second order through them, by weights and by attention."""
    architecture, params, inputs, modules = described(*FEW_BLOCKS[name])
    counted = jnp.array([1.0, 2.0, 0.0, 0.5])
    labels = jnp.array([0, 1, 2, 1])
    head = filled(jnp.ones((architecture.head.inputs[0], 5)), 9)
    shapes = {x.path: at_path(params, x.path) for x in architecture.body}
    weights = filled(shapes, 10)

    def sums(params, modules, inputs, head, weights):
        """Each way's weighted sum of the gradient's sines, and the gradients."""

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
            return {x.path: at_path(found, x.path) for x in architecture.body}, ()

        def expected(params, modules):
            return by_probes(architecture, modules, params, inputs, counted, loss)

        def outer(function, params, modules):
            found = function(params, modules)
            terms = jax.tree.map(lambda x, w: (jnp.sin(x) * w).sum(), found[0], weights)
            return sum(jax.tree.leaves(terms)), found

        return [
            jax.grad(functools.partial(outer, way), (0, 1), has_aux=True)(
                params, modules
            )
            for way in (ours, expected)
        ]

    found, wanted = jax.jit(sums)(params, modules, inputs, head, weights)
    (second, (first, _)), (second_wanted, (first_wanted, plain)) = found, wanted
    assert relative_error(first, first_wanted) < 1e-9
    path = architecture.layers[0].path
    assert relative_error(first[path], plain[path]) > 0.1
    for own, right in zip(second, second_wanted, strict=True):
        assert relative_error(own, right) < 1e-8
    assert flat(second[1]).any()


# ---------------------------------------------------------------------- as a rule


def learner_of(network=NETWORKS["mlp"][0], **options):
    rule = p_meta(0.1, **options)
    return maml(network, way=5, steps=2, rule=rule, learned_head=True)


CONV4 = nn.conv4(4, norm_groups=2)


def float_task(count, size=16):
    """Images as float64 in [0, 1]."""
    task = task_of_images(count, size)

    def scaled(examples):
        return examples._replace(inputs=examples.inputs.astype(jnp.float64) / 255)

    return Task(scaled(task.support), scaled(task.query))


def drawn_params(learner, size):
    """Parameters for images of a size, the step sizes as a rule starts them."""
    with jax.numpy_dtype_promotion("standard"):
        params = filled(shapes_of(learner, (size, size, 3)), 0, float)
    sizes = params.get("inner_rule", {})
    return params | {"inner_rule": jax.tree.map(lambda x: jnp.full_like(x, 0.1), sizes)}


@pytest.mark.parametrize("rule", ["sgd", "anil", "boil", "learned_sgd"])
def test_settings_of_it_are_the_other_rules(rule):
    adapts = {"anil": inner_rules.head_only, "boil": inner_rules.body_only}
    layers = rule == "learned_sgd"  # a convolution and a norm, or dense layers
    network, size = (first_blocks(CONV4, 1), 16) if layers else (nn.mlp(3, 1), 2)
    other = maml(
        network, way=5, steps=2, rule=getattr(inner_rules, rule)(0.1), learned_head=True
    )
    same = learner_of(
        network, penalty=0.0, adapts=adapts.get(rule, inner_rules.everything)
    )
    task, params = float_task(5, size), drawn_params(other, size)
    sizes = drawn_params(same, size)["inner_rule"]
    with jax.numpy_dtype_promotion("standard"):
        theirs = gradient(other, params, task=task)
        ours = gradient(same, params | {"inner_rule": sizes}, task=task)
    for name in ("backbone", "head"):
        assert flat(theirs[name]).any()
        assert relative_error(ours[name], theirs[name]) < 1e-5
    if layers:  # one step size a layer sums those of its tensors
        conv = theirs["inner_rule"]["backbone"]["blocks.0"]["conv"]["kernel"]
        norm = theirs["inner_rule"]["backbone"]["blocks.0"]["norm"]["group"]
        mine = ours["inner_rule"]["backbone"]["blocks.0"]
        np.testing.assert_allclose(mine["conv"], conv, rtol=1e-5)
        total = norm["scale"] + norm["bias"]
        np.testing.assert_allclose(mine["norm"]["group"], total, rtol=1e-5)


def test_every_layer_has_a_step_size_for_each_step_and_the_input_none():
    sizes = shapes_of(learner_of(CONV4), (16, 16, 3))["inner_rule"]
    assert "input" not in sizes["backbone"] or sizes["backbone"]["input"] is None
    assert len(jax.tree.leaves(sizes)) == 9
    assert all(x.shape == (2,) for x in jax.tree.leaves(sizes))


def test_attention_leaves_the_start_of_all_else_as_it_is():
    spec = jax.ShapeDtypeStruct((2, 2, 3), "float32")
    with jax.numpy_dtype_promotion("standard"):
        plain, looks = (
            learner_of(nn.mlp(3, 1), attention=a).init(jax.random.key(0), spec)
            for a in (NO_ATTENTION, BOTH)
        )
    assert jax.tree.leaves(looks.pop("inner_features"))
    assert jax.tree.structure(looks) == jax.tree.structure(plain)
    assert all(map(jnp.array_equal, jax.tree.leaves(looks), jax.tree.leaves(plain)))


@pytest.mark.parametrize("penalty_on", ["inputs", "memory"])
def test_the_penalty_weighs_layers_by_what_they_store(penalty_on):
    learner = learner_of(CONV4, penalty=2.0, penalty_on=penalty_on)
    sizes = drawn_params(learner, 16)["inner_rule"]
    task = task_of_images(5)
    slope = jax.grad(lambda x: learner.penalty({"inner_rule": x}, task))(sizes)
    layers = describe_conv4((16, 16, 3), 5, width=4, groups=2).layers
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


@pytest.fixture(scope="module")
def attentive():
    """Perceptrons that look at all of a support, and at each example; parameters."""
    network = nn.mlp(4, 1)
    together, each = (
        learner_of(network, attention=BOTH, each=each) for each in (False, True)
    )
    return together, each, drawn_params(each, 2)


def test_attention_over_single_examples_is_additive(attentive):
    """Chunks change nothing, and neither does LITE with all drawn."""
    together, each, params = attentive
    task = float_task(6, size=2)
    whole = gradient(each, params, task=task)
    assert flat(whole["inner_features"]).any()
    for operator in (exact_sum(2), lite_sum(6, chunk_size=2)):
        found = gradient(each, params, operator, task)
        assert relative_error(found, whole) < 1e-9
    assert relative_error(gradient(together, params, task=task), whole) > 1e-3


def test_padding_does_not_count(attentive):
    together, _, params = attentive
    task = float_task(6, size=2)
    padded = jax.tree.map(lambda x: jnp.concatenate([x, x[:3]]), task.support)
    padded = padded._replace(mask=jnp.arange(9) < 6)
    expected = gradient(together, params, task=task)
    found = gradient(together, params, task=Task(padded, task.query))
    assert relative_error(found, expected) < 1e-9


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
        ("", {"backbone__norm": "batch"}, "norm='batch': memory is counted"),
        ("", {"backbone__name": "efficientnet_b0"}, "does not describe its own"),
        ("", {"backbone__dtype": "bfloat16"}, "does not describe its own"),
        ("", {"inner__film": True}, "inner.film"),
    ],
)
def test_bad_settings_are_named(variants, changes, message):
    config = load_config("pmeta", variants, **changes)
    with pytest.raises(UserError, match=message):
        learner = build_learner.make_tested_learner(config, 5)
        shapes_of(learner, (28, 28, 3))


def test_training_makes_step_sizes_exactly_zero_and_never_negative(as_users_run_it):
    config = load_config("pmeta", "synthetic", inner__penalty=100.0, train__steps=30,
                         backbone__width=8, optimizer__schedule="constant",
                         optimizer__learning_rate=1e-2)  # fmt: skip
    constraint = build_learner.make_tested_learner(config, 5).constraint
    optimizer = build_gradient.make_optimizer(
        config.optimizer, config.train.steps, constraint
    )
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
