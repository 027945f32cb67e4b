"""Clips of NBA games (SportVU, ``nba_sportvu``) as stores: what ``benchmark_real.py`` learns from and is tested on."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from diffplan.datasets import TrajectoryStore
from diffplan.spec import JointSpec, Role
from diffplan.trajectory import Trajectory

HOOPS = np.array([[5.25, 25.0], [88.75, 25.0]], np.float32)  # feet; they stand on the court like players
OFTEN = 4  # times that a rebound is drawn for once that a clip is which ends in a score


def players(data: Path, part: str, out: Path) -> TrajectoryStore:
    """The clips to learn from ("train") or to be tested on, in feet: a ball, two teams of five and two hoops."""
    if not (out / "manifest.json").exists():
        teams = {f"player_{index}": "home" if index < 5 else "away" for index in range(10)}
        agents = {"ball": "ball"} | teams | {"hoop_0": "hoop", "hoop_1": "hoop"}
        role = Role(observation_size=2, action_low=(), action_high=(), position=(0, 1))
        spec = JointSpec(agents, dict.fromkeys(agents.values(), role), dt=0.12)
        chosen = clips_to_learn_from(data) if part == "train" else clips(data, "rebound_test")
        TrajectoryStore.write(out, spec, f"NBA SportVU {part}", (clip.episode(spec) for clip in chosen))
    return TrajectoryStore.open(out)


def clips_to_learn_from(data: Path) -> "list[Clip]":
    """Rebounds but for the last tenth, which is left to development, and what ended in a score.

    Of the latter nothing that overlaps with rebounds which are not learned from. A quarter of all windows are of
    rebounds, which are what the planner is tested on.
    """
    rebounds = clips(data, "rebound_train")
    tenth = len(rebounds) // 10
    unseen = clips(data, "rebound_test") + rebounds[-tenth:]
    scores = [clip for clip in clips(data, "score_train") if not any(clip.overlaps(other) for other in unseen)]
    return rebounds[:-tenth] * OFTEN + scores


@dataclass(frozen=True)
class Clip:
    """What was recorded of a game: the places [L, 13, 2], and between which times on the clock (s), which runs down."""

    places: np.ndarray
    period: str
    start: float
    stop: float

    def overlaps(self, other: "Clip", margin: float = 3.0) -> bool:
        near = self.stop - margin <= other.start and other.stop - margin <= self.start
        return near and self.period == other.period

    def episode(self, spec: JointSpec) -> Trajectory:
        L, N = len(self.places) - 1, spec.num_agents
        unpaid, unended = np.zeros((L, N), np.float32), np.zeros((L, N), bool)
        there = np.ones((L + 1, N), bool)
        return Trajectory(spec, self.places, unpaid[..., None][..., :0], unpaid, unended, unended, there)


def clips(data: Path, name: str) -> list[Clip]:
    """All of a file; their names end with the period, start and stop."""
    with np.load(data / "nba_sportvu" / f"{name}.npz", allow_pickle=False) as arrays:
        places, offsets, names = arrays["xy"].astype(np.float32), arrays["offsets"].tolist(), arrays["clip"].tolist()
    places = np.concatenate((places, np.broadcast_to(HOOPS, (len(places), *HOOPS.shape))), axis=1)
    when = [one.rsplit("_", 2) for one in names]
    return [
        Clip(places[first:last], period, float(start), float(stop))
        for (first, last), (period, start, stop) in zip(pairwise(offsets), when, strict=True)
    ]
