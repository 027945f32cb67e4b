"""Facts about ``transport-v0``, its physics and its expert."""

import warnings

import mujoco
import numpy as np
import pytest

from diffplan.envs import behavior_policy, make
from diffplan.envs.transport import TransportEnv
from diffplan.envs.transport_expert import push, steer
from diffplan.envs.transport_model import BOX_HALF, FRICTION, FRICTION_RADIUS, PILLAR_RADIUS, ROBOT_RADIUS, place

with warnings.catch_warnings():  # importing PettingZoo's tests imports its deprecated games
    warnings.simplefilter("ignore")
    from pettingzoo.test import parallel_api_test, parallel_seed_test

FAR = (-3.0, 3.0)


def still(env):
    return {name: np.zeros(2, np.float32) for name in env.agents}


def run(env, policy, seed):
    """Plays one episode; returns the last infos, all rewards of one robot, and the way of the box."""
    observations, infos = env.reset(seed=seed)
    policy.reset(env, seed + 1000)
    rewards, way = [], [env.box]
    while env.agents:
        observations, reward, _, _, infos = env.step(policy(observations))
        rewards.append(reward["robot_0"])
        way.append(env.box)
    return infos["robot_0"], np.array(rewards), np.array(way)


def set_box(env, pose, robots=None):
    """Puts the box at ``pose`` (x, y, yaw) with robots at ``robots`` in its frame, or far away."""
    env.data.qpos[:3] = pose
    cos, sin = np.cos(pose[2]), np.sin(pose[2])
    far = np.array(FAR) + 0.2 * np.arange(env.num_robots)[:, None]
    placed = far if robots is None else pose[:2] + np.array(robots) @ [[cos, sin], [-sin, cos]]
    env.data.qpos[4:] = placed.ravel()


def test_pettingzoo_accepts_it():
    parallel_api_test(make("transport-v0"), num_cycles=1000)
    parallel_seed_test(lambda: make("transport-v0"))


@pytest.mark.parametrize("num_robots", [2, 3, 4])
def test_the_expert_succeeds_in_10_of_10_episodes(num_robots):
    env, policy = make("transport-v0", num_robots=num_robots), behavior_policy("transport-v0")
    for seed in range(10):
        info, rewards, _ = run(env, policy, seed)
        distance, angle = env.pose_error()
        assert info["success"] and info["contacts"] == 0 and len(rewards) <= 120
        assert distance < 0.05 and angle < np.deg2rad(10)
        assert 0.29 <= policy.labels["speed"] <= 0.37


def test_medium_succeeds_about_half_as_often_and_random_never():
    env = make("transport-v0")
    medium, chance = (behavior_policy("transport-v0", skill=skill) for skill in ("medium", "random"))
    assert 0.25 <= np.mean([run(env, medium, seed)[0]["success"] for seed in range(16)]) <= 0.75
    assert not any(run(env, chance, seed)[0]["success"] for seed in range(4))


@pytest.mark.parametrize("style, sign", [("left", 1), ("right", -1)])
def test_each_style_passes_the_pillar_on_its_side(style, sign):
    env, policy = make("transport-v0"), behavior_policy("transport-v0", style=style)
    for seed in range(3):
        _, _, way = run(env, policy, seed)
        beside = way[np.argmin(np.abs(way[:, 0] - env.pillar[0]))]
        assert sign * (beside[1] - env.pillar[1]) > PILLAR_RADIUS + BOX_HALF[1]


@pytest.mark.parametrize("share, moves", [(0.97, False), (1.05, True)])
def test_friction_holds_the_box_inside_an_ellipsoid_of_pushes(share, moves):
    env, rng = make("transport-v0"), np.random.default_rng(0)
    for yaw in rng.uniform(-np.pi, np.pi, 12):
        env.reset(seed=0)
        set_box(env, (0.0, 1.0, yaw))
        push = rng.normal(size=3)
        push *= share * FRICTION / np.linalg.norm(push)
        env.data.qfrc_applied[:3] = push * [1, 1, FRICTION_RADIUS]
        for _ in range(10):
            env.step(still(env))
        moved = np.linalg.norm((env.box - [0, 1, yaw]) * [1, 1, FRICTION_RADIUS])
        assert moved > 0.05 if moves else moved < 0.003


