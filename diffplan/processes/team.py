"""A team for real: one process a robot, which talk over zenoh, and this process, which steps their world."""

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from pettingzoo import ParallelEnv
from rich.progress import Progress

from diffplan.envs.spaces import spec_from_env
from diffplan.evaluation import episode_seed
from diffplan.files import nan_to_none
from diffplan.planner_folder import read_spec
from diffplan.processes.frames import Kind, action_topic
from diffplan.processes.transport import Bus, free_endpoint
from diffplan.processes.world import EpisodeReport, RobotReport, World
from diffplan.spec import JointSpec

Mode = Literal["messages", "shared", "private"]
MODES: dict[str, dict[str, bool]] = {
    "messages": {"speak": True},
    "shared": {"speak": False, "shared_seed": True},
    "private": {"speak": False, "shared_seed": False},
}
STARTUP = 600.0  # seconds in which all robots must have loaded their planners
PARTING = 2.0  # seconds in which a robot that is told to end must have ended


@dataclass(frozen=True)
class TeamReport:
    """What happened.

    Args:
        rate: steps a second, as asked for.
        seconds: that the run took, from the first step on.
        steps: of the world.
        late: steps that began late, see ``World``.
        episodes: one by one; the last may be cut short.
        robots: {robot: what became of it}.
    """

    rate: float
    seconds: float
    steps: int
    late: int
    episodes: list[EpisodeReport]
    robots: dict[str, RobotReport]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, planning times as their number, median and maximum; NaN becomes null."""
        plain = asdict(self)
        for name, robot in self.robots.items():
            del plain["robots"][name]["planning_ms"]
            plain["robots"][name]["planning"] = robot.planning()
        return dict(nan_to_none(plain))


def run_team(
    planner: str | Path,
    env: ParallelEnv[str, Any, Any],
    *,
    mode: Mode = "messages",
    rate: float | None = None,
    episodes: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    loss: float = 0.0,
    safe: bool = False,
    senses_all: bool = False,
    kill: Mapping[str, int] | None = None,
    progress: bool = False,
) -> TeamReport:
    """Runs episodes in which every robot is an operating-system process with its own copy of the planner.

    An episode sets out when all have planned; from then on the world goes on at ``rate`` whether the robots keep up or
    not. A robot that does not answer in time brakes, and so does one whose process has ended: to the others it is an
    obstacle. No robot outlives this call, nor this process.

    Args:
        planner: folder of a run or of a planner.
        env: the world; its agents are the robots.
        mode: how the robots agree on a way: by messages, by drawing the same noise (shared), or not at all (noise of
            their own: private).
        rate: steps a second; None: 1 / dt, real time.
        episodes: how many; by default 1, or as many as fit into ``seconds``.
        seconds: stop then, also amid an episode.
        seed: settles the starts of the episodes (the same as those of ``evaluate``) and the robots' random streams.
        loss: share of the messages that each robot throws away.
        safe: every robot filters its own actions (``SafetyFilter``) by what the environment's ``robot_limits`` say.
        senses_all: whom a robot does not sense is not there, see ``Manners``.
        kill: {robot: step of the run before which its process is killed}, to see what the others do.
        progress: show a bar.

    Raises:
        ValueError: no planner there, or not for such robots; settings that make no sense; robots to kill that there
            are not. No process is started then.
        RuntimeError: a robot did not start; its last words are in the message.
        ImportError: zenoh is missing: ``pip install "diffplan[team]"``.
    """
    planned, kill = read_spec(planner), dict(kill or {})
    spec = spec_from_env(env, planned.dt)
    planned.check_same_roles(spec, "the planner", "the environment")
    rate = 1 / spec.dt if rate is None else rate
    _check(spec, mode, rate, episodes, seconds, loss, kill)
    limits = getattr(env, "robot_limits", None) if safe else None
    if safe and limits is None:
        raise ValueError(f"{env} does not say what its robots can do (robot_limits); run the team without safe.")
    endpoint, team = free_endpoint(), secrets.token_hex(8)
    settings = {
        "planner": str(planner),
        "spec": spec.to_dict(),
        "team": team,
        "endpoint": endpoint,
        "seed": seed,
        "manners": {**MODES[mode], "senses_all": senses_all},
        "loss": loss,
        "safety": limits,
    }
    topics = map(action_topic, range(spec.num_agents))
    with (
        Progress(disable=not progress, transient=True) as bar,
        Bus(team, topics, endpoint, world=True) as bus,
        started(spec.names, settings) as robots,
    ):
        task = bar.add_task("loading the planners", total=None)
        wait_until_ready(bus, robots)
        most = (1 if seconds is None else np.inf) if episodes is None else episodes
        bar.update(task, description="running", total=seconds if most == np.inf else most)
        world = World(env, spec, bus, rate, lambda name: robots[name].alive)
        begin, reports = time.monotonic(), list[EpisodeReport]()
        end = np.inf if seconds is None else begin + seconds

        def before_step(step: int) -> None:
            for name, when in kill.items():
                if when == step:
                    robots[name].kill()
            bar.update(task, completed=time.monotonic() - begin if most == np.inf else len(reports))

        while len(reports) < most and time.monotonic() < end:
            reports.append(world.run_episode(episode_seed(seed, len(reports)), end, before_step))
        return TeamReport(rate, time.monotonic() - begin, world.steps, world.late, reports, world.robots)


class RobotProcess:
    """A process that drives one robot, and the pipe that keeps it alive."""

    def __init__(self, settings: dict[str, Any]):
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by ``end``)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "diffplan.processes.robot"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is the parent's business; and Linux shares the processor among sessions
        )
        assert self._process.stdin is not None
        self._lifeline = self._process.stdin
        with suppress(BrokenPipeError):  # it ended already: whoever asks for it will see
            self._lifeline.write(json.dumps(settings).encode() + b"\n")
            self._lifeline.flush()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def last_words(self) -> str:
        """How it ended, and the last line that it wrote to standard error."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        said = next((line for line in reversed(lines) if line.strip()), "it said nothing")
        return f"exit code {self._process.poll()}: {said}"

    def release(self) -> None:
        """Tells the process to end."""
        with suppress(BrokenPipeError):
            self._lifeline.close()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """Returns once the process is no more."""
        self.release()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(PARTING)
        self.kill()
        self._errors.close()


