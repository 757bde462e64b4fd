"""bfloat16 products, float32 everything else: close to float32, and half the memory."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import one_block

from lite_jax import (
    Examples,
    Task,
    UserError,
    episode_grad,
    exact_sum,
    lite_sum,
    nn,
    protonets,
    simple_cnaps,
)
from lite_jax.run import build_backbone
from lite_jax.run.configs import base_config

pytestmark = [pytest.mark.usefixtures("as_users_run_it"), pytest.mark.optimised]

NETWORKS = {
    "conv4": nn.conv4(8),
    "resnet18": nn.resnet18(norm_groups=32),
    "efficientnet_b0": nn.efficientnet_b0(),
    "vit_s": nn.vit_s(),
    "set_encoder": nn.set_encoder(),
}
OPERATORS = {"plain": exact_sum(), "exact": exact_sum(5), "lite": lite_sum(6, 5)}
SPEC = jax.ShapeDtypeStruct((32, 32, 3), jnp.uint8)


def task(num_support=12, num_query=8, size=32, way=4):
    """Return a task of images, a colour and a texture for each class."""
    rng = np.random.default_rng(0)
    centres = rng.integers(60, 200, (way, size, size, 3))

    def examples(count):
        labels = np.arange(count) % way
        noise = rng.normal(size=(count, size, size, 3)) * 30
        inputs = np.clip(centres[labels] + noise, 0, 255).astype(np.uint8)
        return Examples(
            jnp.array(inputs), jnp.array(labels, jnp.int32), jnp.ones(count, bool)
        )

    return Task(examples(num_support), examples(num_query))


def off(found, expected):
    a, b = flat(found), flat(expected)
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def cosine(found, expected):
    a, b = flat(found), flat(expected)
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def params_like(shapes):
    """Kernels of He's variance, and norms that change nothing; drawing is slow."""
    rng = np.random.default_rng(0)

    def drawn(place, leaf):
        if leaf.ndim > 1:
            deviation = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            return (rng.normal(size=leaf.shape) * deviation).astype(leaf.dtype)
        return np.full(leaf.shape, place[-1].key in ("scale", "std", "var"), leaf.dtype)

    return jax.tree_util.tree_map_with_path(drawn, shapes)


def shapes_of(network):
    return jax.eval_shape(lambda key: network.init(key, SPEC), jax.random.key(0))


@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_close_and_products_are_low(name):
    network = NETWORKS[name]
    network = network._replace(init=jax.jit(network.init, static_argnums=1))
    low = nn.in_bfloat16(network)
    params, images = params_like(shapes_of(network)), task(num_query=2).query.inputs
    apply = jax.jit(low.apply)
    found, expected = apply(params, images), jax.jit(network.apply)(params, images)
    assert found.dtype == jnp.float32
    assert 0 < off(found, expected) < 0.03
    chex.assert_trees_all_equal_shapes_and_dtypes(shapes_of(low), params)
    dtypes = product_dtypes(apply, params, images)
    assert dtypes == {"bf16"}, "a product in full precision"


def product_dtypes(fun, *args):
    """Return the dtypes that convolutions and matrix products of a function give."""
    lines = str(jax.make_jaxpr(fun)(*args)).splitlines()
    found = [
        line.split(":", 1)[1].split("[")[0].strip()
        for line in lines
        if "= conv_general_dilated[" in line or "= dot_general[" in line
    ]
    return set(found)


SMALL_ENCODER = {
    "embedding": one_block(film=False), "embedding_size": 8, "film_penalty": 0.0,
}  # fmt: skip


@functools.cache
def learners(make):
    """A learner, the same on a network in bfloat16, and parameters."""
    options = {} if make is protonets else SMALL_ENCODER
    networks = one_block(), nn.in_bfloat16(one_block())
    learner, low = (make(network, way=4, **options) for network in networks)
    params = jax.jit(lambda key: learner.init(key, SPEC))(jax.random.key(0))
    return learner, low, params


@functools.cache
def step(make, operator, in_bfloat16):
    learner, low, params = learners(make)
    grad_fn = episode_grad(
        low if in_bfloat16 else learner, OPERATORS[operator], query_chunk_size=5
    )
    return jax.jit(grad_fn)(params, task(size=16), jax.random.key(1))


@pytest.mark.parametrize("make", [protonets, simple_cnaps])
@pytest.mark.parametrize("operator", OPERATORS)
def test_steps_agree_with_float32(make, operator):
    """An exact gradient in chunks is compared with the plain one, which it equals."""
    of_float32 = "lite" if operator == "lite" else "plain"
    (loss, _), grads = step(make, of_float32, in_bfloat16=False)
    (low_loss, _), low_grads = step(make, operator, in_bfloat16=True)
    assert low_loss.dtype == jnp.float32
    assert abs(low_loss - loss) < 0.02 * loss
    chex.assert_trees_all_equal_shapes_and_dtypes(low_grads, grads)
    assert 0 < off(low_grads, grads) < 0.15
    assert cosine(low_grads, grads) > 0.99


def test_the_mahalanobis_head_stays_in_float32():
    _, learner, params = learners(simple_cnaps)

    def adapt(params, key):
        return learner.adapt(params, task(size=16).support, key, exact_sum(5))

    state = jax.eval_shape(adapt, params, jax.random.key(0))
    floats = [
        x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)
    ]
    assert floats and all(x.dtype == jnp.float32 for x in floats)


def test_film_is_applied_in_low_precision_too():
    network = nn.conv4(8)
    low = nn.in_bfloat16(network)
    params, images = params_like(shapes_of(network)), task().query.inputs
    film = jax.tree.map(lambda x: x + 0.5, network.identity_film())
    expected = jax.jit(network.apply)(params, images, film)
    assert off(jax.jit(low.apply)(params, images, film), expected) < 0.03
    assert off(jax.jit(low.apply)(params, images), expected) > 0.1


def test_configs_choose_it():
    settings = base_config().backbone
    settings.dtype = "bfloat16"
    network = build_backbone.make_backbone(settings)
    params = shapes_of(network)
    assert product_dtypes(network.apply, params, task().query.inputs) == {"bf16"}
    settings.dtype = "float16"
    with pytest.raises(UserError, match=r"backbone\.dtype.*float16.*bfloat16"):
        build_backbone.make_backbone(settings)
