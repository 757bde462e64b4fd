"""Pretrained weights: safetensors files in the layouts of timm and torchvision.

A file is a flat table of tensors, named as the networks here name their parameters, so
that reading is a rule and not a list: `kernel` and `scale` are called `weight`, a
frozen norm's `mean` and `var` `running_mean` and `running_var`, and kernels have their
output axis first. The statistics of the input stand in the file's metadata, or in the
`config.json` beside it, as on the Hugging Face hub.
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
_NOT_OURS = re.compile(
    r"(fc|classifier(\.1)?|heads?)\.(weight|bias)|.*_batches_tracked"
)
_POSITIONS = "pos_embed"


def pretrained(network: Network, weights: str) -> Network:
    """Return the network with `init` reading its parameters instead of drawing them.

    Args:
        network: One of `lite_jax.nn`.
        weights: A safetensors file, a folder that holds `model.safetensors`, or
            `hub:NAME`, such as `hub:timm/resnet18.a1_in1k`, which needs the internet
            and `pip install huggingface_hub`.

    Returns:
        A `Network` whose parameters are float32. Its `init` raises a `UserError` that
        lists the missing, extra and mis-shaped tensors. A classifier in the file is
        left out, and position embeddings are resized to the image size. Where file
        and `config.json` say nothing of the input's mean and standard deviation, the
        network's own stay.

    Raises:
        UserError: No such file, one that is not safetensors, or no such hub entry.
    """
    path = _locate(weights)
    tensors, statistics = _read(path)

    def init(key: Any, example_spec: Any) -> Params:
        shapes = jax.eval_shape(lambda key: network.init(key, example_spec), key)
        if INPUT not in shapes:
            raise UserError(f"weights={weights}: this backbone has no parameters")
        own = jax.jit(lambda key: network.init(key, example_spec)[INPUT])(key)
        wanted = _flatten({k: v for k, v in shapes.items() if k != INPUT})
        _check(wanted, tensors, path)
        loaded = {
            place: _to_ours(name, tensors[name], shape)
            for name, (place, shape) in wanted.items()
        }
        found = {
            name: np.broadcast_to(np.asarray(value, np.float32), own[name].shape)
            for name, value in statistics.items()
        }
        return {INPUT: own | found, **_unflatten(loaded)}

    return network._replace(init=init)


def save_weights(path: Path, params: Params) -> None:
    """Write a network's parameters to a file that `pretrained` reads.

    The file is complete or absent. The statistics of the input go into its metadata.
    """
    rest = {k: v for k, v in params.items() if k != INPUT}
    leaves = dict(jax.tree_util.tree_leaves_with_path(rest))
    by_name = {_name(place): np.asarray(x) for place, x in leaves.items()}
    tensors = {name: np.ascontiguousarray(_flip(x)) for name, x in by_name.items()}
    statistics = params.get(INPUT, {})
    metadata = {k: json.dumps(np.asarray(v).tolist()) for k, v in statistics.items()}
    partial = path.with_name(path.name + ".part")
    save_file(tensors, partial, metadata)
    os.replace(partial, path)


def _locate(weights: str) -> Path:
    """Return the file that a setting names; fetch it from the hub if asked."""
    if weights.startswith(_HUB):
        return _fetch(weights.removeprefix(_HUB))
    path = Path(weights)
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise UserError(
            f"weights={weights}: no such file; give a safetensors file, a "
            "folder that holds model.safetensors, or hub:NAME"
        )
    return path


def _fetch(name: str) -> Path:
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
    except Exception as error:  # the client raises errors of many libraries
        raise UserError(
            f"weights={_HUB}{name} could not be fetched "
            f"({type(error).__name__}): check the name and the network, or download "
            "model.safetensors and config.json elsewhere and give their folder"
        ) from error


def _read(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Return a file's tensors under timm's names, and the input's mean and std."""
    try:
        with safe_open(path, framework="flax") as file:  # NumPy's reader lacks bfloat16
            found = {
                name: np.asarray(file.get_tensor(name)).astype(np.float32)
                for name in file.keys()
                if not _NOT_OURS.fullmatch(name)
            }
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"weights={path} is not a whole safetensors file: {error}"
        ) from error
    statistics = {k: json.loads(metadata[k]) for k in ("mean", "std") if k in metadata}
    beside = path.with_name("config.json")
    if not statistics and beside.is_file():
        config = json.loads(beside.read_text(encoding="utf-8"))
        config = config.get("pretrained_cfg", config)
        statistics = {k: config[k] for k in ("mean", "std") if k in config}
    return {_from_torchvision(name, found): x for name, x in found.items()}, statistics


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