@contextmanager
def started(names: tuple[str, ...], settings: dict[str, Any]) -> Iterator[dict[str, RobotProcess]]:
    """A process for each robot; all have ended when the body has, however that ended."""
    robots: dict[str, RobotProcess] = {}
    try:
        for name in names:
            robots[name] = RobotProcess(settings | {"name": name})
        yield robots
    finally:
        for robot in robots.values():
            robot.release()
        for robot in robots.values():
            robot.end()


def wait_until_ready(bus: Bus, robots: Mapping[str, RobotProcess]) -> None:
    """Returns when every robot has loaded its planner. Raises ``RuntimeError`` if one ends before or takes too long."""
    end = time.monotonic() + STARTUP
    for index, (name, robot) in enumerate(robots.items()):
        while not bus.take(action_topic(index), index, Kind.READY):
            if not robot.alive:
                raise RuntimeError(f"{name} did not start ({robot.last_words()}).")
            if time.monotonic() > end:
                raise RuntimeError(f"{name} was not ready after {STARTUP:g} s; this machine is too busy or too slow.")
            bus.wait(action_topic(index), 0.1)
    for index in range(len(robots)):  # who had to wait has said so many times
        bus.take(action_topic(index), index, Kind.READY)
    bus.refused.clear()


def _check(
    spec: JointSpec,
    mode: str,
    rate: float,
    episodes: int | None,
    seconds: float | None,
    loss: float,
    kill: dict[str, int],
) -> None:
    if mode not in get_args(Mode):
        raise ValueError(f"mode={mode!r}; choose one of {get_args(Mode)}.")
    if not 0 < rate < np.inf:
        raise ValueError(f"rate={rate}; give a positive number of steps a second.")
    if episodes is not None and episodes < 1:
        raise ValueError(f"episodes={episodes}; run at least one.")
    if seconds is not None and not seconds > 0:
        raise ValueError(f"seconds={seconds}; give a positive number.")
    if not 0 <= loss <= 1:
        raise ValueError(f"loss={loss}; give a share of the messages, 0 to 1.")
    unknown = [name for name in kill if name not in spec.agents]
    if unknown or any(step < 0 for step in kill.values()):
        raise ValueError(f"kill={kill}; name robots among {list(spec.names)}, and steps from 0 on.")
