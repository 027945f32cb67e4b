"""Environments of choices: planners act one-hot, the environment gets its numbers, nothing illegal is ever done."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from pettingzoo import ParallelEnv

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # pettingzoo's tests import one of its own deprecated modules
    from pettingzoo.test import parallel_api_test

import diffplan as dp
from diffplan.envs.spaces import spec_from_env

MOVES = np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])


class Grid(ParallelEnv):
    """Two walkers on a 5 x 5 board go to each other's corner; who would leave the board may not."""

    metadata = {"name": "grid"}
    possible_agents = ["walker_0", "walker_1"]

    def __init__(self, masked: bool = True):
        self.masked = masked

    def observation_space(self, agent):
        seen = Box(0, 4, (4,), np.float32)
        return Dict({"observation": seen, "action_mask": Box(0, 1, (5,), np.int8)}) if self.masked else seen

    def action_space(self, agent):
        return Discrete(5, start=-2)  # numbers that are no indices

    def reset(self, seed=None, options=None):
        rng = np.random.default_rng(seed)
        self.agents, self.time = list(self.possible_agents), 0
        self.places = dict(zip(self.agents, rng.integers(0, 5, (2, 2)), strict=True))
        return self.seen(), {name: {} for name in self.agents}

    def step(self, actions):
        self.time += 1
        for name, choice in actions.items():
            assert self.action_space(name).contains(choice), choice
            move = MOVES[choice + 2]
            assert not self.masked or self.legal(name)[choice + 2], (name, choice)
            self.places[name] = np.clip(self.places[name] + move, 0, 4)
        near = {name: bool((self.places[name] == goal).all()) for name, goal in zip(self.agents, (4, 0), strict=True)}
        agents, over = self.agents, self.time == 12
        self.agents = [] if over else agents
        paid = {name: float(near[name]) for name in agents}
        infos = {name: {"success": near[name]} for name in agents}
        return self.seen(), paid, dict.fromkeys(agents, False), dict.fromkeys(agents, over), infos

    def legal(self, name):
        reached = self.places[name] + MOVES
        return ((reached >= 0) & (reached <= 4)).all(1).astype(np.int8)

    def seen(self):
        both = np.concatenate([*self.places.values()]).astype(np.float32)
        plain = dict.fromkeys(self.possible_agents, both)
        if not self.masked:
            return plain
        return {name: {"observation": both, "action_mask": self.legal(name)} for name in plain}


class Script:
    """Walks to its corner, one axis after the other, and says its choices as numbers of entries."""

    labels: dict = {}

    def reset(self, env, seed):
        self.env = env

    def __call__(self, observations):
        goals = {"walker_0": 4, "walker_1": 0}
        chosen = {}
        for name in observations:
            way = goals[name] - self.env.unwrapped.places[name]
            axis = int(way[0] == 0)
            chosen[name] = 0 if not way.any() else 2 * axis + (1 if way[axis] > 0 else 2)
        return chosen


def world() -> dp.OneHotActions:
    return dp.OneHotActions(Grid(), dt=0.5)


def test_a_wrapped_environment_keeps_the_parallel_contract():
    parallel_api_test(dp.OneHotActions(Grid(masked=False)), num_cycles=100)


def test_the_spec_knows_choices_and_which_are_legal():
    spec = world().joint_spec
    role = spec.roles["walker"]
    assert (spec.agents, spec.dt) == ({"walker_0": "walker", "walker_1": "walker"}, 0.5)
    assert (role.observation_size, role.action_size, role.discrete) == (9, 5, True)
    assert role.legal == (4, 5, 6, 7, 8)
    assert dp.OneHotActions(Grid(masked=False)).joint_spec.roles["walker"].legal == ()


def test_choices_without_the_wrapper_are_refused_and_it_is_named():
    for masked, said in ((False, "action space Discrete"), (True, "observation space Dict")):
        with pytest.raises(ValueError, match=rf"{said}.*diffplan.OneHotActions\(env\) makes one of it"):
            spec_from_env(Grid(masked))


def test_a_planner_of_choices_learns_and_never_does_what_is_illegal(tmp_path: Path):
    """The environment itself asserts that every choice is legal; the script's choices come as plain numbers."""
    store = dp.collect_episodes(world, Script, out=tmp_path / "data", episodes=200, workers=0)
    assert (store[0].actions.sum(-1) == 1).all()
    dataset = dp.load_dataset(store.path, horizon=8, normalizer="limits")
    planner = dp.DiffusionPlanner.for_dataset(dataset, width=32, depth=2)
    dp.train(planner, dataset, steps=150, batch_size=64, progress=False)
    script = dp.evaluate(Script, world, episodes=20)
    report = dp.evaluate(dp.RecedingHorizonPolicy(planner), world, episodes=20)
    assert script.summary()["success"].value == 1
    assert report.summary()["return"].value > 0.5 * script.summary()["return"].value > 2


def test_what_a_stated_spec_says_stays_and_choices_join_it():
    env = Grid()
    role = dp.Role(9, (0.0,) * 5, (1.0,) * 5, position=(0, 1))
    env.joint_spec = dp.JointSpec(dict.fromkeys(env.possible_agents, "walker"), {"walker": role}, dt=2.0)
    spec = dp.OneHotActions(env).joint_spec
    walker = spec.roles["walker"]
    assert (spec.dt, walker.position, walker.discrete, walker.legal) == (2.0, (0, 1), True, (4, 5, 6, 7, 8))


def test_a_choice_that_is_none_is_refused():
    env = world()
    env.reset(seed=0)
    for action in (np.array([1.0]), np.full(5, np.nan), 5, -1, 2.7):
        with pytest.raises(ValueError, match="expected 5 numbers, or one of them by its place"):
            env.step(dict.fromkeys(env.agents, action))
    spec = world().joint_spec
    actions, there = spec.stack_actions({"walker_0": 3})
    assert actions[0].tolist() == [0, 0, 0, 1, 0] and there.tolist() == [True, False]
    for choice, said in ((5, "a choice from 0 to 4"), (-1, "a choice"), (1.5, "a choice"), ("up", "a choice")):
        with pytest.raises(ValueError, match=f"expected {said}"):
            spec.stack_actions({"walker_0": choice})


def test_a_behaviour_policy_is_evaluated_by_what_makes_it():
    with pytest.raises(TypeError, match="a Script drives one environment; give what makes it"):
        dp.evaluate(Script(), world)
    assert dp.evaluate(lambda: Script(), world, episodes=3, batch_size=2).steps == [12, 12, 12]
    with pytest.raises(TypeError, match="it makes a list, no behaviour policy with reset"):
        dp.evaluate(list, world)


def test_a_script_does_not_know_what_the_environment_drew():
    """Its seed is another one, as when episodes are recorded: here it guesses where its robot is."""

    class Guess(Script):
        def reset(self, env, seed):
            places = np.random.default_rng(seed).integers(0, 5, (2, 2))
            guessed.append((places == [*env.unwrapped.places.values()]).all())

        def __call__(self, observations):
            return dict.fromkeys(observations, 0)

    guessed: list = []
    dp.evaluate(Guess, world, episodes=20)
    assert sum(guessed) < 3
