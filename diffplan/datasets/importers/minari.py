"""Minari's HDF5 folders: ``metadata.json`` with both spaces, ``main_data.hdf5`` with ``episode_<i>``.

Minari itself builds an environment from the stored specification where a space is missing, which can run any code; here
such data are refused, and the specification is never looked at.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffplan.datasets.importers.hdf5 import child, numbers, open_hdf5
from diffplan.datasets.importers.recognition import wrong_format
from diffplan.datasets.importers.recording import Recording, check_team, joint_episode, make_spec, one_hot
from diffplan.files import inside, read_json
from diffplan.spec import JointSpec
from diffplan.trajectory import ROWS, STEPS, Trajectory

OURS = "diffplan"  # what Minari has no place for: an attribute in metadata.json, a group in every episode

_Agents = dict[str, tuple[tuple[str, Any], tuple[str, Any]]]


@dataclass(frozen=True)
class Minari:
    """Imports a Minari data set.

    Where both spaces are dictionaries with the same keys, each key is an agent; otherwise there is one agent, whose
    dictionary of observations is put one after the other by name. Discrete actions become one-hot vectors.

    Args:
        source: a folder with ``metadata.json`` and ``main_data.hdf5``, or the one above it.
        dt: seconds a step, which the files do not say (1 by default), unless ``diffplan data export`` wrote them.
        roles: each agent's role, in the order of their names; by default agents of equal widths share one. Likewise.
    """

    source: Path
    dt: float | None = None
    roles: tuple[str, ...] = ()

    def read(self) -> Recording:
        source = Path(self.source)
        folder = source / "data" if (source / "data" / "metadata.json").exists() else source
        if not (folder / "metadata.json").exists() or not (folder / "main_data.hdf5").exists():
            raise wrong_format(source, "minari", "a folder with metadata.json and main_data.hdf5")
        file, metadata = inside(folder, "main_data.hdf5"), read_json(inside(folder, "metadata.json"))
        number = _total(metadata, folder)
        if OURS in metadata:
            if self.dt is not None or self.roles:
                raise ValueError(f"{folder} is an export of diffplan and says dt and roles itself; leave both out.")
            spec = JointSpec.from_dict(dict(metadata[OURS]).get("spec", {}))
            return Recording(spec, lambda: _exact_episodes(spec, file, number), str(metadata[OURS].get("source", "")))
        try:
            agents = _agents(metadata, folder)
            widths = [(_width(seen), _width(done)) for (_, seen), (_, done) in agents.values()]
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{folder / 'metadata.json'} has spaces that cannot be understood ({type(error).__name__}: {error}); "
                "expected Box, Discrete, or Dict of these."
            ) from error
        discrete = {done["type"] == "Discrete" for _, (_, done) in agents.values()}
        if len(discrete) > 1:
            raise ValueError(
                f"{folder} has agents with discrete and others with continuous actions; import them apart."
            )
        choosing, dt = discrete.pop(), 1.0 if self.dt is None else self.dt
        spec = make_spec(folder, list(agents), widths, dt, self.roles, choosing)

        def episodes() -> Iterator[Trajectory]:
            with open_hdf5(file) as data:
                for index in range(number):
                    yield _episode(spec, data, index, agents, file)

        source_words = f"Minari data {metadata.get('dataset_id', folder.name)}"
        return Recording(spec, episodes, source_words, bounded=choosing)


def _total(metadata: Any, folder: Path) -> int:
    try:
        number = int(metadata["total_episodes"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'metadata.json'} does not tell total_episodes ({error}); copy it anew.") from error
    if number < 1:
        raise ValueError(f"{folder} holds {number} episodes; there is nothing to import.")
    return number


def _agents(metadata: Any, folder: Path) -> _Agents:
    """Where each agent's observations and actions are in an episode, and their spaces as plain data."""
    spaces = []
    for name in ("observation_space", "action_space"):
        if not isinstance(metadata.get(name), str):
            raise ValueError(
                f"{folder / 'metadata.json'} does not tell the {name}; building the environment of the stored "
                "specification could run any code, so this is refused: write the data again with both spaces."
            )
        spaces.append(json.loads(metadata[name]))
    observed, acted = spaces
    if observed["type"] == acted["type"] == "Dict":
        if observed["subspaces"].keys() != acted["subspaces"].keys():
            got = (sorted(observed["subspaces"]), sorted(acted["subspaces"]))
            raise ValueError(
                f"{folder} has observations of {got[0]}, but actions of {got[1]}; both must name the agents."
            )
        check_team(len(observed["subspaces"]), folder)
        return {
            name: ((f"observations/{name}", space), (f"actions/{name}", acted["subspaces"][name]))
            for name, space in sorted(observed["subspaces"].items())
        }
    return {"agent": (("observations", observed), ("actions", acted))}


def _width(space: Any) -> int:
    """Numbers in a space. Raises ``ValueError`` for one that is not of numbers."""
    if space["type"] == "Box":
        return math.prod(space["shape"])
    if space["type"] == "Discrete":
        return int(space["n"])
    if space["type"] == "Dict":
        return sum(_width(space["subspaces"][name]) for name in sorted(space["subspaces"]))
    raise ValueError(f"a space of type {space['type']!r} is not supported; expected Box, Discrete, or Dict of these.")


def _values(group: Any, name: str, space: Any, path: Path) -> np.ndarray:
    """What was observed or done, [rows, width]."""
    if space["type"] == "Dict":
        inner = child(group, name, path)
        parts = [_values(inner, key, space["subspaces"][key], path) for key in sorted(space["subspaces"])]
        return np.concatenate(parts, 1)
    values = numbers(group, name, path)
    if space["type"] == "Discrete":
        where = f"{path}: {group.name}/{name}"
        return one_hot(values.reshape(-1) - int(space.get("start", 0)), int(space["n"]), where)
    if values.shape[1:] != tuple(space["shape"]):
        raise ValueError(f"{path}: {group.name}/{name} is {values.shape}, its space says (steps, {space['shape']}).")
    return values.reshape(len(values), -1)


def _episode(spec: JointSpec, data: Any, index: int, agents: _Agents, path: Path) -> Trajectory:
    group, N = child(data, f"episode_{index}", path), spec.num_agents
    observations = [_values(group, *seen, path) for seen, _ in agents.values()]
    actions = [_values(group, *done, path) for _, done in agents.values()]
    rewards, ended = numbers(group, "rewards", path), numbers(group, "terminations", path) != 0
    L = len(rewards)
    for rows, expected in [(len(one), L + 1) for one in observations] + [(len(one), L) for one in (*actions, ended)]:
        if rows != expected:
            raise ValueError(
                f"{path}: {group.name} has {L} rewards, but {rows} rows of an array where {expected} belong."
            )
    for one in (rewards, ended):
        if one.shape[1:] not in ((), (1,), (N,)):
            raise ValueError(
                f"{path}: {group.name} has rewards or terminations of shape {one.shape}, expected {(L, N)}."
            )
    rewards, ended = (np.broadcast_to(one.reshape(L, -1), (L, N)) for one in (rewards, ended))
    return joint_episode(spec, observations, actions, rewards, ended)


def _exact_episodes(spec: JointSpec, path: Path, number: int) -> Iterator[Trajectory]:
    """What ``export_minari`` wrote."""
    with open_hdf5(path) as data:
        for index in range(number):
            group = child(child(data, f"episode_{index}", path), OURS, path)
            arrays = {name: numbers(group, name, path) for name in (*ROWS, *STEPS)}
            yield Trajectory(spec, **arrays, labels=json.loads(group.attrs.get("labels", "{}")))
