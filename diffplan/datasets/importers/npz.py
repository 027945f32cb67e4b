"""The ``.npz`` file that ``export_npz`` writes: flat arrays over all episodes, as in a store, and the spec as JSON."""

import json
import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from diffplan.datasets.importers.npy import REMEDY, read_header
from diffplan.datasets.importers.recognition import wrong_format
from diffplan.datasets.importers.recording import MOST_COMPRESSED, Recording
from diffplan.spec import JointSpec
from diffplan.trajectory import ROWS, STEPS, Trajectory

_NAMES = (*ROWS, *STEPS, "offsets", "spec", "labels", "source")


@dataclass(frozen=True)
class Npz:
    """Imports what ``export_npz`` wrote, or an archive with the same arrays; it is read into memory as a whole.

    Args:
        source: the archive: the arrays of a store (L + 1 rows an episode), offsets, and spec and labels as JSON text.
    """

    source: Path

    def read(self) -> Recording:
        source = Path(self.source)
        arrays = read_npz(source, _NAMES, "npz")
        try:
            spec = JointSpec.from_dict(json.loads(str(arrays["spec"])))
            labels, offsets = json.loads(str(arrays["labels"])), arrays["offsets"].tolist()
            if arrays["offsets"].dtype.kind not in "iu" or len(labels) != len(offsets) - 1:
                raise ValueError(f"{len(labels)} labels, offsets {offsets[:3]}...")
            if not isinstance(labels, list) or not all(isinstance(one, dict) for one in labels):
                raise ValueError("labels are no list of objects")
            rows = len(arrays["agent_mask"])
            if offsets[0] != 0 or offsets[-1] != rows or any(stop - start < 2 for start, stop in pairwise(offsets)):
                raise ValueError(f"offsets {offsets[:3]}... to {offsets[-1]} of {rows} rows")
        except (TypeError, ValueError) as error:
            raise ValueError(f"{source} has a damaged spec or labels ({error}); export the file anew.") from error

        def episodes() -> Iterator[Trajectory]:
            for index, (start, stop) in enumerate(pairwise(offsets)):
                rows = {name: arrays[name][start:stop] for name in ROWS}
                steps = {name: arrays[name][start : stop - 1] for name in STEPS}
                yield Trajectory(spec, **rows, **steps, labels=labels[index])

        return Recording(spec, episodes, str(arrays["source"]))


def read_npz(source: Path, names: Sequence[str], format: str) -> dict[str, np.ndarray]:
    """These arrays of an archive, without pickle.

    Raises:
        ValueError: no archive, one that lacks arrays (of another format then), or a damaged one.
    """
    if not source.is_file() or not zipfile.is_zipfile(source):
        raise wrong_format(source, format, "an .npz archive")
    try:
        with zipfile.ZipFile(source) as archive:
            missing = [name for name in names if f"{name}.npy" not in archive.namelist()]
            if missing:
                raise wrong_format(source, format, f"an archive that has {missing}, too")
            return {name: _array(archive, name, source) for name in names}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:  # or encrypted
        raise ValueError(f"{source} is damaged ({error}); {REMEDY}.") from error


def _array(archive: zipfile.ZipFile, name: str, source: Path) -> np.ndarray:
    where = f"{source}: {name}"
    with archive.open(f"{name}.npy") as file:
        shape, fortran, dtype = read_header(file, where)
        expected, size = file.tell() + dtype.itemsize * math.prod(shape), archive.getinfo(f"{name}.npy").file_size
        if size > MOST_COMPRESSED * max(1, archive.getinfo(f"{name}.npy").compress_size):
            raise ValueError(f"{where} has {size:,} bytes, which its part of the archive cannot hold; {REMEDY}.")
        if size != expected:
            raise ValueError(f"{where} has {size:,} bytes, but its header says {expected:,} for {shape}; {REMEDY}.")
        return np.frombuffer(file.read(), dtype).reshape(shape, order="F" if fortran else "C")
