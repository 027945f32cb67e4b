"""Bodies shared by several agents keep the environment contract, whatever the partition."""

import warnings

import mujoco
import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # pettingzoo's tests import one of its own deprecated modules
    from pettingzoo.test import parallel_api_test, parallel_seed_test

pytest.importorskip("gymnasium_robotics", reason='needs pip install "diffplan[mamujoco]"')

from diffplan.envs import behavior_policy, make, mamujoco
from diffplan.spec import JointSpec

RUNNABLE = [task for task in mamujoco.TASKS if "NxM" not in task and "Coupled" not in task]
RUNNABLE += ["ManySegmentAnt-2x2", "ManySegmentSwimmer-4x2"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # mujoco logs what it finds old-fashioned in a body to MUJOCO_LOG.TXT, here


@pytest.mark.parametrize("task", ["HalfCheetah-2x3", "Ant-2x4"])
def test_a_body_keeps_the_parallel_contract_for_1000_cycles(task):
    parallel_api_test(make(f"mamujoco:{task}"), num_cycles=1000)


@pytest.mark.parametrize("task", RUNNABLE)
def test_every_task_keeps_the_parallel_contract(task):
    parallel_api_test(make(f"mamujoco:{task}"), num_cycles=50)


@pytest.mark.parametrize("task", ["HalfCheetah-2x3", "Hopper-3x1", "ManySegmentSwimmer-4x2"])
def test_the_same_seed_gives_the_same_episode(task):
    parallel_seed_test(lambda: make(f"mamujoco:{task}"), num_cycles=50)


@pytest.mark.parametrize("task", RUNNABLE)
def test_the_spec_describes_the_spaces_and_makes_the_same_environment_again(task):
    spec = make(f"mamujoco:{task}", agent_obsk=0).joint_spec
    again = make(spec.env_id, **spec.env_options)
    assert again.joint_spec == spec == JointSpec.from_dict(spec.to_dict())
    observations, _ = again.reset(seed=0)
    stacked, mask = spec.stack_observations(observations)
    assert mask.all() and np.isfinite(stacked).all()
    for name in spec.names:
        assert again.observation_space(name).contains(observations[name])
        assert spec.role_of(name).action_size == again.action_space(name).shape[0]


def test_agents_with_the_same_width_but_other_limbs_are_different_roles():
    spec = make("mamujoco:HalfCheetah-2x3").joint_spec
    assert spec.agents == {"agent_0": "agent_0", "agent_1": "agent_1"}
    assert (spec.observation_size, spec.action_size, spec.dt) == (12, 3, pytest.approx(0.05))


def test_agents_of_different_width_share_one_grid():
    spec = make("mamujoco:Humanoid-9|8").joint_spec
    assert [spec.role_of(name).action_size for name in spec.names] == [9, 8]
    assert spec.action_bounds[1].max() == pytest.approx(0.4)


def test_a_cheetah_is_truncated_after_1000_steps_and_a_hopper_terminates_when_it_falls():
    for task, ending in (("HalfCheetah-2x3", "truncation"), ("Hopper-3x1", "termination")):
        env = make(f"mamujoco:{task}")
        env.reset(seed=0)
        push = {name: np.ones(env.action_space(name).shape, np.float32) for name in env.agents}
        steps = 0
        while env.agents:
            _, _, terminations, truncations, _ = env.step(push)
            steps += 1
        assert all(truncations.values()) == (ending == "truncation") == (steps == 1000)
        assert all(terminations.values()) == (ending == "termination")


def test_random_behaviour_drives_every_agent_within_its_bounds():
    env, policy = make("mamujoco:Pusher-3p"), behavior_policy("mamujoco:Pusher-3p", "random")
    observations, _ = env.reset(seed=0)
    policy.reset(env, 0)
    for name, action in policy(observations).items():
        assert env.action_space(name).contains(action)


def test_the_picture_shows_a_body():
    env = make("mamujoco:HalfCheetah-2x3", render_mode="rgb_array")
    env.reset(seed=0)
    try:
        picture = env.render()
    except (mujoco.FatalError, RuntimeError, AttributeError, ImportError) as error:
        pytest.skip(f"no OpenGL here ({error})")
    assert picture.shape == (480, 480, 3) and picture.std() > 10
    env.close()


def test_mistakes_name_what_exists():
    for wrong in ("HalfCheetah-3x2", "HalfCheetah", "ManySegmentAnt-2", "Cat-2x2"):
        with pytest.raises(ValueError, match=r"unknown task .*known: .*HalfCheetah-2x3"):
            make(f"mamujoco:{wrong}")
    with pytest.raises(ValueError, match=r"agent_obsk=-1"):
        make("mamujoco:HalfCheetah-2x3", agent_obsk=-1)
    with pytest.raises(ValueError, match=r"no script for skill='expert'; use skill='random'"):
        behavior_policy("mamujoco:HalfCheetah-2x3")


def test_the_coupled_cheetahs_ask_for_an_older_mujoco_or_run():
    if tuple(map(int, mujoco.__version__.split(".")[:2])) >= (3, 6):
        with pytest.raises(ImportError, match=r"needs mujoco<3.6, got"):
            make("mamujoco:CoupledHalfCheetah-1p1")
    else:
        parallel_api_test(make("mamujoco:CoupledHalfCheetah-1p1"), num_cycles=50)


@pytest.mark.parametrize("task", ["HalfCheetah-2x3", "ManySegmentSwimmer-2x2"])
def test_the_camera_goes_along_with_the_body(task):
    env = make(f"mamujoco:{task}", render_mode="rgb_array")
    env.reset(seed=0)
    body = env._env.single_agent_env.unwrapped

    def seen(forward: float) -> np.ndarray:
        body.data.qpos[0] += forward
        mujoco.mj_forward(body.model, body.data)
        return env.render().astype(int)

    near, far = seen(0.0), seen(6.0)
    vivid = [(np.ptp(picture, axis=-1) > 60).sum() for picture in (near, far)]  # the floor and the sky are grey
    assert vivid[0] > 500
    assert vivid[1] > 0.5 * vivid[0]
    env.close()
