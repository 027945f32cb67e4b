"""What episodes are like, in one pass: lengths, who is there, returns, and what looks wrong."""

import hashlib
from collections.abc import Iterable
from typing import Any, Self

import numpy as np

from diffplan.datasets.store import summary
from diffplan.spec import JointSpec
from diffplan.trajectory import Trajectory

JUMP = 30  # times the usual change of an entry between two steps
_SHOWN = 10


class Statistics:
    """Gathers facts about episodes of one spec; ``report`` tells them as plain data.

    A jump is a change of an observation entry by more than 30 times the usual one: the square of the mean square root
    of its changes, where it changes, which single jumps hardly move. A gap is a time of absence between two of
    presence. Duplicates are episodes whose observations and actions are the same numbers. Numbers that are not finite
    are not counted: a ``Trajectory`` has none, and importers refuse them by file, row and column.
    """

    def __init__(self, spec: JointSpec):
        self.spec = spec
        self._lengths: list[int] = []
        self._returns: list[float] = []
        self._gaps: list[int] = []
        self._present = np.zeros(spec.num_agents)
        self._at_once: list[tuple[int, int]] = []
        self._first: dict[bytes, int] = {}
        self._duplicates: list[tuple[int, int]] = []
        shape = (len(spec.roles), spec.size)
        self._low, self._high = np.full(shape, np.inf), np.full(shape, -np.inf)
        self._changes, self._change, self._largest = (
            np.zeros((len(spec.roles), spec.observation_size)) for _ in range(3)
        )
        self._where: dict[tuple[int, int], tuple[int, int, str]] = {}

    @classmethod
    def of(cls, spec: JointSpec, episodes: Iterable[Trajectory]) -> Self:
        """Of all these episodes."""
        gathered = cls(spec)
        for episode in episodes:
            gathered.add(episode)
        return gathered

    def add(self, episode: Trajectory) -> None:
        """Counts an episode in. Raises ``ValueError`` when it has no step."""
        index, mask = len(self._lengths), episode.agent_mask
        if not len(episode):
            raise ValueError(f"episode {index} has no step; leave it out.")
        self._lengths.append(len(episode))
        self._returns.append(float(episode.returns.sum() / max(1, mask.any(0).sum())))
        self._present += mask.mean(0)
        at_once = mask.sum(1)
        self._at_once.append((int(at_once.min()), int(at_once.max())))
        self._gaps += _gaps(mask)
        digest = hashlib.sha1(
            episode.observations.tobytes() + episode.actions.tobytes(), usedforsecurity=False
        ).digest()
        first = self._first.setdefault(digest, index)
        if first != index:
            self._duplicates.append((index, first))
        for role in range(len(self.spec.roles)):
            self._add_role(episode, index, role)

    def _add_role(self, episode: Trajectory, index: int, role: int) -> None:
        agents, O = np.flatnonzero(self.spec.role_index == role), self.spec.observation_size
        if not len(agents):
            return
        seen, there = episode.observations[:, agents], episode.agent_mask[:, agents]
        both = there[1:] & there[:-1]
        for at, values in ((slice(0, O), seen[there]), (slice(O, None), episode.actions[:, agents][both])):
            if values.size:
                self._low[role, at] = np.minimum(self._low[role, at], values.min(0))
                self._high[role, at] = np.maximum(self._high[role, at], values.max(0))
        change = np.abs(np.diff(seen, axis=0)) * both[..., None]
        self._changes[role] += (change > 0).sum((0, 1))
        self._change[role] += np.sqrt(change).sum((0, 1), dtype=np.float64)
        largest = change.max((0, 1))
        for entry in np.flatnonzero(largest > self._largest[role]):
            step, agent = np.argwhere(change[..., entry] == largest[entry])[0]
            self._where[role, int(entry)] = (index, int(step) + 1, self.spec.names[agents[agent]])
        self._largest[role] = np.maximum(self._largest[role], largest)

    def action_range(self, role: str) -> tuple[list[float], list[float]]:
        """Lowest and highest action of a role in the data; -inf and inf are never among them."""
        row, O = list(self.spec.roles).index(role), self.spec.observation_size
        width = self.spec.roles[role].action_size
        low, high = self._low[row, O : O + width], self._high[row, O : O + width]
        return np.where(np.isfinite(low), low, 0).tolist(), np.where(np.isfinite(high), high, 0).tolist()

    def report(self) -> dict[str, Any]:
        """Everything as plain data."""
        spec, steps = self.spec, sum(self._lengths)
        least, most = zip(*self._at_once, strict=True) if self._at_once else ((0,), (0,))
        share = self._present / max(1, len(self._lengths))
        return {
            "episodes": len(self._lengths),
            "steps": steps,
            "seconds": steps * spec.dt,
            "length": summary(np.array(self._lengths)),
            "agents": {
                "number": spec.num_agents,
                "at_once": {"min": min(least), "max": max(most)},
                "mean_share_of_time": float(share.mean()),
                "never": [name for name, one in zip(spec.names, share, strict=True) if one == 0][:_SHOWN],
            },
            "widths": {
                name: {"observation": role.observation_size, "action": role.action_size}
                for name, role in spec.roles.items()
            },
            "return": summary(np.array(self._returns)),
            "constant": self._constant(),
            "static_but_changing": self.static_but_changing(),
            "actions_out_of_bounds": self._out_of_bounds(),
            "gaps": {"number": len(self._gaps), "longest": max(self._gaps, default=0)},
            "jumps": self._jumps(),
            "duplicates": {
                "number": len(self._duplicates),
                "first": [f"{one} = {other}" for one, other in self._duplicates[:_SHOWN]],
            },
        }

    def _constant(self) -> list[str]:
        """Entries with one value throughout, up to rounding."""
        O, named = self.spec.observation_size, []
        for row, (name, role) in enumerate(self.spec.roles.items()):
            for what, start, width in (("observation", 0, role.observation_size), ("action", O, role.action_size)):
                low, high = (bound[row, start : start + width] for bound in (self._low, self._high))
                same = (low <= high) & (high - low <= rounding(low, high))
                named += [f"{name} {what}[{entry}]" for entry in np.flatnonzero(same)]
        return named

    def static_but_changing(self) -> list[str]:
        """Entries that the spec says stay as they are (plans hold them) and that do not."""
        return [
            f"{name} observation[{entry}]"
            for row, (name, role) in enumerate(self.spec.roles.items())
            for entry in role.static
            if self._largest[row, entry] > rounding(self._low[row, entry], self._high[row, entry])
        ]

    def _out_of_bounds(self) -> list[str]:
        """Actions beyond the spec's bounds, within which plans stay."""
        lines = []
        for row, (name, role) in enumerate(self.spec.roles.items()):
            for entry, (least, most) in enumerate(zip(role.action_low, role.action_high, strict=True)):
                low, high = (bound[row, self.spec.observation_size + entry] for bound in (self._low, self._high))
                if low < least - rounding(least, most) or high > most + rounding(least, most):
                    lines.append(f"{name} action[{entry}]: {low:.4g} to {high:.4g}, bounds {least:.4g} to {most:.4g}")
        return lines

    def _jumps(self) -> list[str]:
        usual = (self._change / np.maximum(self._changes, 1)) ** 2
        found = np.argwhere((self._largest > JUMP * usual) & (self._changes > 1))
        ratio = {(int(r), int(e)): self._largest[r, e] / usual[r, e] for r, e in found}
        lines = []
        for (row, entry), times in sorted(ratio.items(), key=lambda item: -item[1])[:_SHOWN]:
            episode, step, agent = self._where[row, entry]
            lines.append(
                f"{list(self.spec.roles)[row]} observation[{entry}] changes by {self._largest[row, entry]:.4g}, "
                f"{times:.0f} times as much as usual, in episode {episode} before step {step} ({agent})"
            )
        return lines


def rounding(least: Any, greatest: Any) -> Any:
    """What numbers between these may differ by and still be the same: 1e-5, or a millionth of the larger one."""
    return 1e-6 * np.maximum(10, np.maximum(np.abs(least), np.abs(greatest)))


def _gaps(mask: np.ndarray) -> list[int]:
    """Lengths of all absences between two presences."""
    who, step = np.nonzero(mask.T)
    apart = np.diff(step)
    return (apart[(np.diff(who) == 0) & (apart > 1)] - 1).tolist()
