"""One array in one ``.npy`` file: written piece by piece, checked against what is expected, mapped into memory.

The header is written here, byte for byte, so that reading is a comparison and nothing in a file is ever interpreted.
"""

import hashlib
import mmap
import os
import struct
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np


def npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """The header of a C-ordered array in the NPY format, version 1.0."""
    text = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    text += b" " * (-(10 + len(text) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def write_array(path: Path, dtype: str, shape: tuple[int, ...], pieces: Iterable[np.ndarray]) -> dict[str, Any]:
    """Writes ``pieces``, joined along the first axis, and syncs; returns the byte length and SHA-256 of the file."""
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for data in (npy_header(dtype, shape), *(np.ascontiguousarray(piece, dtype).tobytes() for piece in pieces)):
            digest.update(data)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
        length = file.tell()
    return {"bytes": length, "sha256": digest.hexdigest()}


class MappedArray:
    """A read-only array in a file, mapped into memory at the first use.

    Raises:
        ValueError: the file is missing, has another length, or holds another dtype or shape; it is named.
    """

    def __init__(self, path: Path, dtype: str, shape: tuple[int, ...]):
        self.path, self.dtype, self.shape = path, np.dtype(dtype), shape
        self.header = npy_header(dtype, shape)
        self.nbytes = len(self.header) + self.dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        self._check()

    def _check(self) -> None:
        remedy = "restore it from a copy or collect it anew"
        if not self.path.is_file():
            raise ValueError(f"{self.path} is missing; {remedy}.")
        size = self.path.stat().st_size
        if size != self.nbytes:
            raise ValueError(f"{self.path} has {size} bytes, expected {self.nbytes}: it is damaged; {remedy}.")
        with open(self.path, "rb") as file:
            header = file.read(len(self.header))
        if header != self.header:
            expected, got = (text[10:].decode("latin1").strip() for text in (self.header, header))
            raise ValueError(f"{self.path} has the header {got!r}, expected {expected!r}; {remedy}.")

    @cached_property
    def _map(self) -> mmap.mmap:
        with open(self.path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    @cached_property
    def array(self) -> np.ndarray:
        count = int(np.prod(self.shape, dtype=np.int64))
        return np.frombuffer(self._map, self.dtype, count, len(self.header)).reshape(self.shape)

    def release(self) -> None:
        """Takes the pages that were read out of this process's resident memory; they stay in the system's cache."""
        if "_map" in self.__dict__ and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
