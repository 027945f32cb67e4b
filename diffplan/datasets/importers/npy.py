"""A ``.npy`` file that somebody else wrote: its header is checked at once, its rows are read when asked for."""

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any, Protocol

import numpy as np

REMEDY = "copy or export the file anew"


def read_header(file: IO[bytes], where: object) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns come first, and dtype. Raises ``ValueError`` for what is no array, or one of objects."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if min(shape, default=0) < 0:
            raise ValueError(f"the shape {shape}")
    except (ValueError, TokenError, TypeError, LookupError, MemoryError, RecursionError, SyntaxError) as error:
        raise ValueError(f"{where} is no npy file ({error}); {REMEDY}.") from error
    if dtype.hasobject:
        raise ValueError(
            f"{where} holds pickled Python objects, which could run code and are never read; save plain arrays, "
            "e.g. np.save(path, np.stack(list_of_arrays))."
        )
    return shape, fortran, dtype


class NpyFile:
    """Numbers in a ``.npy`` file; nothing is mapped into memory and nothing is unpickled.

    Raises:
        ValueError: no npy file, one of Python objects or of other things than real numbers, or one that is cut.
    """

    def __init__(self, path: Path):
        self.path = path
        with open(path, "rb") as file:
            self.shape, self._fortran, self.dtype = read_header(file, path)
            self._start = file.tell()
        if self.dtype.kind not in "fiub":
            raise ValueError(f"{path} holds {self.dtype}, expected real numbers; convert it to float32.")
        self._row = self.dtype.itemsize * math.prod(self.shape[1:])
        expected = self._start + self.dtype.itemsize * math.prod(self.shape)
        if path.stat().st_size != expected:
            raise ValueError(
                f"{path} has {path.stat().st_size:,} bytes, but its header says {expected:,} for the shape "
                f"{self.shape} of {self.dtype}; {REMEDY}."
            )

    def __len__(self) -> int:
        return self.shape[0] if self.shape else 0

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start .. stop - 1. Raises ``ValueError`` when the file was cut meanwhile."""
        if self._fortran:
            return np.asarray(self._whole[start:stop])
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        with open(self.path, "rb") as file:
            file.seek(self._start + start * self._row)
            got = file.readinto(out.data)
        if got != out.nbytes:
            raise ValueError(f"{self.path} ended early (before row {stop}); it was cut meanwhile; {REMEDY}.")
        return out

    @cached_property
    def _whole(self) -> np.ndarray:
        with open(self.path, "rb") as file:
            file.seek(self._start)
            data = file.read()
        if len(data) != self.dtype.itemsize * math.prod(self.shape):
            raise ValueError(f"{self.path} ended early; it was cut meanwhile; {REMEDY}.")
        return np.frombuffer(data, self.dtype).reshape(self.shape, order="F")


class Typed(Protocol):
    """Something of one dtype."""

    dtype: np.dtype[Any]


def check_same_length(files: dict[str, NpyFile]) -> int:
    """The common number of rows. Raises ``ValueError`` naming two files that differ, or one that is empty."""
    first, *others = files.values()
    for other in others:
        if len(other) != len(first):
            raise ValueError(
                f"{other.path} has {len(other):,} rows, {first.path.name} {len(first):,}; the arrays are ragged: they "
                "must be of the same steps."
            )
    if not len(first):
        raise ValueError(f"{first.path} has no rows; there is nothing to import.")
    return len(first)


def dtype_notes(files: Mapping[str, Typed]) -> tuple[str, ...]:
    """Says which files have another precision than the store's float32."""
    kinds: dict[str, list[str]] = {}
    for name, file in files.items():
        kinds.setdefault(str(file.dtype), []).append(name)
    wide = [kind for kind in kinds if np.dtype(kind).itemsize > 4]
    mixed = "; ".join(f"{', '.join(names)}: {kind}" for kind, names in kinds.items())
    return (f"numbers wider than float32 are rounded to it ({mixed})",) if wide else ()
