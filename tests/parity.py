"""Features of other libraries' networks on made weights, recorded for CI.

    pip install torch timm
    python -m tests.parity

writes `tests/parity.json`: for each of timm's networks, the first features of two
images, their mean and their deviation. `tests/parity_test.py` compares ours.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import made_weights  # noqa: E402

RECORDED = Path(__file__).parent / "parity.json"
SIZES = {  # timm's name: (image size, gain of the kernels)
    "resnet18": (64, 1.0),
    "resnet50": (64, 0.8),
    "efficientnet_b0": (64, 1.7),
    "tf_efficientnet_b0": (65, 1.7),
    "vit_small_patch16_224": (224, 1.0),
}
FIRST = 12


def original(library, name):
    """Return a model without its classifier, in evaluation mode."""
    if library == "timm":
        make = importlib.import_module("timm").create_model
        return make(name, pretrained=False, num_classes=0).eval()
    models = importlib.import_module("torchvision.models")
    model = getattr(models, name.split()[1])(weights=None).eval()
    head = "fc" if hasattr(model, "fc") else "classifier"
    setattr(model, head, importlib.import_module("torch").nn.Identity())
    return model


def made_tensors(model, gain):
    """Return made weights for a model, which is given them."""
    torch = importlib.import_module("torch")
    tensors = {
        key: torch.tensor(made_weights.tensor(key, tuple(value.shape), gain))
        for key, value in model.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    model.load_state_dict(tensors, strict=False)
    return tensors


def features_of(model, size, mean, std):
    """Return a model's features of the made images, which are standardised first."""
    torch = importlib.import_module("torch")
    pixels = (made_weights.images(size).astype(np.float32) / 255 - mean) / std
    pixels = pixels.astype(np.float32).transpose(0, 3, 1, 2)
    with torch.no_grad():
        return model(torch.tensor(pixels)).numpy()


def summary(features):
    """Return what is recorded of features `[n, d]`."""
    return {
        "first": features[:, :FIRST].astype(float).round(6).tolist(),
        "mean": features.mean(1).astype(float).round(6).tolist(),
        "deviation": features.std(1).astype(float).round(6).tolist(),
    }


def main():
    """Record timm's features."""
    rows = {}
    for name, (size, gain) in SIZES.items():
        model = original("timm", name)
        made_tensors(model, gain)
        rows[name] = summary(features_of(model, size, 0.5, 0.25))
    versions = {x: importlib.metadata.version(x) for x in ("torch", "timm")}
    RECORDED.write_text(json.dumps({"versions": versions, **rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
