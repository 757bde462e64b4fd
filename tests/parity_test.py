"""Features equal timm's, as recorded, and timm's and torchvision's own if installed."""

import functools
import importlib
import json

import jax
import jax.numpy as jnp
import made_weights
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lite_jax import nn
from tests import parity

pytestmark = [
    pytest.mark.usefixtures("as_users_run_it"),
    pytest.mark.filterwarnings("default"),
]

OURS = {
    "resnet18": nn.resnet18,
    "resnet50": nn.resnet50,
    "efficientnet_b0": nn.efficientnet_b0,
    "tf_efficientnet_b0": functools.partial(nn.efficientnet_b0, tensorflow=True),
    "vit_small_patch16_224": nn.vit_s,
}
CASES = {  # name of the model: (library, ours, image size, gain of the kernels)
    **{name: ("timm", make, *parity.SIZES[name]) for name, make in OURS.items()},
    "torchvision resnet18": ("torchvision", nn.resnet18, 64, 1.0),
    "torchvision efficientnet_b0": ("torchvision", nn.efficientnet_b0, 64, 1.6),
}


def features(net, size, **statistics):
    spec = jax.ShapeDtypeStruct((size, size, 3), jnp.uint8)
    params = net.init(jax.random.key(0), spec)
    params["input"] |= {
        k: jnp.full_like(params["input"][k], v) for k, v in statistics.items()
    }
    images = made_weights.images(size)
    return np.asarray(jax.jit(net.apply)(params, images)), params["input"]


@pytest.mark.parametrize("name", OURS)
def test_features_are_the_recorded_ones_of_timm(name, tmp_path):
    """`python -m tests.parity` recorded them, on weights made from timm's names."""
    size, gain = parity.SIZES[name]
    spec = jax.ShapeDtypeStruct((size, size, 3), jnp.uint8)
    path = tmp_path / "model.safetensors"
    shapes = jax.eval_shape(lambda key: OURS[name]().init(key, spec), jax.random.key(0))
    nn.save_weights(path, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes))
    tensors = {
        key: made_weights.tensor(key, value.shape, gain)
        for key, value in load_file(path).items()
    }
    save_file(tensors, path)
    net = nn.pretrained(OURS[name](), str(path))
    recorded = json.loads(parity.RECORDED.read_text())[name]
    assert np.std(recorded["first"], 0).max() > 0.01  # they depend on the image
    summary = parity.summary(features(net, size, mean=0.5, std=0.25)[0])
    for key, numbers in recorded.items():
        np.testing.assert_allclose(summary[key], numbers, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_features_equal_the_original_s(name, tmp_path):
    pytest.importorskip("torch", reason="parity with the original needs torch")
    library, make, size, gain = CASES[name]
    pytest.importorskip(library, reason=f"parity with the original needs {library}")
    model = parity.original(library, name)
    tensors = parity.made_tensors(model, gain)
    save_torch = importlib.import_module("safetensors.torch").save_file
    save_torch(tensors, tmp_path / "model.safetensors")
    found, statistics = features(nn.pretrained(make(), str(tmp_path)), size)
    mean, std = (np.asarray(statistics[k], np.float32) for k in ("mean", "std"))
    expected = parity.features_of(model, size, mean, std)
    assert expected.std(0).max() > 0.01  # the features depend on the image
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
