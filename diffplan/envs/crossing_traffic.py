"""The scripted expert of open teams in ``crossing-v0``: everybody drives round the centre, newcomers wait for a gap."""

from typing import Any

import numpy as np
from jaxtyping import Float

from diffplan.envs.crossing_expert import CrossingExpert
from diffplan.envs.crossing_references import held, roundabout, soonest
from diffplan.spec import Actions, Observations

LANES = (0.5, 0.35, 0.65, 0.8)
"""Where half ellipses pass the centre (m); the first is everybody's, the others are for newcomers that would wait."""
STAY = 20
"""Steps for which a robot is taken to stand at its goal before it leaves."""
AWAY = 100.0
"""Where references of robots go that have left (m)."""


class TrafficExpert(CrossingExpert):
    """Leads the robots that are there at the start round the centre together, and each newcomer on a path of its own.

    A newcomer's path is the half ellipse and the wait before it with which it arrives soonest, clear of all references
    that are there already (prioritised planning, Erdmann and Lozano-Perez 1987).

    Args:
        env: a ``CrossingEnv`` with ``turnover`` that was just reset.
        style: one of ``STYLES[env.layout]``.
        rng: source of the speed and the disturbance.
    """

    def __init__(self, env: Any, style: str, rng: np.random.Generator):
        super().__init__(env, style, rng)
        self._obstacles, self._style = env.unwrapped.obstacles, style
        self._followed = set(env.unwrapped.agents)

    def _references(self, env: Any, style: str, speed: float) -> Float[np.ndarray, "L N 2"]:
        self._speed, there = speed, len(env.agents)
        self._ends = np.zeros(len(self._names), int)  # the steps at which paths end
        self.reference = np.zeros((1, len(self._names), 2))
        path = roundabout(env.starts[:there], env.goals[:there], env.obstacles, style, speed, self._dt, LANES[0])
        return self._written(list(range(there)), 0, path)

    def __call__(self, observations: Observations) -> Actions:
        for name in observations:
            if name not in self._followed:
                self._join(name, observations)
        self._followed &= set(observations)
        return super().__call__(observations)

    def _join(self, name: str, observations: Observations) -> None:
        """Finds a newcomer's path and writes it into the reference."""
        ahead = [self._ahead(self._names.index(other)) for other in observations if other in self._followed]
        start, goal = observations[name][None, :2].astype(float), observations[name][None, 4:6].astype(float)
        tried = []
        for lane in LANES:
            path = roundabout(start, goal, self._obstacles, self._style, self._speed, self._dt, lane)[:, 0]
            tried.append(held(path, soonest(path, ahead, 0)))
        self.reference = self._written([self._names.index(name)], self._step, min(tried, key=len)[:, None])
        self._followed.add(name)

    def _ahead(self, robot: int) -> Float[np.ndarray, "P 2"]:
        """A robot's reference from now on until it has left."""
        path = held(self.reference[::-1, robot], STAY)[::-1]
        return np.concatenate([path[self._step : self._ends[robot] + STAY], np.full((1, 2), AWAY)])

    def _written(self, robots: list[int], step: int, path: Float[np.ndarray, "P K 2"]) -> Float[np.ndarray, "L N 2"]:
        """The joint reference with these robots' path from ``step`` on; at its end they stay."""
        self._ends[robots] = step + len(path)
        missing = max(0, step + len(path) - len(self.reference))
        joint = np.concatenate([self.reference, np.repeat(self.reference[-1:], missing, 0)])
        joint[step:, robots] = path[np.minimum(np.arange(len(joint) - step), len(path) - 1)]
        return joint
