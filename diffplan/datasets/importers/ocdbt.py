"""zarr arrays in an OCDBT folder (``manifest.ocdbt``, ``d/``) that somebody else wrote: opened only for reading."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from diffplan.datasets.importers.recording import MOST_COMPRESSED
from diffplan.extras import load_extra
from diffplan.files import inside

REMEDY = "copy the folder anew"
MANIFEST = "manifest.ocdbt"
_DAMAGED = (OSError, ValueError, RuntimeError, NotImplementedError)  # tensorstore's errors of damaged files
_LARGEST_CHUNK = 2**28  # bytes; tensorstore makes chunks of 2**20 numbers unless told otherwise
_CACHE = {"cache_pool": {"total_bytes_limit": _LARGEST_CHUNK}}  # unpacked chunks: an episode is a small part of one


class OcdbtFolder:
    """What arrays a folder holds; none is read yet.

    Raises:
        ImportError: tensorstore is not installed.
        ValueError: a link that leaves the folder, or no OCDBT database, or a damaged one.
    """

    def __init__(self, path: Path):
        self.path = path
        self._tensorstore = load_extra("tensorstore", "vault", "Vault folders need tensorstore")
        files = [inside(path, str(file.relative_to(path))) for file in path.rglob("*")]
        self.nbytes = sum(file.stat().st_size for file in files if file.is_file())
        self._context = self._tensorstore.Context(_CACHE)
        with _named(path):
            store = self._tensorstore.KvStore.open(self._spec(""), context=self._context).result()
            self._keys = [key.decode(errors="replace") for key in store.list().result()]
        self.names = sorted(key.removesuffix("/.zarray") for key in self._keys if key.endswith("/.zarray"))

    def open(self, name: str) -> "StoredArray":
        """An array by its name. Raises ``ValueError`` when there is none, or one that is not of real numbers."""
        where = f"{self.path}: {name}"
        if name not in self.names:
            raise ValueError(f"{where} is missing, there is {self.names[:12]}; {REMEDY}.")
        with _named(where):
            array = self._tensorstore.open(
                {"driver": "zarr", "kvstore": self._spec(name)},
                open=True,
                read=True,
                recheck_cached="open",
                context=self._context,
            ).result()
        chunks = [key.removeprefix(f"{name}/") for key in self._keys if key.startswith(f"{name}/")]
        return StoredArray(where, array, [chunk for chunk in chunks if re.fullmatch(r"\d+([./]\d+)*", chunk)])

    def _spec(self, name: str) -> dict[str, Any]:
        base = {"driver": "file", "path": f"{self.path.resolve()}/"}  # refuses keys with .. in them
        return {"driver": "ocdbt", "base": base, "path": name}


class StoredArray:
    """Numbers in an array of which only some chunks are there: all that is asked for must be among them.

    Raises:
        ValueError: other things than real numbers, or chunks larger than anybody writes.
    """

    def __init__(self, where: str, array: Any, chunks: list[str]):
        self.where, self._array, self._chunks = where, array, chunks
        self.shape, self.dtype = tuple(array.shape), array.dtype.numpy_dtype
        if self.dtype.kind not in "fiub":
            raise ValueError(f"{where} holds {self.dtype}, expected real numbers; convert it to float32.")
        self._chunk = tuple(array.chunk_layout.read_chunk.shape)
        nbytes = self.dtype.itemsize * math.prod(self._chunk)
        if nbytes > _LARGEST_CHUNK:
            raise ValueError(
                f"{where} has chunks of {nbytes:,} bytes, expected {_LARGEST_CHUNK:,} at most; write smaller ones."
            )

    def nbytes(self, steps: int) -> int:
        """Bytes of the first ``steps`` of the second axis, unpacked."""
        return self.dtype.itemsize * math.prod((*self.shape[:1], steps, *self.shape[2:]))

    def check_stored(self, steps: int) -> None:
        """Raises ``ValueError`` unless the first ``steps`` of the second axis are all in the files."""
        sizes = (self.shape[0], steps, *self.shape[2:])
        if steps > self.shape[1]:
            raise ValueError(f"{self.where} has {self.shape[1]:,} steps, expected {steps:,}; {REMEDY}.")
        grid = [-(-size // chunk) for size, chunk in zip(sizes, self._chunk, strict=True)]
        places = {tuple(map(int, re.split(r"[./]", chunk))) for chunk in self._chunks}
        there = sum(
            len(place) == len(grid) and all(at < end for at, end in zip(place, grid, strict=True)) for place in places
        )
        if there != math.prod(grid):
            raise ValueError(
                f"{self.where} has {there:,} chunks of the {math.prod(grid):,} that {steps:,} steps take; the others "
                f"are not in the files; {REMEDY}."
            )

    def read(self) -> np.ndarray:
        """All of a small array."""
        with _named(self.where):
            return np.asarray(self._array.read().result())

    def rows(self, lane: int, start: int, stop: int) -> np.ndarray:
        """Steps start .. stop - 1 of one lane, without the first axis."""
        with _named(self.where):
            return np.asarray(self._array[lane, start:stop].read().result())


def check_capacity(folder: OcdbtFolder, arrays: dict[str, StoredArray], steps: int) -> None:
    """Raises ``ValueError`` when so many steps could not be in so small files, however well they were packed."""
    promised = sum(array.nbytes(steps) for array in arrays.values())
    if promised > MOST_COMPRESSED * folder.nbytes:
        raise ValueError(
            f"{folder.path} has {folder.nbytes:,} bytes, too few for {steps:,} steps, which are {promised:,} bytes "
            f"unpacked; {REMEDY}."
        )


@contextmanager
def _named(where: object) -> Iterator[None]:
    """Says in one line where tensorstore found something wrong; its own words end with pages of JSON."""
    try:
        yield
    except _DAMAGED as error:
        said = str(error).split(" [")[0].split("\n")[0]
        raise ValueError(f"{where} cannot be read ({said}); it is damaged; {REMEDY}.") from error
