"""Plans that must be ready in time: how many candidates can be afforded, and when to stop improving them."""

import time

RESERVE = 0.1  # share of the time that is kept for what comes after the last call of the network


class Deadline:
    """Counts down from now; ``None`` never ends.

    Args:
        milliseconds: until the plan must be there.
        calls_after: calls of the network that follow the denoising.
    """

    def __init__(self, milliseconds: float | None, calls_after: int = 0):
        self.last, self.calls_after = time.perf_counter(), calls_after
        self.end = None if milliseconds is None else self.last + (1 - RESERVE) * milliseconds / 1e3
        self.pace: float | None = None

    def start(self) -> None:
        """Called before the first call of the network."""
        self.last = time.perf_counter()

    def affordable(self, candidates: int, calls: int, pace: float | None, questions: int = 1) -> int:
        """How many of ``candidates`` can be denoised in time, at least 1.

        Args:
            candidates: asked for.
            calls: of the network that each of them takes.
            pace: seconds that one call took for one candidate, where that is known.
            questions: so many are answered at once, with as many candidates each.
        """
        if self.end is None or pace is None:
            return candidates
        left = self.end - time.perf_counter()
        return max(1, min(candidates, int(left / (pace * questions * (calls + self.calls_after)))))

    def over(self, candidates: int) -> bool:
        """Called after every call of the network for so many candidates: whether another one would be too late."""
        now = time.perf_counter()
        took, self.last = now - self.last, now
        self.pace = took / candidates
        return self.end is not None and now + took * (1 + self.calls_after) > self.end
