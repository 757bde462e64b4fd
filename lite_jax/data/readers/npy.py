"""Checks of `.npy` headers before NumPy allocates the arrays that they declare."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np


def check_npy(file: IO[bytes], size: int) -> None:
    """Raise unless the array that a `.npy` header declares fits its file.

    Args:
        file: The file at its beginning; its header is consumed.
        size: Size of the whole file in bytes.

    Raises:
        ValueError: The file is no `.npy` file of version 1.0 (NumPy's version for plain
            arrays), or it is smaller than the declared array.
    """
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("a .npy file of another version than 1.0")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if math.prod(shape) * dtype.itemsize > size or min(shape, default=0) < 0:
        raise ValueError(f"an array {shape} of {dtype} in {size} bytes")


def check_npz(path: Path) -> None:
    """Raise unless the members of a `.npz` file fit it, and their arrays fit them.

    Raises:
        ValueError, zipfile.BadZipFile: A member or an array is too large, or the file
            is broken.
    """
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_size > size:
                raise ValueError(
                    f"{member.filename} is said to be larger than the file"
                )
            with archive.open(member) as file:
                check_npy(file, member.file_size)
