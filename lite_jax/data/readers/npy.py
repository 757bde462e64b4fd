"""Headers of `.npy` files, looked at before NumPy allocates what they ask for."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np


def check_npy(file: IO[bytes], size: int) -> None:
    """Raise unless a file's header asks for what the file can hold.

    Args:
        file: At its beginning; the header is read.
        size: Bytes of the whole file.

    Raises:
        ValueError: No `.npy` file of version 1, which every plain array is saved as, or
            one that is shorter than its header says.
    """
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("a .npy file of another version than 1.0")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if math.prod(shape) * dtype.itemsize > size or min(shape, default=0) < 0:
        raise ValueError(f"an array {shape} of {dtype} in {size} bytes")


def check_npz(path: Path) -> None:
    """Raise unless all members fit an archive, and the headers of arrays their members.

    Raises:
        ValueError, zipfile.BadZipFile: One does not, or the archive is broken.
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
