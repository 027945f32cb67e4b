"""Trains planners on teams of 2 to 6 robots, some of them open, and runs them with more, and with others all the time.

``open_team_8_success`` and ``open_team_12_success``: teams larger than any in training. ``enter_leave_drop``: robots
enter and leave every 2 s; how much more often a robot that is not called away fails than one in a team of the same
planner that stays. Data, planners and evaluations are kept below runs/benchmark/open_team: an interrupted benchmark
goes on. Writes to docs/results/teams.json.

    python scripts/benchmark_open_teams.py --seeds 1
"""

import argparse
import os
import sys
from collections.abc import Iterator
from typing import Any

from benchmark_control import FOLDER as RUNS
from figures import RESULTS, Figure, record
from pettingzoo.utils import BaseParallelWrapper

import diffplan as dp
from diffplan.evaluation import mean_interval
from diffplan.files import read_json, write_json

FOLDER = RUNS / "open_team"
COMMAND = "python scripts/benchmark_open_teams.py --seeds {seeds}"
TURNOVER = {"num_robots": 6, "turnover": 2.0}
PARTS = {f"data_{n}": ({"num_robots": n}, 300) for n in range(2, 7)} | {"data_turnover": (TURNOVER, 400)}
TRAINING = {"steps": 5_000, "batch_size": 64}
WIDTH, HORIZON, STEPS_BETWEEN = 64, 32, 20
APART, WEIGHT = 0.2, 10.0


class Watched(BaseParallelWrapper):
    """Notes how every robot left, and counts plans for robots that are not there."""

    def __init__(self, env: Any, left: list[dict[str, Any]]):
        super().__init__(env)
        self.joint_spec, self.left = env.joint_spec, left

    def step(self, actions: dict[str, Any]) -> tuple[Any, ...]:
        absent = len(set(actions) - set(self.env.agents))
        seen, rewards, terminations, truncations, infos = self.env.step(actions)
        for name, info in infos.items():
            if terminations[name] or truncations[name]:
                stays = not info["called_away"]
                self.left.append({"success": float(info["success"]), "stays": stays, "absent": absent})
        return seen, rewards, terminations, truncations, infos


def trained(seed: int) -> dp.DiffusionPlanner:
    """A planner for teams of 2 to 6 robots; what is there already is read."""
    for name, (options, episodes) in PARTS.items():
        dp.collect_episodes("crossing-v0", out=FOLDER / name, episodes=episodes, env_options=options, workers=0)
    if not (FOLDER / "data").exists():
        dp.merge_stores([FOLDER / name for name in PARTS], FOLDER / "data")
    dataset = dp.load_dataset(FOLDER / "data", horizon=HORIZON)
    planner = dp.DiffusionPlanner.for_dataset(dataset, width=WIDTH, seed=seed)
    dp.train(planner, dataset, seed=seed, out=FOLDER / f"joint_{seed}", resume=True, progress=False, **TRAINING)
    return planner
