import re
from collections.abc import Callable

import mujoco
import numpy as np
import pytest

import diffplan as dp
from diffplan.envs.crossing import CrossingEnv, behavior_policy
from diffplan.envs.crossing_layouts import ARENA, RADIUS
from diffplan.envs.crossing_model import DT, MASS, MAX_FORCE, V_MAX, VELOCITY_GAIN
from diffplan.planners.barrier import VelocityServo, constraints, fastest
from diffplan.planners.safety import NO_PARTNERS, SafetyFilter
from diffplan.spec import Actions, JointSpec, Observations, Role

SERVO = VelocityServo(MAX_FORCE / MASS, MASS / VELOCITY_GAIN, DT)
PILLAR = np.array([[0.0, 0.0, 0.1]])
ABSURD = (1e6, -1e30, np.inf, np.nan)


def new_filter(**changes: float | None) -> SafetyFilter:
    """The filter for robots of ``crossing-v0``."""
    robot = {"radius": RADIUS, "max_speed": V_MAX, "max_acceleration": MAX_FORCE / MASS}
    return SafetyFilter(**{**robot, "time_constant": MASS / VELOCITY_GAIN, "dt": DT, "half_width": ARENA, **changes})


def straight(observations: Observations) -> Actions:
    """Everybody goes straight to the goal, blind to everything."""
    ways = {name: seen[4:6] - seen[:2] for name, seen in observations.items()}
    return {name: way / max(0.4, np.linalg.norm(way)) for name, way in ways.items()}


def drive(env: CrossingEnv, seed: int, act: Callable[[Observations], Actions], safety: SafetyFilter | None) -> dict:
    observations, infos = env.reset(seed=seed)
    fastest_seen = 0.0
    while env.agents:
        actions = act(observations)
        if safety is not None:
            actions = safety.filter_actions(env.joint_spec, observations, actions)
        observations, *_, infos = env.step(actions)
        fastest_seen = max(fastest_seen, *(float(np.linalg.norm(seen[2:4])) for seen in observations.values()))
    return {**infos["robot_0"], "fastest": fastest_seen}


@pytest.mark.parametrize(("layout", "robots", "episodes"), [("open", 2, 6), ("open", 8, 4), ("obstacles", 8, 4)])
def test_robots_that_drive_blindly_at_each_other_arrive_without_touching(
    layout: str, robots: int, episodes: int
) -> None:
    env, safety = CrossingEnv(robots, layout), new_filter()
    blind = [drive(env, seed, straight, None) for seed in range(episodes)]
    kept = [drive(env, seed, straight, safety) for seed in range(episodes)]
    assert sum(end["contacts"] > 0 for end in blind) > episodes / 2
    assert all(end["success"] and end["contacts"] == 0 for end in kept)
    assert safety.stats.changed > 0
    assert safety.stats.infeasible == 0


@pytest.mark.parametrize(("layout", "robots", "episodes"), [("open", 4, 2), ("obstacles", 4, 2)])
def test_robots_that_filter_each_for_itself_do_not_touch(layout: str, robots: int, episodes: int) -> None:
    env, safety = CrossingEnv(robots, layout), new_filter()

    def alone(observations: Observations) -> Actions:
        asked = {name: {name: action} for name, action in straight(observations).items()}
        return {n: safety.filter_actions(env.joint_spec, observations, one)[n] for n, one in asked.items()}

    blind, kept = ([drive(env, seed, act, None) for seed in range(episodes)] for act in (straight, alone))
    assert any(end["contacts"] for end in blind)
    assert all(end["success"] and end["contacts"] == 0 for end in kept)


@pytest.mark.parametrize("speed", [0.0, 0.3])
def test_a_robot_that_filters_for_itself_keeps_clear_of_one_that_only_goes_on(speed: float) -> None:
    env, safety = CrossingEnv(2), new_filter()
    for filtering in (False, True):
        env.reset(seed=0)
        env.data.qpos[:], env.data.qvel[:] = (-0.5, 0.02, 0.3, 0.0), 0
        mujoco.mj_forward(env.model, env.data)
        actions = {"robot_0": np.array([1.0, 0.0]), "robot_1": np.array([-speed, 0.0])}
        for _ in range(15):
            observations, _ = env._observe(np.ones(2, bool))
            mine = safety.filter_actions(env.joint_spec, observations, {"robot_0": actions["robot_0"]})
            *_, infos = env.step(actions | (mine if filtering else {}))
            if not env.agents:
                break
        assert (infos["robot_0"]["contacts"] == 0) == filtering


