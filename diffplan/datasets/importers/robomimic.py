"""robomimic's and robosuite's HDF5 files (Mandlekar et al. 2021, arXiv 2108.03298): ``data/demo_<i>/obs`` etc."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from diffplan.datasets.importers.hdf5 import child, numbers, open_hdf5
from diffplan.datasets.importers.recognition import wrong_format
from diffplan.datasets.importers.recording import HELD, Recording, joint_episode, make_spec
from diffplan.spec import JointSpec
from diffplan.trajectory import Trajectory

_OWN = re.compile(r"(?:robot|gripper)(\d+)_")


@dataclass(frozen=True)
class Robomimic:
    """Imports demonstrations of one or several arms.

    Arm i observes the ``robot<i>_`` and ``gripper<i>_`` entries of ``obs`` and those of no arm; images are left out.
    The action of several arms, which is one vector in the file, is cut into equal parts.

    Args:
        source: an HDF5 file with ``data/demo_<i>``.
        arms: how many arms act; by default as many as there are ``robot<i>_`` entries.
        keys: which entries of ``obs`` to use, in this order; by default all numeric ones, by name.
        dt: seconds a step; by default 1 / control_freq of the stored environment arguments, which are only read.
    """

    source: Path
    arms: int | None = None
    keys: tuple[str, ...] = ()
    dt: float | None = None

    def read(self) -> Recording:
        source = Path(self.source)
        if not source.is_file() or source.suffix.lower() not in (".hdf5", ".h5"):
            raise wrong_format(source, "robomimic", "an .hdf5 file with data/demo_<i>")
        with open_hdf5(source) as file:
            if "data" not in file or not (demos := _demos(file["data"])):
                raise wrong_format(source, "robomimic", f"data/demo_<i>, but it has {sorted(file)[:8]}")
            first = file["data"][demos[0]]
            if "obs" not in first or "actions" not in first:
                raise ValueError(
                    f"{source}: data/{demos[0]} has {sorted(first)}, but not obs and actions; extract "
                    "observations with robomimic's dataset_states_to_obs.py first."
                )
            keys, left_out = self._keys(first["obs"], source)
            arms, dt = self._arms(keys), _dt(file["data"], source) if self.dt is None else self.dt
            spec = self._spec(first, keys, arms, dt)
            next_known = "next_obs" in first
        notes = [f"observation entries: {', '.join(keys)}"]
        notes += [f"not numbers of one axis, left out: {', '.join(left_out)}"] if left_out else []
        if not next_known:
            notes.append(HELD)

        def episodes() -> Iterator[Trajectory]:
            with open_hdf5(source) as file:
                for demo in demos:
                    yield _episode(spec, file["data"], demo, [_of_arm(keys, arm) for arm in range(arms)], source)

        return Recording(spec, episodes, f"robomimic data {source.name}", tuple(notes), bounded=False)

    def _keys(self, obs: Any, source: Path) -> tuple[list[str], list[str]]:
        numeric = [
            key for key in sorted(obs) if getattr(obs[key], "ndim", 0) in (1, 2) and obs[key].dtype.kind in "fiub"
        ]
        missing = [key for key in self.keys if key not in numeric]
        if missing or not numeric:
            raise ValueError(f"{source} has no numeric observation entries {missing}; it has {numeric}.")
        return list(self.keys) or numeric, [key for key in sorted(obs) if key not in numeric]

    def _arms(self, keys: list[str]) -> int:
        named = {int(found.group(1)) for found in map(_OWN.match, keys) if found}
        return self.arms if self.arms is not None else max(1, len(named))

    def _spec(self, demo: Any, keys: list[str], arms: int, dt: float) -> JointSpec:
        source, actions = Path(self.source), demo["actions"].shape
        if arms < 1 or len(actions) != 2 or actions[1] % arms:
            raise ValueError(f"{source}: actions of shape {actions} cannot be cut into {arms} equal arms; give arms=.")
        names = [f"arm_{arm}" for arm in range(arms)] if arms > 1 else ["arm"]
        widths = [
            (sum(math.prod(demo["obs"][key].shape[1:]) for key in _of_arm(keys, arm)), actions[1] // arms)
            for arm in range(arms)
        ]
        return make_spec(source, names, widths, dt, roles=names)


def _of_arm(keys: list[str], arm: int) -> list[str]:
    """What an arm observes: its own entries and those of no arm."""
    owners = {key: _OWN.match(key) for key in keys}
    return [key for key, owner in owners.items() if owner is None or int(owner.group(1)) == arm]


def _demos(data: Any) -> list[str]:
    found = [name for name in data if re.fullmatch(r"demo_\d+", name)]
    return sorted(found, key=lambda name: int(name.split("_")[1]))


def _dt(data: Any, source: Path) -> float:
    try:
        return 1 / float(json.loads(data.attrs["env_args"])["env_kwargs"]["control_freq"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(
            f"{source} does not tell the control frequency ({error}); give dt= (seconds a step)."
        ) from error


def _episode(spec: JointSpec, data: Any, demo: str, keys: list[list[str]], path: Path) -> Trajectory:
    group = data[demo]
    actions = numbers(group, "actions", path)
    L, obs = len(actions), child(group, "obs", path)
    arrays = {key: _column(obs, key, L, path) for key in dict.fromkeys(chain(*keys))}
    last = group.get("next_obs", obs)
    arrays = {key: np.concatenate([array, _column(last, key, L, path)[-1:]]) for key, array in arrays.items()}
    observations = [np.concatenate([arrays[key] for key in own], 1) for own in keys]
    rewards, dones = (numbers(group, name, path).reshape(-1) for name in ("rewards", "dones"))
    for name, values in (("rewards", rewards), ("dones", dones)):
        if len(values) != L:
            raise ValueError(f"{path}: data/{demo} has {L} actions, but {len(values)} {name}; the arrays are ragged.")
    N = spec.num_agents
    ended = np.zeros(L, bool)
    ended[-1] = dones[-1] != 0  # robomimic marks every step of success; an episode ends only with its last one
    return joint_episode(
        spec,
        observations,
        np.split(actions, N, axis=1),
        np.repeat(rewards[:, None], N, 1),
        np.repeat(ended[:, None], N, 1),
        labels={"demo": demo},
    )


def _column(obs: Any, key: str, steps: int, path: Path) -> np.ndarray:
    values = numbers(obs, key, path)
    if len(values) != steps:
        raise ValueError(f"{path}: {obs.name}/{key} has {len(values)} rows for {steps} actions; the arrays are ragged.")
    return values.reshape(steps, -1)
