"""The two-arm tasks keep the environment contract, repeat by seed alone, and the scripted expert lifts the pot."""

import warnings

import mujoco
import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # pettingzoo's tests import one of its own deprecated modules
    from pettingzoo.test import parallel_api_test, parallel_seed_test

from diffplan.envs import behavior_policy, make, robosuite
from diffplan.spec import JointSpec

HERE = pytest.mark.usefixtures("_needs_robosuite")


@pytest.fixture
def _needs_robosuite():
    pytest.importorskip("robosuite", reason='needs pip install "diffplan[robots]"')


def still(env):
    return {name: np.zeros(env.action_space(name).shape, np.float32) for name in env.agents}


def lift(env, policy, seed):
    observations, _ = env.reset(seed=seed)
    policy.reset(env, seed)
    steps, success, terminations = 0, False, {}
    while env.agents:
        observations, _, terminations, _, infos = env.step(policy(observations))
        steps, success = steps + 1, all(info["success"] for info in infos.values())
    return success, all(terminations.values()), steps


@HERE
@pytest.mark.parametrize("task", robosuite.TASKS)
def test_every_task_keeps_the_parallel_contract(task):
    parallel_api_test(make(f"robosuite:{task}", max_steps=50), num_cycles=50)


@HERE
@pytest.mark.parametrize("task", robosuite.TASKS)
def test_the_same_seed_gives_the_same_episode(task):
    parallel_seed_test(lambda: make(f"robosuite:{task}"), num_cycles=10)


@HERE
@pytest.mark.parametrize("task", robosuite.TASKS)
def test_the_spec_describes_the_spaces_and_makes_the_same_environment_again(task):
    spec = make(f"robosuite:{task}", max_steps=9).joint_spec
    again = make(spec.env_id, **spec.env_options)
    assert again.joint_spec == spec == JointSpec.from_dict(spec.to_dict())
    observations, _ = again.reset(seed=0)
    stacked, mask = spec.stack_observations(observations)
    assert mask.all() and np.isfinite(stacked).all()
    assert all(again.observation_space(name).contains(observations[name]) for name in spec.names)
    assert [spec.role_of(name).action_size for name in spec.names] == [6 if task == "TwoArmPegInHole" else 7] * 2


@HERE
def test_a_used_environment_repeats_what_a_fresh_one_did_and_leaves_the_global_generator_alone():
    env = make("robosuite:TwoArmLift")
    before = np.random.get_state()[1].copy()
    runs = []
    for seed in (4, 5, 4):
        observations, _ = env.reset(seed=seed)
        for _ in range(5):
            observations, *_ = env.step({name: np.full(7, 0.3, np.float32) for name in env.agents})
        runs.append(np.concatenate(list(observations.values())))
    assert np.array_equal(runs[0], runs[2]) and not np.array_equal(runs[0], runs[1])
    assert np.array_equal(before, np.random.get_state()[1])


@HERE
def test_observations_are_of_this_moment():
    env = make("robosuite:TwoArmLift")
    env.reset(seed=0)
    for _ in range(3):
        observations, *_ = env.step({name: np.ones(7, np.float32) for name in env.agents})
    for arm, name in enumerate(env.possible_agents):
        hand = env._raw.sim.data.site_xpos[env._raw.robots[arm].eef_site_id["right"]]
        np.testing.assert_allclose(observations[name][list(env.joint_spec.role_of(name).position)], hand, atol=1e-6)


@HERE
def test_the_expert_lifts_the_pot_and_success_ends_the_episode():
    env = make("robosuite:TwoArmLift")
    outcomes = [lift(env, behavior_policy("robosuite:TwoArmLift", "expert"), seed) for seed in range(4)]
    assert all(success and terminated and steps < 100 for success, terminated, steps in outcomes)


@HERE
def test_arms_at_rest_are_truncated_without_success():
    env = make("robosuite:TwoArmLift", max_steps=3)
    env.reset(seed=0)
    for step in range(3):
        _, _, terminations, truncations, infos = env.step(still(env))
        assert all(truncations.values()) == (step == 2) and not any(terminations.values())
        assert infos == {"arm_0": {"success": False}, "arm_1": {"success": False}}
    assert env.agents == []


@HERE
def test_the_picture_shows_both_arms():
    env = make("robosuite:TwoArmLift", render_mode="rgb_array")
    env.reset(seed=0)
    try:
        picture = env.render()
    except (mujoco.FatalError, RuntimeError, AttributeError, ImportError) as error:
        pytest.skip(f"no OpenGL here ({error})")
    assert picture.shape == (480, 640, 3) and picture[:, :320].std() > 10 < picture[:, 320:].std()
    env.close()


def test_mistakes_name_what_exists():
    with pytest.raises(ValueError, match=r"unknown task 'robosuite:Lift'; known: TwoArmLift"):
        make("robosuite:Lift")
    with pytest.raises(ValueError, match=r"no script for skill='expert'.*scripted: robosuite:TwoArmLift"):
        behavior_policy("robosuite:TwoArmHandover", "expert")


def test_without_robosuite_the_error_gives_the_pip_command():
    try:
        import robosuite as _  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(ImportError, match=r'pip install "diffplan\[robots\]"'):
            make("robosuite:TwoArmLift")
    else:
        pytest.skip("robosuite is installed here")