def test_each_takes_half_of_the_room_and_all_of_the_lack() -> None:
    at, most, partner = np.array([[-0.3, 0.0]]), np.full((1, 2), 9.0), np.array([[0.3, 0.0, -0.2, 0.0]])
    for speed in (0.0, 3.0):  # room to speed up, and too fast already
        moving = np.array([[speed, 0.0]])
        ((row,), (share,)) = constraints(at, moving, partner, np.zeros((0, 5)), -most, most, RADIUS, 2.0, DT)
        lack = speed + 0.2 - fastest(0.6 - 2 * RADIUS, speed + 0.2, 2.0, DT)
        assert row.tolist() == [[-1, 0]] and (lack > 0) == bool(speed)
        assert share == pytest.approx(lack if speed else lack / 2)


@pytest.mark.parametrize("layout", ["obstacles", "doorway"])
def test_whatever_is_asked_nobody_touches_anything_and_nobody_is_too_fast(layout: str) -> None:
    env = CrossingEnv(6, layout)
    safety = SafetyFilter(**env.robot_limits)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        sizes = iter(rng.choice([0.1, 1.0, *ABSURD], size=600))

        def wild(observations: Observations, rng=rng, sizes=sizes) -> Actions:
            with np.errstate(invalid="ignore"):
                return {name: next(sizes, 1.0) * rng.normal(size=2) for name in observations}

        end = drive(env, seed, wild, safety)
        assert end["contacts"] == 0
        assert end["fastest"] <= V_MAX + 1e-3
    assert safety.stats.not_finite > 0


def test_the_expert_is_hardly_ever_corrected() -> None:
    env, safety = CrossingEnv(8, "obstacles"), new_filter()
    for seed in range(5):
        policy = behavior_policy("expert")
        env.reset(seed=seed)
        policy.reset(env, seed)
        assert drive(env, seed, policy, safety)["success"]
    assert safety.stats.changed_share < 0.1
    assert safety.stats.mean_change < 0.002


def test_safe_actions_come_back_bit_for_bit() -> None:
    safety, rng = new_filter(), np.random.default_rng(0)
    places = np.array([[0.9, 0.0], [-0.9, 0.0], [0.0, 0.9]])
    for _ in range(50):
        actions = rng.uniform(-0.3, 0.3, (3, 2)).astype(np.float32)
        safe = safety.filter(places, rng.uniform(-0.2, 0.2, (3, 2)), actions, PILLAR)
        assert safe.dtype == np.float32
        assert safe.tobytes() == actions.tobytes()
    assert safety.stats.calls == 50
    assert safety.stats.changed == safety.stats.limited == 0


@pytest.mark.parametrize("size", ABSURD)
def test_actions_are_finite_and_within_the_limits(size: float) -> None:
    safety, rng = new_filter(), np.random.default_rng(0)
    for _ in range(50):
        positions, velocities = rng.uniform(-1, 1, (8, 2)), rng.uniform(-3, 3, (8, 2))
        safe = safety.filter(positions, velocities, size * rng.choice([-1.0, 1.0], (8, 2)), PILLAR)
        assert np.linalg.norm(safe, axis=1).max() <= V_MAX * (1 + 1e-5)
    assert safety.stats.not_finite == (0 if np.isfinite(size) else 400)


def test_a_robot_without_a_finite_action_brakes() -> None:
    (safe,) = new_filter().filter(np.zeros((1, 2)), np.array([[0.8, -0.3]]), np.array([[np.nan, 1.0]]))
    assert SERVO.change(np.array([safe - (0.8, -0.3)]))[0] == pytest.approx([-0.5, 0.3], abs=1e-6)


def test_a_robot_nobody_knows_the_place_of_is_told_to_stand_still() -> None:
    safety = new_filter()
    places = np.array([[np.nan, 0.0], [0.5, 0.5]])
    safe = safety.filter(places, np.zeros((2, 2)), np.array([[1.0, 0.0], [0.1, 0.2]]))
    assert safe.tolist() == [[0.0, 0.0], [0.1, 0.2]]
    assert safety.stats.not_finite == 1


