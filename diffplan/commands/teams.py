"""Running a team for real: one process a robot."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from diffplan.commands.output import show
from diffplan.commands.worlds import Options, Run, make_world, parse_options

if TYPE_CHECKING:
    from diffplan.processes.team import TeamReport


@dataclass
class Team:
    """Runs a team for real: every robot is a process with its own copy of the planner; they talk over zenoh.

    The world goes on at a fixed rate; a robot that does not answer in time brakes. A
    robot whose process has ended is an obstacle to the others. Everything stays on
    this machine (loopback). Needs: pip install "diffplan[team]"

    For example:
      diffplan team runs/crossing
      diffplan team runs/crossing --env crossing-v0 --robots 4
      diffplan team runs/crossing --mode private --safe
      diffplan team runs/crossing --seconds 60 --rate 10 --loss 0.3
      diffplan team runs/crossing --kill robot_1@30 --json

    Args:
        path: folder of a run or of a planner.
        env: environment to act in; by default the one that the data are from.
        robots: how many; by default as many as that environment has.
        option: an option of the environment as NAME=VALUE; repeat it for more.
        mode: how robots agree on a way: by messages, by drawing the same noise (shared), or not at all (private noise).
        rate: steps a second; by default as many as a second of the environment has.
        episodes: how many; by default 1, or as many as fit into --seconds.
        seconds: stop then, also amid an episode.
        seed: settles the starts of the episodes, and the robots' random streams.
        loss: share of the messages that every robot throws away.
        safe: every robot changes its own actions where it would come too close to what it senses (SafetyFilter).
        senses_all: whom a robot does not sense is not there: for teams that robots enter and leave, and see far.
        kill: end a robot's process before a step of the run, as ROBOT@STEP; repeat it for more.
        json: print the report as JSON.
    """

    path: Run
    env: str | None = None
    robots: int | None = None
    option: Options = field(default_factory=list)
    mode: Literal["messages", "shared", "private"] = "messages"
    rate: float | None = None
    episodes: int | None = None
    seconds: float | None = None
    seed: int = 0
    loss: float = 0.0
    safe: bool = False
    senses_all: bool = False
    kill: Options = field(default_factory=list)
    json: bool = False

    def run(self) -> None:
        from diffplan.planner_folder import read_spec
        from diffplan.processes.team import run_team

        robots = {} if self.robots is None else {"num_robots": self.robots}
        env = make_world(read_spec(self.path), self.env, parse_options(self.option) | robots)
        kills = parse_kills(self.kill)
        report = run_team(
            self.path,
            env,
            mode=self.mode,
            rate=self.rate,
            episodes=self.episodes,
            seconds=self.seconds,
            seed=self.seed,
            loss=self.loss,
            safe=self.safe,
            senses_all=self.senses_all,
            kill=kills,
            progress=not self.json,
        )
        if self.json:
            return show(report.to_dict(), as_json=True)
        print_report(report)
        if idle := [f"{name}@{step}" for name, step in kills.items() if step >= report.steps]:
            print(f"--kill {' '.join(idle)}: the run was over after {report.steps} steps.")


def parse_kills(words: list[str]) -> dict[str, int]:
    """``["robot_1@30"]`` -> ``{"robot_1": 30}``. Raises ``ValueError`` for anything else."""
    kills: dict[str, int] = {}
    for word in words:
        name, _, step = word.rpartition("@")
        if not (name and step.isdecimal()):
            raise ValueError(f"--kill {word!r} is not ROBOT@STEP, e.g. --kill robot_1@30.")
        if name in kills:
            raise ValueError(f"--kill {word!r}: {name} is killed at step {kills[name]} already; name each robot once.")
        kills[name] = int(step)
    return kills


def print_report(report: "TeamReport") -> None:
    """What the team did, then what became of every robot."""
    from rich.console import Console
    from rich.table import Table

    whole = [episode for episode in report.episodes if not episode.cut]
    show(
        {
            "steps": f"{report.steps} in {report.seconds:.1f} s, {report.late} began late",
            "episodes": f"{len(whole)}, of which {sum(one.success == 1 for one in whole)} succeeded",
            "contacts": sum(one.contacts > 0 for one in whole),
        }
    )
    table = Table(box=None, pad_edge=False)
    for title in ("robot", "missed", "ended at", "plan ms", "at most", "sent", "bytes", "heard", "lost", "dropped"):
        table.add_column(title, justify="left" if title == "robot" else "right")
    for name, robot in report.robots.items():
        counted, planning = robot.counters, robot.planning()
        ended = "" if robot.ended_at is None else str(robot.ended_at)
        numbers = (counted.sent, counted.sent_bytes, counted.heard, counted.lost, counted.dropped + robot.refused)
        times = (f"{planning['median_ms']:.1f}", f"{planning['max_ms']:.1f}")
        table.add_row(name, str(robot.missed), ended, *times, *map(str, numbers))
    Console().print(table)
