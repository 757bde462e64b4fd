"""Which layers a step trains, and how their gradients are computed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from lite_jax.nn.description import Layer
from lite_jax.pmeta.attention import NO_ATTENTION, Attention
from lite_jax.pmeta.layers import NormGradient


class Choice(NamedTuple):
    """The trained layers of a step, and how their gradients are computed.

    Attributes:
        trained: Paths of the trained layers.
        attention: Ratios of meta attention.
        norm_gradient: How gradients pass norms, "exact", "bfloat16" or "detached"; see
            `lite_jax.pmeta.layers`.
    """

    trained: frozenset[str]
    attention: Attention = NO_ATTENTION
    norm_gradient: NormGradient = "exact"


def any_trained(layers: Iterable[Layer], choice: Choice) -> bool:
    """Return whether a choice trains any of the layers."""
    return any(layer.path in choice.trained for layer in layers)
