"""Writes episodes in the layouts of other projects, so that importers can be tested without their files.

``ROUND_TRIPS`` maps the name of a format to a function that writes episodes into a folder, exactly as the other project
would, and returns the importer for them and the episodes that it must give back, number for number.
"""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from diffplan.datasets import TrajectoryStore, export_minari, export_npz
from diffplan.datasets.importers import (
    EthUcy,
    Importer,
    LeRobot,
    Madiff,
    Minari,
    Npz,
    Omar,
    Overcooked,
    Robomimic,
    Rollout,
    Rollouts,
    Table,
)
from diffplan.spec import JointSpec, Role
from diffplan.trajectory import Trajectory

RoundTrip = Callable[[Path], tuple[Importer, list[Trajectory]]]
CARS = JointSpec({f"car_{i}": "car" for i in range(3)}, {"car": Role(4, (-1.0,) * 2, (1.0,) * 2, (0, 1))}, dt=0.1)
KITCHENS = ("cramped_room", "ring")


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


def omar(folder: Path) -> tuple[Importer, list[Trajectory]]:
    wide = Role(5, (-1.0,) * 3, (1.0,) * 3)
    spec = JointSpec(
        {"agent_0": "a", "agent_1": "a", "agent_2": "b"}, {"a": Role(4, (-1.0,) * 2, (1.0,) * 2), "b": wide}
    )
    seeds = {2: episodes(spec, [25, 25, 7]), 10: episodes(spec, [25, 4], seed=1)}
    write_omar(folder, seeds)
    made = [replace(one, labels={"seed": seed}) for seed, several in seeds.items() for one in several]
    return Omar(folder, roles=("a", "a", "b")), made


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


def madiff(folder: Path) -> tuple[Importer, list[Trajectory]]:
    agents = {f"agent_{i}": "car" for i in range(3)}
    made = episodes(replace(CARS, agents=agents), [25, 3, 25, 12], held=True)
    write_madiff(folder, made)
    return Madiff(folder, dt=CARS.dt), made


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


def madiff_discrete(folder: Path) -> tuple[Importer, list[Trajectory]]:
    role = Role(4 + 5, (0.0,) * 5, (1.0,) * 5, discrete=True, legal=tuple(range(4, 9)))
    spec = JointSpec({"agent_0": "agent", "agent_1": "agent"}, {"agent": role})
    made = choosing(spec, episodes(spec, [9, 4], held=True))
    write_madiff(folder, made, discrete=True, legal=5)
    return Madiff(folder), made


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


def robomimic(folder: Path) -> tuple[Importer, list[Trajectory]]:
    arm = Role(6, (-1.0,) * 7, (1.0,) * 7)
    spec = JointSpec({"arm_0": "arm_0", "arm_1": "arm_1"}, {"arm_0": arm, "arm_1": arm}, dt=0.05)
    made = []
    for index, one in enumerate(episodes(spec, [8, 11, 5] * 4)):
        seen, paid = one.observations.copy(), one.rewards.copy()
        seen[:, 1, :2], paid[:, 1] = seen[:, 0, :2], paid[:, 0]
        made.append(replace(one, observations=seen, rewards=paid, labels={"demo": f"demo_{index}"}))
    folder.mkdir(parents=True, exist_ok=True)
    write_robomimic(folder / "lift.hdf5", made)
    return Robomimic(folder / "lift.hdf5"), made


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


def minari(folder: Path) -> tuple[Importer, list[Trajectory]]:
    roles = {"a": Role(3, (-1.0,) * 2, (1.0,) * 2), "b": Role(5, (-1.0,), (1.0,))}
    spec = JointSpec({"left": "a", "right": "b"}, roles, dt=0.02)
    made = episodes(spec, [4, 9, 6])
    write_minari(folder, made)
    return Minari(folder, dt=0.02, roles=("a", "b")), made


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


def lerobot(folder: Path) -> tuple[Importer, list[Trajectory]]:
    arm = Role(3, (-1.0,) * 3, (1.0,) * 3)
    spec = JointSpec({"left": "left", "right": "right"}, {"left": arm, "right": arm}, dt=1 / 50)
    made = []
    for index, one in enumerate(episodes(spec, [7, 5, 9], held=True)):
        rewards = np.repeat(one.rewards[:, :1], 2, 1)
        made.append(replace(one, rewards=rewards, labels={"episode_index": index}))
    write_lerobot(
        folder, made, [f"{side}_{joint}" for side in ("left", "right") for joint in ("waist", "elbow", "gripper")]
    )
    return LeRobot(folder, arms=("left", "right")), made


