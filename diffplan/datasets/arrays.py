"""One array in one ``.npy`` file: written piece by piece, checked against what is expected, mapped into memory.

The header is written here, byte for byte, so that reading is a comparison and nothing in a file is ever interpreted.
"""

import hashlib
import math
import mmap
import os
import struct
import weakref
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Int

from diffplan.datasets.manifest import REMEDY, FileEntry


def npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """The header of a C-ordered array in the NPY format, version 1.0."""
    text = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    text += b" " * (-(10 + len(text) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def write_array(path: Path, dtype: str, shape: tuple[int, ...], pieces: Iterable[np.ndarray]) -> FileEntry:
    """Writes ``pieces``, joined along the first axis, and syncs; returns the byte length and SHA-256 of the file."""
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for data in (npy_header(dtype, shape), *(np.ascontiguousarray(piece, dtype).tobytes() for piece in pieces)):
            digest.update(data)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
        length = file.tell()
    return FileEntry(length, digest.hexdigest())


def check_length(path: Path, length: int) -> None:
    """Raises ``ValueError`` naming the file unless it is there with ``length`` bytes."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; {REMEDY}.")
    if path.stat().st_size != length:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, expected {length}; {REMEDY}.")


_SMALL = 2**20  # bytes


class ArrayFile:
    """A read-only array in a file: mapped into memory, or read piece by piece where memory must stay small.

    Mapping is faster (one copy, no system call), but the pages that it touches count as resident memory, neighbourhoods
    of up to 2 MB at a time, and giving them back makes the next touch ten times slower than a plain read.

    Raises:
        ValueError: the file is missing, has another length, or holds another dtype or shape; it is named.
    """

    def __init__(self, path: Path, dtype: str, shape: tuple[int, ...]):
        self.path, self.dtype, self.shape = path, np.dtype(dtype), shape
        self.header = npy_header(dtype, shape)
        self.row_bytes = self.dtype.itemsize * math.prod(shape[1:])
        self.nbytes = len(self.header) + self.row_bytes * shape[0]
        self._check()

    def _check(self) -> None:
        check_length(self.path, self.nbytes)
        with open(self.path, "rb") as file:
            header = file.read(len(self.header))
        if header != self.header:
            expected, got = (text[10:].decode("latin1").strip() for text in (self.header, header))
            raise ValueError(f"{self.path} has the header {got!r}, expected {expected!r}; {REMEDY}.")

    @cached_property
    def mapped(self) -> np.ndarray:
        """The whole array, memory-mapped; a small one is read: a mapping keeps its file open, and many are too many."""
        with open(self.path, "rb") as file:
            small = self.nbytes < _SMALL
            pages = file.read() if small else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(pages, self.dtype, math.prod(self.shape), len(self.header)).reshape(self.shape)

    def read(self, rows: Int[np.ndarray, "B W"], out: np.ndarray) -> None:
        """``out[:] = array[rows]`` by one system call for each b; ``rows[b]`` must not fall and should have no gaps."""
        for b, (first, last) in enumerate(zip(rows[:, 0].tolist(), rows[:, -1].tolist(), strict=True)):
            if last - first + 1 == rows.shape[1]:
                self._read(first, out[b])
            else:  # a window over an episode's end repeats the first or last row
                span = np.empty((last - first + 1, *self.shape[1:]), self.dtype)
                self._read(first, span)
                span.take(rows[b] - first, axis=0, out=out[b], mode="clip")

    def _read(self, first: int, out: np.ndarray) -> None:
        got = os.preadv(self._descriptor, [out.data], len(self.header) + first * self.row_bytes)
        if got != out.nbytes:
            raise ValueError(
                f"{self.path} ended early (row {first}: {got} of {out.nbytes} bytes); it was cut meanwhile."
            )

    @cached_property
    def _descriptor(self) -> int:
        descriptor = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, descriptor)
        return descriptor
