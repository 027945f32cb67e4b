"""``manifest.json``: what a store consists of. It is written last, by rename, and is what makes a shard exist."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from diffplan.files import as_json, digest, read_json, write_json
from diffplan.spec import JointSpec

FORMAT, VERSION, MANIFEST = "diffplan.TrajectoryStore", 1, "manifest.json"
REMEDY = "restore it from a copy, collect the data anew, or save what is whole by `diffplan data repair`"


@dataclass(frozen=True)
class FileEntry:
    """A file's length in bytes and SHA-256 (64 hexadecimal digits)."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardEntry:
    """A folder of the store, its episodes and rows (steps + 1 of every episode), and its files by name."""

    folder: str
    episodes: int
    rows: int
    files: dict[str, FileEntry]


@dataclass(frozen=True)
class Manifest:
    """Spec, origin in words, and shards of a store."""

    spec: JointSpec
    source: str = ""
    shards: tuple[ShardEntry, ...] = ()

    def write(self, folder: Path) -> None:
        """Puts the manifest into the store's folder, whole or not at all."""
        write_json(folder / MANIFEST, {**self._plain(), "sha256": self.sha256})

    @property
    def sha256(self) -> str:
        """Digest of the contents; the hashes of all files are among them."""
        return digest(self._plain())

    def _plain(self) -> dict[str, Any]:
        shards = [dataclasses.asdict(shard) for shard in self.shards]
        return {
            "format": FORMAT,
            "version": VERSION,
            "source": self.source,
            "spec": as_json(self.spec.to_dict()),
            "shards": shards,
        }

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Reads and checks the manifest of a store, not the files that it lists.

        Raises:
            ValueError: it is missing, damaged, or of another format; the message says where and what to do.
        """
        path = folder / MANIFEST
        if not path.is_file():
            _check_no_shards(folder)
            what = "a file; read it into a store with `diffplan data import`" if folder.is_file() else None
            what = what or f"not a trajectory store (no {MANIFEST}); make one with `diffplan collect` or `data import`"
            raise ValueError(f"{folder} is {what}.")
        data = read_json(path)
        try:
            if (data["format"], data["version"]) != (FORMAT, VERSION):
                found = f"{data['format']!r} version {data['version']!r}"
                raise ValueError(f"it is {found}, expected {FORMAT!r} version {VERSION}")
            shards = tuple(_shard_entry(index, shard) for index, shard in enumerate(data["shards"]))
            return cls(JointSpec.from_dict(data["spec"]), str(data["source"]), shards)
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            reason = f"a field is missing or of the wrong kind ({type(error).__name__}: {error})"
            raise ValueError(f"{path}: {reason}; {REMEDY}.") from error
        except ValueError as error:
            raise ValueError(f"{path}: {str(error).rstrip('.')}; {REMEDY}.") from error

    @staticmethod
    def check_new(folder: Path) -> None:
        """Raises ``ValueError`` where there is a store already, or the shards of one that lost its manifest."""
        if (folder / MANIFEST).exists():
            raise ValueError(f"{folder} is a store already; use TrajectoryStore.open, or choose another folder.")
        _check_no_shards(folder)

    @staticmethod
    def verify(folder: Path) -> None:
        """Raises ``ValueError`` when the manifest was changed after it was written."""
        data = read_json(folder / MANIFEST)
        listed, found = str(data.pop("sha256", None)), digest(data)
        if listed != found:
            raise ValueError(
                f"{folder / MANIFEST} was changed after it was written "
                f"(SHA-256 {found[:12]}..., expected {listed[:12]}...); {REMEDY}."
            )


def shard_folder(index: int) -> str:
    return f"shard_{index:05d}"


def _check_no_shards(folder: Path) -> None:
    if any(folder.glob("shard_*")):
        raise ValueError(
            f"{folder} has shards but no {MANIFEST}, which says what they hold; restore it from a copy, "
            "or remove the folder or choose another one for a new store."
        )


def _shard_entry(index: int, data: dict[str, Any]) -> ShardEntry:
    if data["folder"] != shard_folder(index):
        raise ValueError(f"shard {index} is in {data['folder']!r}, expected {shard_folder(index)!r}")
    files = {str(name): FileEntry(int(file["bytes"]), str(file["sha256"])) for name, file in data["files"].items()}
    entry = ShardEntry(data["folder"], int(data["episodes"]), int(data["rows"]), files)
    if entry.episodes < 1 or entry.rows < 2 * entry.episodes:
        raise ValueError(f"shard {index} lists {entry.episodes} episodes in {entry.rows} rows, expected 2 or more each")
    return entry
