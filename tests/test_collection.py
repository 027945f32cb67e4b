"""Collected episodes depend on the seed alone, and an interrupted collection goes on where it stopped."""

import functools
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import gymnasium
import numpy as np
import psutil
import pytest
from gymnasium.spaces import Box, Discrete
from mpe2 import simple_spread_v3, simple_tag_v3
from pettingzoo import ParallelEnv

from diffplan.datasets import collection
from diffplan.datasets.collection import collect_episodes, run_episode
from diffplan.datasets.store import TrajectoryStore
from diffplan.envs.crossing_response import PartneredExpert
from diffplan.envs.spaces import spec_from_env
from diffplan.evaluation import evaluate
from diffplan.spec import JointSpec, Role

ROOT = Path(__file__).parents[1]


class Relay(ParallelEnv):
    """first_0 leaves after 2 steps, when joined_0 appears; all ends after 5. Observed: [step, a number]."""

    metadata = {"name": "relay"}
    possible_agents = ["first_0", "joined_0", "always_0"]

    def __init__(self, steps: int = 5):
        self.steps, self.agents = steps, []

    def observation_space(self, agent: str) -> Box:
        return Box(-1e9, 1e9, (2,))

    def action_space(self, agent: str) -> Box:
        return Box(-1, 1, (1,))

    def reset(self, seed=None, options=None):
        self.number, self.step_count = np.random.default_rng(seed).normal(), 0
        self.agents = ["first_0", "always_0"]
        return self._observe(self.agents), {}

    def _observe(self, agents):
        return {name: np.array([self.step_count, self.number], np.float32) for name in agents}

    def step(self, actions):
        assert list(actions) == self.agents, "exactly the present agents act"
        acted, self.step_count = self.agents, self.step_count + 1
        over = self.step_count == self.steps
        ends = {name: over or (name == "first_0" and self.step_count == 2) for name in acted}
        self.agents = [name for name in acted if not ends[name]]
        if self.step_count == 2 and not over:
            self.agents = ["joined_0", *self.agents]
        seen = self._observe(dict.fromkeys([*acted, *self.agents]))
        infos = {name: {"success": name != "first_0" or self.number > 0} for name in acted}
        return seen, {name: float(actions[name][0]) for name in acted}, ends, dict.fromkeys(acted, False), infos


class Steady:
    """Draws one action from the seed and keeps to it; says in its labels whether torch was loaded."""

    def reset(self, env, seed):
        self.action = np.random.default_rng(seed).uniform(-1, 1, env.action_space(env.agents[0]).shape)
        self.labels = {"torch": "torch" in sys.modules, "process": os.getpid()}

    def __call__(self, observations):
        return {name: self.action for name in observations}


RELAY = spec_from_env(Relay())


def same(one: TrajectoryStore, other: TrajectoryStore) -> bool:
    """Equal in every episode, but for the process that recorded it."""
    return len(one) == len(other) and all(
        np.array_equal(a.observations, b.observations)
        and np.array_equal(a.actions, b.actions)
        and a.labels["seed"] == b.labels["seed"]
        for a, b in zip(one, other, strict=True)
    )


def test_agents_that_leave_and_join_are_recorded_as_such():
    episode = run_episode(Relay(), Steady(), RELAY, seed=7)
    names = RELAY.names
    there = {name: episode.agent_mask[:, names.index(name)].tolist() for name in names}
    assert there["first_0"] == [True, True, True, False, False, False]  # the third is its final observation
    assert there["joined_0"] == [False, False, True, True, True, True]
    assert all(there["always_0"])
    np.testing.assert_array_equal(episode.observations[:, names.index("always_0"), 0], range(6))
    acted = episode.actions[:, :, 0] != 0
    assert acted[:, names.index("first_0")].tolist() == [True, True, False, False, False]
    assert acted[:, names.index("joined_0")].tolist() == [False, False, True, True, True]
    assert episode.terminations[1, names.index("first_0")] and not episode.terminations[1, names.index("always_0")]
    np.testing.assert_allclose(episode.rewards, episode.actions[:, :, 0])


