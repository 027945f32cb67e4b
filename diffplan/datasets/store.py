"""The trajectory store: one folder of append-only shards of memory-mapped arrays, and a manifest that vouches for them.

::

    manifest.json            spec, source, and of every file its byte length and SHA-256; written last, by rename
    shard_00000/
        observations.npy     [R, N, O]   R rows: all episodes one after the other, L + 1 rows each
        actions.npy          [R, N, A]   an episode's last row holds the final observation and no action
        rewards.npy          [R, N]      likewise terminations.npy and truncations.npy
        agent_mask.npy       [R, N]      who is there
        action_mask.npy      [R, N]      who acts: there now and at the next row
        offsets.npy          [E + 1]     episode e has the rows offsets[e] .. offsets[e + 1] - 1
        returns.npy          [E, N]      sum of rewards
        labels.json                      one dictionary of plain values an episode
"""

import dataclasses
import itertools
import reprlib
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Float, Int

from diffplan.datasets.arrays import ArrayFile, check_length, write_array
from diffplan.datasets.manifest import MANIFEST, REMEDY, FileEntry, Manifest, ShardEntry, shard_folder
from diffplan.files import alone, as_json, explained_write_errors, inside, read_json, sha256, sync, whole, write_json
from diffplan.spec import JointSpec
from diffplan.trajectory import ROWS, STEPS, Trajectory

Labels = dict[str, str | int | float | bool]

_STEP_ARRAYS = (*STEPS, "action_mask")
_SHARD = 1_000  # episodes that ``write`` puts into one shard
UNFINISHED = ".unfinished"  # where they lie until all are there
_MOST_WORDS, _MOST_LETTERS = 50, 40  # different words of a label, and their length, that ``info`` counts one by one
_MAP_BYTES = 512 * 2**20  # a store up to this size is mapped into memory, a larger one is read piece by piece