def walkers(spec: JointSpec, name: str, seed: int) -> Trajectory:
    """Twelve frames in which the second walker comes late, and the third leaves early."""
    one = episodes(spec, [11], seed)[0]
    there = one.agent_mask.copy()
    there[:3, 1], there[8:, 2] = False, False
    last = one.truncations & there[:-1]
    kept = {"observations": one.observations * there[..., None], "rewards": np.zeros_like(one.rewards)}
    labels = {"recording": name, "first_step": 0, "ids": "1 3 2"}
    return replace(one, **kept, agent_mask=there, truncations=last, labels=labels)


def eth_ucy(folder: Path) -> tuple[Importer, list[Trajectory]]:
    role = Role(2, (), (), position=(0, 1))
    spec = JointSpec({f"pedestrian_{i}": "pedestrian" for i in range(3)}, {"pedestrian": role}, dt=0.4)
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for name in ("hotel", "zara"):
        one = walkers(spec, name, seed=len(made))
        made.append(
            replace(
                one,
                observations=one.observations[:, [0, 2, 1]],
                agent_mask=one.agent_mask[:, [0, 2, 1]],
                truncations=one.truncations[:, [0, 2, 1]],
            )
        )
        with open(folder / f"{name}.txt", "w") as file:
            for step, who in np.argwhere(one.agent_mask):
                x, y = one.observations[step, who].tolist()
                file.write(f"{10 * step}\t{who + 1:.1f}\t{x!r}\t{y!r}\n")
    return EthUcy(folder), made


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


def _table(folder: Path, suffix: str) -> tuple[Importer, list[Trajectory]]:
    role = Role(3, (-1.0,), (1.0,), position=(0, 1))
    spec = JointSpec({"r1": "agent", "r3": "agent", "r2": "agent"}, {"agent": role}, dt=0.25)
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for name in ("morning", "noon"):
        one = walkers(spec, name, seed=7 + len(made))
        there = one.agent_mask[:, [0, 2, 1]]
        there[5, 0] = False  # a gap
        acts = there[1:] & there[:-1]
        rewards = np.random.default_rng(3).normal(size=acts.shape).astype(np.float32) * acts
        one = replace(
            one,
            observations=one.observations * there[..., None],
            actions=one.actions * acts[..., None],
            rewards=rewards,
            agent_mask=there,
            truncations=np.concatenate([np.zeros_like(acts[:-1]), there[-2:-1]]),
            labels={"recording": name},
        )
        made.append(one)
        columns = tracks(one, spec.names)
        if suffix == "parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.table(columns), folder / f"{name}.parquet")
            continue
        with open(folder / f"{name}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(
                [["" if one is None else one for one in row] for row in zip(*columns.values(), strict=True)]
            )
    return Table(folder, actions=("throttle",), reward="reward"), made


def table_csv(folder: Path) -> tuple[Importer, list[Trajectory]]:
    return _table(folder, "csv")


def table_parquet(folder: Path) -> tuple[Importer, list[Trajectory]]:
    return _table(folder, "parquet")


def rollouts(folder: Path) -> tuple[Importer, list[Trajectory]]:
    made = episodes(CARS, [6, 3])
    names = CARS.names

    def steps(array: np.ndarray) -> list[dict]:
        return [dict(zip(names, row, strict=True)) for row in array]

    lists = [
        Rollout(
            *(steps(getattr(one, n)) for n in ("observations", "actions", "rewards", "terminations", "truncations"))
        )
        for one in made
    ]
    return Rollouts(lists, dt=CARS.dt), made


