"""The scripted expert of ``transport-v0``: the team drives the box like a car, pushing on its rear face.

Where to steer: along the curve of least bending, the shape of an elastic beam clamped in the box's pose and in the
goal's and pressed aside by a pillar in its way; it is computed anew from the present pose at every step. How to push:
each robot has a place on the rear face and moves as that point of the box should, and so much faster that its actuator
gives its share of the force against friction (line pushing, Lynch and Mason 1996). In a bend all places shift outwards,
where the same force turns more.
"""

from typing import Any

import numpy as np
from jaxtyping import Float

from diffplan.envs.behavior import drifted
from diffplan.envs.transport_model import (
    BOX_HALF,
    FRICTION,
    FRICTION_RADIUS,
    MAX_FORCE,
    ROBOT_RADIUS,
    V_MAX,
    VELOCITY_GAIN,
)
from diffplan.spec import Actions, Observations

STYLES = ("left", "right")
MEDIUM_NOISE = 0.13
SPEEDS, CREEP, SLOWDOWN, APPROACH, DISTURBANCE = (0.29, 0.37), 0.07, 2.0, 0.4, 0.02
"""Top speeds (m/s) to draw from; slowest speed (m/s) and speed per remaining way (1/s) at the end; speed of robots that
come to the box (m/s); standard deviation of the disturbance (m/s)."""
CLEARANCE, COMPLIANCE, LOOKAHEAD, MAX_CURVATURE = 0.06, 0.001, 0.35, 2.3
"""Between box and pillar (m); how softly the pillar presses once near (m^3); shortest curve to plan (m); 1/m."""
EDGE, SHIFT = 0.03, 0.03
"""Part of the rear face at either end that stays free (m); shift of the places per curvature (m^2)."""


class TransportExpert:
    """Drives all robots as a function of the present observations alone, at a top speed drawn from 0.29-0.37 m/s.

    A smooth random disturbance of the commands (2 cm/s, correlated over about ten steps) lets the data show recovery.

    Args:
        env: a ``TransportEnv``.
        style: on which side of the pillar the box passes, seen along the way: ``"left"`` or ``"right"``.
        rng: source of the speed and the disturbance.
    """

    def __init__(self, env: Any, style: str, rng: np.random.Generator):
        self._side, self._rng = {"left": 1.0, "right": -1.0}[style], rng
        self._speed = float(rng.uniform(*SPEEDS))
        self.labels = {"speed": round(self._speed, 3)}
        self._drift: np.ndarray = np.zeros((env.unwrapped.num_robots, 2))

    def __call__(self, observations: Observations) -> Actions:
        stacked = np.stack(list(observations.values())).astype(float)
        scene = stacked[0, 4:]
        box_axes = _axes(scene[2:4])
        robots = (stacked[:, :2] - scene[:2]) @ box_axes
        curvature, remaining = steer(scene, self._side)
        commands = push(robots, curvature, remaining, self._speed) @ box_axes.T
        self._drift = drifted(self._drift, self._rng.normal(size=self._drift.shape))
        bounded = np.clip(commands + DISTURBANCE * self._drift, -V_MAX, V_MAX).astype(np.float32)
        return dict(zip(observations, bounded, strict=True))


def steer(scene: Float[np.ndarray, "11"], side: float) -> tuple[float, float]:
    """Curvature (1/m) to steer now, and how far it still is to the goal (m).

    The line from pillar to goal is the x axis, with the goal at x = 0. The cubic of length L from (x, y, slope) to the
    goal bends by ``-6 y / L^2 - (4 slope + 2 goal slope) / L`` at its start. A force at distances a and b from the ends
    of a clamped beam lifts it by ``a^3 b^3 / 3 L^3`` there and bends it by ``a b^2 / L^2`` at its start.

    Args:
        scene: pose of the box, pose of the goal (x, y, cosine, sine), pillar (x, y, radius).
        side: 1 to pass the pillar on the left, -1 on the right.
    """
    goal, pillar, radius = scene[4:6], scene[8:10], scene[10]
    axes, way = _axes((goal - pillar) / np.linalg.norm(goal - pillar)), float(np.linalg.norm(goal - pillar))
    (x, y), (cos, sin), (goal_cos, goal_sin) = (scene[:2] - goal) @ axes, scene[2:4] @ axes, scene[6:8] @ axes
    slope, goal_slope = sin / max(cos, 0.3), goal_sin / max(goal_cos, 0.3)
    length = max(-x, LOOKAHEAD)
    y -= goal_slope * (x + length)  # once near, aim beyond the goal
    bend = -6 * y / length**2 - (4 * slope + 2 * goal_slope) / length
    a, b = -way - x, length + way + x
    if a > 0:
        height = y + slope * a + bend * a**2 / 2 + (goal_slope - slope - bend * length) * a**3 / (3 * length**2)
        missing = max(0.0, BOX_HALF[1] + radius + CLEARANCE - side * height)
        bend += side * missing * 3 * length * a * b**2 / (a**3 * b**3 + COMPLIANCE * length**3)
    curvature = bend / (1 + slope**2) ** 1.5
    return float(np.clip(curvature, -MAX_CURVATURE, MAX_CURVATURE)), float(-x)


def push(
    robots: Float[np.ndarray, "N 2"], curvature: float, remaining: float, top_speed: float
) -> Float[np.ndarray, "N 2"]:
    """Velocities (m/s) of robots that drive the box along ``curvature``, in the box's frame, as ``robots`` (m) is."""
    error = _places(robots, curvature) - robots
    error[:, 0] -= np.clip(1.5 * np.abs(error[:, 1]) - 0.03, 0.0, 0.12)  # come to the face from behind
    ready = np.clip(1.5 - 0.5 * np.max(np.abs(error) / [0.015, 0.03], initial=0.0), 0.0, 1.0)
    speed = ready * np.clip(SLOWDOWN * remaining, CREEP, top_speed) * (remaining > 0.005)
    turn = speed * curvature
    along = speed - turn * robots[:, 1] + _forces(robots[:, 1], speed, turn) / VELOCITY_GAIN
    return np.stack([along, turn * robots[:, 0]], 1) + np.clip(3.0 * error, -APPROACH, APPROACH)


def _places(robots: np.ndarray, curvature: float) -> np.ndarray:
    """Each robot's place at the rear face, in the order in which the robots stand."""
    spread = BOX_HALF[1] - ROBOT_RADIUS - 0.08 / len(robots)
    room = BOX_HALF[1] - EDGE - spread
    across = np.linspace(-spread, spread, len(robots)) - np.clip(SHIFT * curvature, -room, room)
    places = np.full_like(robots, -BOX_HALF[0] - ROBOT_RADIUS)
    places[np.argsort(robots[:, 1]), 1] = across
    return places


def _forces(across: np.ndarray, speed: float, turn: float) -> np.ndarray:
    """The least forward forces (N) at these places that balance friction while the box moves; they fade near rest."""
    rolling = FRICTION_RADIUS * turn
    size = FRICTION / max(np.hypot(speed, rolling), 0.02)
    force, torque = size * speed, size * rolling * FRICTION_RADIUS
    lever = across - across.mean()
    shares = force / len(across) - (torque + force * across.mean()) * lever / max(lever @ lever, 1e-3)
    return np.clip(shares, 0.0, MAX_FORCE)


def _axes(direction: np.ndarray) -> np.ndarray:
    """Axes, as columns, of the frame whose x points along ``direction`` (cosine, sine)."""
    cos, sin = direction
    return np.array([[cos, -sin], [sin, cos]])
