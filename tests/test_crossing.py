"""Facts about ``crossing-v0`` and its expert."""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest

from diffplan.envs import behavior_policy, make
from diffplan.envs.crossing import CrossingEnv
from diffplan.envs.crossing_expert import STYLES
from diffplan.envs.crossing_layouts import LAYOUTS, RADIUS, place

with warnings.catch_warnings():  # importing PettingZoo's tests imports its deprecated games
    warnings.simplefilter("ignore")
    from pettingzoo.test import parallel_api_test, parallel_seed_test


def still(env):
    return {name: np.zeros(2, np.float32) for name in env.agents}


def towards(env, target, speed=1.0):
    offsets = target - env.positions
    directions = speed * offsets / np.maximum(np.linalg.norm(offsets, axis=1, keepdims=True), 1e-6)
    return dict(zip(env.agents, directions.astype(np.float32), strict=True))


def run(env, policies, choice=None, seed=0):
    """Plays one episode; robot i follows ``policies[choice[i]]``."""
    observations, infos = env.reset(seed=seed)
    for policy in policies:
        policy.reset(env, seed)
    choice = np.zeros(env.num_robots, int) if choice is None else choice
    while env.agents:
        offers = [policy(observations) for policy in policies]
        actions = {name: offers[which][name] for name, which in zip(env.agents, choice, strict=True)}
        observations, rewards, terminations, truncations, infos = env.step(actions)
    return infos["robot_0"], rewards, terminations, truncations


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pettingzoo_accepts_it(layout):
    parallel_api_test(make("crossing-v0", layout=layout), num_cycles=1000)
    parallel_seed_test(lambda: make("crossing-v0", layout=layout, sensing_radius=0.8))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_expert_succeeds_in_20_of_20_episodes(layout):
    env, policy = make("crossing-v0", layout=layout), behavior_policy("crossing-v0")
    for seed in range(20):
        info, rewards, terminations, _ = run(env, [policy], seed=seed)
        assert info["success"] and info["contacts"] == 0 and all(terminations.values())
        assert min(rewards.values()) > 4.5
        assert policy.labels["style"] in STYLES[layout] and 0.72 <= policy.labels["speed"] <= 0.95


def test_the_expert_leads_8_robots_across():
    env, policy = make("crossing-v0", num_robots=8), behavior_policy("crossing-v0")
    assert all(run(env, [policy], seed=seed)[0]["success"] for seed in range(5))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_robots_that_mix_two_styles_touch(layout):
    env = make("crossing-v0", layout=layout)
    policies = [behavior_policy("crossing-v0", style=style) for style in STYLES[layout]]
    rng = np.random.default_rng(0)
    choices = [rng.permutation([0, 1, *rng.integers(2, size=2)]) for _ in range(10)]
    successes = [run(env, policies, choice, seed)[0]["success"] for seed, choice in enumerate(choices)]
    assert np.mean(successes) <= 0.2


@pytest.mark.parametrize("style, sign", [("clockwise", -1), ("counterclockwise", 1)])
def test_each_style_goes_its_way_round_the_centre(style, sign):
    env, policy = make("crossing-v0", num_robots=3), behavior_policy("crossing-v0", style=style)
    observations, _ = env.reset(seed=4)
    policy.reset(env, 4)
    turned = np.zeros(3)
    while env.agents:
        before = env.positions
        observations, *_ = env.step(policy(observations))
        turned += np.cross(np.pad(before, ((0, 0), (0, 1))), np.pad(env.positions, ((0, 0), (0, 1))))[:, 2]
    assert (sign * turned > 0.1).all()


@pytest.mark.parametrize("style, side", [("left_first", -1), ("right_first", 1)])
def test_each_style_empties_its_room_first(style, side):
    env, policy = make("crossing-v0", layout="doorway"), behavior_policy("crossing-v0", style=style)
    observations, _ = env.reset(seed=4)
    policy.reset(env, 4)
    first = np.sign(env.starts[:, 0]) == side
    while env.agents:
        observations, *_ = env.step(policy(observations))
        if (env.positions[~first, 0] * side > 0).any():
            assert (env.positions[first, 0] * side < 0).all()


