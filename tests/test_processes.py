"""Teams of processes: frames, transport and world in this process; then real processes with a tiny planner."""

import sys
import threading
import time
from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from diffplan.envs.crossing import CrossingEnv
from diffplan.processes.frames import (
    LIMIT,
    WORLD,
    Counters,
    Frame,
    Kind,
    action_topic,
    message_topic,
    pack_action,
    pack_view,
    unpack_action,
    unpack_view,
    view_topic,
)
from diffplan.processes.robot import Robot, heard_by_robot
from diffplan.processes.team import wait_until_ready
from diffplan.processes.transport import BOX, Bus, free_endpoint
from diffplan.processes.world import SETTING_OUT, World
from diffplan.spec import JointSpec, Role

RATE = 20.0


@pytest.fixture
def env() -> CrossingEnv:
    return CrossingEnv(num_robots=2, max_steps=6)


@pytest.fixture
def endpoint() -> str:
    return free_endpoint()


@pytest.fixture
def world_bus(endpoint: str) -> Iterator[Bus]:
    with Bus("tests", [action_topic(0), action_topic(1)], endpoint, world=True) as bus:
        yield bus


def eventually(fact: object, seconds: float = 20.0) -> bool:
    """Whether ``fact()`` becomes true in time."""
    end = time.monotonic() + seconds
    while not fact() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(fact())


class Ahead:
    """Drives a robot straight to its goal and tells the others a word."""

    def __init__(self, heard: list[bytes]):
        self.heard = heard

    def receive(self, data: bytes) -> None:
        self.heard.append(data)

    def act(self, observation: np.ndarray, sensed: Mapping, step: int) -> tuple[np.ndarray, bytes]:
        return np.sign(observation[4:6] - observation[:2]) * 0.5, b"ahead"


class Slow(Ahead):
    """Takes three periods for its first step."""

    def act(self, observation: np.ndarray, sensed: Mapping, step: int) -> tuple[np.ndarray, bytes]:
        time.sleep(3 / RATE * (step == 0))
        return super().act(observation, sensed, step)


class Driven:
    """A robot of the class ``Robot``, in a thread of this process."""

    def __init__(self, env: CrossingEnv, name: str, endpoint: str, loss: float = 0.0, member: type[Ahead] = Ahead):
        self.bus = Bus("tests", heard_by_robot(env.joint_spec, name), endpoint)
        self.heard: list[bytes] = []
        self.robot = Robot(lambda seed: member(self.heard), name, env.joint_spec, self.bus, loss=loss)
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        while not self.over.is_set():
            if self.bus.wait(view_topic(self.robot.index), 0.02):
                self.robot.look(time.perf_counter())

    def __enter__(self) -> "Driven":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()
        self.bus.__exit__()


def connected(bus: Bus, *robots: Driven) -> None:
    """Returns when the world hears every robot."""
    for driven in robots:
        index = driven.robot.index
        while not bus.take(action_topic(index), index, Kind.READY):
            driven.bus.publish(action_topic(index), Frame(Kind.READY, index))
            bus.wait(action_topic(index), 0.05)
        bus.refused.clear()


class Alive:
    """Stands for the process of a robot."""

    alive = True


def test_a_frame_is_what_was_sent():
    frame = Frame(Kind.MESSAGE, sender=3, episode=2, step=70_000, body=b"\0 any bytes")
    assert Frame.from_bytes(frame.to_bytes()) == frame


def test_a_robot_is_shown_itself_and_the_partners_that_it_senses(env: CrossingEnv):
    observations, infos = env.reset(seed=0)
    sensed = infos["robot_0"]["sensed"]
    own, partners = unpack_view(env.joint_spec, "robot_0", pack_view(env.joint_spec, observations["robot_0"], sensed))
    assert np.array_equal(own, observations["robot_0"])
    assert partners.keys() == {"robot_1"}
    assert np.array_equal(partners["robot_1"], sensed["robot_1"], equal_nan=True)


