"""Plans that must be ready in time: how many candidates can be afforded, and when to stop improving them."""

import time
from typing import NamedTuple

RESERVE = 0.1  # share of the time that is kept for what nobody foresees


class Pace(NamedTuple):
    """How long the parts of a plan took: seconds for one candidate.

    Args:
        calls: each call of the network; later ones take longer where guides begin late.
        after: all that follows them, such as ranking by guides.
    """

    calls: tuple[float, ...]
    after: float = 0.0

    def of(self, calls: int) -> float:
        """Seconds that so many calls take for one candidate: as the last ones of the plan did. If it made fewer, its
        very last one counts for the rest, too."""
        return sum(self.calls[-calls:]) + self.calls[-1] * max(0, calls - len(self.calls))


class Deadline:
    """Counts down from now; ``None`` never ends.

    Args:
        milliseconds: until the plan must be there.
        calls_after: calls of the network after the denoising; one that takes a third as long is a third of a call.
        known: the pace of an earlier plan; None: there was none.
    """

    def __init__(self, milliseconds: float | None, calls_after: float = 0, known: Pace | None = None):
        self.last, self.calls_after, self.known = time.perf_counter(), calls_after, known
        self.end = None if milliseconds is None else self.last + (1 - RESERVE) * milliseconds / 1e3
        self._calls: list[float] = []  # seconds of each, for one candidate

    def start(self) -> None:
        """Called before the first call of the network."""
        self.last = time.perf_counter()

    def affordable(self, candidates: int, calls: int, questions: int = 1) -> int:
        """How many of ``candidates`` can be planned in time, at least 1; all where no pace is known.

        Args:
            candidates: asked for.
            calls: of the network that each of them takes.
            questions: so many are answered at once, with as many candidates each.
        """
        if self.end is None or self.known is None:
            return candidates
        each = self.known.of(calls) + self.known.calls[-1] * self.calls_after + self.known.after
        return max(1, min(candidates, int((self.end - time.perf_counter()) / (questions * each))))

    def over(self, candidates: int) -> bool:
        """Called after every call of the network for so many candidates: whether another one would be too late."""
        now = time.perf_counter()
        took, self.last = now - self.last, now
        self._calls.append(took / candidates)
        after = self.known.after * candidates if self.known else 0.0
        return self.end is not None and now + took * (1 + self.calls_after) + after > self.end

    def pace(self, candidates: int) -> Pace | None:
        """Called when a plan of so many candidates is there: what the next one may count on."""
        if not self._calls:
            return None
        after = (time.perf_counter() - self.last) / candidates - self.calls_after * self._calls[-1]
        return Pace(tuple(self._calls), max(0.0, after))
