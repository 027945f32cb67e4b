"""Robots of crossing-v0 that plan each for itself: silent, and talking. Writes docs/results/teams.json.

    python scripts/benchmark_teams.py --seeds 5

Uses the planners of ``benchmark_control.py --rows crossing_open_4 zero_shot_8``, trained where missing, and for 600
steps more on questions in which others' goals are often hidden. A robot never senses these goals, and sends at most
200 bytes a replan. ``sensing_gap_recovered``: 6 robots (the planner knows teams of 4 and 6) sense 0.8 m far; of the
success that silence with a shared seed loses against the planner that knows everything, the share that messages win
back. ``decentral_replan_ms`` is processor time of one thread. What is there already below runs/benchmark/teams is
read.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from benchmark_control import FOLDER, planner_of
from figures import RESULTS, Figure, median, one_thread, record, resampled

import diffplan as dp
from diffplan.evaluation import Interval, mean_interval, share_interval
from diffplan.files import read_json, write_json
from diffplan.planners.channel import Link
from diffplan.planners.manners import Manners
from diffplan.planners.member import TeamMember
from diffplan.planners.team import DecentralizedTeam

COMMAND = "python scripts/benchmark_teams.py --seeds {seeds} --episodes {episodes}"
STEPS = 600
SHARED, PRIVATE = Manners(speak=False), Manners(speak=False, shared_seed=False)
CENTRAL = None


@dataclass(frozen=True)
class Case:
    """Whose planner of ``benchmark_control``, how many robots, how far they sense, how they plan (None: all at once),
    how bad the link is, and whether everyone has a safety filter."""

    row: str = "crossing_open_4"
    robots: int = 4
    radius: float | None = None
    manners: Manners | None = field(default_factory=Manners)
    link: Link = field(default_factory=Link)
    safe: bool = False


FAR: dict[str, Any] = {"row": "zero_shot_8", "robots": 6, "radius": 0.8}
CASES = {
    "central": Case(manners=CENTRAL),
    "shared": Case(manners=SHARED),
    "shared seed and safety filter": Case(manners=SHARED, safe=True),
    "private": Case(manners=PRIVATE),
    "messages": Case(),
    "messages and safety filter": Case(safe=True),
    "messages with private seeds": Case(manners=Manners(shared_seed=False)),
    "loss": Case(link=Link(loss=0.3, delay=3)),
    "far_central": Case(**FAR, manners=CENTRAL),
    "far_shared": Case(**FAR, manners=SHARED),
    "far_messages": Case(**FAR),
}
BESIDE_MESSAGES = ("central", "messages and safety filter", "messages with private seeds")
CURVE = {
    "100 bytes a second": Case(manners=Manners(bytes_per_second=100)),
    "every step": Case(manners=Manners(repeat_every=1)),
}


def team_planner(row: str, seed: int) -> dp.DiffusionPlanner:
    """The planner of ``benchmark_control`` after some more training, in which others' goals are often hidden."""
    out = FOLDER / "teams" / f"{row}_{seed}"
    if (out / "planner").exists():
        return dp.DiffusionPlanner.from_pretrained(out)
    planner = dp.DiffusionPlanner.from_pretrained(planner_of(row, seed))
    store = dp.TrajectoryStore.open(FOLDER / row / "data")
    dataset = dp.TrajectoryDataset(store, horizon=planner.horizon, normalizer=planner.normalizer)
    mix = dp.QuestionMix(partial=0.3)
    dp.train(planner, dataset, steps=STEPS, batch_size=64, learning_rate=2e-3, mix=mix, seed=seed, out=out)
    return planner


def run(name: str, case: Case, seed: int, episodes: int) -> dict[str, Any]:
    """One seed of one case: the report of ``evaluate``, and what was said."""
    path = FOLDER / "teams" / f"{name}_{seed}_{episodes}.json".replace(" ", "_")
    if path.exists():
        return read_json(path)
    env = dp.make("crossing-v0", num_robots=case.robots, sensing_radius=case.radius)
    planner = team_planner(case.row, seed).for_agents(env.joint_spec)
    safety = dp.SafetyFilter(**env.robot_limits) if case.safe else None
    if case.manners is CENTRAL:
        policy: Any = dp.RecedingHorizonPolicy(planner, safety=safety)
    else:
        policy = DecentralizedTeam(planner, case.manners, case.link, safety=safety)
    report = dp.evaluate(policy, env, episodes=episodes, seed=1_000 + seed).to_dict()
    if case.manners is not CENTRAL:
        replans = case.robots * sum(report["steps"])
        report["bytes_a_replan"] = policy.stats.bytes_sent / replans
        report["consistency"] = float(np.mean(policy.stats.consistency))
    write_json(path, report)
    return report