@pytest.mark.parametrize("across", [-0.15, 0.0, 0.15])
def test_one_robot_cannot_move_the_box_and_two_can(across):
    env = make("transport-v0", num_robots=2)
    moved = []
    for second in (False, True):
        env.reset(seed=0)
        set_box(env, (-1.0, 0.0, 0.0), [(-0.185, across), (-0.185, across - np.copysign(0.1, across))])
        env.data.qpos[6:8] = env.data.qpos[6:8] if second else FAR
        for _ in range(50):
            env.step({"robot_0": np.array([0.6, 0.0]), "robot_1": np.array([0.6, 0.0]) * second})
        moved.append(np.linalg.norm(env.box[:2] - [-1.0, 0.0]))
    assert moved[0] < 0.01 and moved[1] > 0.5


def test_one_robot_cannot_move_the_box_from_any_side():
    env = make("transport-v0", num_robots=2)
    x, y = BOX_HALF[0] + ROBOT_RADIUS, BOX_HALF[1] + ROBOT_RADIUS
    for start, velocity in [((x, 0.18), (-0.6, 0)), ((-0.13, y), (0, -0.6)), ((0.13, -y), (0.6, 0.6))]:
        env.reset(seed=0)
        set_box(env, (-1.0, 0.0, 0.0), [start, (2.0, 2.0)])
        for _ in range(50):
            env.step({"robot_0": np.array(velocity), "robot_1": np.zeros(2)})
        assert np.abs(env.box - [-1.0, 0.0, 0.0]).max() < 0.03


def test_the_box_stops_within_3_cm_after_the_pushing_ends():
    env, policy = make("transport-v0"), behavior_policy("transport-v0")
    observations, _ = env.reset(seed=0)
    policy.reset(env, 0)
    for _ in range(40):
        observations, *_ = env.step(policy(observations))
    before = env.box
    assert np.linalg.norm(env.data.qvel[:2]) > 0.2
    for _ in range(10):
        env.step(still(env))
    assert np.linalg.norm(env.box[:2] - before[:2]) < 0.03
    assert np.abs(env.data.qvel[:3]).max() < 1e-3


def test_the_box_touching_the_pillar_ends_the_episode_as_a_failure():
    env = make("transport-v0", num_robots=2)
    env.reset(seed=0)
    gap = BOX_HALF[0] + PILLAR_RADIUS + 0.05
    set_box(env, (env.pillar[0] - gap, env.pillar[1], 0.0), [(-0.185, -0.1), (-0.185, 0.1)])
    while env.agents:
        _, rewards, terminations, truncations, infos = env.step({name: np.array([0.4, 0.0]) for name in env.agents})
    assert env.pillar[0] - env.box[0] == pytest.approx(gap - 0.05, abs=0.02)
    assert all(terminations.values()) and not any(truncations.values())
    assert infos["robot_1"]["contacts"] == 1 and not infos["robot_1"]["success"]
    assert max(rewards.values()) < 1


def test_robots_that_touch_each_other_or_the_pillar_are_counted_and_go_on():
    env = make("transport-v0", num_robots=2)
    env.reset(seed=0)
    env.data.qpos[4:] = [0.5, 1.0, 0.7, 1.0]
    for _ in range(6):
        *_, infos = env.step({"robot_0": np.array([0.5, 0.0]), "robot_1": np.array([-0.5, 0.0])})
    apart = env.positions[1, 0] - env.positions[0, 0]
    assert apart == pytest.approx(2 * ROBOT_RADIUS, abs=0.01)
    assert infos["robot_0"]["contacts"] >= 1 and env.agents
    env.reset(seed=0)
    env.data.qpos[4:6] = [env.pillar[0], env.pillar[1] + 0.2]
    for _ in range(4):
        *_, infos = env.step({"robot_0": np.array([0.0, -0.5]), "robot_1": np.zeros(2)})
    assert infos["robot_0"]["contacts"] >= 1 and env.agents


@pytest.mark.parametrize("offset, reached", [((0.04, 0.0, 0.15), True), ((0.06, 0, 0), False), ((0, 0, 0.19), False)])
def test_success_is_half_a_second_within_5_cm_and_10_degrees(offset, reached):
    env = make("transport-v0")
    env.reset(seed=0)
    set_box(env, env.goal + offset)
    outcomes = [env.step(still(env)) for _ in range(5)]
    assert [any(terminations.values()) for _, _, terminations, _, _ in outcomes] == [False] * 4 + [reached]
    assert outcomes[-1][-1]["robot_2"]["success"] == reached
    assert (outcomes[-1][1]["robot_2"] == pytest.approx(5.0, abs=0.01)) == reached


