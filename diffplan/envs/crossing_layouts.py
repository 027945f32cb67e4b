"""Where the robots of ``crossing-v0`` start and want to go, and what stands in their way."""

import numpy as np
from jaxtyping import Float

LAYOUTS = ("open", "doorway", "obstacles")
ARENA = 1.2
"""Half the width of the square (m)."""
RADIUS = 0.08
"""Of a robot (m)."""
RING = 0.95
"""Distance of starts and goals from the centre (m), give or take 0.05; not in the doorway."""
DOOR_WIDTH, WALL_THICKNESS = 0.30, 0.06
DOORWAY_BOXES = tuple(
    (-WALL_THICKNESS / 2, low, WALL_THICKNESS / 2, high)
    for low, high in ((DOOR_WIDTH / 2, ARENA), (-ARENA, -DOOR_WIDTH / 2))
)
"""The wall on both sides of the door: least x, least y, greatest x, greatest y (m)."""
OBSTACLES, OBSTACLE_RADII, OBSTACLE_GAP, OBSTACLE_REACH = 3, (0.08, 0.14), 0.34, 0.5

Placement = tuple[Float[np.ndarray, "N 2"], Float[np.ndarray, "N 2"], Float[np.ndarray, "K 3"]]


def place(layout: str, num_robots: int, rng: np.random.Generator) -> Placement:
    """Draws starts, goals (m) and obstacles (x, y, radius in m), all apart from each other."""
    starts, goals = _doorway(num_robots, rng) if layout == "doorway" else _ring(num_robots, rng)
    return starts, goals, _obstacles(rng) if layout == "obstacles" else np.zeros((0, 3))


def _ring(num_robots: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Spreads starts over a ring that is turned at random; goals are opposite, give or take a tenth of the spacing."""
    spacing = 2 * np.pi / num_robots
    jitter = min(0.1 * spacing, 0.2)
    angles = rng.uniform(0, 2 * np.pi) + spacing * np.arange(num_robots)

    def draw(turn: float) -> np.ndarray:
        angle = angles + turn + rng.uniform(-jitter, jitter, num_robots)
        radius = RING + rng.uniform(-0.05, 0.05, (num_robots, 1))
        return np.asarray(radius * np.stack([np.cos(angle), np.sin(angle)], 1))

    return draw(0.0), draw(np.pi)


def _obstacles(rng: np.random.Generator) -> Float[np.ndarray, "K 3"]:
    """Draws pillars near the centre until a robot fits between any two of them; outside there is always a way round."""
    while True:
        radii = rng.uniform(*OBSTACLE_RADII, OBSTACLES)
        angle, reach = rng.uniform(0, 2 * np.pi, OBSTACLES), OBSTACLE_REACH * np.sqrt(rng.uniform(size=OBSTACLES))
        centers = np.stack([reach * np.cos(angle), reach * np.sin(angle)], 1)
        i, j = np.triu_indices(OBSTACLES, 1)
        if (np.linalg.norm(centers[i] - centers[j], axis=1) > radii[i] + radii[j] + OBSTACLE_GAP).all():
            return np.column_stack([centers, radii])


def _doorway(num_robots: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Deals half the robots to each room, on places along its walls from which straight lines lead to the door."""
    left = rng.permutation(num_robots) < num_robots // 2 + rng.integers(num_robots % 2 + 1)
    starts, goals = np.zeros((2, num_robots, 2))
    for side, here in ((-1.0, left), (1.0, ~left)):
        places = rng.permutation(_along_walls(num_robots, rng)) * (side, 1.0)
        starts[here], goals[~here] = places[: here.sum()], places[here.sum() :]
    return starts, goals


def _along_walls(count: int, rng: np.random.Generator) -> Float[np.ndarray, "count 2"]:
    """Spreads places along three walls of the right-hand room, cutting the corners."""
    corners = np.array([(0.3, -1.02), (0.8, -1.02), (1.02, -0.8), (1.02, 0.8), (0.8, 1.02), (0.3, 1.02)])
    travelled = np.append(0.0, np.cumsum(np.linalg.norm(np.diff(corners, axis=0), axis=1)))
    spacing = travelled[-1] / count
    jitter = min(0.05, 0.1 * spacing**2)
    along = spacing * (np.arange(count) + 0.5) + rng.uniform(-jitter, jitter, count)
    places = np.stack([np.interp(along, travelled, axis) for axis in corners.T], 1)
    return np.asarray(places + rng.uniform(-jitter, jitter, (count, 2)))
