"""Making new stores of old ones: parts of it, fewer episodes, what a damaged one still holds. Data cards go along."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Int

from diffplan.checks import check_counts
from diffplan.datasets.arrays import npy_header
from diffplan.datasets.card import write_derived
from diffplan.datasets.manifest import FileEntry, Manifest, ShardEntry
from diffplan.datasets.store import TrajectoryStore, layout
from diffplan.files import inside, read_json, sha256
from diffplan.spec import JointSpec
from diffplan.trajectory import ROWS, STEPS, Trajectory

_DERIVED = {"returns.npy", "action_mask.npy"}  # writing makes them anew of the others


def split_store(
    path: str | Path, outs: Sequence[str | Path], share: float = 0.9, seed: int = 0
) -> tuple[TrajectoryStore, TrajectoryStore]:
    """Writes a random ``share`` of the episodes to one new store and the others to another, both in their old order.

    Episodes that share steps of a recording (pieces that overlap, by their labels ``recording`` and ``first_step``)
    stay together, so that nothing is in both; the share is met as nearly as they allow, in the order that is drawn.

    Args:
        path: the store, which stays as it is.
        outs: folders of the two new stores.
        share: of the first one, between 0 and 1.
        seed: settles which episodes.

    Raises:
        ValueError: not two folders, a share that leaves one of them empty, or a seed below 0.
    """
    store = TrajectoryStore.open(path)
    if len(outs) != 2 or len({Path(out).resolve() for out in outs}) != 2:
        raise ValueError(f"{len({*map(str, outs)})} folders for the two parts of {path}; name two.")
    if not 0 < share < 1:
        raise ValueError(f"share={share}; choose more than 0 and less than 1, e.g. 0.9.")
    check_counts(seed)
    groups = _together(store)
    order = np.random.default_rng(seed).permutation(len(groups))
    sizes = np.cumsum([0, *(len(groups[group]) for group in order)])
    if len(groups) == 1 < len(store):
        raise ValueError(
            f"all {len(store)} episodes of {path} overlap; import them anew, with a stride of as many frames as they "
            "have, or the recording in two parts."
        )
    first = int(np.abs(sizes - share * len(store)).argmin())
    if len(groups) < len(store):
        first = min(max(first, 1), len(groups) - 1)
    if not 0 < first < len(groups):
        raise ValueError(f"share={share} of {len(store)} episodes leaves a part of {path} empty; choose another share.")
    chosen = np.concatenate([groups[group] for group in order[:first]])
    others = np.setdiff1d(np.arange(len(store)), chosen)
    for out in outs:
        Manifest.check_new(Path(out))
    one, other = (_part(store, out, index, seed) for out, index in zip(outs, (chosen, others), strict=True))
    return one, other


def _together(store: TrajectoryStore) -> list[list[int]]:
    """Episodes that have steps of a recording in common, and each other one alone."""
    pieces, alone = [], []
    for index, labels in enumerate(store.labels):
        name, start = labels.get("recording"), labels.get("first_step")
        if isinstance(name, str) and isinstance(start, int):
            pieces.append((name, start, index))
        else:
            alone.append([index])
    groups: list[list[int]] = []
    recording, end = None, 0
    for name, start, index in sorted(pieces):
        if name != recording or start > end:
            groups.append([])
            recording, end = name, start
        groups[-1].append(index)
        end = max(end, start + int(store.lengths[index]))
    return sorted(groups + alone)


def subsample_store(path: str | Path, out: str | Path, episodes: int, seed: int = 0) -> TrajectoryStore:
    """Writes ``episodes`` episodes, drawn at random without replacement, to a new store, in their old order.

    Raises:
        ValueError: the store has fewer, or the seed is below 0.
    """
    store = TrajectoryStore.open(path)
    check_counts(seed)
    if not 1 <= episodes <= len(store):
        raise ValueError(f"episodes={episodes}, but {path} has {len(store)}; choose 1 to {len(store)}.")
    chosen = np.random.default_rng(seed).choice(len(store), episodes, replace=False)
    return _part(store, out, chosen, seed)


def _part(store: TrajectoryStore, out: str | Path, index: Int[np.ndarray, "E"], seed: int) -> TrajectoryStore:
    episodes, words = (store[int(one)] for one in np.sort(index)), f"{len(index)} of {len(store)} episodes"
    parents, done = {store.path: store.source}, f"{words}, drawn at random with seed {seed}"
    return write_derived(out, store.spec, f"{words} of {store.source}", episodes, parents, done)


@dataclass(frozen=True)
class Repair:
    """What came out of a damaged store: the new one, the damaged files, and how many episodes were kept and lost.

    ``unverified`` of the kept ones stand before the cut in files that are too short: they are whole, but their bytes
    cannot be checked.
    """

    store: TrajectoryStore
    damaged: tuple[str, ...]
    kept: int
    lost: int
    unverified: int


def repair_store(path: str | Path, out: str | Path) -> Repair:
    """Writes what is still good in a damaged store to a new one; the damaged one stays as it is.

    Shards whose files all have their SHA-256 are kept whole. Of a shard with files that are cut, the episodes before
    the cut are kept. Of a shard with other changed bytes none is: nobody can tell which. Damage in what follows from
    other files (``returns.npy``, ``action_mask.npy``) costs nothing. As episodes may be missing amid the others,
    the new store has a source of its own, and a collection does not go on in it.

    Raises:
        ValueError: the manifest is damaged (nothing vouches for the data then), nothing is left, or ``out`` is a store.
    """
    path, manifest = Path(path), Manifest.read(Path(path))
    Manifest.check_new(Path(out))
    damaged = {entry.folder: _damaged(path, entry) for entry in manifest.shards}
    cut = {
        entry.folder: _before_the_cut(path, manifest.spec, entry, damaged[entry.folder])
        for entry in manifest.shards
        if not _DERIVED.issuperset(damaged[entry.folder])
    }
    whole = sum(entry.episodes for entry in manifest.shards if entry.folder not in cut)
    total, unverified = sum(entry.episodes for entry in manifest.shards), sum(map(len, cut.values()))
    if not whole + unverified:
        raise ValueError(f"no episode of {path} is whole; restore it from a copy or collect the data anew.")

    def episodes() -> Iterator[Trajectory]:
        for entry in manifest.shards:
            if entry.folder in cut:
                yield from cut[entry.folder]
            elif damaged[entry.folder]:
                yield from _before_the_cut(path, manifest.spec, entry, damaged[entry.folder])
            else:
                yield from TrajectoryStore(path, replace(manifest, shards=(entry,)))

    files = tuple(f"{folder}/{name}" for folder, names in damaged.items() for name in names)
    words = f"{whole + unverified} of {total} episodes"
    done = f"repaired: {words} are left; damaged were {', '.join(files) or 'none'}"
    source = f"{words} of {manifest.source}, repaired"
    store = write_derived(out, manifest.spec, source, episodes(), {path: manifest.source}, done)
    return Repair(store, files, len(store), total - len(store), unverified)


def _damaged(root: Path, entry: ShardEntry) -> list[str]:
    """The files of a shard that are not what the manifest says."""
    return [name for name, file in entry.files.items() if not _is_whole(inside(root, f"{entry.folder}/{name}"), file)]


def _is_whole(path: Path, file: FileEntry) -> bool:
    return path.is_file() and path.stat().st_size == file.bytes and sha256(path) == file.sha256


def _before_the_cut(root: Path, spec: JointSpec, entry: ShardEntry, damaged: list[str]) -> list[Trajectory]:
    """The episodes of a shard that stand before the cut (all without one); none where the damage is of another kind."""
    folder, lossy = inside(root, entry.folder), set(damaged) - _DERIVED
    if not lossy.isdisjoint({"offsets.npy", "labels.json"}) or not all(
        (folder / name).is_file() and (folder / name).stat().st_size < entry.files[name].bytes for name in lossy
    ):
        return []
    arrays, shapes = {}, layout(spec, entry.episodes, entry.rows)
    for name in ("offsets", *ROWS, *STEPS):
        dtype, shape = shapes[name]
        header, data = npy_header(dtype, shape), (folder / f"{name}.npy").read_bytes()
        if data[: len(header)] != header:
            return []
        whole = np.frombuffer(data, np.uint8, offset=len(header))
        row = np.dtype(dtype).itemsize * int(np.prod(shape[1:]))
        count = len(whole) // row if row else shape[0]
        arrays[name] = whole[: count * row].view(dtype).reshape(count, *shape[1:])
    labels, rows = read_json(folder / "labels.json"), min(len(arrays[name]) for name in (*ROWS, *STEPS))
    return [
        Trajectory(
            spec,
            **{name: arrays[name][start:stop] for name in ROWS},
            **{name: arrays[name][start : stop - 1] for name in STEPS},
            labels=labels[index],
        )
        for index, (start, stop) in enumerate(pairwise(arrays["offsets"].tolist()))
        if stop <= rows
    ]
