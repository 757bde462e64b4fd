"""Pretrained weights in safetensors files, in the layouts of timm and torchvision.

A file is a flat table of tensors. Their names are the paths of the parameters of these
networks, with four leaves renamed: `kernel` and `scale` are `weight` in a file, and
`mean` and `var` of a frozen norm are `running_mean` and `running_var`. The output axis
of kernels is first in a file and last here. The mean and standard deviation of the
input are in the file's metadata, or in the `config.json` beside it, as on the Hugging
Face hub.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lite_jax.errors import UserError
from lite_jax.nn.layers import NORM_PARTS
from lite_jax.nn.network import INPUT
from lite_jax.types import Network, Params

Tensors = dict[str, np.ndarray]

_HUB = "hub:"
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
_IGNORED = re.compile(r"(fc|classifier(\.1)?|heads?)\.(weight|bias)|.*_batches_tracked")
_POSITIONS = "pos_embed"


def pretrained(network: Network, weights: str) -> Network:
    """Return the network with pretrained parameters in place of random ones.

    Args:
        network: A backbone of `lite_jax.nn`.
        weights: A safetensors file, a folder that holds `model.safetensors`, or
            `hub:NAME`, such as `hub:timm/resnet18.a1_in1k`, which needs the internet
            and `pip install huggingface_hub`.

    Returns:
        A `Network` whose `init` returns the parameters of the file in float32. It
        ignores a classifier in the file and resizes position embeddings to the image
        size. The mean and standard deviation of the input are those of the file or of
        `config.json`, or else those of `network`. `init` raises a `UserError` that
        lists missing, extra and mis-shaped tensors.

    Raises:
        UserError: The file does not exist or is not safetensors, or the hub's file
            could not be fetched.
    """
    path = _weights_path(weights)
    tensors, statistics = _tensors_and_statistics(path)

    def init(key: Any, example_spec: Any) -> Params:
        shapes = jax.eval_shape(lambda key: network.init(key, example_spec), key)
        if INPUT not in shapes:
            raise UserError(f"weights={weights}: this backbone has no parameters")
        defaults = jax.jit(lambda key: network.init(key, example_spec)[INPUT])(key)
        expected = _keys_and_shapes({k: v for k, v in shapes.items() if k != INPUT})
        _check_tensors(expected, tensors, path)
        leaves = {
            keys: _to_leaf(name, tensors[name], shape)
            for name, (keys, shape) in expected.items()
        }
        loaded = {
            name: np.broadcast_to(np.asarray(value, np.float32), defaults[name].shape)
            for name, value in statistics.items()
        }
        return {INPUT: defaults | loaded, **_unflatten(leaves)}

    return network._replace(init=init)


def save_weights(path: Path, params: Params) -> None:
    """Write a network's parameters to a file that `pretrained` reads.

    The file appears only once it is complete. Its metadata hold the mean and standard
    deviation of the input.

    Args:
        path: The safetensors file.
        params: Parameters of a network of `lite_jax.nn`.
    """
    weights = {k: v for k, v in params.items() if k != INPUT}
    leaves = dict(jax.tree_util.tree_leaves_with_path(weights))
    by_name = {_tensor_name(keys): np.asarray(x) for keys, x in leaves.items()}
    tensors = {name: np.ascontiguousarray(_to_tensor(x)) for name, x in by_name.items()}
    statistics = params.get(INPUT, {})
    metadata = {k: json.dumps(np.asarray(v).tolist()) for k, v in statistics.items()}
    partial = path.with_name(path.name + ".part")
    save_file(tensors, partial, metadata)
    os.replace(partial, path)


def _weights_path(weights: str) -> Path:
    """Return the path of a safetensors file; fetch it from the hub for `hub:NAME`."""
    if weights.startswith(_HUB):
        return _fetched_path(weights.removeprefix(_HUB))
    path = Path(weights)
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise UserError(
            f"weights={weights}: no such file; give a safetensors file, a "
            "folder that holds model.safetensors, or hub:NAME"
        )
    return path


def _fetched_path(name: str) -> Path:
    """Return the path of a file fetched from the hub, beside its `config.json`."""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise UserError(
            f"weights={_HUB}{name} needs the hub's client: "
            "pip install huggingface_hub, or give a local safetensors file"
        ) from error
    try:
        hf_hub_download(name, "config.json")
        return Path(hf_hub_download(name, "model.safetensors"))
    except Exception as error:  # the client raises exceptions of many libraries
        raise UserError(
            f"weights={_HUB}{name} could not be fetched "
            f"({type(error).__name__}): check the name and the network, or download "
            "model.safetensors and config.json elsewhere and give their folder"
        ) from error


def _tensors_and_statistics(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Return a file's tensors under timm's names, and the "mean" and "std" it gives."""
    try:
        with safe_open(path, framework="flax") as file:  # NumPy's reader lacks bfloat16
            tensors = {
                name: np.asarray(file.get_tensor(name)).astype(np.float32)
                for name in file.keys()
                if not _IGNORED.fullmatch(name)
            }
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"weights={path} is not a whole safetensors file: {error}"
        ) from error
    statistics = {k: json.loads(metadata[k]) for k in ("mean", "std") if k in metadata}
    config_path = path.with_name("config.json")
    if not statistics and config_path.is_file():
        config = json.loads(config_path.read_text(encoding="utf-8"))
        config = config.get("pretrained_cfg", config)
        statistics = {k: config[k] for k in ("mean", "std") if k in config}
    renamed = {_timm_name(name, tensors): x for name, x in tensors.items()}
    return renamed, statistics


