"""The barrier of the safety filter: how velocity servos respond, and which velocity changes keep robots apart.

A command ``c`` changes the velocity ``v`` of one axis within a step by ``u = F(c - v)``, the answer of a servo with
acceleration ``clip((c - v) / time_constant, +-max_acceleration)``. ``F`` is monotone, so limits of commands are limits
of ``u``, and ``u`` gives the command back.

For two discs with gap ``m`` (m) and closing speed ``s`` (m/s), ``h = sqrt(2 b m) - s`` is a barrier function (Wang,
Ames, Egerstedt 2017, Safety barrier certificates for collisions-free multirobot systems, section III): while
``h >= 0`` they can still brake, together by ``b``, before they touch. Asked for at the end of the step, as in
discrete-time barrier functions (Agrawal, Sreenath 2017, section III), it is one linear constraint a pair:

    ``n . (u_i - u_j) >= s - S(m, s)``,  ``S = sqrt(2 b (m - dt (s + S) / 2))``

with ``n`` the direction from j to i. It errs on the safe side where the pair passes aside: the true distance is at
least the one along ``n``.

Where only ``u_i`` is ours, and j filters for itself, each takes a share of ``n . u >= s - S`` (ibid., section IV): half
of the room while there is some, and all of a lack, so that it is made good also beside a j that only goes on. One
robot's brakes must do for that, so ``S`` counts on these alone, as beside an obstacle.
"""

import functools
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import daqp
import numpy as np
from jaxtyping import Float

ROUNDING = 1e-6
"""Velocities closer than this (m/s) are equal."""
_SOFT = 8
"""What daqp calls a constraint that may be broken, at a price."""


@dataclass(frozen=True)
class VelocityServo:
    """What a commanded velocity, held for ``dt`` (s), does to the velocity of one axis.

    Args:
        max_acceleration: greatest acceleration (m/s^2).
        time_constant: of the approach to the command while the acceleration is below that (s).
        dt: time for which a command is held (s).
    """

    max_acceleration: float
    time_constant: float
    dt: float

    def change(self, excess: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, "N 2"]:
        """Changes of velocity (m/s) by commands that exceed it by ``excess`` (m/s)."""
        excesses, changes = self._table
        return np.copysign(np.interp(np.abs(excess), excesses, changes), excess)

    def excess(self, change: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, "N 2"]:
        """By how much commands must exceed the velocity (m/s) to change it so (m/s)."""
        excesses, changes = self._table
        return np.copysign(np.interp(np.abs(change), changes, excesses), change)

    @cached_property
    def _table(self) -> tuple[Float[np.ndarray, "K"], Float[np.ndarray, "K"]]:
        most, constant = self.max_acceleration, self.time_constant
        excess = np.linspace(0, most * (self.dt + constant), 513)
        at_most = np.clip(excess / most - constant, 0, self.dt)
        rest = np.minimum(excess, most * constant)
        return excess, most * at_most - rest * np.expm1((at_most - self.dt) / constant)


def fastest(gap: Any, closing: Any, brake: Any, dt: float) -> Any:
    """The greatest closing speed after the step (m/s) from which ``brake`` (m/s^2) ends it within the gap left then.

    Args:
        gap: now (m).
        closing: speed now (m/s).
        brake: deceleration to count on (m/s^2).
        dt: time of the step (s).
    """
    lost = brake * dt / 2
    return np.sqrt(np.maximum(lost**2 + 2 * brake * gap - 2 * lost * closing, 0)) - lost


