"""Generators of FiLM parameters and of classifiers, against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learners import filled

from lite_jax import UserError, cnaps, nn, simple_cnaps
from lite_jax.nn.hypernets import film_generator, linear_hypernet

IDENTITY = {
    "a": {"scale": jnp.ones(3), "shift": jnp.zeros(3)},
    "b": {"scale": jnp.ones(2), "shift": jnp.zeros(2)},
}


def size_of(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_every_generated_vector_has_a_perceptron_of_its_own():
    """The fused products against one perceptron at a time, as printed."""
    width = 4
    generator = film_generator(IDENTITY, width)
    shapes = jax.eval_shape(generator.init, jax.random.key(0))
    rng = np.random.default_rng(0)  # biases and norms that are not 0 and 1
    params = jax.tree.map(lambda x: jnp.array(rng.normal(size=x.shape)), shapes)
    z = rng.normal(size=width)
    found = jax.jit(generator.apply)(params, jnp.array(z))

    start = 0
    numbered = enumerate(jax.tree_util.tree_leaves_with_path(IDENTITY))
    for number, (path, identity) in numbered:
        first, norm, last = (
            jax.tree.map(np.asarray, params[k]) for k in ("first", "norm", "last")
        )
        hidden = z @ first["kernel"][number] + first["bias"][number]
        hidden = (hidden - hidden.mean()) / np.sqrt(hidden.var() + 1e-5)
        hidden = hidden * norm["scale"][number] + norm["bias"][number]
        rows = slice(start, start + identity.size)
        output = last["kernel"][rows] @ np.maximum(hidden, 0) + last["bias"][rows]
        expected = identity + params["amplitude"][rows] * output
        place = found[path[0].key][path[1].key]
        np.testing.assert_allclose(place, expected, rtol=1e-10)
        start += identity.size
    assert start == params["amplitude"].size


def test_generated_film_starts_near_the_identity_by_the_amplitudes_of_the_paper():
    generator = film_generator(nn.resnet18().identity_film())
    params = generator.init(jax.random.key(0))
    amplitude = np.asarray(params["amplitude"])
    assert abs(amplitude.std() / 1e-3 - 1) < 0.05 and abs(amplitude.mean()) < 1e-4
    film = jax.jit(generator.apply)(params, jnp.ones(64))
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(film))
    assert len(leaves) == 2 * 16  # places of ResNet-18
    for path, leaf in leaves:
        identity = 1.0 if path[-1].key == "scale" else 0.0
        assert 0 < np.abs(leaf - identity).max() < 0.05


def test_parameter_counts_are_those_of_the_paper_s_code():
    """4,007,548 of EfficientNet-B0 are in backbones_test; the rest of Simple CNAPs."""
    spec = jax.ShapeDtypeStruct((64, 64, 3), jnp.uint8)
    learner = simple_cnaps(nn.efficientnet_b0(), way=5)
    params = jax.eval_shape(lambda key: learner.init(key, spec), jax.random.key(0))
    encoder = {k: v for k, v in params["set_encoder"].items() if k != "input"}
    assert size_of(encoder) == 150_144
    assert size_of(params["film"]) == 1_510_272
    assert params["film"]["amplitude"].shape == (20_544,)
    assert set(params) == {"backbone", "set_encoder", "film"}
    assert learner.frozen == ("backbone",)


def test_penalty_is_that_of_the_amplitudes():
    learner = simple_cnaps(nn.conv4(8), way=5, film_penalty=0.5)
    amplitude = jnp.array([1.0, -2.0])
    found = learner.penalty({"film": {"amplitude": amplitude}}, None)
    assert float(found) == 0.5 * (1 + 4)


def test_linear_hypernet_is_two_residual_perceptrons():
    hypernet = linear_hypernet(3)
    shapes = jax.eval_shape(hypernet.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.array(rng.normal(size=x.shape)), shapes)
    means = rng.normal(size=(4, 3))

    def perceptron(layers):
        x = means
        for number, layer in enumerate(layers):
            x = np.where(x > 0, x, np.expm1(x)) if number else x
            x = x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
        return x

    weights, biases = jax.jit(hypernet.apply)(params, jnp.array(means))
    np.testing.assert_allclose(
        weights, means + perceptron(params["weight"]), rtol=1e-10
    )
    np.testing.assert_allclose(biases, perceptron(params["bias"])[:, 0], rtol=1e-10)
    shapes = [layer["kernel"].shape for layer in params["bias"]]
    assert shapes == [(3, 1), (1, 1), (1, 1)]


@pytest.mark.parametrize("make", [cnaps, simple_cnaps])
def test_a_backbone_without_film_is_refused(make):
    with pytest.raises(UserError, match="no FiLM places.*another backbone"):
        make(nn.pixels(), way=5)


def test_set_encoder_halves_images_until_nothing_is_left_to_halve(key):
    net = nn.set_encoder()
    for size in (1, 8, 33):
        spec = jax.ShapeDtypeStruct((size, size, 1), jnp.uint8)
        params = filled(jax.eval_shape(lambda key, spec=spec: net.init(key, spec), key))
        images = jnp.array(np.arange(2 * size**2).reshape(2, size, size, 1), jnp.uint8)
        found = jax.jit(net.apply)(params, images)
        assert found.shape == (2, 64)
        assert np.isfinite(found).all() and np.ptp(found) > 0