def layout(spec: JointSpec, episodes: int, rows: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """dtype and shape of every array of a shard."""
    N = spec.num_agents
    return {
        "observations": ("<f4", (rows, N, spec.observation_size)),
        "actions": ("<f4", (rows, N, spec.action_size)),
        "rewards": ("<f4", (rows, N)),
        "terminations": ("|b1", (rows, N)),
        "truncations": ("|b1", (rows, N)),
        "agent_mask": ("|b1", (rows, N)),
        "action_mask": ("|b1", (rows, N)),
        "offsets": ("<i8", (episodes + 1,)),
        "returns": ("<f8", (episodes, N)),
    }


class _Shard:
    """One shard as the manifest lists it; the constructor checks everything but the hashes."""

    def __init__(self, root: Path, spec: JointSpec, entry: ShardEntry):
        self.entry, self.rows, self.episodes = entry, entry.rows, entry.episodes
        arrays = layout(spec, entry.episodes, entry.rows)
        expected = {*(f"{name}.npy" for name in arrays), "labels.json"}
        if set(entry.files) != expected:
            got = sorted(set(entry.files) ^ expected)
            raise ValueError(f"{root / MANIFEST} lists too much or too little in {entry.folder}: {got}; {REMEDY}.")
        self.paths = {name: inside(root, f"{entry.folder}/{name}") for name in entry.files}
        self.arrays = {name: ArrayFile(self.paths[f"{name}.npy"], *arrays[name]) for name in arrays}
        self.offsets = np.array(self.arrays["offsets"].mapped)
        falls = (self.offsets[1:] <= self.offsets[:-1]) | (np.diff(self.offsets) < 2)  # a difference may wrap round
        if self.offsets[0] or self.offsets[-1] != self.rows or falls.any():
            path = self.paths["offsets.npy"]
            raise ValueError(f"{path} does not rise from 0 to {self.rows} by 2 or more an episode; {REMEDY}.")
        check_length(self.paths["labels.json"], entry.files["labels.json"].bytes)
        self.labels: list[Labels] = read_json(self.paths["labels.json"])
        if not isinstance(self.labels, list) or len(self.labels) != self.episodes:
            raise ValueError(f"{self.paths['labels.json']} is not a list of {self.episodes} dictionaries; {REMEDY}.")
        for episode, labels in enumerate(self.labels):
            _check_labels(f"{self.paths['labels.json']}: episode {episode}", labels)


def _check_labels(what: str, labels: Any) -> None:
    """Raises ``ValueError`` unless the labels are a dictionary of words, truth values and finite numbers."""
    values = labels.values() if isinstance(labels, dict) else [labels]
    for value in values:
        if not (isinstance(value, str) or (isinstance(value, int | float) and abs(value) < 1e300)):
            raise ValueError(f"{what} has the labels {labels!r}; each must be a string, a bool or a finite number.")


class TrajectoryStore:
    """Recorded joint episodes on disk: indexable, appendable, larger than memory, never half written.

    Use ``create`` or ``open``. ``take`` reads the global row axis: all episodes of all shards, L + 1 rows each; episode
    e has the rows ``first_rows[e] .. first_rows[e] + lengths[e]``.

    Example:
        >>> import tempfile
        >>> from diffplan.spec import Role
        >>> spec = JointSpec({"a": "robot"}, {"robot": Role(2, (-1.0,), (1.0,))}, dt=0.1)
        >>> episode = Trajectory.from_steps(
        ...     spec, [{"a": [0, 0]}, {"a": [1, 0]}], [{"a": [1]}], [{"a": 1.0}], [{"a": True}], [{"a": False}]
        ... )
        >>> folder = tempfile.mkdtemp()
        >>> TrajectoryStore.create(folder, spec).append([episode, episode])
        >>> store = TrajectoryStore.open(folder)
        >>> len(store), store[1].returns.tolist()
        (2, [1.0])
    """

    def __init__(self, path: Path, manifest: Manifest):
        self.path, self.spec, self.source, self._manifest = path, manifest.spec, manifest.source, manifest
        self._layout = layout(manifest.spec, 0, 0)
        self._set_shards([_Shard(path, manifest.spec, entry) for entry in manifest.shards])

    def _set_shards(self, shards: list[_Shard]) -> None:
        self._shards = shards
        rows = np.cumsum([0, *(shard.rows for shard in shards)])
        self.shard_rows = rows
        self.nbytes = sum(array.nbytes for shard in shards for array in shard.arrays.values())
        starts = [shard.offsets[:-1] + first for shard, first in zip(shards, rows[:-1], strict=True)]
        self.first_rows = np.concatenate([np.zeros(0, np.int64), *starts])
        self.lengths = np.diff(np.append(self.first_rows, rows[-1])) - 1
        for name in ("labels", "returns", "mean_returns"):
            self.__dict__.pop(name, None)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the manifest, which holds those of all files: it names the data that a planner was trained on."""
        return self._manifest.sha256

    @classmethod
    def create(cls, path: str | Path, spec: JointSpec, source: str = "") -> Self:
        """Makes an empty store; ``source`` says in words where the data come from.

        Raises:
            ValueError: there is a store already, or the shards of one that lost its manifest.
            OSError: the folder cannot be written.
        """
        path = Path(path)
        Manifest.check_new(path)
        Manifest(spec, source).write(path)
        return cls.open(path)

    @classmethod
    def write(cls, path: str | Path, spec: JointSpec, source: str, episodes: Iterable[Trajectory]) -> Self:
        """Makes a store and fills it, a thousand episodes at a time; whole or, also where it is killed, not at all.

        Raises as ``create`` and ``append``.
        """
        path, stream = Path(path), iter(episodes)
        there, begun = path.exists(), path / UNFINISHED
        Manifest.check_new(path)
        with explained_write_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        with alone(path):
            try:
                shutil.rmtree(begun, ignore_errors=True)
                store = cls.create(begun, spec, source)
                while chunk := list(itertools.islice(stream, _SHARD)):
                    store._append(chunk)
                with whole():
                    for part in (*map(shard_folder, range(len(store._shards))), MANIFEST):  # that which counts last
                        (begun / part).rename(path / part)
                        sync(path)
            finally:
                shutil.rmtree(begun, ignore_errors=True)
                if not there:
                    with suppress(OSError):  # something else is in it
                        path.rmdir()
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Opens a store and checks its manifest and every file's length and header (``verify`` re-hashes the contents).

        Raises:
            ValueError: not a store, or a damaged one; the message names the file, what was expected, and what to do.
        """
        return cls(Path(path), Manifest.read(Path(path)))

    def append(self, trajectories: Iterable[Trajectory]) -> None:
        """Adds episodes as one new shard. Until the manifest is renamed into place, the store is the previous one.

        Raises:
            ValueError: an episode of another spec or without a step, or another process changed or writes the store.
            OSError: the disk is full or read-only; the store still holds its previous episodes.
        """
        if episodes := list(trajectories):
            with alone(self.path):
                self._append(episodes)

    def _append(self, episodes: Sequence[Trajectory]) -> None:
        self._check_episodes(episodes)
        self._check_unchanged()
        folder = inside(self.path, shard_folder(len(self._shards)))
        with explained_write_errors(folder):
            if folder.exists():
                shutil.rmtree(folder)  # what a crashed append left behind; no manifest names it
            try:
                entry = _write_shard(folder, self.spec, episodes)
                sync(self.path)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        self._check_unchanged()
        manifest = dataclasses.replace(self._manifest, shards=(*self._manifest.shards, entry))
        manifest.write(self.path)
        self._manifest = manifest
        self._set_shards([*self._shards, _Shard(self.path, self.spec, entry)])

    def _check_episodes(self, episodes: Sequence[Trajectory]) -> None:
        for index, episode in enumerate(episodes):
            check_same_spec(f"episode {index}", episode.spec, self)
            _check_labels(f"episode {index}", episode.labels)
            if len(episode) < 1:
                raise ValueError(f"episode {index} has no step; leave it out.")

    def _check_unchanged(self) -> None:
        if Manifest.read(self.path) != self._manifest:
            raise ValueError(f"{self.path} was changed by another process; open it again, and let only one append.")

    def __len__(self) -> int:
        return len(self.lengths)

    def __repr__(self) -> str:
        return f"TrajectoryStore({str(self.path)!r}: {len(self)} episodes, {self.num_steps} steps; {self.spec})"

    @property
    def num_steps(self) -> int:
        """Recorded environment steps (actions), over all episodes."""
        return int(self.lengths.sum())

    @cached_property
    def labels(self) -> list[Labels]:
        """What is known about each episode."""
        return [labels for shard in self._shards for labels in shard.labels]

    @cached_property
    def returns(self) -> Float[np.ndarray, "E N"]:
        """Sum of rewards, per episode and agent."""
        return np.concatenate(
            [np.zeros((0, self.spec.num_agents)), *(np.array(shard.arrays["returns"].mapped) for shard in self._shards)]
        )

    @cached_property
    def mean_returns(self) -> Float[np.ndarray, "E"]:
        """Mean return of an episode's agents, some of them perhaps there for a while; 0 where there is none."""
        arrays = ((shard.arrays["agent_mask"].mapped, shard.offsets[:-1]) for shard in self._shards)
        agents = (np.logical_or.reduceat(mask, first).sum(1) for mask, first in arrays)
        return self.returns.sum(1) / np.concatenate([np.zeros(0), *agents]).clip(min=1)

    def __getitem__(self, index: int) -> Trajectory:
        if not -len(self) <= index < len(self):
            raise IndexError(f"episode {index} of a store of {len(self)}.")
        index %= len(self)
        rows = self.first_rows[index] + np.arange(self.lengths[index] + 1)
        names = (*ROWS, *STEPS)
        arrays = zip(names, self.take(rows[None], *names), strict=True)
        steps = {name: array[0, :-1] if name in _STEP_ARRAYS else array[0] for name, array in arrays}
        return Trajectory(self.spec, **steps, labels=dict(self.labels[index]))

    def __iter__(self) -> Iterator[Trajectory]:
        return (self[index] for index in range(len(self)))

    def take(self, rows: Int[np.ndarray, "B W"], *names: str) -> list[np.ndarray]:
        """Reads arrays at global rows: ``take(rows, "observations", "actions")`` gives [B, W, N, O] and [B, W, N, A].

        ``rows[b]`` does not fall and stays within one shard. Nothing that was read from a large store stays in memory.
        """
        shard = np.searchsorted(self.shard_rows, rows[:, 0], side="right") - 1
        order = np.argsort(shard, kind="stable")
        ends = np.searchsorted(shard[order], np.arange(len(self._shards) + 1))
        parts = [(self._shards[i].arrays, slice(*ends[i : i + 2])) for i in np.flatnonzero(np.diff(ends))]
        local = (rows - self.shard_rows[shard][:, None])[order]
        taken = []
        for name in names:
            dtype, shape = self._layout[name]
            out = np.empty((*rows.shape, *shape[1:]), dtype)
            for arrays, part in parts:
                if self.nbytes <= _MAP_BYTES:
                    arrays[name].mapped.take(local[part], axis=0, out=out[part], mode="clip")
                else:
                    arrays[name].read(local[part], out[part])
            taken.append(out[np.argsort(order)] if len(parts) > 1 else out)
        return taken

    def verify(self) -> None:
        """Re-hashes every file. Raises ``ValueError`` naming the first damaged one."""
        Manifest.verify(self.path)
        for shard in self._shards:
            for name, path in shard.paths.items():
                got, expected = sha256(path), shard.entry.files[name].sha256
                if got != expected:
                    raise ValueError(
                        f"{path} is damaged (SHA-256 {got[:12]}..., expected {expected[:12]}...); {REMEDY}."
                    )

    def info(self) -> dict[str, Any]:
        """Plain facts for ``diffplan data info``: episodes, steps, agents, widths, returns (mean over the agents that
        were there, as ``evaluate`` has them), label counts, bytes."""
        return {
            "path": str(self.path),
            "source": self.source,
            "env_id": self.spec.env_id,
            "episodes": len(self),
            "steps": self.num_steps,
            "seconds": self.num_steps * self.spec.dt,
            "length": summary(self.lengths),
            "agents": dict(self.spec.agents),
            "roles": {
                name: {"observation": role.observation_size, "action": role.action_size}
                for name, role in self.spec.roles.items()
            },
            "return": summary(self.mean_returns),
            "labels": _count_labels(self.labels),
            "shards": len(self._shards),
            "bytes": sum(path.stat().st_size for shard in self._shards for path in shard.paths.values()),
        }


def check_same_spec(what: str, spec: JointSpec, store: TrajectoryStore) -> None:
    """Raises ``ValueError`` saying in which field the spec of ``what`` differs from the store's.

    Roles are compared as such: what they only describe (``Role.velocity`` and so on) may be known better now.
    """
    if spec == store.spec:
        return
    got, expected = as_json(spec.to_dict()), as_json(store.spec.to_dict())
    for field in expected:
        if got[field] != expected[field] and (field != "roles" or spec.roles != store.spec.roles):
            where, ours, theirs = _first_difference(field, got[field], expected[field])
            raise ValueError(f"{what} has {where}={ours}, but {store.path} has {theirs}; give it a store of its own.")


def _first_difference(where: str, got: Any, expected: Any) -> tuple[str, str, str]:
    """Where in two nested dictionaries the first difference lies, and both values there, cut short."""
    if isinstance(got, dict) and isinstance(expected, dict) and list(got) == list(expected):
        key = next(key for key in got if got[key] != expected[key])
        return _first_difference(f"{where}.{key}", got[key], expected[key])
    return where, reprlib.repr(got), reprlib.repr(expected)


def _write_shard(folder: Path, spec: JointSpec, episodes: Sequence[Trajectory]) -> ShardEntry:
    """Writes and syncs the files of one shard; returns its manifest entry."""
    folder.mkdir(parents=True)
    lengths = [len(episode) + 1 for episode in episodes]
    files = {}
    for name, (dtype, shape) in layout(spec, len(episodes), sum(lengths)).items():
        files[f"{name}.npy"] = write_array(folder / f"{name}.npy", dtype, shape, _pieces(name, episodes, lengths))
    labels = folder / "labels.json"
    write_json(labels, [episode.labels for episode in episodes])
    files["labels.json"] = FileEntry(labels.stat().st_size, sha256(labels))
    sync(folder)
    return ShardEntry(folder.name, len(episodes), sum(lengths), files)


def _pieces(name: str, episodes: Sequence[Trajectory], lengths: Sequence[int]) -> Iterator[np.ndarray]:
    """One array of a shard, episode by episode; step arrays get an empty row at the end."""
    if name == "offsets":
        yield np.cumsum([0, *lengths])
        return
    for episode in episodes:
        if name == "returns":
            yield episode.rewards.sum(0, dtype=np.float64)[None]
            continue
        mask = episode.agent_mask
        array = mask[:-1] & mask[1:] if name == "action_mask" else getattr(episode, name)
        yield np.pad(array, [(0, 1), *[(0, 0)] * (array.ndim - 1)]) if name in _STEP_ARRAYS else array


def summary(values: np.ndarray) -> dict[str, float]:
    """Mean, std, least and greatest of numbers; nothing of none."""
    if not len(values):
        return {}
    found = {"mean": values.mean(), "std": values.std(), "min": values.min(), "max": values.max()}
    return {name: float(value) for name, value in found.items()}


def _count_labels(labels: Sequence[Labels]) -> dict[str, dict[str, int] | dict[str, float]]:
    """Words (with what stands beside them) and truth values are counted where there are few, numbers summarised."""
    counted: dict[str, dict[str, int] | dict[str, float]] = {}
    for name in dict.fromkeys(key for one in labels for key in one):
        values = [one[name] for one in labels if name in one]
        if any(isinstance(value, str) for value in values) or all(isinstance(value, bool) for value in values):
            count = Counter(str(value) for value in values)
            few = len(count) <= _MOST_WORDS and max(map(len, count)) <= _MOST_LETTERS
            counted[name] = dict(count.most_common()) if few else {"different": len(count)}
        else:
            counted[name] = summary(np.array([float(value) for value in values]))
    return counted