class Bench:
    """Runs cases for all seeds and makes figures of them."""

    def __init__(self, seeds: int, episodes: int):
        self.seeds, self.episodes = seeds, episodes
        self.reports: dict[str, list[dict[str, Any]]] = {}

    def column(self, name: str, what: str = "success") -> list[Any]:
        if name not in self.reports:
            case = (CASES | CURVE)[name]
            self.reports[name] = [run(name, case, seed, self.episodes) for seed in range(self.seeds)]
        return [report[what] for report in self.reports[name]]

    def figure(self, label: str, value: Interval, unit: str = "share", beside: Sequence[Figure] = ()) -> Figure:
        command = COMMAND.format(seeds=self.seeds, episodes=self.episodes)
        count, baselines = self.seeds * self.episodes, {one.figure: one for one in beside}
        return Figure(label, value.value, value.low, value.high, unit, self.seeds, count, command, baselines)

    def success(self, label: str, name: str, *others: str) -> Figure:
        """Success of a case, with what was said, beside other cases' success."""
        beside = [self.figure(other, share_interval(self.column(other))) for other in others]
        beside += self.talk(name)
        return self.figure(label, share_interval(self.column(name)), beside=beside)

    def talk(self, name: str) -> list[Figure]:
        return [
            self.figure(label, mean_interval([[one] for one in self.column(name, what)]), unit)
            for label, what, unit in (
                ("bytes a robot and replan", "bytes_a_replan", "B"),
                ("consistency", "consistency", "m"),
            )
        ]

    def gap(self) -> Figure:
        """The share of the gap to the central planner that messages recover."""

        def share(means: np.ndarray) -> np.ndarray:
            central, silent, talking = means
            return (talking - silent) / np.where(central > silent, central - silent, np.nan)

        gap = resampled(share, [self.column(name) for name in ("far_central", "far_shared", "far_messages")])
        beside = [self.success("silent", "far_shared"), self.success("talking", "far_messages")]
        beside.append(self.figure("a planner that knows all", share_interval(self.column("far_central"))))
        return self.figure("sensing_gap_recovered", gap, beside=beside)

    def drop(self) -> Figure:
        both = zip(self.column("messages"), self.column("loss"), strict=True)
        lost = mean_interval([np.subtract(good, bad) for good, bad in both])
        return self.figure("loss_30_drop", lost, beside=self.talk("loss"))


def replan_ms(seed: int = 0, repeats: int = 200) -> Figure:
    """Processor time in which the last robot of four takes in three messages, plans, and makes its own message."""
    env = dp.make("crossing-v0", num_robots=4)
    planner, (observations, infos) = (
        team_planner("crossing_open_4", seed).for_agents(env.joint_spec),
        env.reset(seed=1_000),
    )

    def act(member: TeamMember, said: Sequence[bytes], step: int) -> tuple[float, bytes]:
        started = time.process_time()
        for data in said:
            member.receive(data)
        _, data = member.act(observations[member.name], infos[member.name]["sensed"], step)
        return 1e3 * (time.process_time() - started), data or b""

    def measured(label: str, times: Sequence[float], beside: dict[str, Figure]) -> Figure:
        return median(label, times, "ms", 1, len(times), COMMAND.format(seeds=1, episodes=100), beside)

    *others, last = (TeamMember(planner, name, Manners(repeat_every=1)) for name in env.agents)
    later, first = [], []
    for step in range(repeats):
        said = [act(member, (), step)[1] for member in others]
        later.append(act(last, said, step)[0])
        first.append(act(TeamMember(planner, last.name), said, step)[0])
    return measured("decentral_replan_ms", later, {"from noise": measured("from noise", first, {})})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=100)
    arguments = parser.parse_args()
    bench, out = Bench(arguments.seeds, arguments.episodes), RESULTS / "teams.json"
    record(out, [bench.success("decentral_messages_success", "messages", *BESIDE_MESSAGES)])
    record(out, [bench.success("decentral_shared_seed_success", "shared", "shared seed and safety filter")])
    record(out, [bench.success("decentral_private_success", "private")])
    record(out, [bench.drop()])
    record(out, [bench.success(f"messages_{name.replace(' ', '_')}_success", name) for name in CURVE])
    record(out, [replan_ms()])
    record(out, [bench.gap()])


if __name__ == "__main__":
    one_thread()
    main()