def test_a_contact_ends_the_episode_as_a_failure_and_costs_those_who_touch():
    env = make("crossing-v0")
    env.reset(seed=0)
    actions = still(env)
    while env.agents:
        actions["robot_0"] = towards(env, env.positions[1])["robot_0"]
        _, rewards, terminations, truncations, infos = env.step(actions)
    assert np.linalg.norm(env.positions[0] - env.positions[1]) == pytest.approx(2 * RADIUS, abs=0.03)
    assert all(terminations.values()) and not any(truncations.values())
    assert infos["robot_2"]["contacts"] == 1 and not infos["robot_2"]["success"]
    assert rewards["robot_0"] < -4 and rewards["robot_1"] < -4
    assert rewards["robot_2"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("layout, target", [("open", (9.0, 0.0)), ("doorway", (0.0, -0.6)), ("obstacles", None)])
def test_walls_and_obstacles_are_solid(layout, target):
    env = make("crossing-v0", layout=layout)
    env.reset(seed=0)
    goal = np.array(target) if target else env.obstacles[0, :2]
    while env.agents:
        actions = still(env) | {"robot_0": towards(env, goal)["robot_0"]}
        _, _, terminations, _, infos = env.step(actions)
    assert all(terminations.values()) and infos["robot_0"]["contacts"] >= 1
    if layout == "obstacles":
        gap = np.linalg.norm(env.positions[0] - env.obstacles[:, :2], axis=1) - env.obstacles[:, 2] - RADIUS
        assert gap.min() == pytest.approx(0, abs=0.03)


def test_the_time_limit_truncates():
    env = make("crossing-v0", max_steps=3)
    env.reset(seed=0)
    outcomes = [env.step(still(env)) for _ in range(3)]
    assert [any(truncations.values()) for *_, truncations, _ in outcomes] == [False, False, True]
    assert not any(outcomes[-1][2].values()) and env.agents == []


def test_velocity_and_force_are_bounded():
    env = make("crossing-v0")
    env.reset(seed=1)
    observations, *_ = env.step(towards(env, np.zeros(2), speed=5.0))
    speeds = [np.linalg.norm(one[2:4]) for one in observations.values()]
    assert max(speeds) < np.hypot(5, 5) * 0.1  # 5 N an axis on 1 kg for 0.1 s
    for _ in range(6):
        observations, *_ = env.step(towards(env, np.zeros(2), speed=5.0))
    assert max(np.linalg.norm(one[2:4]) for one in observations.values()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_seed_settles_an_episode_bit_for_bit(layout):
    def record(env, seed):
        observations, _ = env.reset(seed=seed)
        steps = [env.step(towards(env, np.zeros(2)))[0] for _ in range(4)]
        return np.array([list(one.values()) for one in (observations, *steps)])

    first, second = make("crossing-v0", layout=layout), make("crossing-v0", layout=layout)
    second.reset(seed=9)
    assert np.array_equal(record(first, 3), record(second, 3))
    assert not np.array_equal(record(first, 3), record(first, 4))
    assert not np.array_equal(record(first, 4)[0], np.array(list(first.reset()[0].values())))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("num_robots", [2, 3, 16])
def test_nothing_touches_at_the_start_and_no_goals_overlap(layout, num_robots):
    rng = np.random.default_rng(0)
    for _ in range(50):
        starts, goals, obstacles = place(layout, num_robots, rng)
        for points in (starts, goals):
            gaps = np.linalg.norm(points[:, None] - points, axis=2) + 9 * np.eye(num_robots)
            assert gaps.min() > 2 * RADIUS
            pillars = np.linalg.norm(points[:, None] - obstacles[:, :2], axis=2) - obstacles[:, 2]
            assert pillars.min(initial=9) > 2 * RADIUS
        assert np.abs(np.concatenate([starts, goals])).max() < 1.2 - RADIUS


def test_observations_say_position_velocity_goal_and_obstacles():
    env = make("crossing-v0", layout="obstacles", num_robots=3)
    observations, _ = env.reset(seed=0)
    expected = np.concatenate([env.starts[1], [0, 0], env.goals[1], env.obstacles.ravel()])
    assert np.allclose(observations["robot_1"], expected)
    assert env.observation_space("robot_1").contains(observations["robot_1"])
    assert env.state().shape == (3 * 6 + 3 * 3,)
    role = env.joint_spec.role_of("robot_1")
    assert role.position == (0, 1) and role.static == tuple(range(4, 15))


def test_the_spec_recreates_the_environment():
    env = make("crossing-v0", num_robots=3, layout="obstacles", sensing_radius=0.7)
    again = make(env.joint_spec.env_id, **env.joint_spec.env_options)
    assert again.joint_spec == env.joint_spec
    assert np.array_equal(again.reset(seed=5)[0]["robot_2"], env.reset(seed=5)[0]["robot_2"])


def test_partners_are_sensed_within_the_radius_and_never_their_goals():
    env = make("crossing-v0", num_robots=6, layout="obstacles", sensing_radius=1.1)
    observations, infos = env.reset(seed=0)
    for i, name in enumerate(env.agents):
        distances = np.linalg.norm(env.positions - env.positions[i], axis=1)
        near = {partner for partner, d in zip(env.agents, distances, strict=True) if partner != name and d <= 1.1}
        assert set(infos[name]["sensed"]) == near and 0 < len(near) < 5
        for partner, seen in infos[name]["sensed"].items():
            assert np.isnan(seen[4:6]).all()
            assert np.array_equal(np.delete(seen, [4, 5]), np.delete(observations[partner], [4, 5]))


def test_without_a_radius_everybody_is_sensed():
    env = make("crossing-v0")
    _, infos = env.reset(seed=0)
    assert set(infos["robot_2"]["sensed"]) == {"robot_0", "robot_1", "robot_3"}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_robots": 17}, "num_robots=17; choose a whole number from 2 to 16"),
        ({"num_robots": 2.5}, "num_robots=2.5"),
        ({"layout": "maze"}, "layout='maze'; choose one of .*doorway"),
        ({"sensing_radius": -1.0}, "sensing_radius=-1.0; give a positive distance"),
        ({"max_steps": 0}, "max_steps=0; give a positive whole number"),
        ({"render_mode": "human"}, "render_mode='human'; choose 'rgb_array'"),
    ],
)
def test_wrong_options_are_named_with_the_remedy(options, message):
    with pytest.raises(ValueError, match=message):
        make("crossing-v0", **options)


