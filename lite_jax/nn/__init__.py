"""Networks as `(init, apply)` pairs over plain dictionaries.

Only this package uses Flax.
"""

from lite_jax.nn.backbones import conv4, pixels, set_encoder
from lite_jax.nn.dense import mlp
from lite_jax.nn.efficientnet import efficientnet_b0
from lite_jax.nn.layers import NORMS
from lite_jax.nn.network import feature_size, in_bfloat16, over_clips
from lite_jax.nn.resnet import resnet12, resnet18, resnet50
from lite_jax.nn.text import text_encoder
from lite_jax.nn.vit import vit_s
from lite_jax.nn.weights import pretrained, save_weights

__all__ = [
    "NORMS",
    "conv4",
    "efficientnet_b0",
    "feature_size",
    "in_bfloat16",
    "mlp",
    "over_clips",
    "pixels",
    "pretrained",
    "resnet12",
    "resnet18",
    "resnet50",
    "save_weights",
    "set_encoder",
    "text_encoder",
    "vit_s",
]