def test_environments_that_were_made_are_closed_and_those_that_were_given_are_not(tmp_path: Path):
    closed = []

    class Door(Relay):
        def close(self):
            closed.append(self)

    given = Door()
    for name, env in (("made", Door), ("given", given)):
        collect_episodes(env, Steady, out=tmp_path / name, episodes=1, workers=0, progress=False)
    assert len(closed) == 1 and closed[0] is not given


def test_arrays_and_dictionaries_that_are_used_again_are_remembered_as_they_were():
    class Reusing(Relay):
        def _observe(self, agents):
            self.kept = self.kept if self.step_count else {name: np.zeros(2) for name in self.possible_agents}
            for name, seen in super()._observe(agents).items():
                self.kept[name][:] = seen
            return {name: self.kept[name] for name in agents}

        def step(self, actions):
            self.rewards = self.rewards if self.step_count else {}
            seen, rewards, *rest = super().step(actions)
            self.rewards.update(rewards)
            return seen, self.rewards, *rest

    class Counting(Steady):
        def reset(self, env, seed):
            self.action, self.labels = np.zeros(1, np.float32), {}

        def __call__(self, observations):
            self.action += 1
            return {name: self.action for name in observations}

    episode, always = run_episode(Reusing(), Counting(), RELAY, 3), RELAY.names.index("always_0")
    assert episode.observations[:, always, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert episode.actions[:, always, 0].tolist() == episode.rewards[:, always].tolist() == [1, 2, 3, 4, 5]


def test_success_is_everybodys_and_the_seed_starts_the_same_episode_again():
    labels = [run_episode(Relay(), Steady(), RELAY, seed).labels for seed in range(20)]
    for seed, one in enumerate(labels):
        assert one["seed"] == seed
        assert one["success"] == (np.random.default_rng(seed).normal() > 0)  # as first_0 left with it
    assert len({one["success"] for one in labels}) == 2


@pytest.mark.parametrize(("told", "label"), [(None, {}), (np.nan, {"success": False}), (1.0, {"success": True})])
def test_success_of_which_nothing_is_known_is_none(told, label):
    class Vague(Relay):
        def step(self, actions):
            *rest, infos = super().step(actions)
            return (*rest, {name: {"success": told} for name in infos})

    labels = run_episode(Vague(), Steady(), RELAY, 3).labels
    assert {name: one for name, one in labels.items() if name == "success"} == label


def test_the_policys_randomness_is_not_the_environments():
    env, policy = Relay(), Steady()
    run_episode(env, policy, RELAY, seed=3)
    assert policy.action[0] != np.random.default_rng(3).uniform(-1, 1)


def test_an_episode_without_an_end_or_an_action_is_an_error():
    with pytest.raises(ValueError, match="has no end after 50 steps"):
        run_episode(Relay(steps=10**9), Steady(), RELAY, 0, max_steps=50)

    class Forgetful(Steady):
        def __call__(self, observations):
            return {name: self.action for name in observations if name != "joined_0"}

    with pytest.raises(ValueError, match=r"no action to \['joined_0'\] at step 2"):
        run_episode(Relay(), Forgetful(), RELAY, 0)

    class Wide(Steady):
        def __call__(self, observations):
            return {name: np.zeros(2) for name in observations}

    with pytest.raises(ValueError, match=r"action of agent 'first_0' has shape \(2,\), expected \(1,\)"):
        run_episode(Relay(), Wide(), RELAY, 0)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, r"no action to \['first_0', 'always_0'\] at step 0"),
        ({"first_0": [np.nan], "always_0": [0]}, r"actions \{'first_0': \[nan\]\} at step 0; give finite"),
    ],
)
def test_a_policy_that_gives_no_actions_is_blamed_for_it(answer, message):
    class Confused(Steady):
        def __call__(self, observations):
            return answer

    with pytest.raises(ValueError, match=message):
        run_episode(Relay(), Confused(), RELAY, 0)


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        ("reset", lambda seen, _: seen, r"reset\(\) of .* gave a dict; a ParallelEnv gives observations, infos"),
        ("reset", lambda _, infos: ({}, infos), r"gave \['first_0', 'always_0'\] no observation before step 0"),
        ("step", lambda *parts: parts[:4], r"step\(\) of .* gave 4 parts; .* rewards, terminations, truncations"),
        ("step", lambda seen, _, *ends: (seen, {}, *ends), r"gave \['first_0', 'always_0'\] no rewards at step 0"),
        ("step", lambda _, *others: ({}, *others), r"gave \['first_0', 'always_0'\] no observation before step 1"),
    ],
)
def test_what_an_environment_leaves_out_is_named(monkeypatch, method, change, message):
    whole = getattr(Relay, method)
    monkeypatch.setattr(Relay, method, lambda *args, **kwargs: change(*whole(*args, **kwargs)))
    with pytest.raises(ValueError, match=message):
        run_episode(Relay(), Steady(), RELAY, 0)


