"""Memory and multiply-accumulate operations of adapting a network.

- `count_memory` and `count_macs` compute p-Meta's analytic model (KDD 2022, eqs. 16 to
  18, with the conventions of its tables) from an `Architecture` and the trained layers.
- `residual_bytes` measures what JAX's VJP of a function stores.
- `lite_jax.run.memory_budget.temporary_bytes` is what the compiled program needs.

The paper's text gives its conventions only in part. Its formula for the whole network
(eq. 16), taken literally, does not give its tables. The peak over blocks that are alive
at the same time does. Of the 49 figures of its Tables 1 to 3 that depend on no learned
step size, the defaults of `Conventions` give 48 as printed, and one to 0.02 %.
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
    """Conventions of counting; the defaults are the paper's.

    Attributes:
        word_bytes: Bytes of a stored number.
        relu_bits: Bits stored for each number that a ReLU is applied to.
        pool_bits: Bits stored for each output of a pool, the winner's position.
        relu_at_winners: Whether the last ReLU's bits are stored for the pool's outputs
            only, where a gradient arrives.
        norm_inputs: Which standardised tensors are stored for gradients *through*
            norms: "omitted" (none; only those that a norm's own weight gradient needs,
            as in the paper), "exact" (of every norm that a gradient passes),
            "bfloat16" (the same, with all standardised tensors in half the bytes) or
            "detached" (none, since statistics are constants).
        shortcut_input: Whether the input of a block is counted again for its shortcut.
        shortcut_working: Tensors alive at once in a block with a shortcut.
        norm_macs: Operations of a norm for each number: forward, weight gradient, input
            gradient.
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
    """The memory of a block, or of the head, for one example, in words.

    Attributes:
        name: Path of its first layer.
        stored: Words stored for weight gradients and for gradients through norms.
        masks: Words stored for the bits of ReLUs and pools.
        working: Words of the tensors that are being computed.
        alive: Words in use while its gradient is computed: `stored` and `masks` of all
            stages up to this one, and `working`. 0 below the first trained layer.
    """

    name: str
    stored: float
    masks: float
    working: float
    alive: float


class Memory(NamedTuple):
    """The memory of an adaptation step.

    Attributes:
        num_bytes: Peak memory, `activation_bytes` and `buffer_bytes` together.
        peak: Name of the stage at the peak; "forward" if the forward pass is the peak,
            as without training.
        activation_bytes: Bytes of activations at the peak.
        buffer_bytes: Bytes of accumulated gradients; 0 if they are not counted.
        stored_bytes: Bytes that the forward pass stores for the backward pass.
        stages: The blocks and the head.
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
    """Return the memory of one adaptation step, without weights and input images.

    Args:
        architecture: The network.
        trained: Paths of the layers whose weights the step changes. Empty for
            inference.
        kept: Path → shares of the channels that attention leaves. A layer that is not
            named keeps all.
        examples: Number of examples computed at once, such as an episode's
            observations.
        buffers: Count one word a trained weight, for the accumulated gradient.
        conventions: Conventions of counting.

    Raises:
        UserError: A trained layer that the architecture lacks.

    >>> from lite_jax.nn.description import describe_conv4
    >>> network = describe_conv4((84, 84, 3), 5, width=32, groups=8)
    >>> memory = count_memory(network, [layer.path for layer in network.layers])
    >>> print(f"{memory.num_bytes / MB:.2f} MB at {memory.peak}")
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
    buffer = words * gradients if buffers else 0
    activations = words * examples * peak
    stored = words * examples * sum(x.stored + x.masks for x in stages)
    total = activations + buffer
    return Memory(total, name, activations, buffer, stored, tuple(stages))


class Macs(NamedTuple):
    """Multiply-accumulate operations of one example.

    Attributes:
        forward: Operations of the forward pass.
        inputs: Operations of the gradients of layers' inputs.
        weights: Operations of the gradients of weights.
    """

    forward: float
    inputs: float
    weights: float

    @property
    def total(self) -> float:
        """Operations of one adaptation step."""
        return self.forward + self.inputs + self.weights


