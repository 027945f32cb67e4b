"""The particle tasks keep the environment contract, and the scripted expert covers the landmarks."""

import itertools
import warnings

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # pettingzoo's tests import one of its own deprecated modules
    from pettingzoo.test import parallel_api_test, parallel_seed_test

pytest.importorskip("mpe2", reason='needs pip install "diffplan[mpe]"')

from diffplan.envs import behavior_policy, make, mpe
from diffplan.envs.simple_spread_expert import _best_assignment, _second_assignment
from diffplan.spec import JointSpec


def episode(env, policy, seed):
    observations, _ = env.reset(seed=seed)
    policy.reset(env, seed)
    team_return, infos = 0.0, {}
    while env.agents:
        observations, rewards, _, _, infos = env.step(policy(observations))
        team_return += sum(rewards.values())
    return team_return, all(info["success"] for info in infos.values())


@pytest.mark.parametrize("task", mpe.TASKS)
def test_every_task_keeps_the_parallel_contract_for_1000_cycles(task):
    parallel_api_test(make(f"mpe:{task}", max_cycles=1000), num_cycles=1000)


@pytest.mark.parametrize("task", mpe.TASKS)
def test_the_same_seed_gives_the_same_episode(task):
    parallel_seed_test(lambda: make(f"mpe:{task}"))


@pytest.mark.parametrize("task", mpe.TASKS)
def test_the_spec_describes_the_spaces_and_makes_the_same_environment_again(task):
    spec = make(f"mpe:{task}", max_cycles=7).joint_spec
    again = make(spec.env_id, **spec.env_options)
    assert again.joint_spec == spec == JointSpec.from_dict(spec.to_dict())
    observations, _ = again.reset(seed=0)
    stacked, mask = spec.stack_observations(observations)
    assert mask.all() and stacked.dtype == np.float32
    for name in spec.names:
        assert spec.role_of(name).observation_size == again.observation_space(name).shape[0]
        assert spec.role_of(name).action_size == again.action_space(name).shape[0]


def test_hunters_and_prey_are_different_roles_of_different_width():
    spec = make("mpe:simple_tag_v3").joint_spec
    assert spec.agents == {f"adversary_{i}": "adversary" for i in range(3)} | {"agent_0": "agent"}
    assert spec.roles["adversary"].observation_size == 16 and spec.roles["agent"].observation_size == 14


@pytest.mark.parametrize("task", [task for task, position in mpe._POSITION.items() if position])
def test_the_position_entries_are_where_the_agent_is(task):
    env = make(f"mpe:{task}")
    observations, _ = env.reset(seed=3)
    for agent in env._env.unwrapped.world.agents:
        position = list(env.joint_spec.role_of(agent.name).position)
        np.testing.assert_allclose(observations[agent.name][position], agent.state.p_pos, rtol=1e-6)


def test_an_episode_ends_by_truncation_after_25_steps():
    env = make("mpe:simple_spread_v3")
    env.reset(seed=0)
    still = {name: np.zeros(5) for name in env.agents}
    for step in range(25):
        _, _, terminations, truncations, _ = env.step(still)
        assert all(truncations.values()) == (step == 24) and not any(terminations.values())
    assert env.agents == []


def test_the_expert_covers_the_landmarks_and_skill_orders_the_returns():
    env = make("mpe:simple_spread_v3")
    results = {
        skill: [episode(env, behavior_policy("mpe:simple_spread_v3", skill, style), seed) for seed in range(30)]
        for skill, style in (("expert", "nearest"), ("medium", "nearest"), ("random", "mixed"))
    }
    mean = {skill: np.mean([team_return for team_return, _ in outcome]) for skill, outcome in results.items()}
    assert np.mean([success for _, success in results["expert"]]) >= 0.9
    assert mean["expert"] > -20 and mean["expert"] > mean["medium"] + 10 > mean["random"] + 30


def test_the_expert_drives_five_agents_too():
    env = make("mpe:simple_spread_v3", N=5)
    policy = behavior_policy("mpe:simple_spread_v3", "expert", "nearest")
    assert sum(episode(env, policy, seed)[1] for seed in range(10)) >= 7


def test_the_second_assignment_is_the_next_best_of_all_assignments():
    for seed in range(20):
        cost = np.random.default_rng(seed).random((4, 4))
        totals = sorted(cost[np.arange(4), list(order)].sum() for order in itertools.permutations(range(4)))
        found = [cost[np.arange(4), choose(cost)].sum() for choose in (_best_assignment, _second_assignment)]
        np.testing.assert_allclose(found, totals[:2])


def test_the_picture_shows_the_agents():
    env = make("mpe:simple_spread_v3", render_mode="rgb_array")
    env.reset(seed=0)
    picture = env.render()
    assert picture.shape == (700, 700, 3) and picture.dtype == np.uint8
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) >= 3
    env.close()


def test_mistakes_name_what_exists():
    with pytest.raises(ValueError, match=r"unknown task 'mpe:simple_spred_v3'; known: .*simple_spread_v3"):
        make("mpe:simple_spred_v3")
    with pytest.raises(ValueError, match=r"has no option 'M'; it has .*'N'"):
        make("mpe:simple_spread_v3", M=4)
    with pytest.raises(ValueError, match=r"no script for skill='expert'.*scripted: mpe:simple_spread_v3"):
        behavior_policy("mpe:simple_tag_v3", "expert")
    blind = make("mpe:simple_spread_v3", num_agent_neighbors=1)
    with pytest.raises(ValueError, match="observations have 14 entries, the expert of simple_spread needs all 18"):
        episode(blind, behavior_policy("mpe:simple_spread_v3"), 0)


def test_a_task_without_a_script_can_be_driven_at_random():
    env, policy = make("mpe:simple_tag_v3"), behavior_policy("mpe:simple_tag_v3", "random")
    observations, _ = env.reset(seed=0)
    policy.reset(env, 0)
    for name, action in policy(observations).items():
        assert env.action_space(name).contains(action)