def test_bytes_that_are_no_frame_are_refused_and_nothing_worse(env: CrossingEnv):
    rng, spec = np.random.default_rng(0), env.joint_spec
    view = pack_view(spec, np.zeros(6), {"robot_1": np.zeros(6)})
    action = pack_action(np.zeros(2), Counters(sent=1))
    read = {
        Kind.VIEW: unpack_view,
        Kind.ACTION: unpack_action,
        Kind.READY: lambda *_: None,
        Kind.MESSAGE: lambda *_: None,
    }
    whole = [Frame(Kind.VIEW, WORLD, body=view).to_bytes(), Frame(Kind.ACTION, 0, body=action).to_bytes()]
    cut = [data[:size] for data in whole for size in range(len(data))]
    longer = [data + b"\0" for data in whole]
    flipped = [bytes([*data[:i], data[i] ^ 0xFF, *data[i + 1 :]]) for data in whole for i in range(len(data))]
    noise = [rng.bytes(int(rng.integers(0, 200))) for _ in range(500)]
    refused = 0
    for data in [*cut, *longer, *flipped, *noise, whole[0] * 400]:
        try:
            frame = Frame.from_bytes(data)
            read[frame.kind](spec, "robot_0", frame.body)
        except ValueError:
            refused += 1
    assert refused >= len(cut) + len(longer) + len(noise) + 1


def test_an_action_that_is_not_finite_is_refused(env: CrossingEnv):
    with pytest.raises(ValueError, match="expected finite numbers"):
        unpack_action(env.joint_spec, "robot_0", pack_action(np.array([0.0, np.nan]), Counters()))


def test_a_frame_that_is_too_long_is_not_sent():
    with pytest.raises(ValueError, match=f"expected at most {LIMIT}"):
        Frame(Kind.MESSAGE, 0, body=bytes(LIMIT)).to_bytes()


def test_garbage_floods_and_strangers_on_a_topic_are_counted_and_harmless(world_bus: Bus, endpoint: str):
    topic = action_topic(0)
    with Bus("tests", [], endpoint) as robot, Bus("others", [topic], endpoint) as stranger:
        while not world_bus.wait(topic, 0.05):
            robot.publish(topic, Frame(Kind.READY, 0))
        world_bus.take(topic, 0, Kind.READY)
        put = robot._session.put
        for garbage in (b"", b"garbage", b"\x80\x04K\x01.", bytes(LIMIT + 1), Frame(Kind.ACTION, 1).to_bytes()):
            put(f"diffplan/tests/{topic}", garbage)
        robot.publish(topic, Frame(Kind.ACTION, 0, step=7))
        assert eventually(lambda: len(world_bus._boxes[topic]) == 5)
        assert [frame.step for frame in world_bus.take(topic, 0, Kind.ACTION)] == [7]
        assert world_bus.refused[topic] == 5
        step = 0
        while world_bus.refused[topic] < 15:
            robot.publish(topic, Frame(Kind.ACTION, 0, step=step))
            step += 1
        steps = [frame.step for frame in world_bus.take(topic, 0, Kind.ACTION)]
        assert len(steps) == BOX and steps == sorted(steps) and steps[0] >= 10  # the oldest gave way
        assert not stranger.wait(topic, 0.1)


def test_without_zenoh_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, endpoint: str):
    monkeypatch.setitem(sys.modules, "zenoh", None)
    with pytest.raises(ImportError, match=r'pip install "diffplan\[team\]"'):
        Bus("tests", [], endpoint)


def test_robots_that_wait_for_a_slower_one_are_not_said_to_send_what_is_malformed(
    env: CrossingEnv, world_bus: Bus, endpoint: str
):
    with Bus("tests", [], endpoint) as robots:
        topic, last = action_topic(1), Frame(Kind.READY, 1, episode=1)
        while not world_bus.refused[topic]:
            robots.publish(topic, Frame(Kind.READY, 1))
        while world_bus._boxes[topic][-1] != last.to_bytes():  # some of these were still on their way
            robots.publish(topic, last)
            time.sleep(0.01)
        robots.publish(action_topic(0), Frame(Kind.READY, 0))
        wait_until_ready(world_bus, {name: Alive() for name in env.possible_agents})
    world = World(env, env.joint_spec, world_bus, RATE, alive=lambda name: False)
    world.run_episode(seed=0)
    assert world.robots["robot_1"].refused == 0


def test_an_endpoint_where_nobody_listens_is_an_error_in_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("diffplan.processes.transport.CONNECT_MS", 100)
    with pytest.raises(RuntimeError, match="cannot connect at tcp/127.0.0.1"):
        Bus("tests", [], free_endpoint())