def test_when_time_is_up_being_at_the_goal_is_success():
    env = make("transport-v0", max_steps=2)
    for offset, reached in ((0.0, True), (0.1, False)):
        env.reset(seed=0)
        set_box(env, env.goal + np.array([offset, 0.0, 0.0]))
        *_, first_truncations, _ = env.step(still(env))
        _, _, terminations, truncations, infos = env.step(still(env))
        assert not any(first_truncations.values()) and env.agents == []
        assert set(terminations.values()) == {reached} and set(truncations.values()) == {not reached}
        assert infos["robot_0"]["success"] == reached


def test_rewards_add_up_to_the_progress_of_the_box_and_the_bonus():
    env, policy = make("transport-v0"), behavior_policy("transport-v0")
    env.reset(seed=3)
    start, turn = env.pose_error()
    _, rewards, _ = run(env, policy, 3)
    end, end_turn = env.pose_error()
    assert rewards.sum() == pytest.approx(start + 0.2 * turn - end - 0.2 * end_turn + 5, abs=1e-9)


def test_velocity_and_force_are_bounded():
    env = make("transport-v0", num_robots=2)
    env.reset(seed=0)
    set_box(env, (0.0, -1.0, 0.0))
    observations, *_ = env.step({name: np.array([9.0, -9.0]) for name in env.agents})
    assert np.abs(observations["robot_0"][2:4]).max() < 10 * 0.1  # 10 N on 1 kg for 0.1 s
    for _ in range(9):
        observations, *_ = env.step({name: np.array([9.0, -9.0]) for name in env.agents})
    assert observations["robot_1"][2:4] == pytest.approx([0.6, -0.6], abs=0.01)


def test_observations_say_where_robot_box_goal_and_pillar_are():
    env = make("transport-v0")
    observations, infos = env.reset(seed=0)
    pose = [[x, y, np.cos(yaw), np.sin(yaw)] for x, y, yaw in (env.box, env.goal)]
    expected = np.concatenate([env.positions[1], [0, 0], *pose, env.pillar, [PILLAR_RADIUS]])
    assert np.allclose(observations["robot_1"], expected)
    assert env.observation_space("robot_1").contains(observations["robot_1"])
    assert env.state_space.contains(env.state())
    assert infos["robot_1"]["sensed"].keys() == {"robot_0", "robot_2"}
    assert np.array_equal(infos["robot_1"]["sensed"]["robot_0"], observations["robot_0"])


def test_what_the_spec_calls_static_stays_and_positions_are_positions():
    env, policy = make("transport-v0"), behavior_policy("transport-v0")
    first, _ = env.reset(seed=0)
    policy.reset(env, 0)
    role, later = env.joint_spec.role_of("robot_0"), first
    for _ in range(30):
        later, *_ = env.step(policy(later))
    changed = later["robot_0"] != first["robot_0"]
    assert [i for i in range(15) if not changed[i]] == list(role.static)
    assert np.allclose(later["robot_2"][list(role.position)], env.positions[2])


def test_the_spec_recreates_the_environment():
    env = make("transport-v0", num_robots=4, max_steps=90)
    again = make(env.joint_spec.env_id, **env.joint_spec.env_options)
    assert again.joint_spec == env.joint_spec
    assert np.array_equal(again.reset(seed=5)[0]["robot_3"], env.reset(seed=5)[0]["robot_3"])


def test_the_seed_settles_an_episode_bit_for_bit():
    env, other = make("transport-v0"), make("transport-v0")
    other.reset(seed=7)
    ways = [run(one, behavior_policy("transport-v0"), seed)[2] for one, seed in ((env, 3), (other, 3), (env, 4))]
    assert np.array_equal(ways[0], ways[1])
    assert not np.array_equal(ways[0][0], ways[2][0])


