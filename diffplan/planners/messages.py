"""What robots tell each other: their own next cells, coarse and quantised, in a few bytes.

A message is data and nothing else: fixed little-endian fields, then numbers. It names no class and no file, and nothing
is ever unpickled. Its check sum is seeded with the team's spec and normaliser, so damaged bytes and those of another
team fail alike; it guards against accidents, not against forgery: sign messages in the transport where that matters.
"""

import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from jaxtyping import Float

from diffplan.datasets.normalizer import Normalizer
from diffplan.spec import JointSpec
from diffplan.trajectory import Plan

MAGIC = b"DP1"
HEADER = struct.Struct("<3sIIHBBB")  # magic, check sum, step, horizon, sender, stride, bits and doublings
RANGE, DOUBLINGS = 4.0, 7
"""Numbers are quantised between -RANGE and RANGE of the normaliser's units, or twice, four times ... that where a
message has larger ones, up to DOUBLINGS times doubled; they are cut off beyond."""


@dataclass(frozen=True)
class Message:
    """What one robot intends: every ``stride``-th of its planned cells, the last one always among them.

    Args:
        sender: the robot's name.
        step: environment step at which it planned (its time stamp); the first cell is of that step.
        horizon: planned steps, of which the cells are some.
        stride: steps between two cells.
        cells: what it will observe and do, in physical units; an entry that the robot does not have is 0.
    """

    sender: str
    step: int
    horizon: int
    stride: int
    cells: Float[np.ndarray, "K D"]

    @classmethod
    def from_plan(cls, plan: Plan, sender: str, step: int, stride: int = 4) -> Self:
        """What ``sender`` intends by the plan's best candidate. Raises ``ValueError`` for a stride under 1."""
        if not 1 <= stride <= 255:
            raise ValueError(f"stride={stride}; tell every first to every 255th cell.")
        whole = plan.best().grid[0, plan.spec.names.index(sender)]
        return cls(sender, step, plan.horizon, stride, whole[_told_steps(plan.horizon, stride)])

    def to_bytes(self, spec: JointSpec, normalizer: Normalizer, bits: int = 16) -> bytes:
        """The message for the wire: a header of 16 bytes, the static entries once, the others for every cell.

        Args:
            spec: the team; both sides need the same, and the same ``normalizer``.
            normalizer: its statistics set the range in which numbers are quantised.
            bits: a number, 8 or 16.

        Raises:
            ValueError: other ``bits``, or a sender beyond the team's first 256.
        """
        if bits not in (8, 16):
            raise ValueError(f"bits={bits}; quantise to 8 or 16.")
        index, most = spec.names.index(self.sender), 2**bits - 1
        if index > 255:
            raise ValueError(f"{self.sender!r} is agent {index} of its team; messages are of its first 256 agents.")
        cells = normalizer.normalize(self.cells[None], spec.role_index[[index]])[0]
        static, moving = _entries(spec, index)
        numbers = np.concatenate((cells[0, static], cells[:, moving].ravel()))
        times = np.abs(numbers).max(initial=RANGE) / RANGE
        doublings = min(DOUBLINGS, int(np.ceil(np.log2(times))))
        reach = RANGE * 2**doublings
        share = (np.clip(numbers, -reach, reach) + reach) / (2 * reach)
        body = np.rint(share * most).astype(f"<u{bits // 8}").tobytes()
        fields = (self.step, self.horizon, index, self.stride, bits | doublings << 5)
        return HEADER.pack(MAGIC, _checksum(spec, normalizer, fields, body), *fields) + body

    @classmethod
    def from_bytes(cls, data: bytes, spec: JointSpec, normalizer: Normalizer) -> Self:
        """Reads what ``to_bytes`` wrote for the same team.

        Raises:
            ValueError: anything else: malformed, damaged, of another team, or out of range.
        """
        if len(data) < HEADER.size or data[:3] != MAGIC:
            raise ValueError(f"{len(data)} bytes that are no message of a robot (they begin with {data[:3]!r}).")
        _, checksum, *fields = HEADER.unpack_from(data)
        step, horizon, index, stride, coding = fields
        bits, reach = coding & 31, RANGE * 2 ** (coding >> 5)
        body = data[HEADER.size :]
        if checksum != _checksum(spec, normalizer, fields, body):
            raise ValueError("a message that is damaged, or of a team with another spec or normaliser.")
        if index >= spec.num_agents or horizon < 1 or stride < 1 or bits not in (8, 16):
            raise ValueError(f"a message out of range: {index=}, {horizon=}, {stride=}, {bits=}.")
        static, moving = _entries(spec, index)
        count = len(_told_steps(horizon, stride))
        if len(body) * 8 != bits * (len(static) + count * len(moving)):
            raise ValueError(f"a message of {len(body)} bytes, which are not {count} cells of {spec.names[index]!r}.")
        numbers = np.frombuffer(body, f"<u{bits // 8}").astype(np.float32) / (2**bits - 1) * (2 * reach) - reach
        cells = np.zeros((count, spec.size), np.float32)
        cells[:, static], cells[:, moving] = numbers[: len(static)], numbers[len(static) :].reshape(count, -1)
        cells = normalizer.unnormalize(cells[None], spec.role_index[[index]])[0] * spec.feature_mask[index]
        return cls(spec.names[index], step, horizon, stride, cells)

    def path(self, now: int) -> Float[np.ndarray, "H D"]:
        """The cells of the H steps from ``now`` on, interpolated; NaN before the first and after the last told one."""
        past = min(max(0, now - self.step), self.horizon)
        early = min(max(0, self.step - now), self.horizon)
        told = self._every_step[past : self.horizon - early]
        return np.pad(told, ((early, past), (0, 0)), constant_values=np.nan)

    @cached_property
    def _every_step(self) -> Float[np.ndarray, "H D"]:
        steps, told = np.arange(self.horizon), _told_steps(self.horizon, self.stride)
        return np.stack([np.interp(steps, told, column) for column in self.cells.T], axis=1).astype(np.float32)


def _told_steps(horizon: int, stride: int) -> list[int]:
    return [*range(0, horizon - 1, stride), horizon - 1]


def _entries(spec: JointSpec, index: int) -> tuple[Sequence[int], Sequence[int]]:
    """Which entries of an agent's cells stay the same, and which others it has."""
    static = spec.static_mask[index]
    return np.flatnonzero(static).tolist(), np.flatnonzero(spec.feature_mask[index] & ~static).tolist()


def _checksum(spec: JointSpec, normalizer: Normalizer, fields: Sequence[int], body: bytes) -> int:
    """CRC-32 of the content, seeded with who the team is and how it measures."""
    statistics = [normalizer.config["center"], normalizer.config["scale"]]
    team = json.dumps([list(spec.agents.items()), statistics]).encode()
    return zlib.crc32(body, zlib.crc32(json.dumps(list(fields)).encode(), zlib.crc32(team)))
