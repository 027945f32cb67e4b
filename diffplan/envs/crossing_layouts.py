"""Where the robots of ``crossing-v0`` start and want to go, and what stands in their way."""

import numpy as np
from jaxtyping import Float

LAYOUTS = ("open", "doorway", "obstacles")
ARENA = 1.2
"""Half the width of the square (m)."""
RADIUS = 0.08
"""Of a robot (m)."""
RING = 0.95
"""Distance of starts and goals from the centre (m), up to jitter."""
DOOR_WIDTH, WALL_THICKNESS = 0.28, 0.06
OBSTACLES, OBSTACLE_RADII = 3, (0.08, 0.14)

Placement = tuple[Float[np.ndarray, "N 2"], Float[np.ndarray, "N 2"], Float[np.ndarray, "K 3"]]


def place(layout: str, num_robots: int, rng: np.random.Generator) -> Placement:
    """Draws starts, goals (m) and obstacles (x, y, radius in m), all apart from each other."""
    return _PLACE[layout](num_robots, rng)


def _open(num_robots: int, rng: np.random.Generator) -> Placement:
    """Puts the robots on a ring that is turned at random; each goal is opposite the start, give or take a tenth of the spacing."""
    spacing = 2 * np.pi / num_robots
    jitter = min(0.1 * spacing, 0.2)
    angles = rng.uniform(0, 2 * np.pi) + spacing * np.arange(num_robots)
    starts = _polar(angles + rng.uniform(-jitter, jitter, num_robots), RING + rng.uniform(-0.05, 0.05, num_robots))
    goals = _polar(
        angles + np.pi + rng.uniform(-jitter, jitter, num_robots), RING + rng.uniform(-0.05, 0.05, num_robots)
    )
    return starts, goals, np.zeros((0, 3))


def _polar(angle: np.ndarray, radius: np.ndarray) -> Float[np.ndarray, "N 2"]:
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)


_PLACE = {"open": _open}
