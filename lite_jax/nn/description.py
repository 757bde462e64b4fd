"""Descriptions of networks: their layers with paths and sizes, without Flax or weights.

A backbone of blocks (convolution or dense layer, norm, ReLU, shortcut, pooling) has an
`Architecture` as its description. Inner rules that go by layers use it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from lite_jax.errors import UserError

Shape = tuple[int, ...]


class Layer(NamedTuple):
    """One layer with weights: a unit that an inner rule can treat as one.

    Attributes:
        path: Path of its weights in the backbone's parameters, such as `blocks.0/conv`;
            "head" for the head.
        kind: "conv", "norm" or "dense".
        inputs: Shape of one example's input, `(height, width, channels)` or `(size,)`.
        outputs: Shape of one example's output.
        num_weights: Number of parameters.
        kernel_size: Side of a convolution's filters, in pixels.
        groups: Number of groups of a norm.
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
        """Number of values in one example's input."""
        return math.prod(self.inputs)

    @property
    def output_size(self) -> int:
        """Number of values in one example's output."""
        return math.prod(self.outputs)


class Unit(NamedTuple):
    """A convolution or dense layer, with an optional norm and ReLU after it.

    Attributes:
        layer: The convolution or dense layer.
        norm: The norm; None for none.
        relu: Whether a ReLU follows.
    """

    layer: Layer
    norm: Layer | None
    relu: bool

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layer, then the norm if there is one."""
        return (self.layer,) if self.norm is None else (self.layer, self.norm)


class Block(NamedTuple):
    """Units in sequence, with an optional shortcut and an optional 2×2 max-pooling.

    Attributes:
        units: The main path, in order.
        shortcut: A unit from the block's input, added to the main path; a ReLU follows
            the sum. None for none.
        pool: Whether the output is max-pooled; odd rows and columns at the end are
            dropped.
        slope: Slope of the ReLUs for negative numbers.
    """

    units: tuple[Unit, ...]
    shortcut: Unit | None = None
    pool: bool = False
    slope: float = 0.0

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All layers in order, those of the shortcut last."""
        units = (*self.units, *([self.shortcut] if self.shortcut else []))
        return tuple(layer for unit in units for layer in unit.layers)

    @property
    def inputs(self) -> Shape:
        """Shape of one example's input."""
        return self.units[0].layer.inputs

    @property
    def ends_in_relu(self) -> bool:
        """Whether the last operation before pooling is a ReLU."""
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
    """Blocks in sequence and a linear head.

    Attributes:
        blocks: The blocks, in order.
        head: The dense layer after them.
        average: Whether positions are averaged before the head; else they are
            flattened.
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
    """Return the entry of nested dictionaries at a layer's path; None if absent."""
    for name in path.split("/"):
        if tree is None or name not in tree:
            return None
        tree = tree[name]
    return tree


def layer_at(inner: Any, path: str) -> Any:
    """Return the entry of `{"backbone": …, "head": …}` for a layer; None if absent."""
    return at_path(inner, _inner_path(path))


def with_layers(inner: Any, layers: Mapping[str, Any]) -> Any:
    """Return `{"backbone": …, "head": …}` with the entries of `layers` replaced.

    Args:
        inner: Nested dictionaries.
        layers: `{path of a layer: new entry}`.
    """
    for path, value in layers.items():
        inner = _replaced(inner, _inner_path(path).split("/"), value)
    return inner


def _inner_path(path: str) -> str:
    """Return a layer's path in `{"backbone": …, "head": …}`."""
    return path if path == "head" else f"backbone/{path}"


def _replaced(tree: Any, names: list[str], value: Any) -> Any:
    """Return the tree with `value` at the path `names`."""
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
    """Return a convolution of stride 1 without bias, followed by GroupNorm.

    Args:
        path: Path of the convolution's weights.
        norm: Path of the norm's weights.
        inputs: Shape of one example's input, `(height, width, channels)`.
        width: Channels of the output.
        relu: Whether a ReLU follows.
        groups: Groups of the GroupNorm.
        kernel_size: Side of the filters, in pixels.
    """
    outputs = (*inputs[:2], width)
    weights = kernel_size**2 * inputs[2] * width
    return Unit(
        Layer(path, "conv", inputs, outputs, weights, kernel_size),
        Layer(norm, "norm", outputs, outputs, 2 * width, groups=groups),
        relu,
    )


def dense_layer(path: str, size: int, width: int) -> Layer:
    """Return a dense layer with biases, from `size` numbers to `width`."""
    return Layer(path, "dense", (size,), (width,), size * width + width)


def describe_perceptron(
    inputs: int, hidden: tuple[int, ...], outputs: int
) -> Architecture:
    """Return the description of a perceptron: dense layers with ReLU, and the head.

    Args:
        inputs: Size of the input vectors.
        hidden: Units of each layer below the head.
        outputs: Units of the head.

    >>> network = describe_perceptron(20, (100, 100), 6)
    >>> sum(layer.num_weights for layer in network.layers)
    12806
    """
    sizes = (inputs, *hidden)
    blocks = tuple(
        Block((Unit(dense_layer(f"layers.{i}", before, after), None, True),))
        for i, (before, after) in enumerate(zip(sizes, sizes[1:], strict=False))
    )
    return Architecture(blocks, dense_layer("head", sizes[-1], outputs))


def describe_conv4(
    image: Shape, way: int, *, width: int, groups: int, norm: str = "group"
) -> Architecture:
    """Return the description of Conv-4 (`lite_jax.nn.conv4`) with a linear head.

    Args:
        image: Shape of one image, `(height, width, channels)`.
        way: Number of classes.
        width: Channels of each block.
        groups: Groups of each GroupNorm.
        norm: Must be "group".

    Raises:
        UserError: A norm other than "group".

    >>> net = describe_conv4((84, 84, 3), 5, width=32, groups=8)
    >>> net.blocks[3].outputs, sum(layer.num_weights for layer in net.layers)
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


def describe_resnet12(
    image: Shape,
    way: int,
    *,
    widths: tuple[int, ...],
    groups: int,
    slope: float = 0.1,
    norm: str = "group",
) -> Architecture:
    """Return the description of ResNet-12 (`lite_jax.nn.resnet12`) with a linear head.

    Args:
        image: Shape of one image, `(height, width, channels)`.
        way: Number of classes.
        widths: Channels of each block.
        groups: Groups of each GroupNorm.
        slope: Slope of the ReLUs for negative numbers.
        norm: Must be "group".

    Raises:
        UserError: A norm other than "group".

    >>> net = describe_resnet12((84, 84, 3), 5, widths=(64, 128, 256, 512), groups=8)
    >>> sum(layer.num_weights for layer in net.layers)
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