def _from_torchvision(name: str, names: Iterable[str]) -> str:
    """Return timm's name of a tensor; only EfficientNet's differ from torchvision's."""
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


def _flatten(shapes: Params) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Return `{name in a file: (place in the tree, our shape)}`."""
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    return {_name(place): (place, leaf.shape) for place, leaf in leaves}


def _name(place: Any) -> str:
    *path, leaf = (entry.key for entry in place if entry.key not in NORM_PARTS)
    return ".".join([*path, _LEAVES.get(leaf, leaf)])


def _unflatten(leaves: dict[Any, np.ndarray]) -> Params:
    tree: Params = {}
    for place, value in leaves.items():
        branch = tree
        for entry in place[:-1]:
            branch = branch.setdefault(entry.key, {})
        branch[place[-1].key] = jax.numpy.asarray(value)
    return tree


def _flip(kernel: np.ndarray) -> np.ndarray:
    """Turn a kernel of ours, output axis last, into a file's."""
    if kernel.ndim == 4:
        return kernel.transpose(3, 2, 0, 1)
    return kernel.T if kernel.ndim == 2 else kernel


def _flipped(shape: tuple[int, ...]) -> tuple[int, ...]:
    return _flip(np.empty(shape, bool)).shape


def _to_ours(name: str, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Turn a file's tensor into ours; `_check` has compared the shapes."""
    if name == _POSITIONS and tensor.shape != shape:
        return _resized_positions(tensor, shape)
    if tensor.ndim == 4:
        return tensor.transpose(2, 3, 1, 0)
    return tensor.T if tensor.ndim == 2 else tensor


def _resized_positions(tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the position embedding of another number of patches (bicubic)."""
    old, new = (round((count - 1) ** 0.5) for count in (tensor.shape[1], shape[1]))
    width = shape[-1]
    grid = tensor[:, 1:].reshape(1, old, old, width)
    grid = np.asarray(jax.image.resize(grid, (1, new, new, width), "bicubic"))
    return np.concatenate([tensor[:, :1], grid.reshape(1, -1, width)], 1)


def _check(wanted: dict[str, Any], tensors: Tensors, path: Path) -> None:
    """Raise one error that lists all that does not fit."""
    wrong = [
        f"{name} {list(tensors[name].shape)} instead of {list(_flipped(shape))}"
        for name, (_, shape) in wanted.items()
        if name in tensors and not _fits(name, tensors[name].shape, shape)
    ]
    faults = {
        "missing": sorted(wanted.keys() - tensors.keys()),
        "extra": sorted(tensors.keys() - wanted.keys()),
        "mis-shaped": wrong,
    }
    told = [
        f"{len(names)} {kind} ({_some(names)})"
        for kind, names in faults.items()
        if names
    ]
    if told:
        raise UserError(
            f"weights={path} does not fit the backbone: {'; '.join(told)}. "
            "Choose the backbone and the norm that the weights were made for"
        )


def _fits(name: str, found: tuple[int, ...], ours: tuple[int, ...]) -> bool:
    if name == _POSITIONS:  # resized where the number of patches differs
        return (
            found[-1] == ours[-1] and round((found[1] - 1) ** 0.5) ** 2 == found[1] - 1
        )
    return found == _flipped(ours)


def _some(names: list[str], most: int = 10) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
