"""Every backbone: sizes, independence of images, FiLM, frozen norms, parity."""

import functools
import sys
import types

import chex
import jax
import jax.numpy as jnp
import made_weights
import numpy as np
import pytest
from flax import linen
from safetensors.numpy import save_file

from lite_jax import UserError, batched, check_additive, nn
from lite_jax.nn import layers, weights
from lite_jax.nn.network import make_network
from lite_jax.nn.resnet import BasicBlock, ResNet
from lite_jax.nn.vit import ViT

pytestmark = pytest.mark.usefixtures("as_users_run_it")

BACKBONES = {  # name: (factory, image size, features)
    "conv4": (functools.partial(nn.conv4, 8, norm_groups=4), 16, 8),
    "resnet12": (functools.partial(nn.resnet12, (8, 8, 16, 16)), 16, 16),
    "resnet18": (nn.resnet18, 48, 512),
    "resnet18 with GroupNorm": (functools.partial(nn.resnet18, norm="group"), 32, 512),
    "resnet50": (nn.resnet50, 48, 2048),
    "efficientnet_b0": (nn.efficientnet_b0, 48, 1280),
    "vit_s": (nn.vit_s, 48, 384),
}
LEAST = dict.fromkeys(BACKBONES, 32) | {"conv4": 16, "resnet12": 16, "vit_s": 16}


def spec(size):
    return jax.ShapeDtypeStruct((size, size, 3), jnp.uint8)


# Tracing a network is what takes the time. A function that `jax.jit` is given again is
# not traced again, so tests of a network hand the same functions the same shapes: two
# images of a size with no FiLM, or one image with it.


@functools.cache
def made(make):
    """The network of a factory, with an `init` that is traced once for each size."""
    net = make()
    return net._replace(init=jax.jit(net.init, static_argnums=1))


@functools.cache
def shapes(make, size):
    return jax.eval_shape(lambda key: made(make).init(key, spec(size)), some_key())


@functools.cache
def identity_film(make):
    return made(make).identity_film()


def some_key():
    return jax.random.key(0)


@functools.cache
def network(name):
    """The network of a name with parameters filled in by NumPy (drawing is slow)."""
    make, size, _ = BACKBONES[name]
    gain = 1.8 if name.startswith("efficientnet") else 1.0
    return made(make), filled_in(shapes(make, size), gain)


def filled_in(shapes, gain=1.0):
    def tensor(place, leaf):
        name = weights._tensor_name(place)
        found = made_weights.tensor(name, weights._tensor_shape(leaf.shape), gain)
        return weights._to_leaf(name, found, leaf.shape)

    rest = {k: v for k, v in shapes.items() if k != "input"}
    mean, std = np.full(3, 0.5, np.float32), np.full(3, 0.3, np.float32)
    params = jax.tree_util.tree_map_with_path(tensor, rest)
    return jax.device_put({"input": {"mean": mean, "std": std}, **params})


images = made_weights.images


@pytest.mark.parametrize("name", BACKBONES)
def test_features_of_an_image_do_not_depend_on_the_others(name):
    (net, params), (_, size, width) = network(name), BACKBONES[name]
    rows = {}  # of the images of each content, in a batch filled up with black ones

    def features(params, some):
        filled = np.zeros((2, size, size, 3), np.uint8)
        filled[: len(some)] = some
        content = np.asarray(some).tobytes()
        if content not in rows:
            rows[content] = jax.jit(net.apply)(params, filled)[: len(some)]
        return rows[content]

    found = features(params, images(size))
    assert found.shape == (2, width)
    assert float(found.std(0).max()) > 0.01  # else nothing is tested
    check_additive(batched(features), params, images(size), rtol=1e-4)


@pytest.mark.parametrize("name", BACKBONES)
def test_film_is_the_identity_until_it_is_changed_and_matters_everywhere(name):
    """Features of one image are compared with those of two, so their number with it."""
    (net, params), (make, size, _) = network(name), BACKBONES[name]

    @jax.jit
    def run(params, film, images):
        features, pull_back = jax.vjp(
            lambda film: jax.jit(net.apply)(params, images, film), film
        )
        return features, *pull_back(2 * features)  # of the sum of squares

    features, gradient = run(params, identity_film(make), images(size)[:1])
    plain = jax.jit(net.apply)(params, images(size))
    chex.assert_trees_all_close(features, plain[:1], rtol=1e-4, atol=1e-4)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert jnp.abs(leaf).max() > 1e-6, jax.tree_util.keystr(path)


