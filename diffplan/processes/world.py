"""The world server: steps one environment at a fixed rate, whoever answers; loads no network.

At the beginning of a step every robot is told what it observes and senses, and nothing else. At its end, one period
later, the world moves on with the actions that came. A robot whose action is missing brakes (the action nearest to 0),
and that is counted. An episode sets out when all robots have planned: its first step alone lasts until everyone has
answered, ``SETTING_OUT`` at most, for the first plan costs several times as much as those that go on from it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pettingzoo import ParallelEnv

from diffplan.evaluation import Tally
from diffplan.processes.frames import WORLD, Counters, Frame, Kind, action_topic, pack_view, unpack_action, view_topic
from diffplan.processes.transport import Bus
from diffplan.spec import Actions, Infos, JointSpec, Observations, sensed_by

SETTING_OUT = 1.0  # seconds, or a period where that is longer


@dataclass
class RobotReport:
    """What became of one robot.

    Args:
        missed: steps without its action, while its process was alive.
        ended_at: step of the run at which its process had ended; None: it lived to the end.
        counters: what it counted itself, as of its last action.
        planning_ms: of every step that it answered, from what it saw to what it does.
        refused: frames on its topic that were malformed or foreign.
    """

    missed: int = 0
    ended_at: int | None = None
    counters: Counters = field(default_factory=Counters)
    planning_ms: list[float] = field(default_factory=list)
    refused: int = 0

    def planning(self) -> dict[str, float]:
        """How many steps it answered, and the median and maximum of its planning times (ms; NaN if there are none)."""
        times = self.planning_ms or [np.nan]
        return {"answers": len(self.planning_ms), "median_ms": float(np.median(times)), "max_ms": float(np.max(times))}


@dataclass(frozen=True)
class EpisodeReport:
    """One episode: whether all robots succeeded (NaN where the environment does not say), its return and contacts (as
    in ``EvaluationReport``), its steps, whether it was cut short because the time was over, and the seconds until all
    robots had planned its first step.
    """

    success: float
    total: float
    contacts: float
    steps: int
    cut: bool
    setting_out: float


class World:
    """Runs episodes of an environment whose robots are other processes.

    Args:
        env: the environment.
        spec: its agents.
        bus: listens to the ``action_topic`` of every robot.
        rate: steps a second.
        alive: whether the process of this robot is still there.

    Attributes:
        robots: {robot: what became of it}.
        steps: steps of the run so far.
        late: steps that began so late that the robots would have had less than half of their period; they got a whole
            one, and the run became that much longer.
    """

    def __init__(
        self, env: ParallelEnv[str, Any, Any], spec: JointSpec, bus: Bus, rate: float, alive: Callable[[str], bool]
    ):
        self.env, self.spec, self.bus, self.period, self.alive = env, spec, bus, 1 / rate, alive
        self.index = {name: index for index, name in enumerate(spec.names)}
        self.robots = {name: RobotReport() for name in spec.names}
        self.steps, self.late, self._episode, self._due = 0, 0, -1, time.monotonic()
        self._said: dict[str, np.ndarray] = {}  # by whom what was said in this step

    def run_episode(
        self, seed: int, end: float = np.inf, before_step: Callable[[int], None] = lambda step: None
    ) -> EpisodeReport:
        """Runs one episode, until it ends or the clock (``time.monotonic``) shows ``end``.

        Args:
            seed: settles its start.
            end: when to stop.
            before_step: called with the number of every step of the run.
        """
        self._episode += 1
        observations, infos = self.env.reset(seed=seed)
        tally, setting_out = Tally(), 0.0
        while self.env.agents and time.monotonic() < end:
            before_step(self.steps)
            self._keep_pace()
            self._show(tally.steps, observations, infos)
            if tally.steps == 0:
                setting_out = self._set_out()
            time.sleep(max(0.0, self._due - time.monotonic()))
            observations, rewards, _, _, infos = self.env.step(self._actions(tally.steps, observations))
            tally.step(rewards, infos)
            self.steps += 1
        cut = bool(self.env.agents)
        return EpisodeReport(tally.success, tally.total, tally.contacts, tally.steps, cut, setting_out)

    def _keep_pace(self) -> None:
        """Sets when this step ends: one period after the last one, or after now where that is too soon."""
        now, self._due = time.monotonic(), self._due + self.period
        if self._due - now < self.period / 2:
            self.late += self.steps > 0
            self._due = now + self.period

    def _set_out(self) -> float:
        """Returns as soon as everyone has answered the first step, which ends then; and after how many seconds."""
        began = time.monotonic()
        while time.monotonic() < began + max(SETTING_OUT, self.period):
            waited_for = [name for name in self.env.agents if not self._hear(name, 0) and self.alive(name)]
            if not waited_for:
                break
            self.bus.wait(action_topic(self.index[waited_for[0]]), self.period)
        self._due = time.monotonic()
        return self._due - began

    def _show(self, step: int, observations: Observations, infos: Infos) -> None:
        """Tells every robot what it observes and senses."""
        there = {name: observations[name] for name in self.env.agents}
        for name, observation in there.items():
            view = pack_view(self.spec, observation, sensed_by(name, there, infos, self.spec))
            self.bus.publish(view_topic(self.index[name]), Frame(Kind.VIEW, WORLD, self._episode, step, view))
        for name in set(self.robots) - set(self.env.agents):
            self._answers(name)  # of one that has not entered, nothing but that it waits

    def _actions(self, step: int, observations: Observations) -> Actions:
        """What the robots do: what they want, within their bounds, of what is legal; those that did not say brake."""
        for name in self.env.agents:
            if not self._hear(name, step):
                self.robots[name].missed += self.alive(name)
        for name, robot in self.robots.items():
            if robot.ended_at is None and not self.alive(name):
                robot.ended_at = self.steps
        stacked, _ = self.spec.stack_actions(self._said)
        self._said = {}
        seen, there = self.spec.stack_observations({name: observations[name] for name in self.env.agents})
        return self.spec.unstack_actions(stacked, there, seen)

    def _hear(self, name: str, step: int) -> bool:
        """Whether this robot has said by now what it wants to do in this step."""
        robot = self.robots[name]
        for frame in self._answers(name):
            try:
                action, robot.counters = unpack_action(self.spec, name, frame.body)
            except ValueError:
                robot.refused += 1
                continue
            if (frame.episode, frame.step) == (self._episode, step) and name not in self._said:
                robot.planning_ms.append(robot.counters.planning_us / 1e3)
                self._said[name] = action
        return name in self._said

    def _answers(self, name: str) -> list[Frame]:
        """The action frames of a robot that came in this step; what came beside them on its topic is counted."""
        index = self.index[name]
        frames = self.bus.take(action_topic(index), index, Kind.READY, Kind.ACTION)
        self.robots[name].refused += self.bus.refused.pop(action_topic(index), 0)
        return [frame for frame in frames if frame.kind is Kind.ACTION]
