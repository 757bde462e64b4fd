import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from jax import lax

from lite_jax import UserError, batched, check_additive
from lite_jax.nn import conv4, layers, pixels
from lite_jax.nn.convolution import conv_general_dilated

LAYOUT = ("NHWC", "HWIO", "NHWC")


def images(size=28, channels=1, count=5):
    rng = np.random.default_rng(0)
    return jnp.array(rng.integers(0, 256, (count, size, size, channels)), jnp.uint8)


def spec(size=28, channels=1):
    return jax.ShapeDtypeStruct((size, size, channels), jnp.uint8)


PADDINGS = pytest.mark.parametrize("padding", ["SAME", "VALID", ((0, 1), (2, 0))])
STRIDES = pytest.mark.parametrize("strides", [(1, 1), (2, 2), (1, 3)])


def agrees_with_lax(kernel, strides, padding, **options):
    """Compare value and both gradients with the formula's own; return the inputs."""
    rng = np.random.default_rng(0)
    x = jnp.array(rng.normal(size=(2, 9, 8, 3)))
    w = jnp.array(rng.normal(size=kernel))

    def loss(conv):
        def call(x, w):
            return conv(x, w, strides, padding, dimension_numbers=LAYOUT, **options)

        return lambda x, w: jnp.sin(call(x, w)).sum()

    @jax.jit
    def both(x, w):
        convolutions = conv_general_dilated, lax.conv_general_dilated
        return [jax.value_and_grad(loss(conv), (0, 1))(x, w) for conv in convolutions]

    chex.assert_trees_all_close(*both(x, w), rtol=1e-10)
    return x, w


@PADDINGS
@STRIDES
@pytest.mark.parametrize("kernel", [(3, 3), (1, 1), (5, 2), (4, 4)])
def test_canonical_convolution_equals_lax(padding, strides, kernel):
    agrees_with_lax((*kernel, 3, 4), strides, padding)


@PADDINGS
@STRIDES
@pytest.mark.parametrize("kernel", [(3, 3), (5, 2)])
def test_depthwise_convolution_equals_lax(padding, strides, kernel):
    """What is kept for the backward pass is the inputs alone, not shifted copies."""
    depthwise = {"feature_group_count": 3}
    x, w = agrees_with_lax((*kernel, 1, 3), strides, padding, **depthwise)

    def convolve(x, w):
        return conv_general_dilated(
            x, w, strides, padding, dimension_numbers=LAYOUT, **depthwise
        )

    _, pull_back = jax.eval_shape(lambda x, w: jax.vjp(convolve, x, w), x, w)
    kept = sum(leaf.size for leaf in jax.tree.leaves(pull_back))
    assert kept <= x.size + w.size


