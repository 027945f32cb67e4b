"""Writes episodes in the layouts of other projects, so that importers can be tested without their files."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from diffplan.spec import JointSpec, Role
from diffplan.trajectory import Trajectory

CARS = JointSpec({f"car_{i}": "car" for i in range(3)}, {"car": Role(4, (-1.0,) * 2, (1.0,) * 2, (0, 1))}, dt=0.1)


def episodes(spec: JointSpec, lengths: Sequence[int], seed: int = 0, held: bool = False) -> list[Trajectory]:
    """Random walks of everybody, paid at random; the last step is a truncation, or with an odd index the end.

    With ``held`` the last observation is the one before: as data are that do not have it.
    """
    rng, made = np.random.default_rng(seed), []
    N, O, A = spec.num_agents, spec.observation_size, spec.action_size
    exists = spec.feature_mask
    for index, L in enumerate(lengths):
        seen = np.cumsum(rng.normal(size=(L + 1, N, O)), 0).astype(np.float32) * exists[:, :O]
        if held:
            seen[-1] = seen[-2]
        end = np.zeros((L, N), bool)
        end[-1] = True
        acted = (rng.uniform(-1, 1, (L, N, A)).astype(np.float32) * exists[:, O:]).astype(np.float32)
        rewards, there = rng.normal(size=(L, N)).astype(np.float32), np.ones((L + 1, N), bool)
        made.append(Trajectory(spec, seen, acted, rewards, end & bool(index % 2), end & (index % 2 == 0), there))
    return made


def write_omar(folder: Path, seeds: dict[int, list[Trajectory]]) -> None:
    """``seed_<k>_data/{obs,acs,rews,next_obs,dones}_<i>.npy``."""
    for seed, made in seeds.items():
        (folder / f"seed_{seed}_data").mkdir(parents=True)
        for agent in range(made[0].spec.num_agents):
            role = made[0].spec.role_of(made[0].spec.names[agent])
            columns = {
                "obs": [one.observations[:-1, agent, : role.observation_size] for one in made],
                "next_obs": [one.observations[1:, agent, : role.observation_size] for one in made],
                "acs": [one.actions[:, agent, : role.action_size] for one in made],
                "rews": [one.rewards[:, agent] for one in made],
                "dones": [one.terminations[:, agent].astype(np.float32) for one in made],
            }
            for name, parts in columns.items():
                np.save(folder / f"seed_{seed}_data" / f"{name}_{agent}.npy", np.concatenate(parts))


def write_madiff(folder: Path, made: list[Trajectory], discrete: bool = False, legal: int = 0) -> None:
    """``obs`` with a one-hot agent id in front, and ``legals`` where the last entries of observations are these."""
    folder.mkdir(parents=True, exist_ok=True)
    N = made[0].spec.num_agents
    seen = np.concatenate([one.observations[:-1] for one in made])
    actions = np.concatenate([one.actions for one in made])
    ids = np.broadcast_to(np.eye(N, dtype=np.float32), (len(seen), N, N))
    if legal:
        np.save(folder / "legals.npy", seen[..., -legal:])
        seen = seen[..., :-legal]
    np.save(folder / "obs.npy", np.concatenate([ids, seen], -1))
    np.save(folder / "actions.npy", actions.argmax(-1) if discrete else actions)
    np.save(folder / "rewards.npy", np.concatenate([one.rewards for one in made]))
    np.save(folder / "discounts.npy", 1 - np.concatenate([one.terminations for one in made]).astype(np.float32))
    np.save(folder / "path_lengths.npy", np.array([len(one) for one in made]))


def write_vault(folder: Path, lanes: list[list[Trajectory]], legal: int = 0, integers: bool = False) -> None:
    """As flashbax: room for 10 ** 13 steps in zarr arrays of an OCDBT database, and how many there are.

    Narrower agents have -inf behind their observations and actions; ``legal`` as for MADiff.
    """
    import tensorstore

    folder.mkdir(parents=True)
    columns = [_vault_columns(made, legal, integers) for made in lanes]
    arrays = {name: np.stack([one[name] for one in columns]) for name in columns[0]}
    metadata: dict = {"version": 1.2, "structure_shape": {"infos": {}}, "structure_dtype": {"infos": {}}}
    for name, array in arrays.items():
        for about, value in (("structure_shape", str(array.shape)), ("structure_dtype", array.dtype.name)):
            (metadata[about]["infos"] if "." in name else metadata[about])[name.removeprefix("infos.")] = value
    (folder / "metadata.json").write_text(json.dumps(metadata))
    steps = arrays["rewards"].shape[1]

    def store(name: str, dtype: object, shape: tuple[int, ...], compressor: dict | None = None) -> Any:
        base = {"driver": "ocdbt", "base": f"file://{folder}", "path": name}
        spec = {"driver": "zarr", "kvstore": base, "metadata": {"compressor": compressor} if compressor else {}}
        return tensorstore.open(spec, dtype=dtype, shape=shape, create=True).result()

    for name, array in arrays.items():
        room = (len(array), int(10e12), *array.shape[2:])
        leaf = store(f"{name}.", array.dtype, room, {"id": "gzip", "level": 5})
        for start, stop in ((0, steps // 2), (steps // 2, steps)):
            leaf[:, start:stop].write(array[:, start:stop]).result()
    store("vault_index", np.int32, (1,)).write(steps).result()


def _vault_columns(made: list[Trajectory], legal: int, integers: bool) -> dict[str, np.ndarray]:
    def joined(name: str, size: str) -> np.ndarray:
        array = np.concatenate([getattr(one, name)[: len(one)] for one in made])
        for agent, who in enumerate(made[0].spec.names):
            array[:, agent, getattr(made[0].spec.role_of(who), size) :] = -np.inf
        return array

    seen, acted = joined("observations", "observation_size"), joined("actions", "action_size")
    columns = {name: np.concatenate([getattr(one, name) for one in made]) for name in ("rewards", "truncations")}
    columns["terminals"] = np.concatenate([one.terminations for one in made])
    columns["infos.state"] = np.zeros((len(seen), 7), np.float32)
    if legal:
        columns["infos.legals"], seen = seen[..., -legal:] > 0, seen[..., :-legal]
    return columns | {"observations": seen, "actions": acted.argmax(-1).astype(np.int32) if integers else acted}


def choosing(spec: JointSpec, made: list[Trajectory], seed: int = 0) -> list[Trajectory]:
    """The same episodes with random choices as actions, all of them legal."""
    rng, A = np.random.default_rng(seed), spec.action_size
    changed = []
    for one in made:
        actions = np.eye(A, dtype=np.float32)[rng.integers(A, size=one.rewards.shape)]
        seen = one.observations.copy()
        seen[:-1, :, -A:] = np.maximum(actions, rng.integers(2, size=actions.shape))
        seen[-1] = seen[-2]
        changed.append(replace(one, observations=seen, actions=actions))
    return changed


def write_robomimic(path: Path, made: list[Trajectory], next_obs: bool = True) -> None:
    """Two arms: their hands, what they hold, and an object that both see."""
    import h5py

    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "TwoArmLift", "env_kwargs": {"control_freq": 20}})
        data.attrs["total"] = sum(map(len, made))
        for index, one in enumerate(made):
            demo = data.create_group(f"demo_{index}")
            demo.attrs["num_samples"] = len(one)
            for name, seen in (("obs", one.observations[:-1]), ("next_obs", one.observations[1:]))[: 1 + next_obs]:
                for arm in range(2):
                    demo[f"{name}/robot{arm}_eef_pos"] = seen[:, arm, 2:5].astype(np.float64)
                    demo[f"{name}/robot{arm}_gripper"] = seen[:, arm, 5].astype(np.float64)
                demo[f"{name}/object"] = seen[:, 0, :2].astype(np.float64)
                demo[f"{name}/agentview_image"] = np.zeros((len(one), 2, 2, 3), np.uint8)
            demo["actions"] = np.concatenate([one.actions[:, arm] for arm in range(2)], -1).astype(np.float64)
            demo["rewards"], demo["dones"] = one.rewards[:, 0], one.terminations[:, 0].astype(np.int64)
            demo["states"] = np.zeros((len(one), 7))


def write_minari(folder: Path, made: list[Trajectory]) -> None:
    """As Minari's collector would: dictionaries keyed by agent; an episode ends or is cut for all at once."""
    import h5py

    spec = made[0].spec
    (folder / "data").mkdir(parents=True)
    with h5py.File(folder / "data" / "main_data.hdf5", "w", track_order=True) as file:
        for index, one in enumerate(made):
            group = file.create_group(f"episode_{index}")
            group.attrs.update({"id": index, "total_steps": len(one), "seed": index})
            for agent, name in enumerate(spec.names):
                role = spec.role_of(name)
                group[f"observations/{name}"] = one.observations[:, agent, : role.observation_size]
                group[f"actions/{name}"] = one.actions[:, agent, : role.action_size]
            group["rewards"] = one.rewards
            group["terminations"], group["truncations"] = one.terminations.any(1), one.truncations.any(1)
            group.create_group("infos")
    metadata = {"total_episodes": len(made), "total_steps": sum(map(len, made)), "data_format": "hdf5"}
    metadata["env_spec"] = json.dumps({"id": "Evil-v0", "entry_point": "os:system"})
    for name, size in (("observation_space", "observation_size"), ("action_space", "action_size")):
        boxes = {agent: _box(getattr(spec.role_of(agent), size)) for agent in spec.names}
        metadata[name] = json.dumps({"type": "Dict", "subspaces": boxes})
    (folder / "data" / "metadata.json").write_text(json.dumps(metadata))


