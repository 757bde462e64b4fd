"""Networks as lists of layers: what is where, and how large, without Flax or weights.

A backbone made of blocks (convolution or dense layer, norm, ReLU, a shortcut, pooling)
describes itself by an `Architecture`. Memory is counted on it
(`lite_jax.pmeta.memory_model`), and p-Meta computes by it (`lite_jax.pmeta`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from lite_jax.errors import UserError

Shape = tuple[int, ...]


class Layer(NamedTuple):
    """A unit with weights of its own: what p-Meta gives one step size.

    Attributes:
        path: Where its weights are, as `blocks.0/conv` of the backbone; `head`.
        kind: "conv", "norm" or "dense".
        inputs: Shape of one example's input, `(height, width, channels)` or `(size,)`.
        outputs: Shape of one example's output.
        num_weights: Parameters.
        kernel_size: Side of a convolution's filters.
        groups: Groups of a norm.
    """

    path: str
    kind: str
    inputs: Shape
    outputs: Shape
    num_weights: int
    kernel_size: int = 1
    groups: int = 1

    @property
    def input_size(self) -> int:
        """Numbers of one example's input."""
        return math.prod(self.inputs)

    @property
    def output_size(self) -> int:
        """Numbers of one example's output."""
        return math.prod(self.outputs)


class Unit(NamedTuple):
    """A convolution or dense layer, its norm if any, and whether a ReLU follows."""

    layer: Layer
    norm: Layer | None
    relu: bool

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layer, and the norm if any."""
        return (self.layer,) if self.norm is None else (self.layer, self.norm)


class Block(NamedTuple):
    """Units in a row, added to a shortcut if any, then 2×2 max-pooling if asked.

    Attributes:
        units: The main path.
        shortcut: A unit beside it; the sum passes a ReLU. None for none.
        pool: Whether the output is pooled; odd rows and columns at the end are lost.
        slope: What ReLU multiplies negative numbers by.
    """

    units: tuple[Unit, ...]
    shortcut: Unit | None = None
    pool: bool = False
    slope: float = 0.0

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All layers, those of the shortcut last."""
        units = (*self.units, *([self.shortcut] if self.shortcut else []))
        return tuple(layer for unit in units for layer in unit.layers)

    @property
    def inputs(self) -> Shape:
        """Shape of one example's input."""
        return self.units[0].layer.inputs

    @property
    def ends_in_relu(self) -> bool:
        """Whether a ReLU comes last, before pooling."""
        return self.shortcut is not None or self.units[-1].relu

    @property
    def unpooled(self) -> Shape:
        """Shape of one example's output before pooling."""
        return self.units[-1].layer.outputs

    @property
    def outputs(self) -> Shape:
        """Shape of one example's output."""
        return pooled(self.unpooled) if self.pool else self.unpooled


class Architecture(NamedTuple):
    """Blocks, the mean over positions if asked, and a linear head on all that is left.

    Attributes:
        blocks: In order.
        head: The last layer.
        average: Whether positions are averaged before the head, or else flattened.
    """

    blocks: tuple[Block, ...]
    head: Layer
    average: bool = False

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All layers in order, the head last."""
        return (*self.body, self.head)

    @property
    def body(self) -> tuple[Layer, ...]:
        """The layers below the head."""
        return tuple(layer for block in self.blocks for layer in block.layers)


def at_path(tree: Any, path: str) -> Any:
    """Return what nested dictionaries hold at a layer's path; None if nothing."""
    for name in path.split("/"):
        if tree is None or name not in tree:
            return None
        tree = tree[name]
    return tree


def layer_at(inner: Any, path: str) -> Any:
    """Return what `{"backbone": …, "head": …}` holds for a layer; None if nothing."""
    return at_path(inner, _place(path))


def with_layers(inner: Any, layers: Mapping[str, Any]) -> Any:
    """Return `{"backbone": …, "head": …}` with other values for some layers."""
    for path, value in layers.items():
        inner = _replaced(inner, _place(path).split("/"), value)
    return inner


def _place(path: str) -> str:
    return path if path == "head" else f"backbone/{path}"


def _replaced(tree: Any, names: list[str], value: Any) -> Any:
    if not names:
        return value
    return tree | {names[0]: _replaced(tree[names[0]], names[1:], value)}


