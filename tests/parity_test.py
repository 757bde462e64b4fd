"""Features beside timm's and torchvision's own; runs where these are installed."""

import functools
import importlib

import jax
import jax.numpy as jnp
import made_weights
import numpy as np
import pytest

from lite_jax import nn

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("as_users_run_it"),
    pytest.mark.filterwarnings("default"),
]

CASES = {  # name of the model: (library, ours, image size, gain of the kernels)
    "resnet18": ("timm", nn.resnet18, 64, 1.0),
    "resnet50": ("timm", nn.resnet50, 64, 0.8),
    "efficientnet_b0": ("timm", nn.efficientnet_b0, 64, 1.7),
    "tf_efficientnet_b0": (
        "timm", functools.partial(nn.efficientnet_b0, tensorflow=True), 65, 1.7,
    ),
    "vit_small_patch16_224": ("timm", nn.vit_s, 224, 1.0),
    "torchvision resnet18": ("torchvision", nn.resnet18, 64, 1.0),
    "torchvision efficientnet_b0": ("torchvision", nn.efficientnet_b0, 64, 1.6),
}  # fmt: skip


def original(library, name):
    """A model without its classifier, in evaluation mode."""
    if library == "timm":
        make = importlib.import_module("timm").create_model
        return make(name, pretrained=False, num_classes=0).eval()
    models = importlib.import_module("torchvision.models")
    model = getattr(models, name.split()[1])(weights=None).eval()
    head = "fc" if hasattr(model, "fc") else "classifier"
    setattr(model, head, importlib.import_module("torch").nn.Identity())
    return model


@pytest.mark.parametrize("name", CASES)
def test_features_equal_the_original_s(name, tmp_path):
    torch = pytest.importorskip("torch", reason="parity needs torch")
    library, make, size, gain = CASES[name]
    pytest.importorskip(library, reason=f"parity needs {library}")
    save_file = importlib.import_module("safetensors.torch").save_file
    model = original(library, name)
    tensors = {
        key: torch.tensor(made_weights.tensor(key, tuple(value.shape), gain))
        for key, value in model.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    model.load_state_dict(tensors, strict=False)
    save_file(tensors, tmp_path / "model.safetensors")

    net = nn.pretrained(make(), str(tmp_path))
    spec = jax.ShapeDtypeStruct((size, size, 3), jnp.uint8)
    params = net.init(jax.random.key(0), spec)
    images = made_weights.images(size)
    found = jax.jit(net.apply)(params, images)

    mean, std = (np.asarray(params["input"][k], np.float32) for k in ("mean", "std"))
    pixels = (images.astype(np.float32) / 255 - mean) / std
    with torch.no_grad():
        expected = model(torch.tensor(pixels.transpose(0, 3, 1, 2))).numpy()
    assert expected.std(0).max() > 0.01  # the features depend on the image
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
