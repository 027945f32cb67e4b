"""Trains planners on teams of 2 to 6 robots, some of them open, and runs them with more, and with others all the time.

``open_team_8_success`` and ``open_team_12_success``: teams larger than any in training, with a separation guide and the
safety filter, beside neither. ``enter_leave_drop`` (with the guide): robots enter and leave every
2 s; how much more often a robot that is not called away fails than one of a team of 4 that stays (its interval takes
the robots of one schedule to be independent). Goes on from the planners of ``benchmark_control.py --rows
crossing_open_4``. Data, planners and evaluations are kept below runs/benchmark/open_team: an interrupted benchmark
goes on. Writes to docs/results/teams.json.

    python scripts/benchmark_open_teams.py --seeds 1
"""

import argparse
from collections.abc import Callable
from typing import Any

from benchmark_control import FOLDER as RUNS
from benchmark_control import planner_of
from figures import RESULTS, Figure, kept, one_thread, record
from pettingzoo.utils import BaseParallelWrapper

import diffplan as dp
from diffplan.evaluation import Interval, mean_interval, share_interval
from diffplan.files import write_json

FOLDER = RUNS / "open_team"
COMMAND = "python scripts/benchmark_open_teams.py --seeds {seeds} --episodes {episodes} --schedules {schedules}"
TURNOVER = {"num_robots": 6, "turnover": 2.0}
PARTS = {f"data_{n}": ({"num_robots": n}, 300) for n in range(2, 7)} | {"data_turnover": (TURNOVER, 400)}
TRAINING = {"steps": 2_000, "batch_size": 64, "learning_rate": 4e-3, "checkpoint_every": 500}
APART, WEIGHT = 0.2, 5.0
FREE, GUIDED, SAFE = "with neither guide nor filter", "with the separation guide", "with guide and safety filter"
PART = 100  # schedules an evaluation


class Watched(BaseParallelWrapper):
    """Notes how every robot left, and counts robots that got an action and were not there, or had none and were."""

    def __init__(self, env: Any, left: list[dict[str, Any]]):
        super().__init__(env)
        self.joint_spec, self.left = env.joint_spec, left

    def step(self, actions: dict[str, Any]) -> tuple[Any, ...]:
        wrong = len(set(actions) ^ set(self.env.agents))
        outcome = self.env.step(actions)
        _, _, terminations, truncations, infos = outcome
        for name in infos:
            if terminations[name] or truncations[name] or wrong:
                facts = {"success": float(infos[name]["success"]), "called_away": infos[name]["called_away"]}
                self.left.append({**facts, "wrong": wrong})
        return outcome


def trained(seed: int) -> dp.DiffusionPlanner:
    """The planner for 4 robots, trained further on teams of 2 to 6; what is there already is read."""
    out = FOLDER / f"joint_{seed}"
    if (out / "planner").exists():
        return dp.DiffusionPlanner.from_pretrained(out)
    for name, (options, episodes) in PARTS.items():
        dp.collect_episodes("crossing-v0", out=FOLDER / name, episodes=episodes, env_options=options, progress=False)
    if not (FOLDER / "data").exists():
        dp.merge_stores([FOLDER / name for name in PARTS], FOLDER / "data")
    four = dp.DiffusionPlanner.from_pretrained(planner_of("crossing_open_4", seed))
    dataset = dp.load_dataset(FOLDER / "data", four.horizon, normalizer=four.normalizer)
    planner = four.for_agents(dataset.spec)
    dp.train(planner, dataset, seed=seed, out=out, resume=True, progress=False, **TRAINING)
    return planner


def evaluated(name: str, options: dict[str, Any], variant: str, seed: int, first: int, episodes: int) -> dict[str, Any]:
    """Success of every episode, and how every robot left; what is there already is read.

    Args:
        name: of the file.
        options: of the environment.
        variant: FREE, GUIDED or SAFE.
        seed: of the training.
        first: settles the episodes.
        episodes: how many.
    """
    path = FOLDER / f"{name}_{variant.replace(' ', '_')}_{first}.json"
    if (found := kept(path, episodes)) is None:
        env, planner, left = dp.make("crossing-v0", **options), trained(seed), []
        policy = dp.RecedingHorizonPolicy(
            planner.for_agents(env.joint_spec),
            guides=[] if variant == FREE else [dp.ConstraintGuide.separation(APART, WEIGHT)],
            safety=dp.SafetyFilter(**env.robot_limits) if variant == SAFE else None,
        )
        report = dp.evaluate(
            policy, lambda: Watched(dp.make("crossing-v0", **options), left), episodes=episodes, seed=first
        )
        found = {"success": report.success, "left": left}
        write_json(path, found)
        print(path, sum(report.success) / episodes, flush=True)
    return found


def stays(robots: int, variant: str, seed: int, episodes: int) -> list[float]:
    """Success of a team that nobody enters or leaves."""
    return evaluated(f"stays_{robots}", {"num_robots": robots}, variant, seed, 1_000 + seed, episodes)["success"]


def changes(seed: int, schedules: int) -> dict[str, list[Any]]:
    """Success of schedules and how every robot left, ``PART`` schedules at a time."""
    parts = [
        evaluated("changes", TURNOVER, GUIDED, seed, 1_000 + seed + PART * part, min(PART, schedules - PART * part))
        for part in range(-(-schedules // PART))
    ]
    return {name: [one for part in parts for one in part[name]] for name in ("success", "left")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=100, help="of a team that stays")
    parser.add_argument("--schedules", type=int, default=500, help="of teams that change")
    arguments = parser.parse_args()
    seeds, command = range(arguments.seeds), COMMAND.format(**vars(arguments))

    def figure(
        label: str,
        groups: list[list[float]],
        beside: dict[str, Figure],
        unit: str = "share",
        how: Callable[..., Interval] = share_interval,
    ) -> Figure:
        mine, count = how(groups), sum(map(len, groups))
        return Figure(label, mine.value, mine.low, mine.high, unit, arguments.seeds, count, command, beside)

    def success(robots: int, variant: str, beside: dict[str, Figure], label: str = "") -> Figure:
        return figure(label or variant, [stays(robots, variant, s, arguments.episodes) for s in seeds], beside)

    for robots in (8, 12):
        free = success(robots, FREE, {})
        record(RESULTS / "teams.json", [success(robots, SAFE, {free.figure: free}, f"open_team_{robots}_success")])
    four = success(4, GUIDED, {}, "a team of 4 that stays")
    found = [changes(seed, arguments.schedules) for seed in seeds]
    survivors = [[robot["success"] for robot in one["left"] if not robot["called_away"]] for one in found]
    wrong = [[float(robot["wrong"]) for robot in one["left"]] for one in found]
    beside = {
        four.figure: four,
        "robots that were not called away": figure("survivors", survivors, {}),
        "schedules in which all of them succeed": figure("schedules", [one["success"] for one in found], {}),
        "actions for absent robots": figure("wrong", wrong, {}, "actions", mean_interval),
    }
    lost = [[four.value - one for one in group] for group in survivors]
    record(RESULTS / "teams.json", [figure("enter_leave_drop", lost, beside, how=mean_interval)])


if __name__ == "__main__":
    one_thread()
    main()
