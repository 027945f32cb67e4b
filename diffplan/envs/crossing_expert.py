"""The scripted expert of ``crossing-v0``: one joint reference for the whole team, tracked by every robot."""

from typing import Any

import numpy as np
from jaxtyping import Float

from diffplan.envs.behavior import drifted
from diffplan.envs.crossing_references import one_at_a_time, roundabout
from diffplan.spec import Actions, Observations

STYLES = {
    "open": ("clockwise", "counterclockwise"),
    "doorway": ("left_first", "right_first"),
    "obstacles": ("clockwise", "counterclockwise"),
}
SPEEDS = (0.72, 0.95)
"""Range of the cruising speed (m/s), one per episode."""
FEEDBACK = 2.5
"""Velocity per distance from the reference (1/s)."""
LAG = 0.05
"""Time constant of the velocity actuators (s), made up for by looking ahead."""
DISTURBANCE = {"open": 0.16, "doorway": 0.06, "obstacles": 0.12}
"""Size of the random disturbance of the commands as a share of the speed: as much as a layout's clearances bear."""
MEDIUM_NOISE = {"open": 0.25, "doorway": 0.15, "obstacles": 0.26}
"""With which about half of the episodes of 4 robots succeed."""


def follow(
    reference: Float[np.ndarray, "L K 2"],
    step: int,
    positions: Float[np.ndarray, "K 2"],
    dt: float,
    disturbance: float,
    drift: Float[np.ndarray, "K 2"],
) -> Float[np.ndarray, "K 2"]:
    """Commands (m/s) that keep robots on their references from a step on.

    Args:
        reference: where the robots should be at every step (m).
        step: now.
        positions: where they are (m).
        dt: seconds a step.
        disturbance: size of a disturbance of the commands, as a share of the speed.
        drift: its present value, of a variance of 1.
    """
    now, ahead, later = reference[np.minimum(step + np.arange(3), len(reference) - 1)]
    velocity, next_velocity = (ahead - now) / dt, (later - ahead) / dt
    feedforward = velocity + LAG / dt * (next_velocity - velocity)
    speeds = np.linalg.norm(velocity, axis=1, keepdims=True)
    commands = feedforward + FEEDBACK * (now - positions) + disturbance * speeds * drift
    return np.asarray(np.clip(commands, -1.0, 1.0), np.float32)


class CrossingExpert:
    """Drives all robots along one reference path at a speed drawn from 0.72-0.95 m/s.

    A smooth random disturbance of the commands while moving (correlated over about ten steps) shows recovery in the
    data: a planner that imitates an undisturbed expert drifts off its paths and never comes back.

    Args:
        env: a ``CrossingEnv`` that was just reset.
        style: one of ``STYLES[env.layout]``.
        rng: source of the speed and the disturbance.
    """

    def __init__(self, env: Any, style: str, rng: np.random.Generator):
        env = env.unwrapped
        self._names, self._dt, self._rng = env.possible_agents, env.joint_spec.dt, rng
        speed = float(rng.uniform(*SPEEDS))
        self.labels = {"speed": round(speed, 3)}
        self.reference = self._references(env, style, speed)
        self._disturbance = DISTURBANCE[env.layout] * min(1, 8 / len(self._names))  # larger teams move closer together
        self._drift = np.zeros((len(self._names), 2))
        self._step = 0

    def _references(self, env: Any, style: str, speed: float) -> Float[np.ndarray, "L N 2"]:
        if env.layout == "doorway":
            return one_at_a_time(env.starts, env.goals, style, speed, self._dt)
        return roundabout(env.starts, env.goals, env.obstacles, style, speed, self._dt)

    def __call__(self, observations: Observations) -> Actions:
        self._drift = drifted(self._drift, self._rng.normal(size=self._drift.shape))
        positions = np.array([observations[name][:2] if name in observations else (0, 0) for name in self._names])
        commands = follow(self.reference, self._step, positions, self._dt, self._disturbance, self._drift)
        self._step += 1
        return {name: command for name, command in zip(self._names, commands, strict=True) if name in observations}