def test_wrong_actions_are_named():
    env = make("crossing-v0")
    with pytest.raises(ValueError, match="call reset"):
        env.step({})
    env.reset(seed=0)
    good = still(env)
    with pytest.raises(ValueError, match=r"no actions for \['robot_3'\]"):
        env.step({name: good[name] for name in env.agents[:3]})
    with pytest.raises(ValueError, match=r"action of 'robot_1' is .* expected two finite numbers"):
        env.step(good | {"robot_1": np.zeros(3)})
    with pytest.raises(ValueError, match=r"'robot_2' is \[ *0. nan\], expected two finite numbers"):
        env.step(good | {"robot_2": np.array([0.0, np.nan])})


def test_an_overlay_is_drawn_and_cleared():
    env = CrossingEnv(render_mode="rgb_array")
    env.reset(seed=0)
    plain = env.render()
    lines = np.linspace(env.starts[0], env.goals[0], 8)[None]
    env.overlay({"robot_0": np.concatenate([lines, np.full_like(lines, np.nan)])}, alpha=1.0)
    drawn = env.render()
    assert plain.shape == (480, 480, 3) and plain.dtype == np.uint8 and plain.std() > 10
    changed = (plain != drawn).any(-1)
    assert 300 < changed.sum() < 20_000
    env.overlay({})
    assert np.array_equal(env.render(), plain)
    with pytest.raises(ValueError, match="agents \\['nobody'\\]"):
        env.overlay({"nobody": lines})
    with pytest.raises(ValueError, match=r"\(8, 2\), expected \(S, H, 2\)"):
        env.overlay({"robot_0": lines[0]})
    env.close()


def test_rendering_without_a_mode_or_without_opengl_says_what_to_do():
    with pytest.raises(ValueError, match="render_mode='rgb_array'"):
        make("crossing-v0").render()
    code = (
        "from diffplan.envs import make; e = make('crossing-v0', render_mode='rgb_array'); e.reset(seed=0); e.render()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"MUJOCO_GL": "disable"}, capture_output=True, text=True
    )
    assert result.returncode != 0 and "RuntimeError: no OpenGL" in result.stderr and "MUJOCO_GL=egl" in result.stderr