@pytest.mark.parametrize(
    "make, size, count, places, numbers",
    [
        (nn.efficientnet_b0, 48, 4_007_548, 18, 20_544),
        (nn.resnet18, 48, 11_176_512, 16, 7_680),
        (nn.resnet50, 48, 23_508_032, 32, 15_104),
        (nn.resnet12, 16, 12_424_320, 12, 7_104),
        (nn.vit_s, 64, 21_596_544, 25, 19_200),
    ],
)
def test_parameter_counts(make, size, count, places, numbers):
    """As timm's networks without their classifiers (4,007,548 also in LITE's code)."""
    learned = [
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes(make, size))
        if path[0].key != "input" and path[-1].key not in ("mean", "var")
    ]
    film = jax.tree.leaves(identity_film(make))
    assert sum(learned) == count
    assert (len(film) / 2, sum(x.size for x in film)) == (places, numbers)


@pytest.mark.parametrize("name", BACKBONES)
def test_too_small_an_image_is_refused(name):
    net, _ = network(name)
    size = LEAST[name] - 1
    with pytest.raises(UserError, match=f"got {size} × {size}.*change image_size"):
        net.init(jax.random.key(0), spec(size))


def test_vit_takes_multiples_of_its_patches_alone():
    with pytest.raises(UserError, match="a multiple of 16, got 84 × 84"):
        nn.vit_s().init(jax.random.key(0), spec(84))


def shallow(module, *options, multiple=1):
    """The factory of a network with few of a module's blocks."""
    return lambda *, remat: make_network(
        module(*options, remat), mean=0.5, std=0.3, least_size=16, multiple=multiple
    )


SHALLOW = {
    "conv4": functools.partial(nn.conv4, 8),
    "resnet12": functools.partial(nn.resnet12, (8, 8)),
    "resnet18": shallow(ResNet, BasicBlock, (1, 1), "batch", 32),
    "vit_s": shallow(ViT, 24, 2, 2, multiple=16),
}


@pytest.mark.parametrize("name", SHALLOW)
def test_remat_changes_what_is_kept_and_nothing_else(name):
    plain, remat = (SHALLOW[name](remat=x) for x in (False, True))
    init = functools.partial(plain.init, example_spec=spec(32))
    params = filled_in(jax.eval_shape(init, some_key()))

    def gradient(net):
        def loss(params, images):
            return jnp.square(net.apply(params, images)).sum()

        return jax.jit(jax.grad(loss))(params, images(32))

    chex.assert_trees_all_close(gradient(remat), gradient(plain), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SHALLOW)
def test_remat_keeps_block_boundaries_alone(name):
    make, size, _ = BACKBONES[name]
    (net, params), remat = network(name), make(remat=True)
    traced, plain = (
        str(jax.jit(x.apply).trace(params, images(size)).jaxpr) for x in (remat, net)
    )
    assert "remat2[" in traced and "remat2[" not in plain


