"""Hyper-networks, which generate FiLM parameters or a linear classifier."""

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
    """A hyper-network as two pure functions.

    Attributes:
        init: `(key) -> params`.
        apply: `(params, vector) -> generated parameters`.
    """

    init: Any
    apply: Any


def film_generator(identity: PyTree, width: int = 64) -> Hypernet:
    """Return the generator of FiLM parameters from a task embedding `[width]`.

    Each scale and each shift vector of c numbers has a separate perceptron: a dense
    layer from `width` to `width`, LayerNorm, ReLU, and a dense layer from `width` to c.
    Its output is multiplied by a learned vector, initially drawn from N(0, 0.001²), and
    added to the identity. The generated parameters are thus close to the identity at
    first. For EfficientNet-B0 there are 1,510,272 parameters. Each layer is computed
    for all perceptrons at once.

    Args:
        identity: The FiLM parameters that change nothing, `Network.identity_film()`.
        width: Size of the task embedding and of the hidden layers.

    Returns:
        A `Hypernet` whose `apply` returns a tree of the structure of `identity`.

    References:
        Requeima et al. 2019, §2.2; sizes as in the code of the LITE paper.
    """
    flat, unravel = ravel_pytree(identity)
    sizes = [leaf.size for leaf in jax.tree.leaves(identity)]
    perceptrons = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)

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
        output = (last["kernel"] * hidden[perceptrons]).sum(1) + last["bias"]
        change = params[AMPLITUDE] * output
        return unravel(flat.astype(change.dtype) + change)

    return Hypernet(init, apply)


def linear_hypernet(size: int) -> Hypernet:
    """Return CNAPs' generator of linear classifiers from class means.

    The weights of a class are its mean plus a perceptron of it, of sizes
    d → d → d → d. Its bias is another perceptron of the mean, of sizes d → 1 → 1 → 1.
    ELUs stand between the layers.

    Args:
        size: d, the number of features.

    Returns:
        A `Hypernet` with
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
    """Return initial kernels and biases of dense layers between consecutive sizes."""
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        {"kernel": _kernel()(k, shape), "bias": jnp.zeros(shape[1])}
        for k, shape in zip(keys, zip(sizes, sizes[1:], strict=False), strict=True)
    ]


def _perceptron(layers: list[Params], x: jax.Array) -> jax.Array:
    """Return the output of dense layers on `x` `[n, d]`, with ELU between them."""
    for number, layer in enumerate(layers):
        x = jax.nn.elu(x) if number else x
        x = _einsum("nd,de->ne", x, layer["kernel"]) + layer["bias"][None, :]
    return x


def _layer_norm(x: jax.Array, epsilon: float = 1e-5) -> jax.Array:
    """Return `x`, normalised over its last axis."""
    centred = x - x.mean(-1, keepdims=True)
    return centred * lax.rsqrt((centred**2).mean(-1, keepdims=True) + epsilon)