def pooled(shape: Shape) -> Shape:
    """Return the shape after 2×2 max-pooling; a side of one pixel stays."""
    height, width, channels = shape
    return (max(1, height // 2), max(1, width // 2), channels)


def conv_unit(
    path: str, norm: str, inputs: Shape, width: int, *, relu: bool, groups: int,
    kernel_size: int = 3,
) -> Unit:  # fmt: skip
    """Return a convolution at stride 1 without bias, followed by GroupNorm."""
    outputs = (*inputs[:2], width)
    weights = kernel_size**2 * inputs[2] * width
    return Unit(
        Layer(path, "conv", inputs, outputs, weights, kernel_size),
        Layer(norm, "norm", outputs, outputs, 2 * width, groups=groups),
        relu,
    )


def dense_layer(path: str, size: int, width: int) -> Layer:
    """Return a dense layer with biases."""
    return Layer(path, "dense", (size,), (width,), size * width + width)


def perceptron(inputs: int, hidden: tuple[int, ...], outputs: int) -> Architecture:
    """Return dense layers with ReLU between them, and the head.

    >>> sum(layer.num_weights for layer in perceptron(20, (100, 100), 6).layers)
    12806
    """
    sizes = (inputs, *hidden)
    blocks = tuple(
        Block((Unit(dense_layer(f"layers.{i}", before, after), None, True),))
        for i, (before, after) in enumerate(zip(sizes, sizes[1:], strict=False))
    )
    return Architecture(blocks, dense_layer("head", sizes[-1], outputs))


def conv4(
    image: Shape, way: int, *, width: int, groups: int, norm: str = "group"
) -> Architecture:
    """Return Conv-4: four blocks of convolution, GroupNorm, ReLU and pooling.

    Raises:
        UserError: Another norm.

    >>> found = conv4((84, 84, 3), 5, width=32, groups=8)
    >>> found.blocks[3].outputs, sum(layer.num_weights for layer in found.layers)
    ((5, 5, 32), 32773)
    """
    _check_norm(norm)
    blocks: list[Block] = []
    for i in range(4):
        inputs = blocks[-1].outputs if blocks else image
        unit = conv_unit(
            f"blocks.{i}/conv", f"blocks.{i}/norm/group", inputs, width,
            relu=True, groups=groups,
        )  # fmt: skip
        blocks.append(Block((unit,), pool=True))
    size = math.prod(blocks[-1].outputs)
    return Architecture(tuple(blocks), dense_layer("head", size, way))


def resnet12(
    image: Shape,
    way: int,
    *,
    widths: tuple[int, ...],
    groups: int,
    slope: float = 0.1,
    norm: str = "group",
) -> Architecture:
    """Return ResNet-12: residual blocks of three convolutions and a 1×1 shortcut.

    Raises:
        UserError: A norm other than "group".

    >>> found = resnet12((84, 84, 3), 5, widths=(64, 128, 256, 512), groups=8)
    >>> sum(layer.num_weights for layer in found.layers)
    7999365
    """
    _check_norm(norm)
    blocks: list[Block] = []
    for i, width in enumerate(widths):
        name, inputs = f"blocks.{i}", blocks[-1].outputs if blocks else image
        units = tuple(
            conv_unit(
                f"{name}/conv{j}", f"{name}/bn{j}/group",
                inputs if j == 1 else (*inputs[:2], width), width,
                relu=j < 3, groups=groups,
            )
            for j in (1, 2, 3)
        )  # fmt: skip
        shortcut = conv_unit(
            f"{name}/downsample.0", f"{name}/downsample.1/group", inputs, width,
            relu=False, groups=groups, kernel_size=1,
        )  # fmt: skip
        blocks.append(Block(units, shortcut, pool=True, slope=slope))
    head = dense_layer("head", widths[-1], way)
    return Architecture(tuple(blocks), head, average=True)


def _check_norm(norm: str) -> None:
    if norm != "group":
        raise UserError(
            f"norm={norm!r}: memory is counted, and saved, one example at a "
            "time, and batch norm's statistics of one example tell nothing (its "
            "accuracy falls to chance): set norm='group'"
        )