def test_nan_from_an_environment_is_named():
    class Broken(Relay):
        def _observe(self, agents):
            seen = super()._observe(agents)
            if self.step_count == 3:
                seen["always_0"][1] = np.nan
            return seen

    with pytest.raises(ValueError, match="observations is not finite at step 3, agent 'always_0'"):
        run_episode(Broken(), Steady(), RELAY, 0)


@pytest.fixture
def importable(tmp_path, monkeypatch):
    """This file as a module that spawned workers can import."""
    (tmp_path / "relay_for_workers.py").write_text(Path(__file__).read_text())
    monkeypatch.syspath_prepend(tmp_path)
    import relay_for_workers

    yield relay_for_workers
    del sys.modules["relay_for_workers"]


def test_episodes_do_not_depend_on_the_workers_and_these_never_load_torch(tmp_path, importable):
    alone = collect_episodes(Relay(), Steady(), out=tmp_path / "a", episodes=12, seed=5, workers=0, progress=False)
    team = collect_episodes(
        importable.Relay, importable.Steady, out=tmp_path / "b", episodes=12, seed=5, workers=2, progress=False
    )
    assert same(alone, team)
    assert {one["torch"] for one in team.labels} == {False}
    assert os.getpid() not in {one["process"] for one in team.labels}
    other = collect_episodes(Relay(), Steady(), out=tmp_path / "c", episodes=12, seed=6, workers=0, progress=False)
    assert not same(alone, other) and len({one["seed"] for one in alone.labels}) == 12
    team.verify()


def test_a_collection_goes_on_where_it_stopped(tmp_path):
    def collect(out, episodes):
        return collect_episodes(Relay(), Steady(), out=out, episodes=episodes, seed=1, workers=0, progress=False)

    begun = collect(tmp_path / "a", 7)
    before = begun[3].observations
    assert same(collect(tmp_path / "a", 12), collect(tmp_path / "b", 12))
    assert np.array_equal(TrajectoryStore.open(tmp_path / "a")[3].observations, before)
    assert len(collect(tmp_path / "a", 5)) == 12


def test_a_store_begun_differently_is_refused(tmp_path):
    collect = functools.partial(collect_episodes, policy=Steady(), out=tmp_path, workers=0, progress=False)
    collect(Relay(), episodes=3, seed=1)
    with pytest.raises(ValueError, match=r"was begun with .*seed=1', not .*seed=2'; choose another folder"):
        collect(Relay(), episodes=5, seed=2)
    with pytest.raises(ValueError, match="the environment has agents="):
        collect(simple_spread_v3.parallel_env(continuous_actions=True), episodes=5, seed=1)
    assert len(TrajectoryStore.open(tmp_path)) == 3


