"""MADiff's folders (Zhu et al. 2023, arXiv 2305.17330): ``{obs,actions,rewards,discounts,path_lengths}.npy``."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffplan.datasets.importers.npy import NpyFile, check_same_length, dtype_notes
from diffplan.datasets.importers.recognition import wrong_format
from diffplan.datasets.importers.recording import (
    HELD,
    Recording,
    check_finite,
    check_team,
    held,
    joint_episode,
    make_spec,
    one_hot,
)
from diffplan.spec import JointSpec
from diffplan.trajectory import Trajectory

STEPS = ("obs", "actions", "rewards", "discounts")


@dataclass(frozen=True)
class Madiff:
    """Imports MADiff's npy folders: all paths one after the other, agents on the second axis.

    Integer actions (tasks with ``legals.npy``) become one-hot actions, and the legal ones are put behind the
    observation, so that a planner knows them. The observation after a path's last action is not in the files; the last
    one is repeated, so that the action and its reward are kept.

    Args:
        source: a folder with ``obs.npy``, ``actions.npy``, ``rewards.npy``, ``discounts.npy``, ``path_lengths.npy``.
        strip_agent_ids: take away the one-hot agent id in front of every observation; refused where there is none.
        pad_value: an agent all of whose observation has this value is absent (0 for dead units of SMAC).
        num_actions: how many discrete actions there are, where no ``legals.npy`` tells.
        dt: seconds a step, which the files do not say.
        roles: each agent's role, in order; by default all share one.
    """

    source: Path
    strip_agent_ids: bool = True
    pad_value: float | None = None
    num_actions: int | None = None
    dt: float = 1.0
    roles: tuple[str, ...] = ()

    def read(self) -> Recording:
        source = Path(self.source)
        names = [*STEPS, "path_lengths", *(["legals"] if (source / "legals.npy").exists() else [])]
        missing = [f"{name}.npy" for name in names if not (source / f"{name}.npy").exists()]
        if len(missing) > 3 or not source.is_dir():
            raise wrong_format(source, "madiff", "a folder with obs.npy, actions.npy, path_lengths.npy, ...")
        if missing:
            raise ValueError(f"{source} lacks {missing}; copy all files.")
        files = {name: NpyFile(source / f"{name}.npy") for name in names}
        lengths = _path_lengths(files.pop("path_lengths"), check_same_length(files))
        discrete = files["actions"].dtype.kind in "iu"
        choices = self._choices(files) if discrete else 0
        spec = self._spec(files, choices)
        notes = (HELD, *dtype_notes(files))

        def episodes() -> Iterator[Trajectory]:
            for stop, length in zip(np.cumsum(lengths).tolist(), lengths, strict=True):
                yield self._episode(spec, files, stop - length, stop, choices)

        return Recording(spec, episodes, f"MADiff data of {source.resolve().name}", notes, bounded=discrete)

    def _choices(self, files: dict[str, NpyFile]) -> int:
        """How many discrete actions there are."""
        if "legals" in files:
            return files["legals"].shape[-1]
        if self.num_actions is None:
            raise ValueError(
                f"{files['actions'].path} has whole numbers, but there is no legals.npy to tell how many "
                "actions there are; give num_actions."
            )
        return self.num_actions

    def _spec(self, files: dict[str, NpyFile], choices: int) -> JointSpec:
        obs, actions, source = files["obs"], files["actions"], Path(self.source)
        if len(obs.shape) != 3:
            raise ValueError(f"{obs.path} has the shape {obs.shape}, expected (steps, agents, width).")
        N, width = obs.shape[1], obs.shape[2]
        check_team(N, source)
        for name, axes in {"actions": 2 if choices else 3, "rewards": 2, "legals": 3}.items():
            if name in files and (len(files[name].shape) != axes or files[name].shape[1] != N):
                raise ValueError(
                    f"{files[name].path} has the shape {files[name].shape}, expected {axes} axes, the second {N} long."
                )
        if self.strip_agent_ids:
            width -= N
            if width < 1:
                raise ValueError(
                    f"{obs.path} has {obs.shape[2]} columns, too few for a one-hot id of {N} agents; {_KEEP}."
                )
        legal = choices if "legals" in files else 0
        widths = [(width + legal, choices or actions.shape[-1])] * N
        return make_spec(source, [f"agent_{i}" for i in range(N)], widths, self.dt, self.roles, choices > 0, legal)

    def _episode(self, spec: JointSpec, files: dict[str, NpyFile], start: int, stop: int, choices: int) -> Trajectory:
        rows = {name: file.rows(start, stop) for name, file in files.items()}
        N, observations = spec.num_agents, rows["obs"]
        if self.strip_agent_ids:
            _check_ids(observations[..., :N], files["obs"].path, start)
            observations = observations[..., N:]
        there = np.ones(observations.shape[:2], bool)
        if self.pad_value is not None:
            there = ~np.isclose(observations, self.pad_value, rtol=0, atol=0, equal_nan=True).all(-1)
            observations = np.where(there[..., None], observations, 0)
        if "legals" in rows:
            observations = np.concatenate([observations, rows["legals"]], -1)
        actions = rows["actions"]
        if choices:
            actions = one_hot(actions.reshape(stop - start, N), choices, files["actions"].path, start)
        for name, values in (("obs", observations), ("actions", actions), ("rewards", rows["rewards"])):
            check_finite(values, files[name].path, start)
        discounts = rows["discounts"].reshape(stop - start, -1)
        ended = np.broadcast_to(discounts == 0, (stop - start, N)) & there
        rewards = np.broadcast_to(rows["rewards"].reshape(stop - start, -1), (stop - start, N))
        return joint_episode(
            spec, held(observations).swapaxes(0, 1), actions.swapaxes(0, 1), rewards, ended, held(there)
        )


_KEEP = "with strip_agent_ids=False (--no-strip-agent-ids) observations are taken as they are"


def _path_lengths(file: NpyFile, steps: int) -> list[int]:
    lengths = file.rows(0, len(file)).reshape(-1)
    if (lengths < 1).any() or (lengths > steps).any() or (lengths % 1).any() or lengths.sum() != steps:
        raise ValueError(
            f"{file.path} adds up to {lengths.sum():,} steps, but obs.npy has {steps:,}, in whole paths of 1 or more; "
            "the files are not of the same data."
        )
    return [int(length) for length in lengths]


def _check_ids(ids: np.ndarray, path: Path, start: int) -> None:
    wrong = np.argwhere((ids != np.eye(ids.shape[1])).any(-1))
    if len(wrong):
        row, agent = wrong[0]
        raise ValueError(
            f"{path}: row {start + row} has no one-hot id in front of agent {agent}'s observation; {_KEEP}."
        )
