"""Small networks that describe themselves, for p-Meta's tests."""

from lite_jax import nn

NETWORKS = {
    "conv4": (nn.conv4(4, norm_groups=2), (20, 17, 3)),
    "resnet12": (nn.resnet12((4, 8), norm_groups=2), (17, 16, 1)),
    "mlp": (nn.mlp(6, 2), (5,)),
}
