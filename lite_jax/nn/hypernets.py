"""Networks whose output is the parameters of another: FiLM and a linear classifier.

Pairs of pure functions on vectors; what they generate starts near what changes nothing.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from lite_jax.types import Key, Params, PyTree

AMPLITUDE = "amplitude"
_einsum = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
_kernel = jax.nn.initializers.lecun_normal


class Hypernet(NamedTuple):
    """`init(key) -> params` and `apply(params, vector) -> generated parameters`."""

    init: Any
    apply: Any


def film_generator(identity: PyTree, width: int = 64) -> Hypernet:
    """Return the generator of FiLM parameters from a task embedding `[width]`.

    For each scale and each shift vector of `c` numbers a perceptron of its own:
    width → width, LayerNorm, ReLU, → c, times a learned vector drawn from
    N(0, 0.001²), plus the identity. 1,510,272 parameters for EfficientNet-B0. All
    perceptrons run as one product a layer.

    Args:
        identity: The FiLM parameters that change nothing, `Network.identity_film()`.
        width: Numbers in the task embedding, and in the hidden layers.

    References:
        Requeima et al. 2019, §2.2; sizes as in the code of the LITE paper.
    """
    flat, unravel = ravel_pytree(identity)
    sizes = [leaf.size for leaf in jax.tree.leaves(identity)]
    owner = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)

    def init(key: Key) -> Params:
        first, last, amplitude = jax.random.split(key, 3)
        kernels = [
            _kernel()(k, (width, width)) for k in jax.random.split(first, len(sizes))
        ]
        shape = (len(sizes), width)
        return {
            "first": {"kernel": jnp.stack(kernels), "bias": jnp.zeros(shape)},
            "norm": {"scale": jnp.ones(shape), "bias": jnp.zeros(shape)},
            "last": {
                "kernel": _kernel(in_axis=-1, out_axis=-2)(last, (flat.size, width)),
                "bias": jnp.zeros(flat.size),
            },
            AMPLITUDE: 1e-3 * jax.random.normal(amplitude, (flat.size,)),
        }

    def apply(params: Params, embedding: jax.Array) -> PyTree:
        first, norm, last = params["first"], params["norm"], params["last"]
        hidden = _einsum("e,peh->ph", embedding, first["kernel"]) + first["bias"]
        hidden = jax.nn.relu(_layer_norm(hidden) * norm["scale"] + norm["bias"])
        output = (last["kernel"] * hidden[owner]).sum(1) + last["bias"]
        change = params[AMPLITUDE] * output
        return unravel(flat.astype(change.dtype) + change)

    return Hypernet(init, apply)


def linear_hypernet(size: int) -> Hypernet:
    """Return CNAPs' generator of a class's linear classifier from its mean feature.

    Weights: the mean plus a perceptron of it, size → size → size → size with ELU;
    bias: another, size → 1 → 1 → 1.

    Args:
        size: d, the number of features.

    Returns:
        `apply(params, means [way, d]) -> (weights [way, d], biases [way])`.

    References:
        Requeima et al. 2019, §2.3; Gordon et al., "Meta-Learning Probabilistic
        Inference for Prediction" (VERSA), 2019.
    """

    def init(key: Key) -> Params:
        weight_key, bias_key = jax.random.split(key)
        return {
            "weight": _init_perceptron(weight_key, [size] * 4),
            "bias": _init_perceptron(bias_key, [size, 1, 1, 1]),
        }

    def apply(params: Params, means: jax.Array) -> tuple[jax.Array, jax.Array]:
        weights = means + _perceptron(params["weight"], means)
        return weights, _perceptron(params["bias"], means)[:, 0]

    return Hypernet(init, apply)


def _init_perceptron(key: Key, sizes: list[int]) -> list[Params]:
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        {"kernel": _kernel()(k, shape), "bias": jnp.zeros(shape[1])}
        for k, shape in zip(keys, zip(sizes, sizes[1:], strict=False), strict=True)
    ]


def _perceptron(layers: list[Params], x: jax.Array) -> jax.Array:
    for number, layer in enumerate(layers):
        x = jax.nn.elu(x) if number else x
        x = _einsum("nd,de->ne", x, layer["kernel"]) + layer["bias"][None, :]
    return x


def _layer_norm(x: jax.Array, epsilon: float = 1e-5) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred * lax.rsqrt((centred**2).mean(-1, keepdims=True) + epsilon)
