"""HDF5 files that somebody else wrote: opened only when everything they hold is in the file itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from diffplan.datasets.importers.recording import MOST_COMPRESSED, check_finite
from diffplan.extras import load_extra

REMEDY = "copy the file anew"


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """The file, for reading.

    Raises:
        ImportError: h5py is not installed.
        ValueError: no HDF5 file, a damaged one, or one with links or data outside itself.
    """
    h5py = load_h5py()
    try:
        with h5py.File(path, "r") as file:
            inner: list[tuple[str, str]] = []
            check_links(h5py, file, path, set(), inner)
            for group, name in inner:  # now that nothing leads out, they can be followed
                link = file[group].get(name, getlink=True)
                if link.path not in file[group]:
                    where = f"{path}: {group.rstrip('/')}/{name}"
                    raise ValueError(
                        f"{where} is a link to {link.path!r}, which is not in this file; copy the data into it."
                    )
            yield file
    except (OSError, KeyError, RuntimeError) as error:  # h5py has all three for damaged files
        raise ValueError(
            f"{path} cannot be read as HDF5 ({error}); it is damaged or another format; {REMEDY}."
        ) from error


def load_h5py() -> Any:
    return load_extra("h5py", "hdf5", "HDF5 files need h5py")


def check_links(h5py: Any, group: Any, path: Path, seen: set[int], inner: list[tuple[str, str]]) -> None:
    """Raises ``ValueError`` for a link that leaves the file, and for data kept in other files.

    ``seen`` holds the addresses of groups that were visited: hard links give one group many names. ``inner`` gets the
    links that are to be followed only when all is seen: they might lead through one that leaves the file.
    """
    address = h5py.h5o.get_info(group.id).addr
    if address in seen:
        return
    seen.add(address)
    for name in group:
        link = group.get(name, getlink=True)
        where = f"{path}: {group.name.rstrip('/')}/{name}"
        if isinstance(link, h5py.ExternalLink):
            raise ValueError(f"{where} is a link to another file ({link.filename}); copy the data into this file.")
        if isinstance(link, h5py.SoftLink):
            inner.append((group.name, name))
            continue  # what it leads to is visited where it is
        item = group[name]
        if isinstance(item, h5py.Group):
            check_links(h5py, item, path, seen, inner)
        elif isinstance(item, h5py.Dataset) and (item.is_virtual or item.external):
            raise ValueError(f"{where} keeps its data in other files; copy them into this file, e.g. with h5repack.")


def child(group: Any, name: str, path: Path) -> Any:
    """What a group holds under a name. Raises ``ValueError`` naming the place when there is no such thing."""
    if not hasattr(group, "keys") or name not in group:
        has = sorted(group)[:12] if hasattr(group, "keys") else "an array"
        raise ValueError(f"{path}: {group.name.rstrip('/')}/{name} is missing, there is {has}; {REMEDY}.")
    return group[name]


def numbers(group: Any, name: str, path: Path) -> np.ndarray:
    """An array of finite real numbers. Raises ``ValueError`` naming file and dataset when it is something else."""
    dataset, where = child(group, name, path), f"{path}: {group.name.rstrip('/')}/{name}"
    if not hasattr(dataset, "dtype") or dataset.dtype.kind not in "fiub":
        raise ValueError(f"{where} is {getattr(dataset, 'dtype', 'a group')}, expected an array of real numbers.")
    size, most = dataset.size * dataset.dtype.itemsize, MOST_COMPRESSED * path.stat().st_size
    if size > most:
        raise ValueError(
            f"{where} of shape {dataset.shape} takes {size:,} bytes, which this file cannot hold; {REMEDY}."
        )
    return check_finite(dataset[()], where)