def test_robots_too_fast_to_be_kept_apart_brake_and_are_counted() -> None:
    safety = new_filter()
    positions = np.array([[-0.1, 0.0], [0.1, 0.0], [0.0, 0.9]])
    velocities = np.array([[1.0, 0.0], [-1.0, 0.0], [0.1, 0.0]])
    safe = safety.filter(positions, velocities, np.array([[1.0, 0.0], [-1.0, 0.0], [0.1, 0.1]]))
    assert safety.stats.infeasible == 1
    assert SERVO.change(safe - velocities)[:2].tolist() == [[-0.5, 0.0], [0.5, 0.0]]
    assert safe[2].tolist() == [0.1, 0.1]
    assert safety.stats.largest > 0.5
    safety.stats.clear()
    assert (safety.stats.calls, safety.stats.infeasible, safety.stats.changed_share, safety.stats.mean_change) == (
        0,
    ) * 4


def test_relabelling_robots_relabels_the_actions() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        positions, velocities = rng.uniform(-0.6, 0.6, (6, 2)), rng.uniform(-0.3, 0.3, (6, 2))
        actions, order = rng.uniform(-1, 1, (6, 2)), rng.permutation(6)
        safe = new_filter().filter(positions, velocities, actions, PILLAR)
        again = new_filter().filter(positions[order], velocities[order], actions[order], PILLAR)
        np.testing.assert_allclose(again, safe[order], atol=1e-5)


def test_only_the_motion_towards_an_obstacle_changes() -> None:
    start, wanted = np.array([[-0.22, 0.0]]), np.array([[0.9, 0.3]])
    ((along, aside),) = new_filter().filter(start, np.zeros((1, 2)), wanted, PILLAR)
    assert 0 < along < 0.5
    assert aside == pytest.approx(0.3, abs=1e-6)


def test_walls_are_kept_only_where_there_are_any() -> None:
    start, wanted = np.array([[1.1, 0.0]]), np.array([[1.0, 0.0]])
    assert new_filter().filter(start, np.zeros((1, 2)), wanted)[0, 0] < 0.2
    assert new_filter(half_width=None).filter(start, np.zeros((1, 2)), wanted).tolist() == wanted.tolist()


def test_beside_a_box_only_the_motion_towards_its_nearest_point_changes() -> None:
    safety, rest = new_filter(boxes=[(0.0, 0.0, 1.0, 1.0)]), np.zeros((1, 2))
    (ahead,) = safety.filter(np.array([[-0.12, 0.5]]), rest, np.array([[0.9, 0.3]]))
    assert 0 < ahead[0] < 0.5
    assert ahead[1] == pytest.approx(0.3, abs=1e-6)
    (at_corner,) = safety.filter(np.array([[-0.085, -0.085]]), rest, np.array([[0.6, 0.6]]))
    assert at_corner[0] == pytest.approx(at_corner[1])
    assert 0 < at_corner[0] < 0.5
    past = np.array([[0.6, -0.2]])
    assert safety.filter(np.array([[-0.085, -0.085]]), rest, past)[0, 0] > at_corner[0]


@pytest.mark.parametrize("place", [(0.02, 0.5), (0.0, 0.5), (0.5, 0.98)])
def test_a_robot_in_a_box_leaves_it_by_the_nearest_side_and_disturbs_nobody_else(place: tuple[float, float]) -> None:
    safety, rest = new_filter(half_width=None, boxes=[(0.0, 0.0, 1.0, 1.0)]), np.zeros((3, 2))
    at, wanted = np.array([place, (-0.5, 0.0), (-0.7, 0.0)]), np.array([[0.3, -0.3], [-0.3, 0.0], [0.3, 0.0]])
    (leaving, *others), alone = safety.filter(at, rest, wanted), safety.filter(at[1:], rest[1:], wanted[1:])
    assert leaving[1] > 0.1 if place[1] > 0.9 else leaving[0] < -0.1
    np.testing.assert_allclose(others, alone, atol=0.02)


def test_a_robot_at_the_fastest_closing_speed_stops_where_the_gap_ends() -> None:
    for gap, closing in ((0.3, 0.0), (0.3, 0.8), (0.1, 0.5)):
        speed = fastest(gap, closing, 2.0, 0.1)
        left = gap - 0.1 * (closing + speed) / 2
        assert left == pytest.approx(speed**2 / (2 * 2.0))


def test_robots_far_apart_need_no_constraints() -> None:
    corners = np.array([[0.9, 0.9], [-0.9, 0.9], [-0.9, -0.9], [0.9, -0.9]])
    most = np.full((4, 2), 0.5)
    pillar = np.array([[0.0, 0.0, 0.0, 0.0, 0.1]])
    rows, least = constraints(corners, np.zeros((4, 2)), NO_PARTNERS, pillar, -most, most, RADIUS, 2.0, DT)
    assert (rows.shape, least.shape) == ((0, 4, 2), (0,))