_BLOCK_PARTS = {  # torchvision's EfficientNet block: with and without expansion
    True: {
        "0.0": "conv_pw", "0.1": "bn1", "1.0": "conv_dw", "1.1": "bn2",
        "2.fc1": "se.conv_reduce", "2.fc2": "se.conv_expand",
        "3.0": "conv_pwl", "3.1": "bn3",
    },
    False: {
        "0.0": "conv_dw", "0.1": "bn1", "1.fc1": "se.conv_reduce",
        "1.fc2": "se.conv_expand", "2.0": "conv_pw", "2.1": "bn2",
    },
}  # fmt: skip
_ENDS = {"0.0": "conv_stem", "0.1": "bn1", "8.0": "conv_head", "8.1": "bn2"}


def _timm_name(name: str, names: Iterable[str]) -> str:
    """Return timm's name of a tensor of torchvision or timm.

    Only the names of EfficientNet differ.

    Args:
        name: A name in the file.
        names: All names in the file.
    """
    if "features.0.0.weight" not in names:
        return name
    end = re.fullmatch(r"features\.(\d\.\d)\.(\w+)", name)
    if end and end[1] in _ENDS:
        return f"{_ENDS[end[1]]}.{end[2]}"
    block = re.fullmatch(r"features\.(\d)\.(\d)\.block\.(\d\.\w+)\.(\w+)", name)
    if not block:
        return name
    part = _BLOCK_PARTS[block[1] != "1"].get(block[3], block[3])
    return f"blocks.{int(block[1]) - 1}.{block[2]}.{part}.{block[4]}"


def _keys_and_shapes(shapes: Params) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Return `{name in a file: (key path, shape)}` of the leaves of parameters."""
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    return {_tensor_name(keys): (keys, leaf.shape) for keys, leaf in leaves}


def _tensor_name(keys: Any) -> str:
    """Return the name in a file of the parameter at a key path."""
    *path, leaf = (entry.key for entry in keys if entry.key not in NORM_PARTS)
    return ".".join([*path, _LEAVES.get(leaf, leaf)])


def _unflatten(leaves: dict[Any, np.ndarray]) -> Params:
    """Return the nested dictionaries with these leaves by key path, as JAX arrays."""
    tree: Params = {}
    for keys, value in leaves.items():
        branch = tree
        for entry in keys[:-1]:
            branch = branch.setdefault(entry.key, {})
        branch[keys[-1].key] = jax.numpy.asarray(value)
    return tree


def _to_tensor(leaf: np.ndarray) -> np.ndarray:
    """Return a parameter in the layout of a file, which has the output axis first."""
    if leaf.ndim == 4:
        return leaf.transpose(3, 2, 0, 1)
    return leaf.T if leaf.ndim == 2 else leaf


def _tensor_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape in a file of a parameter of this shape."""
    return _to_tensor(np.empty(shape, bool)).shape


def _to_leaf(name: str, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a file's tensor as a parameter of this shape, the output axis last.

    `_check_tensors` has compared the shapes. A position embedding is resized.
    """
    if name == _POSITIONS and tensor.shape != shape:
        return _resized_positions(tensor, shape)
    if tensor.ndim == 4:
        return tensor.transpose(2, 3, 1, 0)
    return tensor.T if tensor.ndim == 2 else tensor


def _resized_positions(tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the position embedding `[1, 1 + patches, width]` of another image size.

    Interpolation is bicubic. Both sizes have square grids of patches.
    """
    old, new = (round((count - 1) ** 0.5) for count in (tensor.shape[1], shape[1]))
    width = shape[-1]
    grid = tensor[:, 1:].reshape(1, old, old, width)
    grid = np.asarray(jax.image.resize(grid, (1, new, new, width), "bicubic"))
    return np.concatenate([tensor[:, :1], grid.reshape(1, -1, width)], 1)


def _check_tensors(expected: dict[str, Any], tensors: Tensors, path: Path) -> None:
    """Raise a `UserError` that lists all missing, extra and mis-shaped tensors.

    Args:
        expected: `{name in a file: (key path, shape)}`, of `_keys_and_shapes`.
        tensors: The file's tensors.
        path: The file.
    """
    mis_shaped = [
        f"{name} {list(tensors[name].shape)} instead of {list(_tensor_shape(shape))}"
        for name, (_, shape) in expected.items()
        if name in tensors and not _fits(name, tensors[name].shape, shape)
    ]
    faults = {
        "missing": sorted(expected.keys() - tensors.keys()),
        "extra": sorted(tensors.keys() - expected.keys()),
        "mis-shaped": mis_shaped,
    }
    listed = [
        f"{len(names)} {kind} ({_first_names(names)})"
        for kind, names in faults.items()
        if names
    ]
    if listed:
        raise UserError(
            f"weights={path} does not fit the backbone: {'; '.join(listed)}. "
            "Choose the backbone and the norm that the weights were made for"
        )


def _fits(name: str, tensor: tuple[int, ...], leaf: tuple[int, ...]) -> bool:
    """Return whether a tensor's shape in a file fits the shape of a parameter."""
    if name == _POSITIONS:  # resized where the number of patches differs
        patches = tensor[1] - 1
        return tensor[-1] == leaf[-1] and round(patches**0.5) ** 2 == patches
    return tensor == _tensor_shape(leaf)


def _first_names(names: list[str], most: int = 10) -> str:
    """Return the first names as text, with the number of the others."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
