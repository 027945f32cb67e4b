"""Joint reference paths through the layouts of ``crossing-v0``: where every robot should be at every step.

The whole team shares one style. *open*: all robots run round the centre on half ellipses with a common angular profile,
so the angles between them are kept, and they are nearest each other, by a chosen clearance, on the short axis.
*obstacles*: the same, but outside a rubber band round all pillars. *doorway*: one room empties first, and each robot
leaves as early as it keeps clear of those before it.

References must be learnable: a smooth function of the scene but for the style. (Paths relaxed by trajectory
optimisation among the pillars were shorter, but their turns could not be foreseen from the scene, to 0.14 m.)
"""

from itertools import pairwise

import numpy as np
from jaxtyping import Float
from scipy.ndimage import maximum_filter1d, uniform_filter1d

from diffplan.envs.crossing_layouts import RADIUS, RING

CLEARANCE = 0.10
ROUNDABOUT_CLEARANCE = 0.14
"""What references keep between robots, and between robots and obstacles (m)."""
ACCELERATION = 2.5
"""At either end of a path (m/s^2)."""
SMOOTHING = 31
"""Points of 200 over which a path swerves out to the rubber band."""
Paths = Float[np.ndarray, "L N 2"]


def roundabout(
    starts: np.ndarray,
    goals: np.ndarray,
    obstacles: np.ndarray,
    style: str,
    speed: float,
    dt: float,
    least: float = 0.0,
) -> Paths:
    """Half ellipses, ``"clockwise"`` or ``"counterclockwise"``, outside a rubber band round the obstacles.

    They pass the centre as near as the robots' clearance allows, but not nearer than ``least`` (m).
    """
    short = min(max(_short_axis(_angles(starts)), _short_axis(_angles(goals)), least), 0.85)
    path = half_ellipses(starts, goals, style, short)
    radius, angle = np.linalg.norm(path, axis=2), _angles(path)
    discs = np.vstack([obstacles + np.array([0, 0, RADIUS + CLEARANCE]), (0, 0, short)])
    bulge = np.maximum(_rubber_band(discs, angle) - radius, 0)
    radius += uniform_filter1d(maximum_filter1d(bulge, SMOOTHING, axis=0), SMOOTHING, axis=0)
    return timed(np.stack([radius * np.cos(angle), radius * np.sin(angle)], 2), speed, dt)


def half_ellipses(starts: np.ndarray, goals: np.ndarray, style: str, short: float) -> Float[np.ndarray, "200 N 2"]:
    """Points on half ellipses round the centre from starts to goals, ``short`` from it (m) where they are nearest."""
    start_angle = _angles(starts)
    turn = np.mod(_angles(goals) - start_angle, 2 * np.pi)
    turn = turn if style == "counterclockwise" else turn - 2 * np.pi
    phase = np.linspace(0, np.pi, 200)
    ellipse = np.stack([RING * np.cos(phase), short * np.sin(phase)], 1)
    radius, share = np.linalg.norm(ellipse, axis=1)[:, None], np.arctan2(ellipse[:, 1], ellipse[:, 0])[:, None] / np.pi
    end = np.where(share < 0.5, np.linalg.norm(starts, axis=1), np.linalg.norm(goals, axis=1))
    radius = short + (radius - short) * (end - short) / (RING - short)
    angle = start_angle + turn * share
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 2)


def _angles(points: np.ndarray) -> np.ndarray:
    return np.arctan2(points[..., 1], points[..., 0])


def _short_axis(angles: np.ndarray) -> float:
    """How near to the centre the robots may pass: there, the two closest in angle still keep their clearance."""
    ordered = np.sort(np.mod(angles, 2 * np.pi))
    separation = np.diff(ordered, append=ordered[0] + 2 * np.pi).min()
    return float((2 * RADIUS + ROUNDABOUT_CLEARANCE) / (2 * np.sin(np.clip(separation, 1e-3, np.pi) / 2)))


def _rubber_band(discs: Float[np.ndarray, "K 3"], angle: np.ndarray) -> np.ndarray:
    """How far from the centre the convex hull of discs (x, y, radius) reaches in the directions ``angle``."""
    normal = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    support = (discs[:, :2] @ [np.cos(normal), np.sin(normal)] + discs[:, 2:]).max(0)
    slope = np.cos(angle[..., None] - normal)
    return np.asarray(np.where(slope > 1e-3, support / np.maximum(slope, 1e-3), np.inf).min(-1))


