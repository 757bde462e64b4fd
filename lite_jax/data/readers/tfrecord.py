"""Random access to TFRecord files, with CRC checks and without TensorFlow.

A file is a sequence of records. A record is its length (8 bytes, little-endian), the
CRC of the length (4 bytes), its data, and the CRC of the data (4 bytes). CRCs are
CRC-32C, masked as by TensorFlow.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from lite_jax.data.readers.npy import check_npy
from lite_jax.errors import UserError

_HEAD = struct.Struct("<QI")
_TAIL = struct.Struct("<I")


def masked_crc(data: bytes) -> int:
    """Return TensorFlow's masked CRC-32C.

    >>> hex(masked_crc(b"123456789"))
    '0xc78ab0e5'
    """
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def write_records(path: Path, records: Iterable[bytes]) -> None:
    """Write a TFRecord file."""
    with path.open("wb") as file:
        for record in records:
            length = struct.pack("<Q", len(record))
            file.write(length + _TAIL.pack(masked_crc(length)))
            file.write(record + _TAIL.pack(masked_crc(record)))


class RecordFile:
    """A TFRecord file whose records are read by number.

    It holds the records' offsets but no open file, so threads can share it, and it can
    be pickled.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path, *, index_folder: Path | None = None):
        """Index the records, by a pass over their lengths or from a stored index.

        Args:
            path: The file.
            index_folder: Folder where the offsets are stored as `<file name>.npy`, in
                the file's folder. They are not stored if that cannot be written. A
                stored index that does not fit the file is replaced. None stores none.

        Raises:
            UserError: The file ends inside a record, or a length's CRC is wrong.
        """
        self.path = path
        index = index_folder and index_folder / f"{path.name}.npy"
        offsets = _stored_offsets(index, path.stat().st_size) if index else None
        if offsets is not None:
            self._offsets = offsets
            return
        self._offsets = _record_offsets(path)
        if index and os.access(path.parent, os.W_OK):
            index.parent.mkdir(exist_ok=True)
            draft = index.with_suffix(f".{os.getpid()}.part")
            with draft.open("wb") as file:
                np.save(file, self._offsets)
            os.replace(draft, index)

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self._offsets) - 1

    def read(self, indices: Sequence[int] | np.ndarray) -> list[bytes]:
        """Return the data of the records of given numbers.

        Raises:
            UserError: A record's data does not match its CRC, or the file has become
                shorter.
        """
        with self.path.open("rb") as file:
            return [self._read(file.fileno(), int(i)) for i in indices]

    def _read(self, descriptor: int, index: int) -> bytes:
        start = int(self._offsets[index])
        length = int(self._offsets[index + 1]) - start
        content = os.pread(descriptor, length, start)
        if len(content) < length:
            raise _broken_record(self.path, index, "the file is shorter than its index")
        record = content[_HEAD.size : -_TAIL.size]
        if _TAIL.unpack(content[-_TAIL.size :])[0] != masked_crc(record):
            raise _broken_record(self.path, index, "its bytes do not match their CRC")
        return record


def _stored_offsets(index: Path, size: int) -> np.ndarray | None:
    """Return the offsets `[n + 1]` int64 of an index, or None if it does not fit.

    Args:
        index: The file of the index.
        size: Size of the indexed file in bytes.
    """
    if not index.exists():
        return None
    try:
        with index.open("rb") as file:
            check_npy(file, index.stat().st_size)
        offsets = np.load(index, mmap_mode="r")
    except Exception:  # NumPy raises many types on a broken file
        return None
    if offsets.dtype != np.int64 or offsets.ndim != 1 or not offsets.size:
        return None
    covers_file = offsets[0] == 0 and offsets[-1] == size
    long_enough = (np.diff(offsets) >= _HEAD.size + _TAIL.size).all()
    return offsets if covers_file and long_enough else None


def _record_offsets(path: Path) -> np.ndarray:
    """Return the offsets of the records and of the file's end, `[n + 1]` int64."""
    offsets, size = [0], path.stat().st_size
    if not size:
        return np.zeros(1, np.int64)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as m:
        while offsets[-1] < size:
            start, number = offsets[-1], len(offsets) - 1
            head = m[start : start + _HEAD.size]
            if len(head) < _HEAD.size:
                raise _broken_record(path, number, "the file ends inside it")
            length, crc = _HEAD.unpack(head)
            if crc != masked_crc(head[:8]):
                raise _broken_record(path, number, "its length does not match its CRC")
            end = start + _HEAD.size + length + _TAIL.size
            if end > size:
                raise _broken_record(path, number, "the file ends inside it")
            offsets.append(end)
    return np.array(offsets, np.int64)


def _broken_record(path: Path, number: int, reason: str) -> UserError:
    return UserError(
        f"{path}: record {number} is broken ({reason}): copy or convert the file again"
    )


def parse_example(record: bytes) -> dict[str, list[Any]]:
    """Return the features of a serialised `tf.train.Example`, by name.

    Raises:
        ValueError: `record` is no such example.
    """
    # Takes most of a second to import.
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    try:
        example.ParseFromString(record)
    except DecodeError as error:
        raise ValueError(f"no tf.train.Example: {error}") from error
    return {
        name: list(getattr(feature, feature.WhichOneof("kind") or "int64_list").value)
        for name, feature in example.features.feature.items()
    }


def make_example(features: dict[str, bytes | int]) -> bytes:
    """Return a serialised `tf.train.Example` of single values."""
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    for name, value in features.items():
        kind = "int64_list" if isinstance(value, int) else "bytes_list"
        getattr(example.features.feature[name], kind).value.append(value)
    return example.SerializeToString(deterministic=True)
