"""Open teams for ``crossing-v0``: who is there at the start, who enters later and where, and who is called away."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from diffplan.envs.crossing_layouts import RADIUS, RING

FEWEST = 2
"""Robots at the start, at least; at most half of all that will ever be there."""
CALLED_SHARE = 0.5
"""How often somebody is called away when the team changes."""
ENTRY_GAP = 0.6
"""Free space round a place of entry (m): a robot at full speed still stops before it."""
GOAL_GAP = 2 * RADIUS + 0.1
"""What goals keep from each other (m)."""
TRIES = 50


@dataclass(frozen=True)
class Turnover:
    """Changes the team every ``every`` steps: the next robot enters, and in half of the changes one is called away.

    A robot that finds no free place enters as soon as there is one, and at once when nobody else is left.
    """

    every: int
    num_robots: int

    def draw_start(self, rng: np.random.Generator) -> int:
        """How many robots are there at the start."""
        return int(rng.integers(FEWEST, max(FEWEST, self.num_robots // 2) + 1))

    def is_due(self, step: int, entered: int, at_start: int, there: Bool[np.ndarray, "N"]) -> bool:
        """Whether the next robot enters now, given how many have entered so far."""
        due = step >= self.every * (entered - at_start + 1) or not there.any()
        return entered < self.num_robots and due

    def draw_called(self, step: int, there: Bool[np.ndarray, "N"], rng: np.random.Generator) -> Bool[np.ndarray, "N"]:
        """Who is called away now: mostly nobody, never the last one."""
        called = np.zeros(len(there), bool)
        if step % self.every == 0 and there.sum() > 1 and rng.random() < CALLED_SHARE:
            called[rng.choice(np.flatnonzero(there))] = True
        return called


def free_place(
    positions: Float[np.ndarray, "K 2"], goals: Float[np.ndarray, "K 2"], rng: np.random.Generator
) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2"]] | None:
    """A start on the ring clear of where robots are and want to go, and a goal about opposite; None if there is none.

    Args:
        positions: of the robots that are there (m).
        goals: theirs (m).
        rng: source of the places.
    """
    for _ in range(TRIES):
        angle = rng.uniform(0, 2 * np.pi) + np.array([0.0, np.pi + rng.uniform(-0.2, 0.2)])
        radius = RING + rng.uniform(-0.05, 0.05, (2, 1))
        start, goal = radius * np.stack([np.cos(angle), np.sin(angle)], 1)
        taken = np.linalg.norm(np.concatenate([positions, goals]) - start, axis=1)
        if (taken > ENTRY_GAP).all() and (np.linalg.norm(goals - goal, axis=1) > GOAL_GAP).all():
            return start, goal
    return None
