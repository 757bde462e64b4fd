"""Memory and multiplications of adapting a network, counted three ways.

- `count_memory` and `count_macs`: p-Meta's analytic model (KDD 2022, eqs. 16 to 18 with
  the conventions that its tables follow), on an `Architecture` and a choice of layers;
- `residual_bytes`: what JAX's VJP of a function keeps;
- `lite_jax.run.memory_budget.temporary_bytes`: what the compiled program needs.

The paper's text gives its conventions only in part. Its formula for the whole network
(eq. 16), taken literally, does not give its tables; a peak over the blocks that are
alive at the same time does. Of the 49 figures of its Tables 1 to 3 that depend on no
learned step size, the defaults of `Conventions` give 48 as printed, and one to 0.02 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, NamedTuple

import jax

from lite_jax.errors import UserError
from lite_jax.nn.description import Architecture, Block, Layer

MB = 10**6


class Conventions(NamedTuple):
    """What is counted; the defaults are the paper's.

    Attributes:
        word_bytes: Bytes of a stored number.
        relu_bits: Bits kept of each number that a ReLU passes on.
        pool_bits: Bits kept of each pooled number, the winner's place.
        relu_at_winners: Keep a ReLU's bits after pooling, where a gradient arrives.
        norm_inputs: Which normalised tensors are kept for the gradient *through* a
            norm: "omitted" (the paper: none but what the norm's own weights need),
            "exact" (all of those that a gradient passes), "bfloat16" (the same, and
            all others, in half the bytes), or "detached" (none: statistics count as
            constants).
        shortcut_input: Count the input of a block again for its shortcut.
        shortcut_working: Tensors alive at once in a block with a shortcut.
        norm_macs: Of a norm for each number: forward, weight gradient, input gradient.
    """

    word_bytes: int = 4
    relu_bits: int = 1
    pool_bits: int = 2
    relu_at_winners: bool = False
    norm_inputs: Literal["omitted", "exact", "bfloat16", "detached"] = "omitted"
    shortcut_input: bool = True
    shortcut_working: int = 2
    norm_macs: tuple[int, int, int] = (5, 1, 3)


PAPER = Conventions()


class Kept(NamedTuple):
    """Shares of a layer's input and output channels that its weight gradient uses."""

    inputs: float = 1.0
    outputs: float = 1.0


class Stage(NamedTuple):
    """A block's, or the head's, words of one example.

    Attributes:
        name: Of its first layer.
        stored: For weight gradients.
        masks: Bits of ReLUs and pools, as words.
        working: What is being computed, stored tensors included once.
        alive: While its gradient is computed: all that is stored up to here, and what
            is being computed; 0 where there is none.
    """

    name: str
    stored: float
    masks: float
    working: float
    alive: float


class Memory(NamedTuple):
    """What an adaptation step needs.

    Attributes:
        num_bytes: At the peak, gradient buffers included where asked.
        peak: Name of the stage where it is reached; "forward" without training.
        activation_bytes: Of which activations.
        buffer_bytes: Of which gradients.
        stored_bytes: All that the forward pass leaves for the backward pass.
        stages: Blocks and head, words of one example.
    """

    num_bytes: float
    peak: str
    activation_bytes: float
    buffer_bytes: float
    stored_bytes: float
    stages: tuple[Stage, ...]


def count_memory(
    architecture: Architecture,
    trained: Collection[str],
    *,
    kept: Mapping[str, Kept] | None = None,
    examples: int = 1,
    buffers: bool = True,
    conventions: Conventions = PAPER,
) -> Memory:
    """Return the memory of one adaptation step, weights and inputs apart.

    Args:
        architecture: The network.
        trained: Paths of the layers whose weights the step changes; none is inference.
        kept: Path → shares of the channels; all of them where a layer is not named.
        examples: Examples computed at once (an episode's observations, say).
        buffers: Count one word a trained weight, for a gradient that is accumulated.
        conventions: What is counted.

    Raises:
        UserError: A trained layer that the architecture lacks.

    >>> from lite_jax.nn.description import conv4
    >>> network = conv4((84, 84, 3), 5, width=32, groups=8)
    >>> everything = [layer.path for layer in network.layers]
    >>> found = count_memory(network, everything)
    >>> print(f"{found.num_bytes / MB:.2f} MB at {found.peak}")
    2.06 MB at blocks.0/conv
    """
    check_layers(architecture, trained)
    words = conventions.word_bytes
    stages = _stages(architecture, trained, kept or {}, conventions)
    peak, name = max(stage.working for stage in stages), "forward"
    for stage in stages:
        if stage.alive > peak:
            peak, name = stage.alive, stage.name
    gradients = sum(x.num_weights for x in architecture.layers if x.path in trained)
    held = words * gradients if buffers else 0
    activations = words * examples * peak
    stored = words * examples * sum(x.stored + x.masks for x in stages)
    return Memory(activations + held, name, activations, held, stored, tuple(stages))


class Macs(NamedTuple):
    """Multiply-accumulate operations of one example.

    Attributes:
        forward: Of the forward pass.
        inputs: Of gradients with respect to what layers are given.
        weights: Of gradients with respect to weights.
    """

    forward: float
    inputs: float
    weights: float

    @property
    def total(self) -> float:
        """Of one adaptation step."""
        return self.forward + self.inputs + self.weights


def count_macs(
    architecture: Architecture,
    trained: Collection[str] = (),
    *,
    kept: Mapping[str, Kept] | None = None,
    conventions: Conventions = PAPER,
) -> Macs:
    """Return the operations of one example in an adaptation step (eq. 18).

    The input gradient is counted from the first trained layer on: that layer itself
    left out in a network of convolutions, and counted in one of dense layers, as the
    paper's tables have it.

    Args:
        architecture: The network.
        trained: Paths of the layers whose weights the step changes; none is inference.
        kept: Path → shares of the channels; all of them where a layer is not named.
        conventions: What is counted.

    Raises:
        UserError: A trained layer that the architecture lacks.
    """
    check_layers(architecture, trained)
    layers, shares = architecture.layers, kept or {}
    costs = [_macs_of(layer, conventions) for layer in layers]
    total = sum(cost.forward for cost in costs)
    first = first_trained(architecture, trained)
    if first is None:
        return Macs(total, 0.0, 0.0)
    dense = all(x.kind == "dense" for x in layers)
    passed = costs[first if dense else first + 1 :]
    own = 0.0
    for layer, cost in zip(layers, costs, strict=True):
        if layer.path in trained:
            share = shares.get(layer.path, Kept())
            own += share.inputs * share.outputs * cost.weights
    return Macs(total, sum(cost.inputs for cost in passed), own)


def residual_bytes(function: Callable[..., Any], *args: Any, known: Any = ()) -> int:
    """Return the bytes that the VJP of a function keeps, those of `args` apart.

    Args:
        function: Any differentiable function.
        args: Concrete arrays.
        known: Arrays that are there anyway, as weights that are not differentiated.
    """
    given = {x.unsafe_buffer_pointer() for x in jax.tree.leaves((args, known))}
    _, pull = jax.vjp(jax.jit(function), *args)  # which passes weights on, not copies
    leaves = [x for x in jax.tree.leaves(pull) if isinstance(x, jax.Array)]
    kept = {x.unsafe_buffer_pointer(): x.nbytes for x in leaves}
    return sum(size for place, size in kept.items() if place not in given)


def check_layers(architecture: Architecture, paths: Collection[str]) -> None:
    """Raise unless the architecture has layers of these paths."""
    known = [layer.path for layer in architecture.layers]
    for path in paths:
        if path not in known:
            raise UserError(f"plan: no layer {path!r}; there are {', '.join(known)}")


def first_trained(architecture: Architecture, trained: Collection[str]) -> int | None:
    """Return the position of the first trained layer; None where there is none."""
    paths = [layer.path for layer in architecture.layers]
    return min((paths.index(path) for path in trained), default=None)


def _parts(architecture: Architecture) -> tuple[Block | Layer, ...]:
    return (*architecture.blocks, architecture.head)


def _stages(
    architecture: Architecture,
    trained: Collection[str],
    kept: Mapping[str, Kept],
    conventions: Conventions,
) -> list[Stage]:
    """Return what each block keeps; those before the first trained layer, nothing."""
    stages: list[Stage] = []
    total, begun = 0.0, False
    for part in _parts(architecture):
        layers = part.layers if isinstance(part, Block) else (part,)
        begun = begun or any(layer.path in trained for layer in layers)
        working = _working(part, conventions)
        stored = masks = 0.0
        if begun:
            below = any(x.stored for x in stages)
            stored = _stored(part, trained, kept, below, conventions)
            masks = _masks(part, conventions) if isinstance(part, Block) else 0.0
        total += stored + masks
        alive = total + working if begun else 0.0
        stages.append(Stage(layers[0].path, stored, masks, working, alive))
    return stages


def _working(part: Block | Layer, conventions: Conventions) -> float:
    """Return the words of what is being computed: the block's largest tensors."""
    if isinstance(part, Layer):
        return part.output_size
    tensors = conventions.shortcut_working if part.shortcut else 1
    return tensors * part.units[-1].layer.output_size


def _stored(
    part: Block | Layer,
    trained: Collection[str],
    kept: Mapping[str, Kept],
    below: bool,
    conventions: Conventions,
) -> float:
    """Return the words that gradients need: inputs of trained layers, and norms'.

    `below` tells whether a layer of an earlier block is trained.
    """

    def of_weights(layer: Layer) -> float:
        share = kept.get(layer.path, Kept()).inputs
        return share * layer.input_size if layer.path in trained else 0.0

    if isinstance(part, Layer):
        return of_weights(part)
    total = 0.0
    for path in (part.units, (part.shortcut,) if part.shortcut else ()):
        passed = below
        for unit in path:
            total += of_weights(unit.layer)
            passed = passed or unit.layer.path in trained
            if unit.norm is not None:
                own, size = of_weights(unit.norm), unit.norm.input_size
                whole = passed and conventions.norm_inputs in ("exact", "bfloat16")
                half = 0.5 if conventions.norm_inputs == "bfloat16" else 1.0
                total += half * (size if whole else own)
                passed = passed or unit.norm.path in trained
    if part.shortcut and not conventions.shortcut_input:
        both = [of_weights(x) for x in (part.units[0].layer, part.shortcut.layer)]
        if both[0] == both[1] == part.shortcut.layer.input_size:  # of all channels
            total -= both[0]
    return total


def _masks(block: Block, conventions: Conventions) -> float:
    """Return the words of a block's bits."""
    size = block.units[-1].layer.output_size
    relus = sum(unit.relu for unit in block.units) + (block.shortcut is not None)
    bits = 0
    if block.pool:
        small = math.prod(block.outputs)
        bits += conventions.pool_bits * small
        if conventions.relu_at_winners:  # the last ReLU's
            relus -= 1
            bits += conventions.relu_bits * small
    return (bits + conventions.relu_bits * relus * size) / (8 * conventions.word_bytes)


def _macs_of(layer: Layer, conventions: Conventions) -> Macs:
    """Return the operations of a layer, all of its gradients wanted in full."""
    if layer.kind == "norm":
        forward, weights, inputs = (
            each * layer.output_size for each in conventions.norm_macs
        )
        return Macs(forward, inputs, weights)
    return Macs(*(_products(layer),) * 3)


def _products(layer: Layer) -> float:
    """Return the products of a convolution or dense layer, forward or backward."""
    if layer.kind == "dense":
        return layer.inputs[0] * layer.outputs[0]
    places = layer.outputs[0] * layer.outputs[1]
    return places * layer.kernel_size**2 * layer.inputs[2] * layer.outputs[2]
