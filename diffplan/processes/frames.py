"""What travels between the world and its robots: small binary frames of a fixed layout, which hold numbers only.

A frame is a header (``HEADER``: mark, version, kind, sender, episode, step; little-endian) and a body by its kind:

| kind | from, to | topic | body |
|---|---|---|---|
| ``READY`` | robot i, world | ``action/i`` | nothing |
| ``VIEW`` | world, robot i | ``view/i`` | its observation, then index and observation of every partner that it senses |
| ``ACTION`` | robot i, world | ``action/i`` | what the robot counted so far, then its action |
| ``MESSAGE`` | robot i, robots | ``message/i`` | bytes that only planners understand |
"""

import struct
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from enum import IntEnum
from typing import Self

import numpy as np
from jaxtyping import Float

from diffplan.spec import JointSpec

LIMIT = 16_384  # bytes a frame
WORLD = 0xFFFF  # the world's index as a sender
MARK, VERSION = b"dp", 1
HEADER = struct.Struct("<2sBBHII")
INDEX = struct.Struct("<H")
NUMBERS = np.dtype("<f4")


class Kind(IntEnum):
    """What a frame is for."""

    READY = 0
    VIEW = 1
    ACTION = 2
    MESSAGE = 3


@dataclass(frozen=True)
class Frame:
    """One frame.

    Args:
        kind: what it is for.
        sender: index of the robot in the spec, or ``WORLD``.
        episode: of the run, from 0.
        step: of the episode, from 0.
        body: by ``kind``.
    """

    kind: Kind
    sender: int
    episode: int = 0
    step: int = 0
    body: bytes = b""

    def to_bytes(self) -> bytes:
        """The frame as it is sent. Raises ``ValueError`` beyond ``LIMIT`` bytes."""
        size = HEADER.size + len(self.body)
        if size > LIMIT:
            raise ValueError(
                f"a {self.kind.name} frame of {size} bytes, expected at most {LIMIT}; observe or say less."
            )
        return HEADER.pack(MARK, VERSION, self.kind, self.sender, self.episode, self.step) + self.body

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Reads a frame. Raises ``ValueError`` for anything that ``to_bytes`` does not make."""
        if not HEADER.size <= len(data) <= LIMIT:
            raise ValueError(f"{len(data)} bytes are no frame, expected {HEADER.size} to {LIMIT}.")
        mark, version, kind, sender, episode, step = HEADER.unpack_from(data)
        if (mark, version) != (MARK, VERSION):
            raise ValueError(f"a frame begins with {(mark, version)}, expected {(MARK, VERSION)}.")
        return cls(Kind(kind), sender, episode, step, data[HEADER.size :])


@dataclass
class Counters:
    """What a robot counted since it began.

    Args:
        sent: messages.
        sent_bytes: bytes of them, headers and all.
        heard: messages that its planner was given.
        dropped: frames that were malformed, foreign or too many.
        lost: messages thrown away to try out losses.
        planning_us: of the last step (microseconds), from what it saw to what it does.
    """

    sent: int = 0
    sent_bytes: int = 0
    heard: int = 0
    dropped: int = 0
    lost: int = 0
    planning_us: int = 0


COUNTERS = struct.Struct("<IQIIII")


def view_topic(robot: int) -> str:
    """Where the world tells a robot (its index in the spec) what it observes."""
    return f"view/{robot}"


def action_topic(robot: int) -> str:
    """Where a robot tells the world that it is ready, and what it does."""
    return f"action/{robot}"


def message_topic(robot: int) -> str:
    """Where a robot speaks to the others."""
    return f"message/{robot}"


def pack_view(spec: JointSpec, own: np.ndarray, sensed: Mapping[str, np.ndarray]) -> bytes:
    """The body of a ``VIEW``: what one robot observes and what it senses of its partners (NaN where it cannot know)."""
    partners = (INDEX.pack(spec.names.index(name)) + _numbers(seen) for name, seen in sensed.items())
    return _numbers(own) + b"".join(partners)


def unpack_view(spec: JointSpec, me: str, body: bytes) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Reads the body of a ``VIEW`` for the robot ``me``. Raises ``ValueError`` where sizes or partners do not fit."""
    size = NUMBERS.itemsize * spec.role_of(me).observation_size
    own, rest, sensed = _array(body[:size], size), body[size:], dict[str, np.ndarray]()
    while rest:
        index = INDEX.unpack(rest[: INDEX.size])[0] if len(rest) >= INDEX.size else -1
        name = spec.names[index] if 0 <= index < spec.num_agents else me
        if name == me or name in sensed:
            raise ValueError(f"a view shows partner {index} of {spec.num_agents} twice or {me!r} itself.")
        end = INDEX.size + NUMBERS.itemsize * spec.role_of(name).observation_size
        sensed[name], rest = _array(rest[INDEX.size : end], end - INDEX.size), rest[end:]
    return own, sensed


def pack_action(action: np.ndarray, counters: Counters) -> bytes:
    """The body of an ``ACTION``."""
    return COUNTERS.pack(*astuple(counters)) + _numbers(action)


def unpack_action(spec: JointSpec, name: str, body: bytes) -> tuple[Float[np.ndarray, "A"], Counters]:
    """Reads the body of an ``ACTION`` of robot ``name``. Raises ``ValueError`` if it does not fit or is not finite."""
    head, numbers = body[: COUNTERS.size], body[COUNTERS.size :]
    action = _array(numbers, NUMBERS.itemsize * spec.role_of(name).action_size)
    if len(head) != COUNTERS.size or not np.isfinite(action).all():
        raise ValueError(f"the action of {name!r} is {action} after {len(head)} bytes, expected finite numbers.")
    return action, Counters(*COUNTERS.unpack(head))


def _numbers(values: np.ndarray) -> bytes:
    return np.asarray(values, NUMBERS).tobytes()


def _array(data: bytes, size: int) -> np.ndarray:
    if len(data) != size:
        raise ValueError(f"{len(data)} bytes of numbers, expected {size}.")
    return np.frombuffer(data, NUMBERS).astype(np.float32)