def _box(width: int) -> dict:
    return {"type": "Box", "dtype": "float32", "shape": [width], "low": [-1.0] * width, "high": [1.0] * width}


def write_lerobot(folder: Path, made: list[Trajectory], names: list[str]) -> None:
    """Version 3: several episodes a parquet file, one vector of all joints; columns besides, as LeRobot writes them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "meta").mkdir(parents=True)
    (folder / "data" / "chunk-000").mkdir(parents=True)
    joints = {"dtype": "float32", "shape": [len(names)], "names": names}
    scalar = {"dtype": "int64", "shape": [1], "names": None}
    features = {"observation.state": joints, "action": joints, "episode_index": scalar, "frame_index": scalar}
    features |= {"next.reward": scalar | {"dtype": "float32"}, "next.done": scalar | {"dtype": "bool"}}
    features["observation.images.top"] = {
        "dtype": "video",
        "shape": [4, 4, 3],
        "names": ["height", "width", "channels"],
    }
    info = {"codebase_version": "v3.0", "fps": 50, "features": features, "total_frames": sum(map(len, made))}
    info |= {"total_episodes": len(made), "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"}
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    for file, part in enumerate((made[:2], made[2:])):
        first = 2 * file
        columns = {
            "observation.state": [_joined(row) for one in part for row in one.observations[:-1]],
            "action": [_joined(row) for one in part for row in one.actions],
            "next.reward": np.concatenate([one.rewards[:, 0] for one in part]),
            "next.done": np.concatenate([one.terminations[:, 0] for one in part]),
            "episode_index": np.repeat(np.arange(first, first + len(part)), [len(one) for one in part]),
            "frame_index": np.concatenate([np.arange(len(one)) for one in part]),
        }
        vectors = {
            key: pa.array(columns[key], pa.list_(pa.float32(), len(names))) for key in ("observation.state", "action")
        }
        pq.write_table(pa.table(columns | vectors), folder / "data" / "chunk-000" / f"file-{file:03d}.parquet")


def _joined(row: np.ndarray) -> list[float]:
    """The arms' joints, one arm's after the other's."""
    return row.reshape(-1).tolist()


def tracks(one: Trajectory, names: Sequence[str]) -> dict[str, list]:
    """One row an agent and time: time, agent, x, y, heading, throttle, reward."""
    rows = [(int(step), int(who)) for step, who in np.argwhere(one.agent_mask)]
    last = len(one)
    columns = {"time": [100 + step * 0.25 for step, _ in rows], "agent": [names[who] for _, who in rows]}
    for entry, name in enumerate(("x", "y", "heading")):
        columns[name] = [one.observations[step, who, entry].item() for step, who in rows]
    acts = [step < last and one.agent_mask[step + 1, who] for step, who in rows]
    columns["throttle"] = [one.actions[s, w, 0].item() if a else None for (s, w), a in zip(rows, acts, strict=True)]
    columns["reward"] = [one.rewards[s, w].item() if a else None for (s, w), a in zip(rows, acts, strict=True)]
    return columns
