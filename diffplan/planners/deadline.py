"""Plans that must be ready in time: how many candidates can be afforded, and when to stop improving them."""

import time

RESERVE = 0.1  # share of the time that is kept for what comes after the last call of the network


class Deadline:
    """Counts down from now; ``None`` never ends.

    Args:
        milliseconds: until the plan must be there.
    """

    def __init__(self, milliseconds: float | None):
        self.last = time.perf_counter()
        self.end = None if milliseconds is None else self.last + (1 - RESERVE) * milliseconds / 1e3
        self.pace: float | None = None

    def affordable(self, candidates: int, calls: int, pace: float | None) -> int:
        """How many of ``candidates`` can be denoised in time, at least 1.

        Args:
            candidates: asked for.
            calls: of the network that each of them takes.
            pace: seconds that one call took for one candidate, where that is known.
        """
        if self.end is None or pace is None:
            return candidates
        left = self.end - time.perf_counter()
        return max(1, min(candidates, int(left / (pace * calls))))

    def over(self, candidates: int) -> bool:
        """Called after every call of the network for so many candidates: whether another one would be too late."""
        now = time.perf_counter()
        took, self.last = now - self.last, now
        self.pace = took / candidates
        return self.end is not None and now + took > self.end