def test_a_robot_that_says_nothing_brakes_and_is_counted(env: CrossingEnv, world_bus: Bus, endpoint: str):
    with Driven(env, "robot_0", endpoint) as driven:
        connected(world_bus, driven)
        world = World(env, env.joint_spec, world_bus, RATE, alive=lambda name: True)
        episode = world.run_episode(seed=5_000)
    moved = np.linalg.norm(env.positions - env.starts, axis=1)
    assert episode.steps == world.steps == 6
    assert world.robots["robot_1"].missed == 6 and moved[1] < 1e-3
    assert world.robots["robot_0"].missed < 6 and moved[0] > 0.02
    assert world.robots["robot_0"].counters.sent > 0


def test_a_robot_that_says_nothing_chooses_what_is_legal_for_it(world_bus: Bus):
    spec = JointSpec({"a": "chooser"}, {"chooser": Role(2, (0.0, 0.0), (1.0, 1.0), discrete=True, legal=(0, 1))})

    class Choosing:
        def reset(self, seed: int) -> tuple[dict, dict]:
            self.agents, self.done = ["a"], {}
            return {"a": np.array([0, 1], np.float32)}, {"a": {}}

        def step(self, actions: dict) -> tuple[dict, ...]:
            self.agents, self.done = [], actions
            return {}, {"a": 0.0}, {"a": True}, {"a": False}, {"a": {}}

    env = Choosing()
    World(env, spec, world_bus, RATE, alive=lambda name: False).run_episode(seed=0)
    assert env.done["a"].tolist() == [0, 1]


def test_an_episode_sets_out_when_everyone_has_planned(env: CrossingEnv, world_bus: Bus, endpoint: str):
    with Driven(env, "robot_0", endpoint) as quick, Driven(env, "robot_1", endpoint, member=Slow) as slow:
        connected(world_bus, quick, slow)
        world = World(env, env.joint_spec, world_bus, RATE, alive=lambda name: True)
        episode = world.run_episode(seed=5_000)
    assert 3 / RATE <= episode.setting_out < SETTING_OUT
    assert all(len(robot.planning_ms) + robot.missed == 6 for robot in world.robots.values())
    assert world.robots["robot_1"].planning_ms[0] >= 3_000 / RATE


def test_a_robot_whose_process_has_ended_is_not_late_but_gone(env: CrossingEnv, world_bus: Bus, endpoint: str):
    with Driven(env, "robot_0", endpoint) as driven:
        connected(world_bus, driven)
        world = World(env, env.joint_spec, world_bus, RATE, alive=lambda name: name == "robot_0")
        world.run_episode(seed=5_000)
    assert (world.robots["robot_1"].missed, world.robots["robot_1"].ended_at) == (0, 0)
    assert world.robots["robot_0"].ended_at is None


@pytest.mark.parametrize("loss", [0.0, 1.0])
def test_robots_hear_each_other_unless_messages_are_lost(env: CrossingEnv, world_bus: Bus, endpoint: str, loss: float):
    with Driven(env, "robot_0", endpoint, loss) as one, Driven(env, "robot_1", endpoint, loss) as other:
        connected(world_bus, one, other)
        assert eventually(lambda: one.bus._session.info.peers_zid() and len(one.bus._session.info.peers_zid()) == 2)
        world = World(env, env.joint_spec, world_bus, RATE, alive=lambda name: True)
        world.run_episode(seed=5_000)
    assert set(one.heard) == set(other.heard) == (set() if loss else {b"ahead"})
    assert (one.robot.counters.lost > 0) == bool(loss)


def test_garbage_told_to_a_robot_is_counted_and_harmless(env: CrossingEnv, world_bus: Bus, endpoint: str):
    with Driven(env, "robot_0", endpoint) as driven, Bus("tests", [], endpoint) as stranger:
        connected(world_bus, driven)
        assert eventually(lambda: len(stranger._session.info.peers_zid()) == 2)
        time.sleep(0.1)
        for topic in (view_topic(0), message_topic(1)):
            stranger._session.put(f"diffplan/tests/{topic}", b"garbage")
        stranger.publish(view_topic(0), Frame(Kind.VIEW, WORLD, body=b"no view"))
        assert eventually(lambda: driven.bus.refused.total() == 2)
        world = World(env, env.joint_spec, world_bus, RATE, alive=lambda name: True)
        world.run_episode(seed=5_000)
    assert world.robots["robot_0"].counters.dropped == 3
    assert world.robots["robot_0"].missed < 6
