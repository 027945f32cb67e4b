"""Round trips: episodes written in a format's layout, and the importer that must give them back, number for number."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from foreign_formats import (
    CARS,
    choosing,
    episodes,
    tracks,
    write_lerobot,
    write_madiff,
    write_minari,
    write_omar,
    write_robomimic,
    write_vault,
)

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
    Vault,
)
from diffplan.spec import JointSpec, Role
from diffplan.trajectory import ROWS, STEPS, Trajectory

RoundTrip = Callable[[Path], tuple[Importer, list[Trajectory]]]
KITCHENS = ("cramped_room", "ring")


def omar(folder: Path) -> tuple[Importer, list[Trajectory]]:
    wide = Role(5, (-1.0,) * 3, (1.0,) * 3)
    spec = JointSpec(
        {"agent_0": "a", "agent_1": "a", "agent_2": "b"}, {"a": Role(4, (-1.0,) * 2, (1.0,) * 2), "b": wide}
    )
    seeds = {2: episodes(spec, [25, 25, 7]), 10: episodes(spec, [25, 4], seed=1)}
    write_omar(folder, seeds)
    made = [replace(one, labels={"seed": seed}) for seed, several in seeds.items() for one in several]
    return Omar(folder, roles=("a", "a", "b")), made


def madiff(folder: Path) -> tuple[Importer, list[Trajectory]]:
    agents = {f"agent_{i}": "car" for i in range(3)}
    made = episodes(replace(CARS, agents=agents), [25, 3, 25, 12], held=True)
    write_madiff(folder, made)
    return Madiff(folder, dt=CARS.dt), made


def madiff_discrete(folder: Path) -> tuple[Importer, list[Trajectory]]:
    role = Role(4 + 5, (0.0,) * 5, (1.0,) * 5, discrete=True, legal=tuple(range(4, 9)))
    spec = JointSpec({"agent_0": "agent", "agent_1": "agent"}, {"agent": role})
    made = choosing(spec, episodes(spec, [9, 4], held=True))
    write_madiff(folder, made, discrete=True, legal=5)
    return Madiff(folder), made


def vault(folder: Path) -> tuple[Importer, list[Trajectory]]:
    """Two qualities, the second in two lanes."""
    roles = {"a": Role(4, (-1.0,) * 2, (1.0,) * 2), "b": Role(5, (-1.0,) * 3, (1.0,) * 3)}
    spec, made = JointSpec({"agent_0": "a", "agent_1": "a", "agent_2": "b"}, roles), []
    parts = {"Good": [[25, 3, 12]], "Poor": [[25, 4], [9, 20]]}
    for uid, lanes in parts.items():
        several = [episodes(spec, lengths, seed=lane, held=True) for lane, lengths in enumerate(lanes)]
        write_vault(folder / "runners.vlt" / uid, several)
        made += [replace(one, labels={"uid": uid, "lane": lane}) for lane, part in enumerate(several) for one in part]
    return Vault(folder / "runners.vlt", roles=("a", "a", "b")), made


def vault_discrete(folder: Path) -> tuple[Importer, list[Trajectory]]:
    role = Role(4 + 5, (0.0,) * 5, (1.0,) * 5, discrete=True, legal=tuple(range(4, 9)))
    spec = JointSpec({"agent_0": "agent", "agent_1": "agent"}, {"agent": role})
    made = choosing(spec, episodes(spec, [9, 4], held=True))
    write_vault(folder / "3m.vlt" / "Good", [made], legal=5, integers=True)
    return Vault(folder / "3m.vlt" / "Good"), [replace(one, labels={"uid": "Good", "lane": 0}) for one in made]


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


def minari(folder: Path) -> tuple[Importer, list[Trajectory]]:
    roles = {"a": Role(3, (-1.0,) * 2, (1.0,) * 2), "b": Role(5, (-1.0,), (1.0,))}
    spec = JointSpec({"left": "a", "right": "b"}, roles, dt=0.02)
    made = episodes(spec, [4, 9, 6])
    write_minari(folder, made)
    return Minari(folder, dt=0.02, roles=("a", "b")), made


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
        made.append(one.among(spec, [0, 2, 1]))
        with open(folder / f"{name}.txt", "w") as file:
            for step, who in np.argwhere(one.agent_mask):
                x, y = one.observations[step, who].tolist()
                file.write(f"{10 * step}\t{who + 1:.1f}\t{x!r}\t{y!r}\n")
    return EthUcy(folder), made


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
            labels={"recording": name, "first_step": 0},
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
    "vault": vault,
    "vault, discrete": vault_discrete,
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
        for name in (*ROWS, *STEPS):
            if not np.array_equal(getattr(read, name), getattr(written, name)):
                found.append(f"episode {index}: {name}")
    return found