def test_frozen_batch_norm_is_the_formula_and_keeps_its_statistics():
    norm = layers.Norm("batch")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 3, 4)).astype(np.float32)
    params = {k: rng.uniform(0.5, 2, 4) for k in ("scale", "bias", "mean", "var")}
    expected = (x - params["mean"]) / np.sqrt(params["var"] + 1e-5)
    expected = expected * params["scale"] + params["bias"]
    params = jax.tree.map(lambda p: jnp.array(p, jnp.float32), params)
    found = norm.apply({"params": params}, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    loss = lambda p: (norm.apply({"params": p}, x) ** 2).sum()  # noqa: E731
    gradient = jax.grad(loss)(params)
    assert not jnp.any(gradient["mean"]) and not jnp.any(gradient["var"])
    assert jnp.all(gradient["scale"] != 0) and jnp.all(gradient["bias"] != 0)


@pytest.mark.parametrize("size", [7, 8])
def test_overlapping_max_pool_is_flax_s(size):
    x = jnp.array(np.random.default_rng(0).normal(size=(2, size, size, 3)))
    expected = linen.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    chex.assert_trees_all_equal(layers.overlapping_max_pool(x), expected)


def test_statistics_of_the_input_are_parameters_without_gradient():
    net = nn.conv4(8, mean=(0.1, 0.2, 0.3), std=0.5)
    found = jax.jit(lambda key: net.init(key, spec(16))["input"])(some_key())
    np.testing.assert_allclose(found["mean"], [0.1, 0.2, 0.3], rtol=1e-6)
    np.testing.assert_allclose(found["std"], [0.5] * 3, rtol=1e-6)
    net, params = network("conv4")
    loss = lambda p, x: jnp.square(jax.jit(net.apply)(p, x)).sum()  # noqa: E731
    value_and_gradient = jax.jit(jax.value_and_grad(loss))
    value, gradient = value_and_gradient(params, images(16))
    assert not any(jnp.any(x) for x in jax.tree.leaves(gradient["input"]))
    assert all(jnp.any(x) for x in jax.tree.leaves(gradient["blocks.0"]))
    moved, _ = value_and_gradient(params | {"input": found}, images(16))
    assert moved != value


# ------------------------------------------------------------------------ weights

RECORDED = {  # timm 1.0.31 with the weights and images of `made_weights`
    "resnet18": (
        nn.resnet18, 48, 1.0,
        [0.270341, 0.273388, 0.281414, 1.153275], [1.122054, 0.083171], 33.23859,
    ),
    "resnet50": (
        nn.resnet50, 48, 0.8,
        [0.0, 0.001714, 0.0, 0.488186], [0.0, 0.546738], 23.52606,
    ),
    "efficientnet_b0": (
        nn.efficientnet_b0, 48, 1.7,
        [0.065091, 0.044581, 0.00697, 0.13147], [-0.230659, 0.043103], 9.50074,
    ),
    "tf_efficientnet_b0": (
        functools.partial(nn.efficientnet_b0, tensorflow=True), 49, 1.7,
        [0.121275, 0.057304, 0.253393, 0.165468], [-0.24141, 0.106771], 11.62297,
    ),
    "vit_small_patch16_224": (
        nn.vit_s, 48, 1.0,
        [0.617816, -1.778036, -0.698116, 0.29831], [0.784426, 0.488642], 23.81674,
    ),
}  # fmt: skip


def write_file(path, make, size, gain=1.0, **changes):
    """Write a file in timm's layout, with tensors made from their names."""
    found = {k: v for k, v in shapes(make, size).items() if k != "input"}
    names = weights._keys_and_shapes(found)
    tensors = {
        name: made_weights.tensor(name, weights._tensor_shape(shape), gain)
        for name, (_, shape) in names.items()
    }
    tensors |= {"fc.weight": np.zeros((10, 3), np.float32), **changes}
    tensors |= {"bn1.num_batches_tracked": np.array(3)}
    save_file({k: v for k, v in tensors.items() if v is not None}, path)
    return path


@pytest.mark.parametrize("name", RECORDED)
def test_features_are_those_that_timm_computes(name, tmp_path):
    """Names and layouts included: a tensor's content depends on its name in timm."""
    make, size, gain, first, last, norm = RECORDED[name]
    path = write_file(tmp_path / "w.safetensors", make, size, gain)
    net = nn.pretrained(made(make), str(path))
    params = net.init(some_key(), spec(size))
    found = np.asarray(jax.jit(net.apply)(params, made_weights.images(size)))
    np.testing.assert_allclose(found[0, :4], first, atol=1e-5)
    np.testing.assert_allclose(found[1, -2:], last, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found), norm, rtol=1e-5)


@pytest.fixture(scope="module")
def resnet18_file(tmp_path_factory, as_users_run_it):
    folder = tmp_path_factory.mktemp("resnet18")
    return write_file(folder / "model.safetensors", nn.resnet18, 48)


def test_weights_that_do_not_fit_are_listed_in_one_error(tmp_path):
    wrong = np.zeros((1, 2), np.float32)
    path = write_file(
        tmp_path / "w.safetensors", nn.resnet18, 48,
        **{"conv1.weight": wrong, "bn1.bias": None, "extra.weight": wrong},
    )  # fmt: skip
    net = nn.pretrained(made(nn.resnet18), str(path))
    with pytest.raises(UserError) as error:
        net.init(some_key(), spec(48))
    for part in (
        "1 missing (bn1.bias)",
        "1 extra (extra.weight)",
        "1 mis-shaped (conv1.weight [1, 2] instead of [64, 3, 7, 7])",
    ):
        assert part in str(error.value)


def test_weights_of_another_architecture_are_refused(resnet18_file):
    net = nn.pretrained(made(nn.resnet50), str(resnet18_file))
    with pytest.raises(UserError, match="missing .* more.*the backbone and the norm"):
        net.init(some_key(), spec(48))
    make, size, _ = BACKBONES["resnet18 with GroupNorm"]
    net = nn.pretrained(made(make), str(resnet18_file))
    with pytest.raises(UserError, match="extra .*running_mean.*backbone and the norm"):
        net.init(some_key(), spec(size))