def test_an_error_keeps_the_episodes_before_it(tmp_path):
    class Moody(Steady):
        episodes = 0

        def reset(self, env, seed):
            self.episodes += 1
            if self.episodes == 5:
                raise ZeroDivisionError("the fifth episode")
            super().reset(env, seed)

    with pytest.raises(ZeroDivisionError, match="the fifth episode"):
        collect_episodes(Relay(), Moody(), out=tmp_path, episodes=9, workers=0, progress=False)
    store = TrajectoryStore.open(tmp_path)
    store.verify()
    assert len(store) == 4


def test_an_error_in_the_first_episode_is_in_nobodys_way(tmp_path):
    with pytest.raises(ValueError, match="style='left_first' does not fit"):
        collect_episodes("crossing-v0", out=tmp_path, episodes=1, style="left_first", workers=0, progress=False)
    store = collect_episodes("crossing-v0", out=tmp_path, episodes=1, style="clockwise", workers=0, progress=False)
    assert len(store) == 1


def test_a_collection_killed_before_its_first_manifest_goes_on(tmp_path):
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_collection import Relay, Steady, collect_episodes
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
collect_episodes(Relay(), Steady(), out={str(tmp_path / "data")!r}, episodes=3, workers=0, progress=False)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    killed = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / "data" / "manifest.json").exists()
    collect_episodes(Relay(), Steady(), out=tmp_path / "data", episodes=3, workers=0, progress=False).verify()


class Deadly(Steady):
    """Takes its process down at the fifth episode."""

    episodes = 0

    def reset(self, env, seed):
        self.episodes += 1
        if self.episodes == 5:
            os._exit(1)
        super().reset(env, seed)


def test_a_worker_that_dies_is_an_error_and_leaves_a_valid_store(tmp_path, importable):
    with pytest.raises(RuntimeError, match=r"a worker process died; .*workers=0 shows other causes"):
        collect_episodes(importable.Relay, importable.Deadly, out=tmp_path, episodes=9, workers=1, progress=False)
    TrajectoryStore.open(tmp_path).verify()


class Unlabelled:
    def reset(self, env, seed):
        self.env = env

    def __call__(self, observations):
        return {name: self.env.action_space(name).sample() for name in observations}


@pytest.mark.parametrize("policy", [lambda observations: {}, lambda: dict, Unlabelled.__call__])
def test_what_is_no_behaviour_policy_is_refused_before_a_store_is_there(tmp_path, policy):
    with pytest.raises(ValueError, match="no behaviour policy.*: it has reset"):
        collect_episodes(Relay, policy, out=tmp_path / "data", episodes=1, workers=0, progress=False)
    assert not (tmp_path / "data").exists()
    assert len(collect_episodes(Relay, Unlabelled, out=tmp_path / "data", episodes=1, workers=0, progress=False)) == 1


