"""Facts about teams that change during an episode: the world, its expert, the data, and planners that act in it."""

import itertools
import warnings

import numpy as np
import pytest

import diffplan as dp
from diffplan.datasets.collection import run_episode
from diffplan.envs import behavior_policy
from diffplan.envs.crossing import PARKED
from diffplan.envs.crossing_turnover import ENTRY_GAP

with warnings.catch_warnings():  # importing PettingZoo's tests imports its deprecated games
    warnings.simplefilter("ignore")
    from pettingzoo.test import parallel_api_test, parallel_seed_test

OPEN = {"num_robots": 6, "turnover": 2.0}


def still(env):
    return {name: np.zeros(2, np.float32) for name in env.agents}


def play(env, policy, seed):
    """One episode, step by step: (agents that acted, what ``step`` returned)."""
    observations, _ = env.reset(seed=seed)
    policy.reset(env, seed)
    while env.agents:
        acted = list(env.agents)
        outcome = env.step(policy({name: observations[name] for name in acted}))
        observations = outcome[0]
        yield acted, outcome


def test_pettingzoo_accepts_an_open_team():
    parallel_api_test(dp.make("crossing-v0", **OPEN), num_cycles=1000)
    parallel_seed_test(lambda: dp.make("crossing-v0", **OPEN, sensing_radius=0.8), num_cycles=60)


def test_teams_start_with_two_to_half_of_the_robots_and_never_see_one_return():
    env, policy = dp.make("crossing-v0", **OPEN), behavior_policy("crossing-v0")
    starts = set()
    for seed in range(4):
        present = [acted for acted, _ in play(env, policy, seed)]
        starts.add(len(present[0]))
        for name in env.possible_agents:
            there = [name in acted for acted in present]
            assert sum(1 for _ in itertools.groupby(there)) <= 3  # away, there, away
        assert set().union(*present) == set(env.possible_agents)
    assert starts == {2, 3}


@pytest.mark.parametrize("layout", ["open", "obstacles"])
def test_the_expert_brings_everybody_to_the_goal_who_is_not_called_away(layout):
    env, policy = dp.make("crossing-v0", layout=layout, **OPEN), behavior_policy("crossing-v0")
    left = {"arrived": 0, "called": 0}
    for seed in range(4):
        for acted, (_, rewards, terminations, truncations, infos) in play(env, policy, seed):
            for name in acted:
                if terminations[name]:
                    assert infos[name]["success"] and not infos[name]["called_away"] and rewards[name] > 4.5
                    left["arrived"] += 1
                elif truncations[name]:
                    assert infos[name]["success"] and infos[name]["called_away"] and rewards[name] < 1
                    left["called"] += 1
    assert sum(left.values()) == 4 * 6 and min(left.values()) > 0


def test_a_newcomer_enters_at_rest_where_there_is_room():
    env, policy = dp.make("crossing-v0", **OPEN), behavior_policy("crossing-v0")
    entered = 0
    for acted, (observations, rewards, terminations, *_) in play(env, policy, seed=1):
        for name in set(env.agents) - set(acted):
            entered += 1
            assert (observations[name][2:4] == 0).all() and rewards[name] == 0 and not terminations[name]
            others = [observations[other][:2] for other in env.agents if other != name]
            assert all(np.linalg.norm(observations[name][:2] - other) > ENTRY_GAP for other in others)
    assert entered >= 3


def test_robots_that_touch_leave_as_failures_and_the_others_go_on():
    env = dp.make("crossing-v0", num_robots=8, turnover=100.0)
    seed = next(seed for seed in range(20) if len(env.reset(seed=seed)[0]) >= 3)
    observations, _ = env.reset(seed=seed)
    while "robot_0" in env.agents:
        actions, apart = still(env), observations["robot_1"][:2] - observations["robot_0"][:2]
        actions["robot_0"] = (apart / np.linalg.norm(apart)).astype(np.float32)
        observations, rewards, terminations, truncations, infos = env.step(actions)
    assert terminations["robot_0"] and terminations["robot_1"] and not any(truncations.values())
    assert not infos["robot_0"]["success"] and rewards["robot_0"] < -4 and rewards["robot_1"] < -4
    assert "robot_2" in env.agents and not {"robot_0", "robot_1"} & set(env.agents)


