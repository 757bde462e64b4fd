"""The command `lite-jax doctor`: versions, devices, optional parts, a self-test."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform

import jax
import jax.numpy as jnp

from lite_jax.lite import batched, exact_grad, lite_grad
from lite_jax.run.memory_budget import GB, SHARE

_PACKAGES = ("lite_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_OPTIONAL = {  # extra: (its use, a module that it installs)
    "demo": ("the web page of lite-jax demo", "starlette"),
    "hdf5": ("HDF5 data sets", "h5py"),
    "hub": ("weights from the hub", "huggingface_hub"),
    "report": ("figures of the report", "matplotlib"),
    "rl": ("Half-Cheetah", "mujoco"),
    "torch": ("the comparison with PyTorch", "torch"),
}


def examine() -> str:
    """Return a report of the installation, as lines of text.

    Raises:
        AssertionError: Gradients on this device are wrong.
    """
    lines = [f"Python {platform.python_version()} on {platform.platform()}"]
    lines += [f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES]
    lines += ["", *(_describe_device(device) for device in jax.local_devices())]
    lines += ["", "optional parts:"]
    for extra, (use, module) in _OPTIONAL.items():
        is_installed = importlib.util.find_spec(module) is not None
        status = "installed" if is_installed else f"pip install 'lite_jax[{extra}]'"
        lines.append(f"  {extra:<7} {use:<30} {status}")
    return "\n".join([*lines, "", _self_test()])


def _describe_device(device: jax.Device) -> str:
    limit = (device.memory_stats() or {}).get("bytes_limit")
    name = f"device {device.id}: {device.device_kind} ({device.platform})"
    if limit is None:
        return f"{name}; it does not tell its memory: set gradient.memory_budget_gb"
    budget = f"{SHARE * limit / GB:.3g} GB are the budget of gradient.chunk_size=auto"
    return f"{name}, {limit / GB:.3g} GB, of which {budget}"


def _self_test() -> str:
    """Check that gradients with H = N are exact on this device; return their error."""
    images = jax.random.normal(jax.random.key(0), (24, 8))
    weights = jnp.ones((8, 4)) / 8

    def loss(weights, images, key, *, set_sum):
        total = set_sum(batched(lambda w, x: jnp.tanh(x @ w)), weights, images, key)
        return jnp.sum((total / len(images) - 1) ** 2)

    exact = exact_grad(loss)(weights, images, None)
    estimate = lite_grad(loss, num_backprop=24, chunk_size=5)(
        weights, images, jax.random.key(1)
    )
    error = float(jnp.abs(exact - estimate).max() / jnp.abs(exact).max())
    if not error < 1e-3:
        raise AssertionError(f"gradients are wrong on this device, by {error:.1e}")
    return f"self-test: lite_grad with H = N is exact to {error:.0e}"
