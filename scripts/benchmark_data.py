"""Measures the store: speed of random windows, and resident memory of reading and training on far more than fits.

Writes to docs/results/control.json: ``window_store_gb_s`` (to reach: >= 3), random windows read from a store such as
``collect_episodes`` writes (1,000 episodes in 10 shards), in processor time of one core, warm; beside it the same of a
store too large to map, and whole training batches (normalised and masked). ``training_20gb_rss_gb`` (< 2) is the peak
resident memory of a process that fits a normalizer to a sparse store of 20 GB, draws 10,000 batches and trains on it.

``python scripts/benchmark_data.py memory --gigabytes 1`` does only the latter, in this process.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from figures import RESULTS, Figure, median, record

from diffplan.datasets.arrays import npy_header
from diffplan.datasets.manifest import FileEntry, Manifest, ShardEntry, shard_folder
from diffplan.datasets.store import TrajectoryStore, layout
from diffplan.datasets.windows import load_dataset
from diffplan.files import sha256, write_json
from diffplan.spec import JointSpec, Role
from diffplan.trajectory import Trajectory

COMMAND = "python scripts/benchmark_data.py"
BATCH, HORIZON, HISTORY, ROUNDS = 128, 32, 4, 30


def make_spec(agents: int, observation: int, action: int) -> JointSpec:
    role = Role(observation, (-1.0,) * action, (1.0,) * action, position=(0, 1))
    return JointSpec({f"robot_{i}": "robot" for i in range(agents)}, {"robot": role}, dt=0.05)


def write_random_store(path: Path, shards: int = 10, episodes: int = 100, length: int = 60) -> TrajectoryStore:
    """A store such as ``collect_episodes`` writes for four robots."""
    spec, rng = make_spec(4, 10, 2), np.random.default_rng(0)
    store = TrajectoryStore.create(path, spec)
    for _ in range(shards):
        store.append(random_episode(spec, length, rng) for _ in range(episodes))
    return store


def random_episode(spec: JointSpec, length: int, rng: np.random.Generator) -> Trajectory:
    N, flags = spec.num_agents, np.zeros((length, spec.num_agents), bool)
    observations = rng.normal(size=(length + 1, N, spec.observation_size)).astype(np.float32)
    actions = rng.normal(size=(length, N, spec.action_size)).astype(np.float32)
    there = np.ones((length + 1, N), bool)
    return Trajectory(spec, observations, actions, flags.astype(np.float32), flags, flags, there)


def write_sparse_store(path: Path, gigabytes: float, shards: int = 4, length: int = 999) -> TrajectoryStore:
    """A valid store of the given size whose observations, actions and rewards are holes in the files (zeros)."""
    spec = make_spec(8, 56, 8)
    row_bytes = sum(np.dtype(dtype).itemsize * int(np.prod(shape[1:])) for dtype, shape in layout(spec, 0, 0).values())
    episodes = round(gigabytes * 1e9 / shards / row_bytes / (length + 1))
    entries = [write_sparse_shard(path / shard_folder(i), spec, episodes, length) for i in range(shards)]
    Manifest(spec, "zeros", tuple(entries)).write(path)
    return TrajectoryStore.open(path)


def write_sparse_shard(folder: Path, spec: JointSpec, episodes: int, length: int) -> ShardEntry:
    rows = episodes * (length + 1)
    folder.mkdir(parents=True)
    acts = np.tile(np.arange(length + 1) < length, episodes)[:, None].repeat(spec.num_agents, axis=1)
    dense = {"agent_mask": np.ones_like(acts), "action_mask": acts, "offsets": np.arange(episodes + 1) * (length + 1)}
    for name, (dtype, shape) in layout(spec, episodes, rows).items():
        with open(folder / f"{name}.npy", "wb") as file:
            file.write(npy_header(dtype, shape))
            if name in dense:
                file.write(dense[name].astype(dtype).tobytes())
            else:
                file.truncate(file.tell() + int(np.prod(shape)) * np.dtype(dtype).itemsize)
    write_json(folder / "labels.json", [{}] * episodes)
    files = {file.name: FileEntry(file.stat().st_size, sha256(file)) for file in sorted(folder.iterdir())}
    return ShardEntry(folder.name, episodes, rows, files)


def measure_speed(figure: str, read: Callable[[], int], episodes: int, baselines: dict[str, Figure]) -> Figure:
    """Median GB per second of processor time over rounds of 20 calls; ``read`` returns the bytes that it delivered."""
    speeds = []
    for _ in range(ROUNDS + 1):
        start = time.process_time()
        count = sum(read() for _ in range(20))
        speeds.append(count / 1e9 / (time.process_time() - start))
    return median(figure, speeds[1:], "GB/s", 1, episodes, COMMAND, baselines)


def windows_of(store: TrajectoryStore) -> Callable[[], int]:
    """Reads all arrays of a batch of random windows as they stand in the store."""
    rng, window = np.random.default_rng(0), np.arange(HISTORY + HORIZON)

    def read() -> int:
        episode = rng.integers(len(store), size=BATCH)
        start = store.first_rows[episode] + rng.integers(store.lengths[episode] - len(window) + 2)
        names = ("observations", "actions", "agent_mask", "action_mask")
        return sum(array.nbytes for array in store.take(start[:, None] + window, *names))

    return read


def batches_of(store: TrajectoryStore) -> Callable[[], int]:
    """Reads batches as training does."""
    dataset, rng = load_dataset(store.path, HORIZON, HISTORY), np.random.default_rng(0)
    return lambda: dataset.sample(BATCH, rng).cells.nbytes


def speed(folder: Path) -> Figure:
    store, large = write_random_store(folder / "random"), write_sparse_store(folder / "large", 1.0)
    beside = {
        "a store of 1 GB, read piece by piece": measure_speed("large", windows_of(large), len(large), {}),
        "normalised and masked batches": measure_speed("batches", batches_of(store), len(store), {}),
        "normalised and masked batches of the store of 1 GB": measure_speed("all", batches_of(large), len(large), {}),
    }
    return measure_speed("window_store_gb_s", windows_of(store), len(store), beside)


def memory(folder: Path, gigabytes: float, batches: int, steps: int) -> dict[str, float]:
    """Peak resident memory (GB), and what of it came after the imports (MB)."""
    store = write_sparse_store(folder / "sparse", gigabytes)
    if steps:
        from diffplan import DiffusionPlanner, train
    before = resident_peak()
    dataset, rng = load_dataset(store.path, HORIZON, HISTORY), np.random.default_rng(0)
    for _ in range(batches):
        dataset.sample(64, rng)
    read = resident_peak()
    if steps:
        train(DiffusionPlanner.for_dataset(dataset), dataset, steps=steps, batch_size=32, seed=0)
    return {
        "store_gb": store.nbytes / 1e9,
        "episodes": len(store),
        "read_growth_mb": read - before,
        "peak_gb": resident_peak() / 1e3,
    }


def resident_peak() -> float:
    """The most memory that this process ever had resident (MB); Linux."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(match[1]) * 1024 / 1e6 if match else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["memory"], help="nothing: everything, written down")
    parser.add_argument("--gigabytes", type=float, default=20.0)
    parser.add_argument("--batches", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=0, help="training steps")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.what == "memory":
            print(json.dumps(memory(Path(folder), options.gigabytes, options.batches, options.steps)))
            return
        figures = [speed(Path(folder))]
    run = [sys.executable, __file__, "memory", "--steps", "20"]
    found = json.loads(subprocess.run(run, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])
    peak, episodes = found["peak_gb"], int(found["episodes"])
    figures.append(Figure("training_20gb_rss_gb", peak, peak, peak, "GB", 1, episodes, COMMAND))
    record(RESULTS / "control.json", figures)


if __name__ == "__main__":
    main()