@pytest.mark.parametrize("num_robots", [2, 3, 4])
def test_nothing_touches_at_the_start_and_the_pillar_is_in_the_way(num_robots):
    rng = np.random.default_rng(0)
    for _ in range(200):
        box, goal, pillar, robots = place(num_robots, rng)
        gaps = np.linalg.norm(robots[:, None] - robots, axis=2) + 9 * np.eye(num_robots)
        assert gaps.min() > 2 * ROBOT_RADIUS
        ahead = (robots - box[:2]) @ [np.cos(box[2]), np.sin(box[2])]
        assert ahead.max() < -BOX_HALF[0] - ROBOT_RADIUS
        way = goal[:2] - box[:2]
        off = abs(way[0] * (pillar - box[:2])[1] - way[1] * (pillar - box[:2])[0]) / np.linalg.norm(way)
        assert off < BOX_HALF[1] and 2.2 < np.linalg.norm(way) < 2.7


def test_the_expert_treats_robots_alike():
    robots = np.array([[-0.2, 0.1], [-0.19, -0.12], [-0.3, 0.01]])
    order = [2, 0, 1]
    velocities = push(robots, 0.8, 1.0, 0.3)
    assert np.allclose(push(robots[order], 0.8, 1.0, 0.3), velocities[order])
    assert np.allclose(push(robots * [1, -1], -0.8, 1.0, 0.3), velocities * [1, -1])


def test_left_and_right_are_mirror_images():
    scene = np.array([-1.0, 0.05, np.cos(0.1), np.sin(0.1), 1.2, -0.1, np.cos(0.2), -np.sin(0.2), 0.0, 0.03, 0.07])
    mirror = scene * [1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1]
    (left, way), (right, same_way) = steer(scene, 1.0), steer(mirror, -1.0)
    assert left == pytest.approx(-right) and way == pytest.approx(same_way)
    assert left > 0 > steer(scene, -1.0)[0]


def test_a_box_past_the_pillar_follows_the_cubic_to_its_goal():
    scene = np.array([1.0, 0.1, 1.0, 0.0, 2.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.07])
    curvature, way = steer(scene, 1.0)
    assert way == pytest.approx(1.0)
    assert curvature == pytest.approx(-0.6)  # y = 0.1 - 0.3 x^2 + 0.2 x^3


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_robots": 1}, "num_robots=1; choose a whole number from 2 to 4"),
        ({"num_robots": 3.0}, "num_robots=3.0"),
        ({"max_steps": 0}, "max_steps=0; give a positive whole number"),
        ({"render_mode": "human"}, "render_mode='human'; choose 'rgb_array'"),
    ],
)
def test_wrong_options_are_named_with_the_remedy(options, message):
    with pytest.raises(ValueError, match=message):
        make("transport-v0", **options)


def test_wrong_actions_are_named():
    env = make("transport-v0")
    with pytest.raises(ValueError, match="call reset"):
        env.step({})
    env.reset(seed=0)
    good = still(env)
    with pytest.raises(ValueError, match=r"no actions for \['robot_2'\]"):
        env.step({name: good[name] for name in env.agents[:2]})
    for wrong in (np.zeros(3), np.array([0.0, np.nan])):
        with pytest.raises(ValueError, match=r"action of 'robot_1' is .* expected two finite numbers"):
            env.step(good | {"robot_1": wrong})


def test_an_overlay_is_drawn_and_cleared_and_the_box_is_seen_to_move():
    env = TransportEnv(render_mode="rgb_array")
    env.reset(seed=0)
    plain = env.render()
    lines = np.linspace(env.positions[0], env.goal[:2], 8)[None]
    env.overlay({"robot_0": lines}, alpha=1.0)
    changed = (plain != env.render()).any(-1)
    assert plain.shape == (480, 480, 3) and plain.dtype == np.uint8 and plain.std() > 10
    assert 300 < changed.sum() < 20_000
    env.overlay({})
    assert np.array_equal(env.render(), plain)
    set_box(env, (0.0, -0.8, 0.5))
    mujoco.mj_forward(env.model, env.data)
    assert (plain != env.render()).any(-1).sum() > 1000
    with pytest.raises(ValueError, match="agents \\['nobody'\\]"):
        env.overlay({"nobody": lines})
    with pytest.raises(ValueError, match=r"\(8, 2\), expected \(S, H, 2\)"):
        env.overlay({"robot_0": lines[0]})
    env.close()
    with pytest.raises(ValueError, match="render_mode='rgb_array'"):
        make("transport-v0").render()