def count_macs(
    architecture: Architecture,
    trained: Collection[str] = (),
    *,
    kept: Mapping[str, Kept] | None = None,
    conventions: Conventions = PAPER,
) -> Macs:
    """Return the operations of one example in an adaptation step (eq. 18).

    Gradients of inputs are counted for the layers after the first trained one. In a
    network of dense layers only, that of the first trained layer is counted too. The
    paper's tables follow both conventions.

    Args:
        architecture: The network.
        trained: Paths of the layers whose weights the step changes. Empty for
            inference.
        kept: Path → shares of the channels that attention leaves. A layer that is not
            named keeps all.
        conventions: Conventions of counting.

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
    weights = 0.0
    for layer, cost in zip(layers, costs, strict=True):
        if layer.path in trained:
            share = shares.get(layer.path, Kept())
            weights += share.inputs * share.outputs * cost.weights
    return Macs(total, sum(cost.inputs for cost in passed), weights)


def residual_bytes(function: Callable[..., Any], *args: Any, known: Any = ()) -> int:
    """Return the bytes that the VJP of a function stores, besides `args` and `known`.

    Args:
        function: A differentiable function.
        args: Its arguments, concrete arrays.
        known: Arrays that are in memory anyway, such as weights that are not
            differentiated.
    """
    not_counted = {x.unsafe_buffer_pointer() for x in jax.tree.leaves((args, known))}
    # Under jit, arguments among the residuals are the same buffers and not copies.
    _, pull = jax.vjp(jax.jit(function), *args)
    leaves = [x for x in jax.tree.leaves(pull) if isinstance(x, jax.Array)]
    sizes = {x.unsafe_buffer_pointer(): x.nbytes for x in leaves}
    return sum(size for buffer, size in sizes.items() if buffer not in not_counted)


def check_layers(architecture: Architecture, paths: Collection[str]) -> None:
    """Raise unless the architecture has a layer at every path.

    Raises:
        UserError: There is no layer at one of the paths.
    """
    known = [layer.path for layer in architecture.layers]
    for path in paths:
        if path not in known:
            raise UserError(f"plan: no layer {path!r}; there are {', '.join(known)}")


def first_trained(architecture: Architecture, trained: Collection[str]) -> int | None:
    """Return the index of the first trained layer; None if there is none."""
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
    """Return the stages in order; nothing is stored below the first trained layer."""
    stages: list[Stage] = []
    total, stores = 0.0, False
    for part in _parts(architecture):
        layers = part.layers if isinstance(part, Block) else (part,)
        stores = stores or any(layer.path in trained for layer in layers)
        working = _working_words(part, conventions)
        stored = masks = 0.0
        if stores:
            below = any(x.stored for x in stages)
            stored = _stored_words(part, trained, kept, below, conventions)
            masks = _mask_words(part, conventions) if isinstance(part, Block) else 0.0
        total += stored + masks
        alive = total + working if stores else 0.0
        stages.append(Stage(layers[0].path, stored, masks, working, alive))
    return stages


def _working_words(part: Block | Layer, conventions: Conventions) -> float:
    """Return the words of the tensors being computed: the block's largest ones."""
    if isinstance(part, Layer):
        return part.output_size
    tensors = conventions.shortcut_working if part.shortcut else 1
    return tensors * part.units[-1].layer.output_size


def _stored_words(
    part: Block | Layer,
    trained: Collection[str],
    kept: Mapping[str, Kept],
    below: bool,
    conventions: Conventions,
) -> float:
    """Return the words stored for gradients of weights and through norms.

    `below` says whether an earlier block stores something, so that a gradient passes
    all layers of this one.
    """

    def input_words(layer: Layer) -> float:
        share = kept.get(layer.path, Kept()).inputs
        return share * layer.input_size if layer.path in trained else 0.0

    if isinstance(part, Layer):
        return input_words(part)
    total = 0.0
    for path in (part.units, (part.shortcut,) if part.shortcut else ()):
        passed = below
        for unit in path:
            total += input_words(unit.layer)
            passed = passed or unit.layer.path in trained
            if unit.norm is not None:
                norm_words, size = input_words(unit.norm), unit.norm.input_size
                whole = passed and conventions.norm_inputs in ("exact", "bfloat16")
                factor = 0.5 if conventions.norm_inputs == "bfloat16" else 1.0
                total += factor * (size if whole else norm_words)
                passed = passed or unit.norm.path in trained
    if part.shortcut and not conventions.shortcut_input:
        first, shortcut = part.units[0].layer, part.shortcut.layer
        if input_words(first) == input_words(shortcut) == shortcut.input_size:
            total -= shortcut.input_size  # both store all channels of the same tensor
    return total


def _mask_words(block: Block, conventions: Conventions) -> float:
    """Return the words of the bits of a block's ReLUs and pool."""
    size = block.units[-1].layer.output_size
    relus = sum(unit.relu for unit in block.units) + (block.shortcut is not None)
    bits = 0
    if block.pool:
        pooled_size = math.prod(block.outputs)
        bits += conventions.pool_bits * pooled_size
        if conventions.relu_at_winners:  # the last ReLU is applied to the pool's output
            relus -= 1
            bits += conventions.relu_bits * pooled_size
    return (bits + conventions.relu_bits * relus * size) / (8 * conventions.word_bytes)


def _macs_of(layer: Layer, conventions: Conventions) -> Macs:
    """Return the operations of a layer and of its gradients, with all channels."""
    if layer.kind == "norm":
        forward, weights, inputs = (
            macs * layer.output_size for macs in conventions.norm_macs
        )
        return Macs(forward, inputs, weights)
    return Macs(*(_products(layer),) * 3)


def _products(layer: Layer) -> float:
    """Return the products of a convolution or dense layer.

    Forward pass, input gradient and weight gradient take the same number.
    """
    if layer.kind == "dense":
        return layer.inputs[0] * layer.outputs[0]
    positions = layer.outputs[0] * layer.outputs[1]
    return positions * layer.kernel_size**2 * layer.inputs[2] * layer.outputs[2]