def test_every_robot_has_a_time_limit_of_its_own():
    env = dp.make("crossing-v0", **OPEN, max_steps=30)
    env.reset(seed=0)
    lifetimes: dict[str, int] = {}
    while env.agents:
        for name in env.agents:
            lifetimes[name] = lifetimes.get(name, 0) + 1
        *_, truncations, infos = env.step(still(env))
        assert not any(infos[name]["success"] for name in truncations if not infos[name]["called_away"])
    assert len(lifetimes) == 6 and max(lifetimes.values()) == 30


def test_who_is_not_there_is_neither_sensed_nor_in_the_way():
    env = dp.make("crossing-v0", **OPEN)
    _, infos = env.reset(seed=0)
    absent = [name not in env.agents for name in env.possible_agents]
    assert (env.positions[absent] >= PARKED).all() and (np.abs(env.positions[~np.array(absent)]) < 1.2).all()
    assert all(set(infos[name]["sensed"]) == set(env.agents) - {name} for name in env.agents)
    for _ in range(10):
        *_, infos = env.step(still(env))
    assert infos["robot_0"]["contacts"] == 0
    teams = set()
    while env.agents:  # also in the very step in which robots leave and enter
        *_, infos = env.step(still(env))
        teams.add(tuple(env.agents))
        assert all(set(infos[name]["sensed"]) == set(env.agents) - {name} for name in env.agents)
    assert len(teams) > 3


def test_recorded_teams_have_their_absent_robots_masked_and_train_a_planner(tmp_path):
    store = dp.collect_episodes("crossing-v0", out=tmp_path, episodes=3, workers=0, env_options=OPEN, progress=False)
    counts = np.concatenate([episode.agent_mask.sum(1) for episode in store])
    assert {2, 3} <= set(counts.tolist()) and counts.max() < 6
    assert all(episode.labels["success"] for episode in store)
    dataset = dp.load_dataset(tmp_path, horizon=8)
    planner = dp.DiffusionPlanner.for_dataset(dataset, width=16, depth=1)
    report = dp.train(planner, dataset, steps=2, batch_size=8, progress=False)
    assert np.isfinite(report.losses).all()


@pytest.fixture(scope="module")
def planner(crossing_store):
    dataset = dp.load_dataset(crossing_store, horizon=8)
    planner = dp.DiffusionPlanner.for_dataset(dataset, width=16, depth=1)
    dp.train(planner, dataset, steps=30, batch_size=16, progress=False)
    return planner


def test_a_policy_acts_for_exactly_those_who_are_there(planner):
    env = dp.make("crossing-v0", **OPEN)
    policy = dp.RecedingHorizonPolicy(planner.for_agents(env.joint_spec), execute_steps=3)
    policy.reset([0])
    observations, _ = env.reset(seed=0)
    teams = set()
    while env.agents:
        teams.add(frozenset(env.agents))
        (actions,) = policy([{name: observations[name] for name in env.agents}])
        (plan,) = policy.plans
        assert set(actions) == set(env.agents)
        there = np.array([name in env.agents for name in env.possible_agents])
        assert (plan.agent_mask >= there).all()
        assert (plan.actions[:, ~plan.agent_mask] == 0).all()
        observations, *_ = env.step(actions)
    assert len(teams) > 4


def test_a_batch_of_changing_teams_is_evaluated(planner):
    env = dp.make("crossing-v0", **OPEN)
    report = dp.evaluate(dp.RecedingHorizonPolicy(planner.for_agents(env.joint_spec)), env, episodes=3, batch_size=3)
    assert len(report.success) == 3 and np.isfinite(report.success).all()
    assert report.fallbacks == 0


def test_episodes_of_an_open_team_depend_on_the_seed_alone():
    env, spec = dp.make("crossing-v0", **OPEN), dp.make("crossing-v0", **OPEN).joint_spec
    first, again, other = (run_episode(env, behavior_policy("crossing-v0"), spec, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first.observations, again.observations)
    assert not np.array_equal(first.observations[:20], other.observations[:20])


@pytest.mark.parametrize("options", [{"layout": "doorway"}, {"turnover": 0.0}, {"num_robots": 3}])
def test_teams_that_cannot_change_are_refused(options):
    with pytest.raises(ValueError, match=r"turnover=.*4 robots or more, in layout 'open' or 'obstacles'"):
        dp.make("crossing-v0", **OPEN | options)
