"""Weights that any library makes alike: each tensor from its name, by NumPy alone."""

import zlib

import numpy as np


def tensor(name, shape, gain=1.0):
    """The tensor of a name and shape, float32; `gain` scales the kernels."""
    uniform = np.random.default_rng(zlib.crc32(name.encode())).random(shape)
    if name.endswith("running_var"):
        found = 0.5 + uniform
    elif len(shape) >= 2:
        found = (uniform - 0.5) * np.sqrt(12 / np.prod(shape[1:])) * gain
    elif name.endswith("weight"):
        found = 0.5 + 0.7 * uniform
    else:
        found = (uniform - 0.5) * 0.4
    return found.astype(np.float32)


def images(size, count=2):
    """Images `[count, size, size, 3]` uint8."""
    rng = np.random.default_rng(7)
    return rng.integers(0, 256, (count, size, size, 3)).astype(np.uint8)