def constraints(
    positions: Float[np.ndarray, "N 2"],
    velocities: Float[np.ndarray, "N 2"],
    partners: Float[np.ndarray, "L 4"],
    obstacles: Float[np.ndarray, "M 5"],
    low: Float[np.ndarray, "N 2"],
    high: Float[np.ndarray, "N 2"],
    reach: float,
    brake: float,
    dt: float,
) -> tuple[Float[np.ndarray, "K N 2"], Float[np.ndarray, "K"]]:
    """``(rows * u).sum((1, 2)) >= least``: a row a pair that changes within ``low`` and ``high`` could break.

    Args:
        positions: of the robots (m).
        velocities: of the robots (m/s).
        partners: position and velocity of robots that filter for themselves.
        obstacles: boxes that stand still: the centre's x and y, half their width and height (0 and 0: a point), and how
            far around them is not free (m).
        low: least change of velocity (m/s).
        high: greatest change of velocity (m/s).
        reach: distance from a robot's centre that it keeps free of others' (m).
        brake: deceleration to count on, one robot's (m/s^2).
        dt: time of the step (s).
    """
    robots, discs = len(positions), len(positions) + len(partners)
    i, j = _pairs(robots, discs + len(obstacles))
    at = np.concatenate([positions, partners[:, :2], obstacles[:, :2]])
    moving = np.concatenate([velocities, partners[:, 2:], np.zeros((len(obstacles), 2))])
    still = np.zeros((len(at) - robots, 2))
    low, high = np.concatenate([low, still]), np.concatenate([high, still])
    reaches = np.concatenate([np.full(discs, reach), obstacles[:, 4]])
    sides = np.concatenate([np.zeros((discs, 2)), obstacles[:, 2:4]])
    normal, distance = _way_out(at[i] - at[j], sides[j])
    closing = -(normal * (moving[i] - moving[j])).sum(1)
    brakes = np.where(j < robots, 2 * brake, brake)
    least = closing - fastest(distance - reaches[i] - reaches[j], closing, brakes, dt)
    least = np.where((robots <= j) & (j < discs) & (least < 0), least / 2, least)
    worst = np.minimum(normal * (low[i] - high[j]), normal * (high[i] - low[j])).sum(1)
    near = np.flatnonzero(worst < least)
    rows = np.zeros((len(near), len(at), 2))
    rows[np.arange(len(near)), i[near]], rows[np.arange(len(near)), j[near]] = normal[near], -normal[near]
    return rows[:, :robots], least[near]


def _way_out(
    apart: Float[np.ndarray, "K 2"], sides: Float[np.ndarray, "K 2"]
) -> tuple[Float[np.ndarray, "K 2"], Float[np.ndarray, "K"]]:
    """Unit vectors that lead straight away from boxes, and the distances to these (m), below 0 inside of one.

    Args:
        apart: from a box's centre to the point (m).
        sides: half the box's width and height (m); 0 and 0: a point.
    """
    depth = np.abs(apart) - sides
    inside, shallow = (depth <= 0).all(1), depth == depth.max(1, keepdims=True)
    out = np.where(inside[:, None], shallow, np.maximum(depth, 0))  # from within by the nearest side
    length = np.linalg.norm(out, axis=1)
    return np.copysign(out / length[:, None], apart), np.where(inside, depth.max(1), length)


@functools.lru_cache(maxsize=16)
def _pairs(robots: int, things: int) -> tuple[np.ndarray, np.ndarray]:
    """Every robot with every later thing."""
    return np.triu_indices(robots, 1, things)


def nearest(
    wanted: Float[np.ndarray, "N 2"],
    rows: Float[np.ndarray, "K N 2"],
    least: Float[np.ndarray, "K"],
    low: Float[np.ndarray, "N 2"],
    high: Float[np.ndarray, "N 2"],
    soft: bool = False,
) -> Float[np.ndarray, "N 2"] | None:
    """The point within the bounds nearest to ``wanted`` that keeps the constraints, or breaks them least if ``soft``.

    ``wanted`` is within the bounds. None: there is no such point.
    """
    flat = rows.reshape(len(least), wanted.size)
    if (flat @ wanted.ravel() >= least - ROUNDING).all():
        return wanted
    upper, lower = np.append(high, np.full(len(least), 1e30)), np.append(low, least)
    sense = np.repeat(np.array([0, _SOFT if soft else 0], np.int32), [wanted.size, len(least)])
    found, _, flag, _ = daqp.solve(np.eye(wanted.size), -wanted.ravel(), flat, upper, lower, sense)
    return found.reshape(wanted.shape) if flag > 0 and np.isfinite(found).all() else None
