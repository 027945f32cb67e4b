"""Giving episodes to others: Minari's HDF5, or one npz file."""

import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from diffplan.datasets.arrays import npy_header
from diffplan.datasets.importers.hdf5 import load_h5py
from diffplan.datasets.importers.minari import OURS
from diffplan.datasets.store import TrajectoryStore, layout
from diffplan.files import atomic_path, explained_write_errors
from diffplan.trajectory import ROWS, STEPS, Trajectory


def export_npz(store: TrajectoryStore, out: str | Path) -> Path:
    """Writes all episodes into one .npz file: a store's arrays [rows, ...], offsets, and spec and labels as JSON text.

    ``np.load(out)`` reads it without pickle; the importer ``Npz`` gives the same episodes back, bit for bit.

    Raises:
        ValueError: the store is empty, or ``out`` does not end in .npz.
        OSError: it cannot be written; what was there before is unchanged.
    """
    out = Path(out)
    if out.suffix != ".npz":
        raise ValueError(f"{out} ends in {out.suffix!r}, expected .npz.")
    _check_filled(store)
    rows = int(store.shard_rows[-1])
    with atomic_path(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (dtype, shape) in layout(store.spec, len(store), rows).items():
            if name in (*ROWS, *STEPS):
                _add(archive, name, dtype, shape, (_row(store, name, episode) for episode in range(len(store))))
        texts = {"spec": json.dumps(store.spec.to_dict()), "labels": json.dumps(store.labels), "source": store.source}
        others = {"offsets": np.append(store.first_rows, rows)} | {name: np.array(text) for name, text in texts.items()}
        for name, array in others.items():
            _add(archive, name, array.dtype.str, array.shape, iter([array]))
    return out


def _check_filled(store: TrajectoryStore) -> None:
    if not len(store):
        raise ValueError(f"{store.path} holds no episodes; there is nothing to export.")


def _row(store: TrajectoryStore, name: str, episode: int) -> np.ndarray:
    rows = store.first_rows[episode] + np.arange(store.lengths[episode] + 1)
    return store.take(rows[None], name)[0][0]


def _add(archive: zipfile.ZipFile, name: str, dtype: str, shape: tuple[int, ...], pieces: Iterator[np.ndarray]) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        file.write(npy_header(dtype, shape))
        for piece in pieces:
            file.write(np.ascontiguousarray(piece, dtype).tobytes())


def export_minari(store: TrajectoryStore, out: str | Path) -> Path:
    """Writes a Minari data set: spaces are dictionaries keyed by agent, rewards are [steps, agents].

    What Minari has no place for (who is there, each agent's end, labels, roles) stands in groups that it does not read;
    the importer ``Minari`` gives the same episodes back, bit for bit.

    Args:
        store: the episodes.
        out: folder of the data set, new.

    Raises:
        ImportError: h5py is not installed.
        ValueError: the store is empty, or ``out`` is there already.
        OSError: it cannot be written; nothing is left behind.
    """
    out, h5py = Path(out), load_h5py()
    _check_filled(store)
    if out.exists():
        raise ValueError(f"{out} is there already; choose a new folder.")
    with explained_write_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            (work / "data").mkdir()
            with h5py.File(work / "data" / "main_data.hdf5", "w", track_order=True) as file:
                for index, episode in enumerate(store):
                    _write_episode(file.create_group(f"episode_{index}"), index, episode)
            (work / "data" / "metadata.json").write_text(json.dumps(_metadata(store, out.name)))
            work.chmod(0o755)
            work.rename(out)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return out


def _write_episode(group: Any, index: int, episode: Trajectory) -> None:
    spec = episode.spec
    group.attrs.update({"id": index, "total_steps": len(episode)})
    for what, arrays in (("observations", episode.observations), ("actions", episode.actions)):
        for agent, name in enumerate(spec.names):
            role = spec.role_of(name)
            width = role.observation_size if what == "observations" else role.action_size
            group.create_dataset(f"{what}/{name}", data=arrays[:, agent, :width])
    group["rewards"] = episode.rewards
    ended = episode.terminations[-1].any()
    for name, last in (("terminations", ended), ("truncations", episode.truncations[-1].any() or not ended)):
        group[name] = np.append(np.zeros(len(episode) - 1, bool), last)  # others go on where an agent leaves
    exact = group.create_group(OURS)
    exact.attrs["labels"] = json.dumps(episode.labels)
    for name in (*ROWS, *STEPS):
        exact.create_dataset(name, data=getattr(episode, name), compression="gzip", shuffle=True)


def _metadata(store: TrajectoryStore, name: str) -> dict[str, Any]:
    spec = store.spec
    observed, acted = {}, {}
    for agent in spec.names:
        role = spec.role_of(agent)
        unbounded = [[-np.inf] * role.observation_size, [np.inf] * role.observation_size]
        observed[agent] = _box(role.observation_size, *unbounded)
        acted[agent] = _box(role.action_size, list(role.action_low), list(role.action_high))
    return {
        "total_episodes": len(store),
        "total_steps": store.num_steps,
        "data_format": "hdf5",
        "dataset_id": f"diffplan/{name}-v0",
        "minari_version": "0.5.4",  # whose layout this is
        "observation_space": json.dumps({"type": "Dict", "subspaces": observed}),
        "action_space": json.dumps({"type": "Dict", "subspaces": acted}),
        OURS: {"spec": spec.to_dict(), "source": store.source},
    }


def _box(width: int, low: list[float], high: list[float]) -> dict[str, Any]:
    return {"type": "Box", "dtype": "float32", "shape": [width], "low": low, "high": high}
