"""bfloat16 products, float32 everything else: close to float32, and half the memory."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lite_jax import (
    Examples,
    Task,
    UserError,
    episode_grad,
    exact_sum,
    lite_sum,
    models,
    nn,
    protonets,
    simple_cnaps,
)
from lite_jax.defaults import base_config
from tests.toys import flat

pytestmark = pytest.mark.usefixtures("as_users_run_it")

NETWORKS = {
    # name: (network, pixels a side)
    "conv4": (nn.conv4(16), 32),
    "resnet18": (nn.resnet18(norm_groups=32), 32),
    "efficientnet_b0": (nn.efficientnet_b0(), 32),
    "vit_s": (nn.vit_s(), 32),
    "set_encoder": (nn.set_encoder(), 32),
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
    return float(
        jnp.linalg.norm(flat(found) - flat(expected)) / jnp.linalg.norm(flat(expected))
    )


def cosine(found, expected):
    a, b = flat(found), flat(expected)
    return float(a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b))


def init(network):
    """Random parameters; `init` of a large network is slow without `jit`."""
    return jax.jit(lambda key: network.init(key, SPEC))(jax.random.key(0))


@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_close_and_products_are_low(name):
    network, _ = NETWORKS[name]
    params, images = init(network), task().query.inputs
    low = nn.in_bfloat16(network)
    found, expected = jax.jit(low.apply)(params, images), network.apply(params, images)
    assert found.dtype == jnp.float32
    assert 0 < off(found, expected) < 0.03
    chex.assert_trees_all_equal_shapes_and_dtypes(
        jax.eval_shape(lambda: low.init(jax.random.key(0), SPEC)), params
    )
    dtypes = product_dtypes(low.apply, params, images)
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


@pytest.mark.parametrize("make", [protonets, simple_cnaps])
@pytest.mark.parametrize(
    "operator",
    [exact_sum(), exact_sum(5), lite_sum(6, 5)],
    ids=["plain", "exact", "lite"],
)
def test_steps_agree_with_float32(make, operator):
    network = nn.conv4(16)
    options = {} if make is protonets else {"film_penalty": 0.0}
    learners = [
        make(net, way=4, **options) for net in (network, nn.in_bfloat16(network))
    ]
    params = init(learners[0])
    (loss, _), grads = jax.jit(episode_grad(learners[0], operator, query_chunk_size=5))(
        params, task(), jax.random.key(1)
    )
    (low_loss, _), low_grads = jax.jit(
        episode_grad(learners[1], operator, query_chunk_size=5)
    )(params, task(), jax.random.key(1))
    assert low_loss.dtype == jnp.float32
    assert abs(low_loss - loss) < 0.02 * loss
    chex.assert_trees_all_equal_shapes_and_dtypes(low_grads, grads)
    assert off(low_grads, grads) < 0.15
    assert cosine(low_grads, grads) > 0.99


def test_the_mahalanobis_head_stays_in_float32():
    learner = simple_cnaps(nn.in_bfloat16(nn.conv4(16)), way=4)
    state = learner.adapt(
        init(learner), task().support, jax.random.key(0), exact_sum(5)
    )
    floats = [
        x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)
    ]
    assert floats and all(x.dtype == jnp.float32 for x in floats)


def test_film_is_applied_in_low_precision_too():
    network = nn.conv4(16)
    params, images, low = init(network), task().query.inputs, nn.in_bfloat16(network)
    film = jax.tree.map(lambda x: x + 0.5, network.identity_film())
    expected = network.apply(params, images, film)
    assert off(low.apply(params, images, film), expected) < 0.03
    assert off(low.apply(params, images), expected) > 0.1


def test_configs_choose_it():
    settings = base_config().backbone
    settings.dtype = "bfloat16"
    network = models.make_backbone(settings)
    params = init(network)
    assert product_dtypes(network.apply, params, task().query.inputs) == {"bf16"}
    settings.dtype = "float16"
    with pytest.raises(UserError, match=r"backbone\.dtype.*float16.*bfloat16"):
        models.make_backbone(settings)
