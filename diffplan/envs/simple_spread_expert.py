"""A scripted expert for ``mpe:simple_spread_v3``: agree on who covers which landmark, drive there, stop.

Landmarks that lie nearer to each other than two agents are wide are covered from a little apart: touching costs more.
"""

from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from diffplan.envs.behavior import drifted
from diffplan.spec import Actions, Observations

STYLES = ("nearest", "second")
"""``nearest``: the assignment of least squared distance; ``second``: the next best one, another way to do the same."""
MEDIUM_NOISE = 1.5  # about half-way between random and expert
DISTURBANCE = 0.15
"""Size of the random disturbance of the pushes, which are at most 1."""

_CLEARANCE = 0.31  # agents are 0.3 wide
_GAIN = 4.0  # 1/s
_STEP, _KEEP, _PUSH = 0.1, 0.75, 0.5  # mpe2: x += 0.1 v, then v <- 0.75 v + 0.5 u


class SimpleSpreadExpert:
    """Drives all agents of one episode: the assignment is made at the first call and kept.

    Args:
        env: not used; the observations tell everything.
        style: one of ``STYLES``.
        rng: source of the disturbance.

    A smooth random disturbance of the pushes (correlated over about ten steps) shows recovery in the data.
    """

    def __init__(self, env: Any, style: str, rng: np.random.Generator):
        self._assign = _best_assignment if style == "nearest" else _second_assignment
        self._goals: Float[np.ndarray, "N 2"] | None = None
        self._rng, self._drift = rng, np.zeros(2)

    def __call__(self, observations: Observations) -> Actions:
        stacked = np.stack(list(observations.values()))
        velocity, position = stacked[:, :2], stacked[:, 2:4]
        if self._goals is None:
            self._goals = self._choose_goals(stacked)
        wanted = _GAIN * (self._goals - position - _STEP * velocity)
        self._drift = drifted(self._drift, self._rng.normal(size=velocity.shape))
        push = np.clip(np.clip((wanted - _KEEP * velocity) / _PUSH, -1, 1) + DISTURBANCE * self._drift, -1, 1)
        zeros, (x, y) = np.zeros(len(push)), push.T
        actions = np.stack([zeros, -x, x, -y, y], 1).clip(0, 1).astype(np.float32)
        return dict(zip(observations, actions, strict=True))

    def _choose_goals(self, stacked: Float[np.ndarray, "N O"]) -> Float[np.ndarray, "N 2"]:
        N = len(stacked)
        if stacked.shape[1] != 6 * N:
            raise ValueError(
                f"observations have {stacked.shape[1]} entries, the expert of simple_spread needs all {6 * N}; "
                "leave num_agent_neighbors and num_landmark_neighbors at None."
            )
        ways = stacked[:, 4 : 4 + 2 * N].reshape(N, N, 2)  # from each agent to each landmark
        landmark = self._assign((ways**2).sum(-1))
        return _apart(stacked[:, 2:4] + ways[np.arange(N), landmark])


def _best_assignment(cost: Float[np.ndarray, "N N"]) -> np.ndarray:
    return np.asarray(linear_sum_assignment(cost)[1])


def _second_assignment(cost: Float[np.ndarray, "N N"]) -> np.ndarray:
    """The best assignment that differs from the best one (Murty 1968: forbid each of its pairs in turn)."""
    best, agents = _best_assignment(cost), np.arange(len(cost))
    if len(cost) == 1:
        return best
    others = []
    for agent in agents:
        forbidden = cost.copy()
        forbidden[agent, best[agent]] = 1e6
        others.append(_best_assignment(forbidden))
    return min(others, key=lambda landmark: float(cost[agents, landmark].sum()))


def _apart(goals: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, "N 2"]:
    """Pushes goals that are too near to each other apart, pair by pair."""
    goals = goals.copy()
    for _ in range(20):
        for i in range(len(goals)):
            for j in range(i):
                gap = goals[i] - goals[j]
                distance = max(float(np.linalg.norm(gap)), 1e-6)
                move = max(_CLEARANCE - distance, 0) / 2 * gap / distance
                goals[i], goals[j] = goals[i] + move, goals[j] - move
    return goals
