"""Small described networks in float64, for p-Meta's tests."""

import jax
import jax.numpy as jnp

from lite_jax import nn
from lite_jax.pmeta.attention import NO_ATTENTION, init_attention

NETWORKS = {
    "conv4": (nn.conv4(4, norm_groups=2), (20, 17, 3)),
    "resnet12": (nn.resnet12((4, 8), norm_groups=2), (17, 16, 1)),
    "mlp": (nn.mlp(6, 2), (5,)),
}


def double(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float64), tree)


def drawn_anew(tree, seed):
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [
        x + 0.3 * jax.random.normal(k, x.shape, x.dtype)
        for x, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, moved)


def case_of(name, attention=NO_ATTENTION, count=4):
    """A network with weights drawn anew, its description, inputs, and modules."""
    network, shape = NETWORKS[name]
    with jax.numpy_dtype_promotion("standard"):
        params = network.init(jax.random.key(0), jax.ShapeDtypeStruct(shape, "float32"))
    params = drawn_anew(double(params), 0)
    architecture = network.describe(shape, 5)
    inputs = jax.random.uniform(jax.random.key(1), (count, *shape))
    modules = init_attention(jax.random.key(2), architecture, attention)
    return network, architecture, params, inputs, drawn_anew(modules, 3)
