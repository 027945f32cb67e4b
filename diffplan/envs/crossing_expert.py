"""The scripted expert of ``crossing-v0``: one joint reference for the whole team, tracked by every robot.

open: all robots run round the centre on half ellipses that share one angular profile, so angles between robots are kept all along and
the robots are nearest each other, by a chosen clearance, on the short axis.
"""

from typing import Any

import numpy as np
from jaxtyping import Float

from diffplan.envs.crossing_layouts import RADIUS, RING
from diffplan.spec import Actions, Observations

STYLES = {
    "open": ("clockwise", "counterclockwise"),
    "obstacles": ("clockwise", "counterclockwise"),
    "doorway": ("left_first", "right_first"),
}
CLEARANCE = 0.10
ACCELERATION = 2.5
SPEEDS = (0.72, 0.95)
FEEDBACK, LAG, DISTURBANCE = 2.0, 0.05, 0.05


class CrossingExpert:
    """Drives all robots along one reference, drawn at the episode's start, at a speed drawn from 0.72-0.95 m/s.

    A smooth random disturbance of the commands (5 % of the top speed, correlated over about ten steps) lets the data show recovery.

    Args:
        env: a ``CrossingEnv`` that was just reset.
        style: one of ``STYLES[env.layout]``.
        rng: source of the speed and the disturbance.
    """

    def __init__(self, env: Any, style: str, rng: np.random.Generator):
        env = env.unwrapped
        speed = float(rng.uniform(*SPEEDS))
        self.labels = {"speed": round(speed, 3)}
        self._reference = _REFERENCES[env.layout](env.starts, env.goals, env.obstacles, style, speed, env.joint_spec.dt)
        self._names, self._dt, self._rng = env.possible_agents, env.joint_spec.dt, rng
        self._drift = np.zeros((len(self._names), 2))
        self._step = 0

    def __call__(self, observations: Observations) -> Actions:
        now, ahead, later = self._reference[np.minimum(self._step + np.arange(3), len(self._reference) - 1)]
        velocity, next_velocity = (ahead - now) / self._dt, (later - ahead) / self._dt
        feedforward = velocity + LAG / self._dt * (next_velocity - velocity)
        self._drift = 0.9 * self._drift + np.sqrt(1 - 0.9**2) * self._rng.normal(size=self._drift.shape)
        positions = np.array([observations[name][:2] for name in self._names])
        commands = feedforward + FEEDBACK * (now - positions) + DISTURBANCE * self._drift
        self._step += 1
        return dict(zip(self._names, np.clip(commands, -1.0, 1.0).astype(np.float32), strict=True))


def _open(
    starts: np.ndarray, goals: np.ndarray, obstacles: np.ndarray, style: str, speed: float, dt: float
) -> Float[np.ndarray, "L N 2"]:
    """Robots on half ellipses with one common angle and radius profile."""
    start_angle, goal_angle = (np.arctan2(*points.T[::-1]) for points in (starts, goals))
    turn = np.mod(goal_angle - start_angle, 2 * np.pi)
    turn = turn if style == "counterclockwise" else turn - 2 * np.pi
    short = _short_axis(start_angle, goal_angle)
    phase = np.linspace(0, np.pi, 400)
    ellipse = np.stack([RING * np.cos(phase), short * np.sin(phase)], 1)
    ellipse = _timed(ellipse, speed, dt)
    radius, share = np.linalg.norm(ellipse, axis=1)[:, None], np.arctan2(*ellipse.T[::-1])[:, None] / np.pi
    end = np.where(share < 0.5, np.linalg.norm(starts, axis=1), np.linalg.norm(goals, axis=1))
    radius = short + (radius - short) * (end - short) / (RING - short)
    angle = start_angle + turn * share
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 2)


def _short_axis(*angles: np.ndarray) -> float:
    """How near to the centre the robots may pass: there, the two closest in angle still keep ``CLEARANCE``."""
    separation = min(float(np.diff(np.sort(a), append=np.sort(a)[0] + 2 * np.pi).min()) for a in angles)
    return min((2 * RADIUS + CLEARANCE) / (2 * np.sin(min(separation, np.pi) / 2)), 0.85)


def _timed(path: Float[np.ndarray, "P 2"], speed: float, dt: float) -> Float[np.ndarray, "L 2"]:
    """Points along ``path`` every ``dt`` seconds, from rest to ``speed`` and back to rest at constant acceleration."""
    travelled = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    length = travelled[-1]
    speed = min(speed, np.sqrt(length * ACCELERATION))
    ramp = speed / ACCELERATION
    duration = length / speed + ramp
    time = np.append(np.arange(0, duration, dt), duration)
    distance = np.where(
        time < ramp,
        ACCELERATION / 2 * time**2,
        np.where(time < duration - ramp, speed * (time - ramp / 2), length - ACCELERATION / 2 * (duration - time) ** 2),
    )
    return np.stack([np.interp(distance, travelled, axis) for axis in path.T], 1)


_REFERENCES = {"open": _open}
