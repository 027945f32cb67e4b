"""Runs four robots as processes at 20 Hz for ten minutes, kills one in the middle, and writes docs/results/teams.json.

    python scripts/benchmark_processes.py

``team_missed_steps`` counts the answers that the world waited for in vain, of the three that live on. The planner is
that of ``benchmark_control.py --rows crossing_open_4``, trained where missing. The world waits for the first plan of an
episode, which is not of the rate. A machine that is busy with other work
misses steps for that.
"""

import argparse
import os
from pathlib import Path

import psutil
from benchmark_control import planner_of
from figures import RESULTS, Figure, record

import diffplan as dp
from diffplan.processes.team import run_team
from diffplan.processes.world import EpisodeReport

COMMAND = "python scripts/benchmark_processes.py"
KILLED = "robot_1"
SEED = 1_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--planner", type=Path, help="another planner")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--rate", type=float, default=20.0)
    settings = parser.parse_args()
    busy = os.getloadavg()[0] / (os.cpu_count() or 1)
    middle, env = round(settings.rate * settings.seconds / 2), dp.make("crossing-v0", num_robots=4)
    report = run_team(
        settings.planner or planner_of("crossing_open_4", 0),
        env,
        rate=settings.rate,
        seconds=settings.seconds,
        seed=SEED,
        kill={KILLED: middle},
        progress=True,
    )
    left = [child for child in psutil.Process().children(recursive=True) if child.is_running()]
    others = {name: robot for name, robot in report.robots.items() if name != KILLED}
    ended = [name for name, robot in others.items() if robot.ended_at is not None]
    if ended or report.robots[KILLED].ended_at is None:
        raise SystemExit(f"{ended} ended by themselves, or {KILLED} did not; nothing was recorded.")
    number = len(report.episodes)

    def figure(name: str, value: float, unit: str, beside: dict[str, Figure] | None = None) -> Figure:
        return Figure(name, float(value), float(value), float(value), unit, 1, number, COMMAND, beside or {})

    before, after = parted(report.episodes, middle)
    beside = {
        "answered": figure("answered", sum(len(robot.planning_ms) for robot in others.values()), "steps"),
        "steps of the world that began late": figure("late", report.late, "steps"),
        "longest wait for first plans": figure("wait", 1e3 * max(one.setting_out for one in report.episodes), "ms"),
        "longest planning": figure("longest", max(max(robot.planning_ms) for robot in others.values()), "ms"),
        "other work on the machine before the run": figure("load", busy, "processes a processor"),
        "processes left": figure("left", len(left), "processes"),
        "success until one was killed": figure("before", share(one.success == 1 for one in before), "share"),
        "episodes with contact from then on": figure("after", share(one.contacts > 0 for one in after), "share"),
    }
    missed = sum(robot.missed for robot in others.values())
    record(RESULTS / "teams.json", [figure("team_missed_steps", missed, "steps", beside)])


def parted(episodes: list[EpisodeReport], step: int) -> tuple[list[EpisodeReport], list[EpisodeReport]]:
    """The episodes that were over before a step of the run, and the others that came to their end."""
    before, total = [], 0
    for episode in episodes:
        total += episode.steps
        if total <= step:
            before.append(episode)
    return before, [episode for episode in episodes[len(before) :] if not episode.cut]


def share(facts: object) -> float:
    """How many of these are true; 0 of none."""
    facts = list(facts)
    return sum(facts) / max(1, len(facts))


if __name__ == "__main__":
    main()
