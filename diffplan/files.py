"""Files that are either whole or not there: write to a temporary name, sync, rename."""

import hashlib
import json
import math
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import Any

import numpy as np
from safetensors import SafetensorError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary sibling of ``path``; on success it is synced and renamed over ``path``, on failure removed.

    Raises:
        OSError: the disk is full or the folder read-only; what was there before is unchanged.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with atomic_path(target) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> target.read_text()
        'whole'
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    with explained_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            share(temporary)
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def explained_write_errors(path: Path) -> Iterator[None]:
    """Re-raises what went wrong with writing as one line (an ``OSError``) of ``path``, the reason and the remedy."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as an error of its own
        if isinstance(error.__cause__, OSError | SafetensorError):
            raise  # explained already, further in
        reason = getattr(error, "strerror", None) or error
        remedy = "free some space, or choose a folder that you may write to"
        text = f"cannot write {path} ({reason}); what was there before is unchanged: {remedy}."
        number = getattr(error, "errno", None)
        raise (OSError(number, text) if number else OSError(text)) from error


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps other processes from writing to a folder while the body runs.

    A process that dies leaves no lock behind, unless it had forked.

    Does nothing where there are no such locks (Windows, some network disks).

    Raises:
        ValueError: another writer is in it.
    """
    with ExitStack() as held:
        try:
            if fcntl is not None:
                descriptor = os.open(folder, os.O_RDONLY)
                held.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held.callback(fcntl.flock, descriptor, fcntl.LOCK_UN)  # forked children hold the descriptor, too
        except BlockingIOError:
            raise ValueError(f"{folder} is being written by another process; let only one write at a time.") from None
        except OSError:  # no folder, or a disk without locks
            pass
        yield


@contextmanager
def whole() -> Iterator[None]:
    """Holds Ctrl-C and SIGTERM back until the body has ended, so that it is done whole or not begun."""
    if threading.current_thread() is not threading.main_thread():  # who alone is interrupted
        yield
        return
    caught: list[int] = []
    before = {one: signal.signal(one, lambda number, _: caught.append(number)) for one in (SIGINT, SIGTERM)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
        for number in caught:
            signal.raise_signal(number)


def share(path: Path) -> None:
    """Lets those read a file who may read any new one; safetensors writes for its owner alone."""
    mask = os.umask(0o077)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def sync(path: Path) -> None:
    """Flushes a file or a folder entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | Path, data: Any) -> None:
    """Writes ``data`` as indented JSON, atomically; NaN and infinity are refused (they are not JSON)."""
    text = json.dumps(data, indent=2, allow_nan=False, default=plain) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def plain(number: Any) -> Any:
    """A number of numpy's as Python's: ``json.dumps(..., default=plain)`` writes both."""
    if isinstance(number, np.generic):
        return number.item()
    raise TypeError(f"{number!r} of type {type(number).__name__} cannot be written as JSON.")


def as_json(data: Any) -> Any:
    """The same data as they would be read from JSON: tuples are lists, numpy's numbers Python's."""
    return json.loads(json.dumps(data, default=plain))


def digest(data: Any) -> str:
    """SHA-256 of data as JSON, in whatever order dictionaries are."""
    return hashlib.sha256(json.dumps(as_json(data), sort_keys=True).encode()).hexdigest()


def nan_to_none(data: Any) -> Any:
    """The same plain data with None, JSON's null, for every NaN; tuples become lists."""
    if isinstance(data, dict):
        return {key: nan_to_none(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [nan_to_none(value) for value in data]
    return None if isinstance(data, float) and math.isnan(data) else data


def read_json(path: str | Path) -> Any:
    """Reads JSON; a damaged file raises ``ValueError`` naming the file, line and column."""
    try:
        return json.loads(Path(path).read_text())
    except (ValueError, RecursionError) as error:  # not UTF-8, too long a number, nested too deep
        raise ValueError(f"{path} is not valid JSON ({error}); restore it from a copy or make it anew.") from error


def claim(folder: str | Path, settings: dict[str, Any]) -> None:
    """Marks a folder (``settings.json``) as that of these settings, for what goes on where it was interrupted.

    Raises ``ValueError`` when it is that of others; nothing in it is touched then.
    """
    path, settings = Path(folder) / "settings.json", as_json(settings)
    if not path.exists():
        write_json(path, settings)
    found = read_json(path)
    if found != settings:
        found = found if isinstance(found, dict) else {}
        names = [n for n in {**settings, **found} if n not in found or n not in settings or found[n] != settings[n]]
        other, now = ({name: one.get(name, "nothing") for name in names} for one in (found, settings))
        raise ValueError(f"{folder} is of other settings, {other} instead of {now}; choose another, or delete it.")


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inside(folder: str | Path, name: str) -> Path:
    """``folder / name``, refused when it leaves the folder (absolute path, ``..`` or a link that leads out)."""
    root = Path(folder).resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root) or path == root:
        raise ValueError(
            f"{name!r} in {folder} leaves its folder; a file list may only name files below it. (Of links, as in a "
            "cache of downloads, make a copy of the files themselves.)"
        )
    return path
