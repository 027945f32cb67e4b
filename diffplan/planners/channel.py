"""A simulated radio between robots: every message goes to all others, and may be lost, late, reordered or doubled."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Link:
    """How bad the connection between any two robots is, independently for every message and receiver.

    Args:
        loss: share of the messages that never arrive.
        delay: a message arrives at the next step, or up to so many steps later, each as likely; so messages overtake
            each other.
        duplicates: share of the messages that arrive a second time, with a delay of its own.

    Raises:
        ValueError: a share outside [0, 1], or a negative delay.
    """

    loss: float = 0.0
    delay: int = 0
    duplicates: float = 0.0

    def __post_init__(self) -> None:
        for name in ("loss", "duplicates"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}; give a share of the messages, 0 to 1.")
        if self.delay < 0:
            raise ValueError(f"delay={self.delay}; give a number of steps, 0 or more.")


class Channel:
    """What is on its way between the robots of one episode."""

    def __init__(self, names: Sequence[str], link: Link, seed: int):
        self.names, self.link = tuple(names), link
        self._rng = np.random.default_rng([seed, 2])
        self._on_the_way: dict[str, list[tuple[int, bytes]]] = {name: [] for name in self.names}

    def send(self, sender: str, data: bytes, step: int) -> int:
        """Sends to everybody else what ``sender`` says at ``step``; returns to how many of them it is lost."""
        lost = 0
        for receiver in self.names:
            if receiver == sender:
                continue
            is_lost = self._rng.random() < self.link.loss
            is_doubled = self._rng.random() < self.link.duplicates
            if is_lost:
                lost += 1
                continue
            for _ in range(2 if is_doubled else 1):
                due = step + 1 + int(self._rng.integers(self.link.delay + 1))
                self._on_the_way[receiver].append((due, data))
        return lost

    def deliver(self, receiver: str, step: int) -> list[bytes]:
        """What has arrived at ``receiver`` by ``step``, the earliest first."""
        waiting = sorted(self._on_the_way[receiver], key=lambda one: one[0])
        self._on_the_way[receiver] = [one for one in waiting if one[0] > step]
        return [data for due, data in waiting if due <= step]
