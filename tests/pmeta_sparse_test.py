"""Sparse blocks against dense gradients, what they keep, and adaptation by plans."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from described import NETWORKS
from learners import filled, first_blocks, flat, relative_error

from lite_jax import Examples, UserError, exact_sum, maml, nn
from lite_jax.nn.description import layer_at
from lite_jax.pmeta.attention import NO_ATTENTION, Attention, init_attention
from lite_jax.pmeta.choice import Choice
from lite_jax.pmeta.layers import NORM_GRADIENTS, compute_features, compute_layer
from lite_jax.pmeta.masked import masked_features
from lite_jax.pmeta.memory_model import count_memory, residual_bytes
from lite_jax.pmeta.plan import (
    Plan,
    batch_logits,
    batch_loss,
    fixed_plan,
    inner_params,
    learned_plan,
    make_adapt,
    make_step,
)
from lite_jax.pmeta.rule import p_meta
from lite_jax.pmeta.sparse import sparse_features
from lite_jax.run import memory_budget

FEW_BLOCKS = {
    name: (first_blocks(network, 2), shape)
    for name, (network, shape) in NETWORKS.items()
}
ONE_BLOCK = first_blocks(NETWORKS["resnet12"][0], 1), NETWORKS["resnet12"][1]


def shapes_of(initialised, shape, dtype="float32"):
    """The shapes of a network's or a learner's parameters."""
    spec = jax.ShapeDtypeStruct(shape, dtype)
    return jax.eval_shape(lambda key: initialised.init(key, spec), jax.random.key(0))


def modules_of(architecture, attention):
    key = jax.random.key(0)
    return jax.eval_shape(lambda key: init_attention(key, architecture, attention), key)


def case_of(name):
    """Description of a network of two blocks, and its parameters and inputs."""
    network, shape = FEW_BLOCKS[name]
    with jax.numpy_dtype_promotion("standard"):
        params = filled(shapes_of(network, shape), 0, float)
    inputs = filled(jax.ShapeDtypeStruct((4, *shape), float), 1)
    return network.describe(shape, 5), params, inputs


def gradient_of(features):
    """The gradient of sines of `features(params, …)`, and its value: one program."""

    def loss(params, *args):
        found = features(params, *args)
        weights = jnp.arange(1.0, found.size + 1).reshape(found.shape)
        return (jnp.sin(found) * weights).sum(), found

    return jax.jit(jax.grad(loss, has_aux=True))


@functools.cache
def sparse_gradient(architecture, choice):
    def features(params, modules, inputs):
        return sparse_features(architecture, choice, params, modules, inputs)

    return gradient_of(features)


def sets_of(architecture):
    """Choices of layers: all, the later half, and some alone."""
    paths = [layer.path for layer in architecture.body]
    return [paths, paths[len(paths) // 2 :], *([path] for path in paths[:8:3])]


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_the_dense_ones_of_the_trained_layers_and_zero_elsewhere(name):
    architecture, params, inputs = case_of(name)

    def dense(params, inputs):
        return compute_features(architecture, params, inputs, compute_layer)

    expected, values = gradient_of(dense)(params, inputs)
    for trained in sets_of(architecture):
        run = sparse_gradient(architecture, Choice(frozenset(trained)))
        found, features = run(params, {}, inputs)
        np.testing.assert_allclose(features, values, rtol=1e-9)
        for layer in architecture.body:
            own, right = (
                layer_at({"backbone": x}, layer.path) for x in (found, expected)
            )
            if layer.path in trained:
                assert relative_error(own, right) < 1e-9, (trained, layer.path)
            else:
                assert not flat(own).any(), (trained, layer.path)


CASES = [
    *(("conv4", (0.5, 0.3), kind) for kind in NORM_GRADIENTS),
    *(
        ("mlp", ratios, "exact")
        for ratios in ((0.3, 0.0), (None, 0.4), (0.0, None), (0.5, 0.3))
    ),
    ("resnet12", (0.3, None), "exact"),
]


@pytest.mark.parametrize("name,ratios,norm_gradient", CASES)
def test_gathered_gradients_are_the_masked_dense_ones(name, ratios, norm_gradient):
    """What meta-training differentiates is what a device computes."""
    attention = Attention(*ratios)
    architecture, params, inputs = case_of(name)
    if name == "resnet12":
        architecture = ONE_BLOCK[0].describe(ONE_BLOCK[1], 5)
    modules = filled(modules_of(architecture, attention), 2, float, spread=0.6)

    def masked(params, modules, inputs):
        return masked_features(
            architecture, attention, norm_gradient, modules, params, inputs, jnp.ones(1)
        )

    expected, _ = gradient_of(masked)(params, modules, inputs[:1])
    size = np.abs(flat(expected)).max()
    for trained in sets_of(architecture)[:2]:
        choice = Choice(frozenset(trained), attention, norm_gradient)
        run = sparse_gradient(architecture, choice)
        found, _ = run(params, modules, inputs[:1])
        for path in trained:
            own, right = (
                flat(layer_at({"backbone": x}, path)) for x in (found, expected)
            )
            np.testing.assert_allclose(own, right, rtol=1e-8, atol=1e-8 * size)
    cut = [
        float((np.asarray(x) == 0).mean())
        for path in trained
        for x in jax.tree.leaves(layer_at({"backbone": found}, path))
    ]
    assert ratios in ((None, 0.4), (0.0, None)) or max(cut) > 0.2


def test_other_ways_through_norms_are_near_the_exact_one():
    """And differ from it: bfloat16 by rounding, detached by what statistics pass on."""
    architecture, params, inputs = case_of("conv4")
    paths = frozenset(layer.path for layer in architecture.body)
    found = {
        kind: sparse_gradient(architecture, Choice(paths, NO_ATTENTION, kind))(
            params, {}, inputs
        )[0]
        for kind in NORM_GRADIENTS
    }
    errors = {k: relative_error(x, found["exact"]) for k, x in found.items()}
    assert 1e-6 < errors["bfloat16"] < 0.05 < errors["detached"]


# ------------------------------------------------------------------ what is kept


class Deployed:
    """Conv-4 of 32 channels at 84 pixels as deployed, one image; or the perceptron."""

    def __init__(self, network, shape, count, dtype=jnp.uint8, attention=NO_ATTENTION):
        self.architecture = network.describe(shape, 5)
        backbone = filled(shapes_of(network, shape, dtype))
        self.inner, _ = inner_params(self.architecture, {"backbone": backbone})
        self.modules = filled(modules_of(self.architecture, attention), 1)
        self.inputs = jnp.ones((count, *shape), dtype)
        self.labels = jnp.arange(count, dtype=jnp.int32) % 5
        self.attention = attention

    def plan(self, trained, norm_gradient="exact"):
        sizes = dict.fromkeys(trained, 0.1)
        return Plan(self.architecture, (sizes,), self.attention, norm_gradient)

    def gradient(self, plan):
        choice = plan.choices()[0]

        def loss(trained, inner, inputs, labels):
            return batch_loss(
                plan.architecture, choice, trained, inner, self.modules, inputs, labels
            )

        trained = {path: layer_at(self.inner, path) for path in choice.trained}
        return loss, (trained, self.inner, self.inputs, self.labels)

    def residual_bytes(self, plan):
        choice = plan.choices()[0]
        trained = {path: layer_at(self.inner, path) for path in choice.trained}

        def logits(trained):
            return batch_logits(
                plan.architecture,
                choice,
                trained,
                self.inner,
                self.modules,
                self.inputs,
            )

        return residual_bytes(logits, trained, known=(self.inner, self.modules))

    def temporary_bytes(self, plan):
        loss, inputs = self.gradient(plan)
        return memory_budget.temporary_bytes(
            jax.jit(jax.grad(loss)).lower(*inputs).compile()
        )


@functools.cache
def photograph(blocks=2, attention=NO_ATTENTION):
    """Of 84 pixels, and 32 channels."""
    network = first_blocks(nn.conv4(32), blocks)
    return Deployed(network, (84, 84, 3), 1, attention=attention)


def paths_of(deployed, without=()):
    return [
        layer.path
        for layer in deployed.architecture.layers
        if not layer.path.startswith(tuple(without) or "none")
    ]


SETS = {"all": (), "conv2 and above": ("blocks.0",), "the body": ("head",)}


@pytest.mark.parametrize(
    "chosen,ratio,norm_gradient",
    [
        *itertools.product(("all", "conv2 and above"), (None, 0.3), NORM_GRADIENTS),
        ("the body", None, "exact"),
        ("the body", 0.3, "exact"),
    ],
)
@pytest.mark.optimised
def test_residual_bytes_are_the_analytic_ones(
    as_users_run_it, chosen, ratio, norm_gradient
):
    deployed = photograph(attention=Attention(ratio, None))
    plan = deployed.plan(paths_of(deployed, SETS[chosen]), norm_gradient)
    expected = count_memory(
        plan.architecture, plan.steps[0], kept=plan.kept(),
        conventions=plan.conventions(),
    ).stored_bytes  # fmt: skip
    # And a few hundred bytes: which channels, their scores, each norm's deviations.
    assert deployed.residual_bytes(plan) == pytest.approx(expected, rel=0.01, abs=800)


@pytest.mark.parametrize("chosen", [(), ("head",), ("layers.0",)])
@pytest.mark.optimised
def test_residual_bytes_of_the_perceptron_are_the_analytic_ones(
    as_users_run_it, chosen
):
    """200 observations of 20 numbers, as in reinforcement learning."""
    deployed = Deployed(nn.mlp(100, 2), (20,), 200, jnp.float32)
    plan = deployed.plan(paths_of(deployed, chosen))
    memory = count_memory(
        plan.architecture, plan.steps[0], examples=200, conventions=plan.conventions()
    )
    assert deployed.residual_bytes(plan) == pytest.approx(memory.stored_bytes, rel=0.01)


@pytest.mark.optimised
def test_compiled_bytes_fall_with_the_layers_that_are_trained(as_users_run_it):
    deployed, below = photograph(4), ["blocks.0", "blocks.1", "blocks.2"]

    def temporary_bytes(*without):
        return deployed.temporary_bytes(deployed.plan(paths_of(deployed, without)))

    def plain(inner, inputs, labels):
        features = nn.conv4(32).apply(inner["backbone"], inputs)
        logits = features @ inner["head"]["weights"].T + inner["head"]["biases"][None]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()

    inputs = deployed.inner, deployed.inputs, deployed.labels
    program = jax.jit(jax.grad(plain)).lower(*inputs).compile()
    assert temporary_bytes() <= 3.4e6 < 3.6e6 < memory_budget.temporary_bytes(program)
    assert temporary_bytes("blocks.0") <= 1.15e6
    head = deployed.temporary_bytes(deployed.plan(["head"]))
    assert temporary_bytes(*below) <= 1.1 * head
    assert residual_bytes(plain, *inputs) > 2.5 * deployed.residual_bytes(
        deployed.plan(paths_of(deployed))
    )


@pytest.mark.optimised
def test_accumulation_takes_the_memory_of_one_example(as_users_run_it):
    deployed = photograph()
    plan = deployed.plan(paths_of(deployed))

    def bytes_of(count):
        inputs = jnp.ones((count, 84, 84, 3), jnp.uint8)
        step = make_step(plan, plan.choices()[0])
        lowered = step.lower(
            deployed.inner, {}, plan.steps[0], inputs, jnp.zeros(count, jnp.int32)
        )
        return memory_budget.temporary_bytes(lowered.compile())

    few, many = bytes_of(2), bytes_of(50)
    assert many <= 1.01 * few <= 1.2 * deployed.temporary_bytes(plan)


# ------------------------------------------------------------------------- plans


NETWORK = first_blocks(nn.conv4(4, norm_groups=2), 2)
ARCHITECTURE = NETWORK.describe((16, 16, 3), 5)


def trained_learner(attention=NO_ATTENTION, **options):
    rule = p_meta(0.1, attention=attention, each=True, **options)
    learner = maml(NETWORK, way=5, steps=3, rule=rule, learned_head=True)
    params = filled(shapes_of(learner, (16, 16, 3), "uint8"))
    sizes = jax.tree.map(lambda x: jnp.full_like(x, 0.1), params["inner_rule"])
    blocks = sizes["backbone"]
    blocks["blocks.0"]["conv"] = jnp.zeros(3)
    blocks["blocks.0"]["norm"]["group"] = jnp.zeros(3)
    blocks["blocks.1"]["conv"] = jnp.array([0.0, 0.2, 0.0])
    return learner, params | {"inner_rule": sizes}


def support_of(count=10):
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (count, 16, 16, 3)).astype(np.uint8)
    return jnp.array(images), jnp.arange(count, dtype=jnp.int32) % 5


@pytest.mark.parametrize("attention", [NO_ATTENTION, Attention(0.3, 0.1)])
def test_a_plan_adapts_as_the_learner_does(as_users_run_it, attention):
    learner, params = trained_learner(attention)
    plan = learned_plan(ARCHITECTURE, params, attention=attention)
    images, labels = support_of()
    support = Examples(images, labels, jnp.ones(10, bool))
    adapt = jax.jit(learner.adapt, static_argnums=3)
    state = adapt(params, support, jax.random.key(1), exact_sum())
    found = make_adapt(plan)(params, images, labels)
    predict, queries = jax.jit(learner.predict), support_of(20)[0]
    expected = predict(params, state, queries)
    state = state._replace(inner_params={k: found[k] for k in ("backbone", "head")})
    np.testing.assert_allclose(
        predict(params, state, queries), expected, rtol=2e-3, atol=2e-3
    )
    moved = [x["backbone"]["blocks.1"]["conv"]["kernel"] for x in (found, params)]
    assert jnp.abs(moved[0] - moved[1]).max() > 1e-4
    first = found["backbone"]["blocks.0"]["conv"]["kernel"]
    np.testing.assert_array_equal(
        first, params["backbone"]["blocks.0"]["conv"]["kernel"]
    )


def test_a_learned_plan_drops_what_is_zero_and_adapts_once_for_each_set(
    as_users_run_it, caplog
):
    _, params = trained_learner()
    plan = learned_plan(ARCHITECTURE, params)
    assert [len(sizes) for sizes in plan.steps] == [2, 3, 2]
    assert plan.steps[1]["blocks.1/conv"] == pytest.approx(0.2)
    assert len(set(plan.choices())) == 2
    with jax.log_compiles(), caplog.at_level("WARNING"):
        make_adapt(plan)(params, *support_of())
    compiled = [
        x for x in caplog.messages if "Finished XLA compilation of jit(step)" in x
    ]
    assert len(compiled) == 2


def test_the_batch_size_changes_nothing_without_attention(as_users_run_it):
    _, params = trained_learner()
    plan = learned_plan(ARCHITECTURE, params)
    images, labels = support_of()
    one, five = (make_adapt(plan, batch_size=n)(params, images, labels) for n in (1, 5))
    assert relative_error(five, one) < 1e-3
    with pytest.raises(UserError, match="batch_size=4 does not divide 10 examples"):
        make_adapt(plan, batch_size=4)(params, images, labels)


def test_plans_that_cannot_be_carried_out_are_refused():
    _, params = trained_learner()
    zeros = jax.tree.map(jnp.zeros_like, params["inner_rule"])
    with pytest.raises(UserError, match="every step size is 0"):
        learned_plan(ARCHITECTURE, params | {"inner_rule": zeros})
    with pytest.raises(UserError, match=r"no layer 'blocks\.9/conv'"):
        fixed_plan(ARCHITECTURE, ["blocks.9/conv"], step_size=0.1, steps=2)
    with pytest.raises(UserError, match=r"attention\.forward=1\.5"):
        Plan(ARCHITECTURE, ({"head": 0.1},), Attention(1.5, 0.0)).check()
    with pytest.raises(UserError, match=r"unknown norm_gradient 'rounded'"):
        Plan(ARCHITECTURE, ({"head": 0.1},), NO_ATTENTION, "rounded").check()