def test_statistics_come_with_the_weights(resnet18_file, tmp_path):
    (tmp_path / "model.safetensors").symlink_to(resnet18_file)

    def check(mean, std):
        net = nn.pretrained(made(nn.resnet18), str(tmp_path))
        found = net.init(some_key(), spec(48))["input"]
        np.testing.assert_allclose(found["mean"], mean, rtol=1e-6)
        np.testing.assert_allclose(found["std"], std, rtol=1e-6)

    check([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # the network's own
    hub = '{"pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5]}}'
    (tmp_path / "config.json").write_text(hub)
    check([0.1, 0.2, 0.3], [0.5, 0.5, 0.5])


@pytest.mark.parametrize("name", ["conv4", "resnet18 with GroupNorm", "vit_s"])
def test_saved_weights_are_read_back_exactly(name, tmp_path):
    (net, params), (_, size, _) = network(name), BACKBONES[name]
    path = tmp_path / "backbone.safetensors"
    nn.save_weights(path, params)
    found = nn.pretrained(net, str(path)).init(some_key(), spec(size))
    chex.assert_trees_all_equal(found, params)
    assert [p.name for p in tmp_path.iterdir()] == ["backbone.safetensors"]


def test_position_embeddings_are_resized():
    constant = np.full((1, 197, 384), 0.25, np.float32)
    constant[:, 0] = 7
    found = weights._resized_positions(constant, (1, 10, 384))
    np.testing.assert_allclose(found[:, 0], 7)
    np.testing.assert_allclose(found[:, 1:], np.full((1, 9, 384), 0.25), rtol=1e-5)


@pytest.mark.parametrize(
    "theirs, timm",
    [
        ("features.0.0.weight", "conv_stem.weight"),
        ("features.8.1.running_var", "bn2.running_var"),
        ("features.1.0.block.0.0.weight", "blocks.0.0.conv_dw.weight"),
        ("features.1.0.block.2.1.bias", "blocks.0.0.bn2.bias"),
        ("features.4.2.block.2.fc1.bias", "blocks.3.2.se.conv_reduce.bias"),
        ("features.7.0.block.3.0.weight", "blocks.6.0.conv_pwl.weight"),
    ],
)
def test_torchvision_s_names_become_timm_s(theirs, timm):
    assert weights._timm_name(theirs, ["features.0.0.weight"]) == timm
    assert weights._timm_name("layer1.0.conv1.weight", ["conv1.weight"]) == (
        "layer1.0.conv1.weight"
    )


def test_files_that_cannot_serve_are_refused(tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    with pytest.raises(UserError, match="broken.safetensors is not a whole"):
        nn.pretrained(nn.conv4(), str(broken))
    with pytest.raises(UserError, match="no such file; give a safetensors file"):
        nn.pretrained(nn.conv4(), str(tmp_path / "none.safetensors"))
    with pytest.raises(UserError, match="^weights=.*no such file"):
        nn.pretrained(nn.conv4(), str(tmp_path))


def fake_hub(monkeypatch, download):
    module = types.ModuleType("huggingface_hub")
    module.hf_hub_download = download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


def test_weights_come_from_the_hub_by_name(resnet18_file, tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").symlink_to(resnet18_file)
    (tmp_path / "config.json").write_text('{"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}')
    asked = []

    def download(name, file):
        asked.append((name, file))
        return str(tmp_path / file)

    fake_hub(monkeypatch, download)
    net = nn.pretrained(made(nn.resnet18), "hub:timm/resnet18.a1_in1k")
    assert {name for name, _ in asked} == {"timm/resnet18.a1_in1k"}
    params = net.init(some_key(), spec(48))
    np.testing.assert_allclose(params["input"]["mean"], [0.1, 0.2, 0.3], rtol=1e-6)


def test_a_hub_that_cannot_be_reached_is_explained(monkeypatch):
    def download(name, file):
        raise ConnectionError("no route")

    fake_hub(monkeypatch, download)
    with pytest.raises(UserError, match=r"could not be fetched \(Connection.*model"):
        nn.pretrained(nn.resnet18(), "hub:a/b")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="pip install huggingface_hub"):
        nn.pretrained(nn.resnet18(), "hub:a/b")


def test_weights_for_a_backbone_without_parameters_are_refused(resnet18_file, tmp_path):
    with pytest.raises(UserError, match="no parameters"):
        nn.pretrained(nn.pixels(), str(resnet18_file)).init(some_key(), spec(48))
    nn.save_weights(tmp_path / "none.safetensors", {})
    assert (tmp_path / "none.safetensors").is_file()


@pytest.mark.parametrize("make", [nn.resnet12, nn.resnet18])
def test_groups_that_do_not_divide_the_channels_are_refused(make):
    net = make(norm="group", norm_groups=7)
    with pytest.raises(UserError, match="norm_groups=7 does not divide 64 channels"):
        net.init(jax.random.key(0), spec(32))