def test_the_servo_answers_as_the_robots_do() -> None:
    env, rng = CrossingEnv(2), np.random.default_rng(0)
    for seed in range(20):
        env.reset(seed=seed)
        env.step(dict(zip(env.agents, rng.uniform(-0.7, 0.7, (2, 2)), strict=True)))
        before, commands = env.data.qvel.reshape(-1, 2).copy(), rng.uniform(-0.7, 0.7, (2, 2))
        env.step(dict(zip(env.agents, commands, strict=True)))
        after = env.data.qvel.reshape(-1, 2)
        np.testing.assert_allclose(before + SERVO.change(commands - before), after, atol=0.03)


def test_a_change_of_velocity_gives_its_command_back() -> None:
    excess = np.random.default_rng(0).uniform(-0.74, 0.74, (50, 2))
    np.testing.assert_allclose(SERVO.excess(SERVO.change(excess)), excess, atol=1e-9)


def test_agents_that_are_absent_are_left_out() -> None:
    env, safety = CrossingEnv(3), new_filter()
    observations, _ = env.reset(seed=0)
    del observations["robot_1"]
    actions = {"robot_0": np.zeros(2, np.float32), "robot_2": np.zeros(2, np.float32)}
    assert list(safety.filter_actions(env.joint_spec, observations, actions)) == ["robot_0", "robot_2"]
    assert safety.filter_actions(env.joint_spec, {}, {}) == {}


@pytest.mark.parametrize("env", [CrossingEnv(2, "obstacles"), dp.make("transport-v0")], ids=["crossing", "transport"])
def test_roles_say_where_velocity_and_obstacles_are(env) -> None:
    observations, _ = env.reset(seed=0)
    before, (role,) = observations, env.joint_spec.roles.values()
    observations, *_ = env.step({name: np.array([0.3, -0.2]) for name in env.agents})
    for name, seen in observations.items():
        assert (seen[list(role.position)] - before[name][list(role.position)]) @ (0.3, -0.2) > 0
        assert seen[list(role.velocity)] == pytest.approx([0.3, -0.2], abs=0.15)
        obstacles = seen[list(role.obstacles)].reshape(-1, 3)
        assert (obstacles.ravel() == before[name][list(role.obstacles)]).all()
        assert ((obstacles[:, 2] > 0.05) & (obstacles[:, 2] < 0.5)).all()


def test_a_role_that_does_not_say_where_its_velocity_is_is_refused() -> None:
    spec = JointSpec({"a": "cart"}, {"cart": Role(4, (-1.0, -1.0), (1.0, 1.0), position=(0, 1))})
    with pytest.raises(
        ValueError, match=re.escape("'cart' has position=(0, 1), velocity=() and 2 actions, expected two")
    ):
        new_filter().filter_actions(spec, {"a": np.zeros(4)}, {"a": np.zeros(2)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"radius": -0.1}, "radius=-0.1, expected a positive number"),
        ({"max_speed": 0.0}, "max_speed=0.0, expected a positive number"),
        ({"max_acceleration": np.inf}, "max_acceleration=inf, expected a positive number"),
        ({"time_constant": np.nan}, "time_constant=nan, expected a positive number"),
        ({"dt": 0.0}, "dt=0.0, expected a positive number"),
        ({"margin": -0.01}, "margin=-0.01, expected 0 or more"),
        ({"reserve": 1.5}, "reserve=1.5, expected a share in (0, 1]"),
        ({"half_width": 0.05}, "half_width=0.05, expected more than radius + margin = 0.09"),
        ({"boxes": [(0.0, 0.0, 1.0)]}, "a box is (0.0, 0.0, 1.0), expected (least x, least y, greatest x, greatest y)"),
        ({"boxes": [(0.5, 0.0, 0.1, 1.0)]}, "a box is (0.5, 0.0, 0.1, 1.0), expected (least x"),
    ],
)
def test_settings_that_contradict_are_refused_in_words(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        new_filter(**changes)


def test_an_obstacle_that_is_not_seen_does_not_hide_those_that_are() -> None:
    role = dp.Role(10, (-1.0, -1.0), (1.0, 1.0), (0, 1), velocity=(2, 3), obstacles=tuple(range(4, 10)))
    spec = dp.JointSpec({"robot": "robot"}, {"robot": role})
    seen = np.array([0.0, 0.0, 0.0, 0.0, 0.25, 0.0, 0.15, np.nan, np.nan, np.nan])
    slowed = new_filter().filter_actions(spec, {"robot": seen}, {"robot": np.array([0.9, 0.0])})
    assert slowed["robot"][0] < 0.5
