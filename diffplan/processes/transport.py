"""The transport: eclipse-zenoh, the publish/subscribe protocol of many robots, on this machine's loopback alone.

Every participant is a peer with connections of its own to all others, found through the one endpoint that the world
listens on: what robots tell each other does not pass through the world. What comes in waits in one small box a topic,
so that a flood on one topic drowns only that topic.
"""

import json
import socket
import threading
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any, Self

from diffplan.extras import load_extra
from diffplan.processes.frames import LIMIT, Frame, Kind

BOX = 64  # frames that wait in one topic; the oldest give way
CONNECT_MS = 10_000
LOOPBACK = "tcp/127.0.0.1"


def free_endpoint() -> str:
    """A place on loopback where nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"{LOOPBACK}:{probe.getsockname()[1]}"


class Bus:
    """One participant's connection to the others.

    Args:
        team: a word that keeps teams apart; topics begin with it.
        topics: what to listen to.
        endpoint: where the world listens.
        world: whether this is the world, which listens there, or a robot, which connects there.

    Attributes:
        refused: {topic: frames that were malformed, foreign or too long, or gave way to newer ones}.

    Raises:
        ImportError: zenoh is missing; the message gives the pip command.
        RuntimeError: the endpoint is taken, or nobody listens there.

    Example:
        >>> endpoint = free_endpoint()
        >>> with Bus("tests", ["a"], endpoint, world=True) as world, Bus("tests", [], endpoint) as robot:
        ...     while not world.wait("a", 0.1):
        ...         _ = robot.publish("a", Frame(Kind.READY, sender=3))
        ...     world.take("a", 3, Kind.READY)[0].kind.name
        'READY'
    """

    def __init__(self, team: str, topics: Iterable[str], endpoint: str, world: bool = False):
        self.refused, self._news = Counter[str](), threading.Condition()
        self._boxes = {topic: deque[bytes](maxlen=BOX) for topic in topics}
        self._team, self._publishers = team, dict[str, Any]()
        zenoh = _zenoh()
        self._quality = {"congestion_control": zenoh.CongestionControl.DROP, "express": True}  # waits for nobody
        try:
            self._session = zenoh.open(_config(endpoint, world))
        except zenoh.ZError as error:
            raise RuntimeError(f"cannot {'listen' if world else 'connect'} at {endpoint}: {error}") from error
        self._subscribers = [self._subscribe(topic) for topic in self._boxes]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def publish(self, topic: str, frame: Frame) -> int:
        """Sends a frame, without waiting for anybody; returns its size in bytes."""
        data = frame.to_bytes()
        if topic not in self._publishers:
            self._publishers[topic] = self._session.declare_publisher(self._key(topic), **self._quality)
        self._publishers[topic].put(data)
        return len(data)

    def wait(self, topic: str, seconds: float) -> bool:
        """Waits until a frame of this topic is there, at most so long; returns whether one is."""
        with self._news:
            return self._news.wait_for(lambda: bool(self._boxes[topic]), seconds)

    def take(self, topic: str, sender: int, *kinds: Kind) -> list[Frame]:
        """All frames of this topic, sender and kind that came since the last call, the oldest first.

        Anything else that came on this topic is dropped, and counted in ``refused``.
        """
        frames = []
        with self._news:
            while self._boxes[topic]:
                try:
                    frame = Frame.from_bytes(self._boxes[topic].popleft())
                    if frame.sender != sender or frame.kind not in kinds:
                        raise ValueError(f"a {frame.kind.name} frame of {frame.sender}, expected {kinds} of {sender}.")
                    frames.append(frame)
                except ValueError:
                    self.refused[topic] += 1
        return frames

    def _key(self, topic: str) -> str:
        return f"diffplan/{self._team}/{topic}"

    def _subscribe(self, topic: str) -> Any:
        box = self._boxes[topic]

        def receive(sample: Any) -> None:
            with self._news:
                fits = len(sample.payload) <= LIMIT
                self.refused[topic] += (not fits) + (fits and len(box) == BOX)
                if fits:
                    box.append(sample.payload.to_bytes())
                    self._news.notify_all()

        return self._session.declare_subscriber(self._key(topic), receive)


def _config(endpoint: str, world: bool) -> Any:
    """A peer on loopback: no multicast, no shared memory, no plugins; peers tell each other who else is there."""
    settings: dict[str, Any] = {
        "mode": "peer",
        "listen/endpoints": [endpoint if world else f"{LOOPBACK}:0"],
        "connect/endpoints": [] if world else [endpoint],
        "connect/timeout_ms": CONNECT_MS,
        "connect/exit_on_failure": True,
        "scouting/multicast/enabled": False,
        "transport/shared_memory/enabled": False,
        "transport/link/protocols": ["tcp"],
        "transport/link/rx/max_message_size": 4 * LIMIT,
        "transport/link/tx/queue/size/data": 16,  # frames that wait for a slow receiver before the next one is dropped
    }
    config = _zenoh().Config()
    for name, value in settings.items():
        config.insert_json5(name, json.dumps(value))
    return config


def _zenoh() -> Any:
    return load_extra("zenoh", "team", "robots in processes of their own need zenoh")
