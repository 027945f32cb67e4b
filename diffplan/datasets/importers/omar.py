"""OMAR's folders (Pan et al. 2022, arXiv 2111.11188): ``seed_<k>_data/{obs,acs,rews,next_obs,dones}_<i>.npy``."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from diffplan.datasets.importers.npy import NpyFile, check_same_length, dtype_notes
from diffplan.datasets.importers.recognition import wrong_format
from diffplan.datasets.importers.recording import Recording, check_finite, joint_episode, make_spec
from diffplan.spec import JointSpec
from diffplan.trajectory import Trajectory

KINDS = ("obs", "acs", "rews", "next_obs", "dones")
_CHUNK = 10_000  # steps


@dataclass(frozen=True)
class Omar:
    """Imports OMAR's npy folders: one array an agent and quantity, transitions in the order in which they were made.

    An episode ends where ``dones`` says so, and where the next row does not go on where ``next_obs`` left off: in MPE
    ``dones`` are all 0, and episodes end by a time limit, which is a truncation.

    Args:
        source: a folder with ``seed_<k>_data`` folders, or one of these.
        episode_length: cut every so many steps instead; refused where ``next_obs`` says that an episode ended earlier.
        dt: seconds a step, which the files do not say.
        roles: each agent's role, in order; by default agents of equal widths share one.
    """

    source: Path
    episode_length: int | None = None
    dt: float = 1.0
    roles: tuple[str, ...] = ()

    def read(self) -> Recording:
        source = Path(self.source)
        folders = [source] if (source / "obs_0.npy").exists() else sorted(source.glob("seed_*_data"), key=_number)
        if not folders:
            raise wrong_format(source, "omar", "folders seed_<k>_data with obs_<i>.npy, acs_<i>.npy, ...")
        if self.episode_length is not None and self.episode_length < 1:
            raise ValueError(f"episode_length={self.episode_length}; an episode has at least one step.")
        seeds = {folder.name: _open(folder) for folder in folders}
        specs = {name: self._spec(source, files) for name, files in seeds.items()}
        first, spec = next(iter(specs.items()))
        for name, other in specs.items():
            if other != spec:
                raise ValueError(f"{source / name} has {other}, {first} has {spec}; import them apart.")
        notes = dtype_notes(next(iter(seeds.values())))
        if any((folder / "states_0.npy").exists() for folder in folders):
            notes = (*notes, "states_<i> (what no agent observes) are left out")

        def episodes() -> Iterator[Trajectory]:
            for name, files in seeds.items():
                for start, stop in pairwise([0, *self._ends(files)]):
                    yield _episode(spec, files, start, stop, name)

        return Recording(spec, episodes, f"OMAR data of {source.resolve().name}", notes, bounded=False)

    def _spec(self, source: Path, files: dict[str, NpyFile]) -> JointSpec:
        number = _agents(files)
        widths = [(files[f"obs_{i}"].shape[1], files[f"acs_{i}"].shape[1]) for i in range(number)]
        return make_spec(source, [f"agent_{i}" for i in range(number)], widths, self.dt, self.roles)

    def _ends(self, files: dict[str, NpyFile]) -> Iterator[int]:
        """The steps after which an episode ends, plus one."""
        steps, begun = len(files["obs_0"]), 0
        for start in range(0, steps, _CHUNK):
            stop = min(start + _CHUNK, steps)
            for index in np.flatnonzero(_breaks(files, start, stop)):
                end = start + int(index) + 1
                if self.episode_length and (end - begun) % self.episode_length and end != steps:
                    raise ValueError(
                        f"{files['obs_0'].path.parent}: an episode of {end - begun} steps ends with row {end - 1}: it "
                        f"is done, or next_obs is not obs of row {end}; episode_length={self.episode_length} does not "
                        "fit, leave it out to cut where the data say."
                    )
                while self.episode_length and end - begun > self.episode_length:
                    begun += self.episode_length
                    yield begun
                begun = end
                yield end


def _number(path: Path) -> tuple[int, str]:
    digits = re.search(r"\d+", path.name)
    return int(digits.group()) if digits else 0, path.name


def _agents(files: dict[str, NpyFile]) -> int:
    return sum(name.startswith("obs_") for name in files)


def _open(folder: Path) -> dict[str, NpyFile]:
    """The files of one seed by name, without suffix; all of every agent, of equal lengths."""
    found = {path.stem for path in folder.glob("*.npy")}
    agents = {int(name.rsplit("_", 1)[1]) for name in found if re.fullmatch(rf"({'|'.join(KINDS)})_\d+", name)}
    if len(agents) <= max(agents, default=-1):
        missing = next(agent for agent in range(len(agents) + 1) if agent not in agents)
        raise ValueError(
            f"{folder} has files of agent {max(agents)}, but none of agent {missing}; copy all agents' files."
        )
    names = [f"{kind}_{agent}" for agent in sorted(agents) for kind in KINDS]
    missing_files = [f"{name}.npy" for name in names if name not in found]
    if missing_files or not names:
        raise ValueError(f"{folder} lacks {missing_files or ['obs_0.npy']}; copy all agents' files.")
    files = {name: NpyFile(folder / f"{name}.npy") for name in names}
    check_same_length(files)
    for name, file in files.items():
        if name.startswith(("obs", "acs", "next")) and (len(file.shape) != 2 or not file.shape[1]):
            raise ValueError(f"{file.path} has the shape {file.shape}, expected (steps, width).")
        if name.startswith(("rews", "dones")) and file.shape[1:] not in ((), (1,)):
            raise ValueError(f"{file.path} has the shape {file.shape}, expected (steps,) or (steps, 1).")
    for agent in agents:
        before, after = files[f"obs_{agent}"], files[f"next_obs_{agent}"]
        if before.shape != after.shape:
            raise ValueError(
                f"{after.path} has the shape {after.shape}, {before.path.name} {before.shape}; match them."
            )
    return files


def _breaks(files: dict[str, NpyFile], start: int, stop: int) -> np.ndarray:
    """Whether an episode ends with each of these rows."""
    steps = len(files["obs_0"])
    ends = np.zeros(stop - start, bool)
    for agent in range(_agents(files)):
        after = files[f"next_obs_{agent}"].rows(start, stop)
        following = files[f"obs_{agent}"].rows(start + 1, min(stop + 1, steps))
        ends[: len(following)] |= (after[: len(following)] != following).any(1)
        ends |= files[f"dones_{agent}"].rows(start, stop).reshape(stop - start) != 0
    ends[-1] |= stop == steps
    return ends


def _episode(spec: JointSpec, files: dict[str, NpyFile], start: int, stop: int, seed: str) -> Trajectory:
    def numbers(kind: str, agent: int, first: int = start) -> np.ndarray:
        file = files[f"{kind}_{agent}"]
        return check_finite(file.rows(first, stop), file.path, first)

    agents = range(spec.num_agents)
    observations = [np.concatenate([numbers("obs", i), numbers("next_obs", i, stop - 1)]) for i in agents]
    actions = [numbers("acs", i) for i in agents]
    rewards, dones = (np.stack([numbers(kind, i).reshape(-1) for i in agents], 1) for kind in ("rews", "dones"))
    return joint_episode(spec, observations, actions, rewards, dones != 0, labels={"seed": _number(Path(seed))[0]})