def test_an_unknown_environment_is_an_error_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="unknown environment 'nowhere-v0'"):
        collect_episodes("nowhere-v0", out=tmp_path, episodes=1, workers=1, progress=False)
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="ends processes by signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_who_is_stopped_or_killed_leaves_a_valid_store_no_process_and_the_rest_to_collect(tmp_path, importable, number):
    out = tmp_path / "data"
    script = tmp_path / "collect.py"
    script.write_text(
        textwrap.dedent(f"""
        import signal
        from relay_for_workers import Relay, Steady, collect_episodes

        if __name__ == "__main__":
            signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
            collect_episodes(Relay, Steady, out={str(out)!r}, episodes=20_000, seed=1, workers=1)
        """)
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    run = subprocess.Popen([sys.executable, script], env=environment, start_new_session=True, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 180
    while not (out / "shard_00001").exists() and time.monotonic() < deadline:  # the first one is in the manifest
        time.sleep(0.05)
    helpers = psutil.Process(run.pid).children(recursive=True)
    (os.killpg if number == signal.SIGINT else os.kill)(run.pid, number)  # a terminal's Ctrl-C goes to all of them
    errors = run.communicate(timeout=180)[1].decode()
    assert run.returncode != 0 and ("KeyboardInterrupt" in errors) == (number == signal.SIGINT)
    assert helpers and not psutil.wait_procs(helpers, timeout=60)[1]
    store = TrajectoryStore.open(out)
    store.verify()
    assert 0 < len(store) < 20_000
    again = collect_episodes(
        importable.Relay, importable.Steady, out=out, episodes=len(store) + 3, seed=1, workers=0, progress=False
    )
    assert len(again) == len(store) + 3


def test_a_script_that_workers_would_run_anew_is_told_how_to_begin(tmp_path):
    script, out = tmp_path / "collect.py", tmp_path / "data"
    script.write_text(
        "from diffplan import collect_episodes\n"
        f"collect_episodes('crossing-v0', out={str(out)!r}, episodes=2, env_options={{'num_robots': 2}})\n"
    )
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=180)
    assert run.returncode == 1
    assert "if __name__ == '__main__'" in run.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"env": Relay(), "policy": Steady()}, r"workers=2, but .* pass a function that makes it, or workers=0"),
        ({"env": Relay, "policy": Steady()}, r"Steady object .* pass a function that makes it, or workers=0"),
        ({"env": lambda: Relay(), "policy": Steady}, r"workers cannot import .*<lambda>; define it in a module"),
        ({"env": Relay(), "workers": 0}, "has no script of its own; pass policy="),
        ({"env": Relay, "policy": Steady, "env_options": {"steps": 3}}, "env_options are for registered ids"),
        (
            {"env": Relay, "policy": Steady, "skill": "medium"},
            "skill='medium', style='mixed' are for the environment's",
        ),
        (
            {"env": "crossing-v0", "policy": Steady, "style": "clockwise"},
            "own script; give .*Steady its own when it is",
        ),
        ({"env": "crossing-v0", "workers": -1}, "workers=-1; choose 0"),
        ({"env": "crossing-v0", "episodes": 0}, "episodes=0; it must be at least 1"),
        ({"env": "crossing-v0", "seed": -1}, "seed=-1; seeds are 0 or more"),
        ({"env": "crossing-v0", "skill": "genius"}, "skill='genius'; choose one of"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        collect_episodes(**{"episodes": 2, "out": tmp_path / "data", "progress": False, **arguments})
    assert not (tmp_path / "data").exists()


def test_a_registered_environment_is_collected_by_its_script(tmp_path):
    store = collect_episodes(
        "crossing-v0", out=tmp_path, episodes=3, workers=0, env_options={"num_robots": 2}, progress=False
    )
    assert store.spec.env_id == "crossing-v0" and store.spec.num_agents == 2
    assert [one["skill"] for one in store.labels] == ["expert"] * 3 and "success" in store.labels[0]
    assert store.source == "crossing-v0, num_robots=2: skill='expert', style='mixed', seed=0"


def test_spaces_tell_the_spec():
    spec = spec_from_env(simple_tag_v3.parallel_env(continuous_actions=True), dt=0.1)
    assert dict(spec.agents) == {**{f"adversary_{i}": "adversary" for i in range(3)}, "agent_0": "agent"}
    assert spec.roles["adversary"] == Role(16, (0.0,) * 5, (1.0,) * 5)
    assert spec.roles["agent"].observation_size == 14 and spec.dt == 0.1


class Custom(Relay):
    """Relay with chosen action or observation spaces."""

    def __init__(self, observations=None, actions=None):
        super().__init__()
        self.observations, self.actions = observations or {}, actions or {}

    def observation_space(self, agent):
        return self.observations.get(agent, super().observation_space(agent))

    def action_space(self, agent):
        return self.actions.get(agent, super().action_space(agent))


def test_agents_of_one_stem_with_different_spaces_are_roles_of_their_own():
    env = Custom(actions={"leg_1": Box(-2, 2, (1,))})
    env.possible_agents = ["leg_0", "leg_1", "arm_0", "arm_1", "7"]
    assert dict(spec_from_env(env).agents) == {
        "leg_0": "leg_0",
        "leg_1": "leg_1",
        "arm_0": "arm",
        "arm_1": "arm",
        "7": "7",
    }


@pytest.mark.parametrize(
    ("spaces", "message"),
    [
        ({"actions": {"first_0": Discrete(5)}}, r"'first_0' has the action space Discrete\(5\), .*OneHotActions"),
        ({"actions": {"first_0": Box(-np.inf, np.inf, (2,))}}, "unbounded action space .*finite bounds"),
        ({"observations": {"always_0": Box(0, 255, (8, 8, 3))}}, "'always_0' has the observation space .*flatten"),
    ],
)
def test_spaces_that_are_not_supported_say_what_is(spaces, message):
    with pytest.raises(ValueError, match=message):
        spec_from_env(Custom(**spaces))


@pytest.mark.parametrize(
    ("role", "message"),
    [
        (Role(3, (-1,), (1,)), r"observation space of shape \(2,\), its joint_spec says \(3,\)"),
        (Role(2, (-1, -1), (1, 1)), r"action space of shape \(1,\), its joint_spec says \(2,\)"),
        (Role(2, (-2,), (1,)), r"bounds from \[-2.*must lie within it"),
    ],
)
def test_a_spec_that_contradicts_the_spaces_is_refused(role, message):
    spec = JointSpec(RELAY.agents, dict.fromkeys(RELAY.roles, role))
    env, odd = Relay(), 1000.1  # in the space's precision it is less
    env.action_space = lambda agent: Box(-odd, odd, (1,))
    env.joint_spec = JointSpec(RELAY.agents, dict.fromkeys(RELAY.roles, Role(2, (-odd,), (odd,))))
    assert spec_from_env(env) is env.joint_spec
    env = Relay()
    env.joint_spec = spec
    with pytest.raises(ValueError, match=message):
        spec_from_env(env)
    env.joint_spec = RELAY.rename({"first_0": "last_0"})
    with pytest.raises(ValueError, match="has the agents .*'first_0'.*its joint_spec .*'last_0'"):
        spec_from_env(env)


def test_agents_that_are_numbers_are_refused():
    env = Custom()
    env.possible_agents = [0, 1]
    with pytest.raises(ValueError, match=r"agents \[0, 1\], .* their names are words"):
        spec_from_env(env)


@pytest.mark.parametrize("make", [simple_tag_v3.env, lambda: gymnasium.make("Pendulum-v1")])
def test_an_environment_of_another_kind_is_named(make, tmp_path):
    with pytest.raises(ValueError, match="is no PettingZoo ParallelEnv"):
        collect_episodes(make, Steady, out=tmp_path / "data", episodes=1, workers=0)
    with pytest.raises(ValueError, match="is no PettingZoo ParallelEnv"):
        evaluate(Steady, make, episodes=1)
    with pytest.raises(ValueError, match="is no PettingZoo ParallelEnv"):
        evaluate(Steady, make(), episodes=1)


def test_a_policy_of_other_arguments_does_not_go_on_with_a_store(tmp_path):
    def collect(*families):
        policy = functools.partial(PartneredExpert, families)
        return collect_episodes(
            "crossing-v0",
            out=tmp_path,
            episodes=1,
            policy=policy,
            workers=0,
            env_options={"num_robots": 2},
            progress=False,
        )

    assert collect("bold").source == collect("bold").source
    with pytest.raises(ValueError, match="late"):
        collect("late")


def test_a_second_collector_is_refused_and_costs_the_first_one_nothing(tmp_path, monkeypatch):
    other = """
import sys
from pathlib import Path
from diffplan.datasets.collection import collect_episodes

try:
    collect_episodes("crossing-v0", out=Path(sys.argv[1]), episodes=4, workers=0)
except ValueError as error:
    print(error)
"""
    seen, run = [], collection.run_episode

    def slow(*arguments):
        if not seen:
            command = [sys.executable, "-c", other, str(tmp_path / "data")]
            seen.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        return run(*arguments)

    monkeypatch.setattr(collection, "run_episode", slow)
    store = collect_episodes("crossing-v0", out=tmp_path / "data", episodes=2, workers=0)
    assert len(store) == 2
    assert "is being written by another process" in seen[0]