def test_sums_over_images_of_low_precision_are_formed_in_float32():
    """In bfloat16 the sum of ones would stay at 256."""
    x, w = jnp.ones((400, 3, 3, 2), jnp.bfloat16), jnp.ones((3, 3, 1, 2), jnp.bfloat16)
    slope = jax.grad(
        lambda w: conv_general_dilated(
            x, w, (1, 1), "VALID", dimension_numbers=LAYOUT, feature_group_count=2
        ).sum()
    )
    found = jax.jit(slope)(w)
    assert found.dtype == jnp.bfloat16 and (found == 400).all()


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_can_be_differentiated_twice_in_reverse(groups):
    rng = np.random.default_rng(0)
    x, w = (
        jnp.array(rng.normal(size=(2, 6, 6, 2))),
        jnp.array(rng.normal(size=(3, 3, 2 // groups, 2))),
    )
    options = {"dimension_numbers": LAYOUT, "feature_group_count": groups}

    def second(conv, x, w):
        def loss(w):
            return jnp.sin(conv(x, w, (1, 1), "SAME", **options)).sum()

        return jax.grad(lambda w: (jax.grad(loss)(w) ** 2).sum())(w)

    @jax.jit
    def both(x, w):
        return [
            second(f, x, w) for f in (conv_general_dilated, lax.conv_general_dilated)
        ]

    chex.assert_trees_all_close(*both(x, w), rtol=1e-10)


@pytest.mark.parametrize(
    "options",
    [
        {"dimension_numbers": ("NCHW", "OIHW", "NCHW")},
        {"dimension_numbers": LAYOUT, "rhs_dilation": (2, 2)},
        {"dimension_numbers": LAYOUT, "lhs_dilation": (2, 1)},
    ],
)
def test_other_convolutions_are_passed_on(options):
    rng = np.random.default_rng(0)
    x, w = (
        jnp.array(rng.normal(size=(4, 4, 4, 4))),
        jnp.array(rng.normal(size=(4, 4, 4, 4))),
    )
    pads = ((3, 3), (3, 3))

    def loss(conv):
        return lambda x, w: jnp.sin(conv(x, w, (1, 1), pads, **options)).sum()

    @jax.jit
    def both(x, w):
        convolutions = conv_general_dilated, lax.conv_general_dilated
        return [jax.grad(loss(conv), (0, 1))(x, w) for conv in convolutions]

    chex.assert_trees_all_close(*both(x, w), rtol=1e-12)


@pytest.mark.parametrize("size, features", [(16, 64), (28, 64), (84, 1600)])
def test_conv4_has_the_dimensions_of_the_literature(size, features):
    network = conv4()
    shapes = jax.eval_shape(lambda k: network.init(k, spec(size, 3)), jax.random.key(0))
    statistics = shapes.pop("input")
    assert jax.tree.map(jnp.shape, statistics) == {"mean": (3,), "std": (3,)}
    count = sum(x.size for x in jax.tree.leaves(shapes))
    assert count == 9 * 64 * (3 + 3 * 64) + 8 * 64
    shapes["input"] = statistics
    found = jax.eval_shape(network.apply, shapes, images(size, 3))
    assert found.shape == (5, features) and found.dtype == jnp.float32


@pytest.fixture(scope="module")
def small_conv4():
    """Conv-4 of 8 channels, compiled, and parameters off their start."""
    network = conv4(width=8, norm_groups=2, mean=0.4, std=0.5)
    params = jax.jit(lambda key: network.init(key, spec(17, 3)))(jax.random.key(0))
    moved = jax.tree.map(lambda x: np.asarray(x) + np.float32(0.1), params)
    return jax.jit(network.apply), moved | {"input": params["input"]}


def test_conv4_features_of_an_image_ignore_the_others(small_conv4):
    apply, params = small_conv4
    two = images(17, 3, count=2)
    check_additive(batched(apply), params, two, rtol=1e-5)
    np.testing.assert_allclose(
        apply(params, two[1:])[0], apply(params, two)[1], rtol=1e-4, atol=1e-5
    )


def test_conv4_is_the_written_out_network(small_conv4):
    """Four times convolution, GroupNorm of 4 channels each, ReLU, 2×2 maxima."""
    apply, params = small_conv4
    x = (np.asarray(images(17, 3, count=2), np.float64) / 255 - 0.4) / 0.5
    for i in range(4):
        kernel = np.asarray(params[f"blocks.{i}"]["conv"]["kernel"], np.float64)
        count, height, width, _ = x.shape
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = sum(
            padded[:, a : a + height, b : b + width] @ kernel[a, b]
            for a in range(3) for b in range(3)
        )  # fmt: skip
        groups = x.reshape(count, -1, 2, 4)
        mean, var = (f(groups, (1, 3), keepdims=True) for f in (np.mean, np.var))
        x = ((groups - mean) / np.sqrt(var + 1e-6)).reshape(x.shape)
        norm = jax.tree.map(np.asarray, params[f"blocks.{i}"]["norm"]["group"])
        x = np.maximum(x * norm["scale"] + norm["bias"], 0)
        height, width = height // 2 * 2, width // 2 * 2
        x = np.max([x[:, a:height:2, b:width:2] for a in (0, 1) for b in (0, 1)], 0)
    found = apply(params, images(17, 3, count=2))
    np.testing.assert_allclose(found, x.reshape(2, -1), rtol=2e-3, atol=2e-4)


def test_uint8_and_unit_floats_give_the_same_features(small_conv4):
    apply, params = small_conv4
    two = images(17, 3, count=2)
    as_float = np.asarray(two, np.float32) / 255
    chex.assert_trees_all_close(apply(params, two), apply(params, as_float), rtol=1e-4)


def test_pixels_are_the_scaled_pixels():
    found = pixels().apply({}, images(4))
    np.testing.assert_allclose(
        found, np.asarray(images(4)).reshape(5, -1) / 255, rtol=1e-6
    )


def test_too_small_an_image_is_refused():
    with pytest.raises(
        UserError, match="16 pixels a side .* 15 × 15: change image_size"
    ):
        conv4().init(jax.random.key(0), spec(15))


@pytest.mark.parametrize("width, groups", [(64, 7), (0, 8), (8, 0)])
def test_groups_must_divide_the_width(width, groups):
    with pytest.raises(UserError, match=f"={groups} does not divide {width}"):
        conv4(width, norm_groups=groups).init(jax.random.key(0), spec())


@pytest.mark.parametrize("sides", [(4, 6), (5, 4), (1, 2), (1, 1)])
def test_max_pool_is_flax_s(sides):
    images = jnp.array(np.random.default_rng(0).normal(size=(2, *sides, 3)))
    window = tuple(min(side, 2) for side in sides)
    expected = linen.max_pool(images, window, window)
    chex.assert_trees_all_equal(layers.max_pool(images), expected)


def test_one_of_equal_maxima_takes_the_gradient():
    images = jnp.array([[1.0, 3.0], [3.0, 3.0]]).reshape(1, 2, 2, 1)
    gradient = jax.grad(lambda x: layers.max_pool(x).sum())(images)
    np.testing.assert_array_equal(gradient.ravel(), [0, 1, 0, 0])


@pytest.mark.parametrize("place", range(4))
def test_max_pool_hands_on_what_is_not_a_number(place):
    images = jnp.arange(4.0).at[place].set(jnp.nan).reshape(1, 2, 2, 1)
    assert jnp.isnan(layers.max_pool(images)).all()


@pytest.mark.parametrize("pool", [layers.max_pool, layers.overlapping_max_pool])
def test_gradient_of_pooling_asks_for_no_equals_of_the_maximum(pool):
    """There are none where the images are computed again with other rounding."""
    pooled = jax.grad(lambda x: pool(x).sum())
    twice = jax.grad(lambda x: (pooled(x) * x).sum())
    program = str(jax.make_jaxpr(twice)(jnp.ones((1, 4, 4, 2))))
    assert " ge " in program
    assert not any(f" {name} " in program for name in ("eq", "div", "max"))
