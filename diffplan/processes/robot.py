"""One robot as a process of its own: ``python -m diffplan.processes.robot``, started by ``run_team``.

Its settings are one line of JSON on standard input. That stays open as a lifeline: when it ends, because the run is
over or because the parent died, however suddenly, the robot ends at once.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from diffplan.processes.frames import (
    WORLD,
    Counters,
    Frame,
    Kind,
    action_topic,
    message_topic,
    pack_action,
    unpack_view,
    view_topic,
)
from diffplan.processes.transport import Bus
from diffplan.spec import JointSpec

PATIENCE = 0.1  # seconds between two frames that say READY


class Member(Protocol):
    """What drives a robot through one episode, e.g. a ``TeamMember``."""

    def receive(self, data: bytes) -> None:
        """Hears a message, whatever it is."""

    def act(
        self, observation: np.ndarray, sensed: Mapping[str, np.ndarray], step: int
    ) -> tuple[np.ndarray, bytes | None]:
        """What to do now, and what to tell the others, if anything."""


class Robot:
    """Connects a member to the world and to the other robots.

    Args:
        begin: makes the member for an episode from its seed, the same for all robots.
        name: its name in the spec.
        spec: all agents.
        bus: listens to ``heard_by_robot(spec, name)``.
        seed: of the run.
        loss: share of the messages to throw away, to see how the team does without them.
    """

    def __init__(
        self, begin: Callable[[int], Member], name: str, spec: JointSpec, bus: Bus, seed: int = 0, loss: float = 0.0
    ):
        self.begin, self.name, self.spec, self.bus, self.seed, self.loss = begin, name, spec, bus, seed, loss
        self.index, self.counters = spec.names.index(name), Counters()
        self.member: Member | None = None
        self._partners = [index for index in range(spec.num_agents) if index != self.index]
        self._rng = np.random.default_rng([seed, self.index])
        self._now = (-1, -1)  # episode and step

    def run(self) -> None:
        """Acts on every view of the world, the newest where several wait; never returns."""
        while True:
            if self.bus.wait(view_topic(self.index), PATIENCE):
                self.look(time.perf_counter())
            elif self.member is None:
                self.bus.publish(action_topic(self.index), Frame(Kind.READY, self.index))

    def look(self, started: float) -> None:
        """Acts on the newest view, unless that was acted on already or does not fit."""
        frame = max(self.bus.take(view_topic(self.index), WORLD, Kind.VIEW), key=_when, default=None)
        if frame is None or _when(frame) <= self._now:
            return
        try:
            own, sensed = unpack_view(self.spec, self.name, frame.body)
        except ValueError:
            self.bus.refused[view_topic(self.index)] += 1
            return
        if self.member is None or frame.episode > self._now[0]:
            self.member = self.begin(int(np.random.SeedSequence([self.seed, frame.episode]).generate_state(1)[0]))
        self._now = _when(frame)
        self._listen(self.member)
        action, message = self.member.act(own, sensed, frame.step)
        self.counters.dropped = self.bus.refused.total()
        self.counters.planning_us = round(1e6 * (time.perf_counter() - started))
        self._say(action_topic(self.index), Kind.ACTION, pack_action(action, self.counters))
        if message is not None:
            self.counters.sent += 1
            self.counters.sent_bytes += self._say(message_topic(self.index), Kind.MESSAGE, message)

    def _say(self, topic: str, kind: Kind, body: bytes) -> int:
        return self.bus.publish(topic, Frame(kind, self.index, *self._now, body))

    def _listen(self, member: Member) -> None:
        """Gives the member what its partners said in this episode, less what is lost."""
        for partner in self._partners:
            for frame in self.bus.take(message_topic(partner), partner, Kind.MESSAGE):
                if frame.episode != self._now[0]:
                    continue
                if self._rng.random() < self.loss:
                    self.counters.lost += 1
                else:
                    member.receive(frame.body)
                    self.counters.heard += 1


def _when(frame: Frame) -> tuple[int, int]:
    return frame.episode, frame.step


def heard_by_robot(spec: JointSpec, name: str) -> list[str]:
    """The topics of one robot: its view of the world, and what its partners say."""
    mine = spec.names.index(name)
    return [view_topic(mine), *(message_topic(index) for index in range(spec.num_agents) if index != mine)]


def main() -> None:
    """Runs one robot until standard input ends."""
    settings = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    spec, name = JointSpec.from_dict(settings["spec"]), settings["name"]
    begin = load_member(Path(settings["planner"]), spec, name, settings["manners"], settings["safety"])
    with Bus(settings["team"], heard_by_robot(spec, name), settings["endpoint"]) as bus:
        Robot(begin, name, spec, bus, settings["seed"], settings["loss"]).run()


def _end_with_parent() -> None:
    # Not through sys.stdin: Python could not shut down while a thread waits there.
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(0)


def load_member(
    path: Path, spec: JointSpec, name: str, manners: Mapping[str, bool], limits: Mapping[str, Any] | None
) -> Callable[[int], Member]:
    """Loads the planner at ``path`` to drive ``name`` on one thread; it has planned, so that no step waits for that.

    With ``limits``, what a robot can do, a ``SafetyFilter`` has the last word.
    """
    import torch

    from diffplan.planners import DiffusionPlanner, SafetyFilter
    from diffplan.planners.manners import Manners
    from diffplan.planners.member import TeamMember

    torch.set_num_threads(1)
    planner = DiffusionPlanner.from_pretrained(path).for_agents(spec)
    polite, safety = Manners(**manners), SafetyFilter(**limits) if limits else None

    def begin(seed: int) -> Member:
        return TeamMember(planner, name, polite, seed, safety=safety)

    trial = begin(0)
    for step in range(3):
        trial.act(np.zeros(spec.role_of(name).observation_size, np.float32), {}, step)
    return begin


if __name__ == "__main__":
    main()