def one_at_a_time(starts: np.ndarray, goals: np.ndarray, style: str, speed: float, dt: float) -> Paths:
    """Everybody through the doorway, ``"left_first"`` or ``"right_first"``; the nearest of a room goes first.

    More than about 10 robots stand so close along the walls that some lines to the door lead through others.
    """
    side = np.sign(starts[:, 0])
    first = -1 if style == "left_first" else 1
    order = np.lexsort((np.linalg.norm(starts, axis=1), side != first))
    scheduled: list[np.ndarray] = []
    passed = -1
    for robot in order:
        path = timed(_through_door(starts[robot], goals[robot])[:, None], speed, dt)[:, 0]
        at_door = int(np.argmax(path[:, 0] * side[robot] <= 0))
        delay = soonest(path, scheduled, passed + 1 - at_door)
        scheduled.append(held(path, delay))
        passed = delay + at_door
    length = max(map(len, scheduled))
    joint = np.zeros((length, len(starts), 2))
    for robot, path in zip(order, scheduled, strict=True):
        joint[:, robot] = _padded(path, length)
    return joint


def _through_door(start: np.ndarray, goal: np.ndarray) -> Float[np.ndarray, "P 2"]:
    """A polyline by way of both faces of the door, its corners rounded by a moving average (0.3 m wide)."""
    gate = np.array([0.28 * np.sign(start[0]), 0.0])
    step, half_window = 0.02, 7
    corners = (start, gate, -gate, goal)
    pieces = [
        np.linspace(a, b, max(2, round(np.linalg.norm(b - a) / step)), endpoint=False) for a, b in pairwise(corners)
    ]
    path = np.concatenate([*pieces, goal[None]])
    before, after = 2 * path[0] - path[half_window:0:-1], 2 * path[-1] - path[-2 : -half_window - 2 : -1]
    window = np.ones(2 * half_window + 1) / (2 * half_window + 1)
    extended = np.concatenate([before, path, after])
    return np.stack([np.convolve(axis, window, "valid") for axis in extended.T], 1)


def soonest(path: np.ndarray, scheduled: list[np.ndarray], earliest: int) -> int:
    """The first delay (steps) that keeps clear of those before by ``CLEARANCE``, or else by half of it."""
    latest = max(map(len, scheduled), default=0)
    for clearance in (CLEARANCE, CLEARANCE / 2):
        for delay in range(max(0, earliest), latest + 1):
            if all(_apart(held(path, delay), other, 2 * RADIUS + clearance) for other in scheduled):
                return delay
    return latest


def held(path: np.ndarray, delay: int) -> np.ndarray:
    """The path after a wait of ``delay`` steps at its start."""
    return np.concatenate([np.repeat(path[:1], delay, 0), path])


def _padded(path: np.ndarray, length: int) -> np.ndarray:
    return np.concatenate([path, np.repeat(path[-1:], length - len(path), 0)])


def _apart(path: np.ndarray, other: np.ndarray, least: float) -> bool:
    length = max(len(path), len(other))
    gap = np.linalg.norm(_padded(path, length) - _padded(other, length), axis=1)
    return bool((gap > least).all())


def timed(path: Float[np.ndarray, "P N 2"], speed: float, dt: float) -> Paths:
    """Joint positions along ``path`` every ``dt`` seconds, from rest to rest; the fastest robot keeps ``speed``."""
    travelled = np.append(0.0, np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=2).max(1)))
    length = travelled[-1]
    speed = min(speed, np.sqrt(length * ACCELERATION))
    ramp = speed / ACCELERATION
    duration = length / speed + ramp
    time = np.append(np.arange(0, duration, dt), duration)
    speeding, braking = ACCELERATION / 2 * time**2, length - ACCELERATION / 2 * (duration - time) ** 2
    cruising = speed * (time - ramp / 2)
    distance = np.where(time < ramp, speeding, np.where(time < duration - ramp, cruising, braking))
    return _at(path, np.interp(distance, travelled, np.arange(len(path))))


def _at(path: Float[np.ndarray, "P N 2"], place: Float[np.ndarray, "L"]) -> Paths:
    """``path`` at fractional indices, on straight lines between its points."""
    low = np.minimum(place.astype(int), len(path) - 2)
    share = (place - low)[:, None, None]
    return (1 - share) * path[low] + share * path[low + 1]