def overcooked(folder: Path) -> tuple[Importer, list[Trajectory]]:
    rng, lengths = np.random.default_rng(0), [9, 14]
    total = sum(lengths)
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        "position": rng.integers(0, 9, (total, 2, 2)).astype(np.int8),
        "orientation": rng.integers(-1, 2, (total, 2, 2)).astype(np.int8),
        "held": rng.integers(0, 4, (total, 2)).astype(np.int8),
        "action": rng.integers(0, 6, (total, 2)).astype(np.int8),
        "reward": (20 * rng.integers(0, 2, total)).astype(np.float32),
    }
    more = {
        "offsets": np.cumsum([0, *lengths]).astype(np.int32),
        "layout": np.array(KITCHENS),
        "trial": np.array([3, 5]),
    }
    np.savez(folder / "train.npz", **data, **more)
    (folder / "layouts.json").write_text(json.dumps(dict.fromkeys(KITCHENS, "['XX']")))
    role = Role(10, (0.0,) * 6, (1.0,) * 6, position=(0, 1), static=(8, 9), discrete=True)
    spec = JointSpec({"player_0": "player", "player_1": "player"}, {"player": role}, dt=0.15)
    made = []
    for index, (start, stop) in enumerate(zip([0, 9], [9, 23], strict=True)):
        kitchen = np.broadcast_to(np.eye(2)[index], (stop - start, 2, 2))
        seen = [
            data["position"][start:stop],
            data["orientation"][start:stop],
            np.eye(4)[data["held"][start:stop]],
            kitchen,
        ]
        rows = np.concatenate(seen, -1).astype(np.float32)
        end = np.zeros((stop - start, 2), bool)
        labels = {"layout": KITCHENS[index], "trial": [3, 5][index]}
        truncated = end.copy()
        truncated[-1] = True
        made.append(
            Trajectory(
                spec,
                np.concatenate([rows, rows[-1:]]),
                np.eye(6, dtype=np.float32)[data["action"][start:stop]],
                np.repeat(data["reward"][start:stop, None], 2, 1),
                end,
                truncated,
                np.ones((stop - start + 1, 2), bool),
                labels,
            )
        )
    return Overcooked(folder / "train.npz"), made


def _store(folder: Path) -> tuple[TrajectoryStore, list[Trajectory]]:
    """A store with everything: two roles, absences, labels, ends of single agents."""
    roles = {"arm": Role(4, (-1.0,) * 2, (1.0,) * 2, (0, 1), (3,)), "cart": Role(3, (-2.0,), (2.0,))}
    spec = JointSpec({"arm_0": "arm", "cart": "cart", "arm_1": "arm"}, roles, 0.1, "crossing-v0", {"num_robots": 3})
    rng, made = np.random.default_rng(5), []
    for index, one in enumerate(episodes(spec, [5, 9, 2], seed=4)):
        flags = {
            name: rng.random(getattr(one, name).shape) < 0.5 for name in ("terminations", "truncations", "agent_mask")
        }
        made.append(replace(one, **flags, labels={"skill": "expert", "seed": index, "success": bool(index)}))
    return TrajectoryStore.write(folder / "store", spec, "drawn at random", made), made


def npz(folder: Path) -> tuple[Importer, list[Trajectory]]:
    store, made = _store(folder)
    return Npz(export_npz(store, folder / "all.npz")), made


def exported_minari(folder: Path) -> tuple[Importer, list[Trajectory]]:
    store, made = _store(folder)
    return Minari(export_minari(store, folder / "all")), made


ROUND_TRIPS: dict[str, RoundTrip] = {
    "rollouts": rollouts,
    "omar": omar,
    "madiff": madiff,
    "madiff, discrete": madiff_discrete,
    "robomimic": robomimic,
    "minari": minari,
    "minari, exported": exported_minari,
    "lerobot": lerobot,
    "eth_ucy": eth_ucy,
    "table, csv": table_csv,
    "table, parquet": table_parquet,
    "overcooked": overcooked,
    "npz, exported": npz,
}


def differences(store: TrajectoryStore, made: Sequence[Trajectory]) -> list[str]:
    """In what the episodes of a store are not, bit for bit, those that were written."""
    found = [] if len(store) == len(made) else [f"{len(store)} episodes, expected {len(made)}"]
    for index, (read, written) in enumerate(zip(store, made, strict=False)):
        if read.spec.agents.keys() != written.spec.agents.keys() or read.spec.dt != written.spec.dt:
            found.append(f"episode {index}: {read.spec}, expected {written.spec}")
        if read.labels != written.labels:
            found.append(f"episode {index}: labels {read.labels}, expected {written.labels}")
        for name in ("observations", "actions", "rewards", "terminations", "truncations", "agent_mask"):
            if not np.array_equal(getattr(read, name), getattr(written, name)):
                found.append(f"episode {index}: {name}")
    return found
