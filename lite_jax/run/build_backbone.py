"""Builder of the backbone from a configuration."""

from __future__ import annotations

import functools
from collections.abc import Callable

from lite_jax import nn
from lite_jax.errors import pick
from lite_jax.run.configs import names_of, settings_named
from lite_jax.run.settings import BackboneSettings
from lite_jax.types import Network


def make_backbone(settings: BackboneSettings) -> Network:
    """Return the feature extractor, with pretrained weights if `weights` is set.

    Args:
        settings: The section `backbone`.

    Raises:
        UserError: An unknown name, or a setting that the backbone refuses.
    """
    pick("backbone.norm", settings.norm, dict.fromkeys(nn.NORMS))
    make, options = pick("backbone.name", settings.name, _BACKBONES)
    arguments = {name: getattr(settings, name) for name in options}
    statistics = {"mean": settings.mean, "std": settings.std}
    arguments |= {name: x for name, x in statistics.items() if x is not None}
    with settings_named(names_of("backbone")):
        network = in_dtype(settings, make(**arguments))
        if not settings.weights:
            return network
        return nn.pretrained(network, settings.weights)


def in_dtype(settings: BackboneSettings, network: Network) -> Network:
    """Return the network, with computation in `settings.dtype`."""
    conversions = {"float32": lambda network: network, "bfloat16": nn.in_bfloat16}
    return pick("backbone.dtype", settings.dtype, conversions)(network)


_NORMED = ("norm", "norm_groups", "remat")
_BACKBONES: dict[str, tuple[Callable[..., Network], tuple[str, ...]]] = {
    # name: (factory, its arguments among the settings)
    "conv4": (nn.conv4, ("width", *_NORMED)),
    "efficientnet_b0": (nn.efficientnet_b0, _NORMED),
    "pixels": (nn.pixels, ()),
    "resnet12": (nn.resnet12, _NORMED),
    "resnet12_512": (functools.partial(nn.resnet12, (64, 128, 256, 512)), _NORMED),
    "resnet18": (nn.resnet18, _NORMED),
    "resnet50": (nn.resnet50, _NORMED),
    "tf_efficientnet_b0": (
        functools.partial(nn.efficientnet_b0, tensorflow=True),
        _NORMED,
    ),
    "vit_s": (nn.vit_s, ("remat",)),
}
