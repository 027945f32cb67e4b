import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from pettingzoo import ParallelEnv
from pettingzoo.utils import BaseParallelWrapper

import diffplan as dp
from diffplan.baselines import BehaviorCloning, train_behavior_cloning
from diffplan.envs import behavior_policy
from diffplan.envs.crossing import CrossingEnv
from diffplan.evaluation import EvaluationReport, episode_seed, mean_interval, share_interval


class Still:
    """Commands every robot to stand still."""

    def reset(self, seeds: Sequence[int]) -> None: ...

    def __call__(self, observations: Sequence[dict | None]) -> list[dict | None]:
        return [seen and {name: np.zeros(2, np.float32) for name in seen} for seen in observations]


def test_robots_that_stand_still_never_succeed_and_never_touch() -> None:
    report = dp.evaluate(Still(), "crossing-v0", episodes=3)
    assert report.success == [0, 0, 0]
    assert report.contacts == [0, 0, 0]
    assert report.steps == [100, 100, 100]
    assert json.loads(json.dumps(report.to_dict()))["summary"]["success"]["value"] == 0
    assert repr(report).startswith("EvaluationReport(3 episodes: success 0 [0, ")


def test_episodes_depend_on_the_seed_alone_not_on_the_batch() -> None:
    env = dp.make("crossing-v0", num_robots=2)
    one, many = (dp.evaluate(Still(), env, episodes=4, batch_size=size) for size in (1, 4))
    assert one.returns == many.returns


class Dear(BaseParallelWrapper):
    """Every step costs 100."""

    def step(self, actions: dict) -> tuple[dict, ...]:
        seen, rewards, *rest = self.env.step(actions)
        return (seen, {name: reward - 100 for name, reward in rewards.items()}, *rest)


class Short(CrossingEnv):
    """Ends after three steps."""

    def __init__(self) -> None:
        super().__init__(num_robots=2)
        self.max_steps = 3


def test_every_episode_is_one_of_the_environment_that_was_given_wrapped_or_not() -> None:
    plain = dp.make("crossing-v0", num_robots=2, max_steps=5)
    free, dear = (dp.evaluate(Still(), env, episodes=3, batch_size=3).returns for env in (plain, Dear(plain)))
    assert dear == pytest.approx([one - 500 for one in free])
    assert dp.evaluate(Still(), Short(), episodes=3, batch_size=3).steps == [3, 3, 3]


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        interval = mean_interval([rng.normal(size=50)], seed=trial, resamples=500)
        hits += interval.low <= 0 <= interval.high
    assert 0.89 <= hits / 200 <= 0.99


def test_the_interval_of_a_few_numbers_is_wide_and_that_of_one_unknown() -> None:
    rng = np.random.default_rng(0)
    found = [mean_interval([rng.normal(size=4)], seed=trial, resamples=500) for trial in range(300)]
    assert 0.87 <= np.mean([one.low <= 0 <= one.high for one in found]) <= 0.99
    one = mean_interval([[3.0]])
    assert one.value == 3 and np.isnan([one.low, one.high]).all()
    certain = share_interval([[1.0]])
    assert (certain.value, certain.high) == (1, 1) and 0.1 < certain.low < 0.3
    assert share_interval([[1.0, 0.0]]).low >= 0 and share_interval([[1.0] + [0.0] * 99]).high < 0.06


def test_the_interval_over_several_seeds_is_that_of_drawing_seeds_and_then_episodes() -> None:
    rng = np.random.default_rng(0)
    groups = [rng.normal(mean, size=40) for mean in (0.0, 0.1)]
    found = mean_interval(groups)
    drawn = [np.mean([rng.choice(groups[pick], 40).mean() for pick in rng.integers(2, size=2)]) for _ in range(4_000)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    assert found.high - found.low == pytest.approx(high - low, rel=0.06)


@pytest.mark.parametrize("count", [20, 100])
def test_where_all_or_none_succeed_the_rest_is_as_uncertain_as_so_few_episodes_leave_it(count: int) -> None:
    for share in (0.0, 1.0):
        found = share_interval([[share] * count])
        assert found.value == share and {type(found.low), type(found.high)} == {float}  # nor numpy's, when printed
        assert abs(share - found.low) + abs(share - found.high) == pytest.approx(3.84 / (count + 3.84), abs=1e-3)
    assert share_interval([[3.0] * count]) == mean_interval([[3.0] * count])  # whatever an environment calls success


def test_the_interval_of_a_share_covers_it_as_often_as_it_says() -> None:
    for share in (0.5, 0.97):
        trials = np.random.default_rng(0).random((200, 50)) < share
        found = [share_interval([trial.astype(float)]) for trial in trials]
        assert np.mean([one.low <= share <= one.high for one in found]) >= 0.9


def test_episodes_of_unknown_success_have_no_makespan() -> None:
    report = EvaluationReport([float("nan"), 1.0, 0.0], [0.0] * 3, [0.0] * 3, [10, 20, 30], 1.0, 0)
    assert report.summary()["steps"].value == 20


def test_spread_between_seeds_widens_the_interval() -> None:
    same, apart = mean_interval([[0, 1] * 50] * 5), mean_interval([[0] * 100, [1] * 100] * 2 + [[0, 1] * 50])
    assert apart.high - apart.low > 2 * (same.high - same.low)


@pytest.mark.parametrize("joint", [True, False])
def test_behaviour_cloning_learns_the_experts_actions(crossing_store: Path, joint: bool) -> None:
    dataset = dp.load_dataset(crossing_store, horizon=8)
    policy = train_behavior_cloning(dataset, joint=joint, steps=300, batch_size=128)
    episode = dataset.store[0]
    seen = [{n: episode.observations[t, i] for i, n in enumerate(dataset.spec.names)} for t in range(10, 20)]
    acted = np.stack([dataset.spec.stack_actions(actions)[0] for actions in policy(seen)])
    error = np.square(acted - episode.actions[10:20]).mean()
    assert error < 0.3 * np.square(episode.actions[10:20]).mean()


def test_behaviour_cloning_moves_as_a_whole(crossing_store: Path) -> None:
    spec = dp.load_dataset(crossing_store, horizon=8).spec
    network = BehaviorCloning(spec, joint=True, width=8).to("meta")
    seen = torch.zeros(3, spec.num_agents, spec.observation_size, device="meta")
    assert network(seen, torch.ones(3, spec.num_agents, dtype=torch.bool, device="meta")).is_meta
    assert not any("roles" in name for name in network.state_dict())


def test_an_expert_succeeds_where_evaluation_counts_success(crossing_store: Path) -> None:
    class Expert:
        def __init__(self) -> None:
            self.env = dp.make("crossing-v0", num_robots=2)
            self.script = behavior_policy("crossing-v0")

        def reset(self, seeds: Sequence[int]) -> None:
            self.script.reset(self.env, seeds[0])

        def __call__(self, observations: Sequence[dict | None]) -> list[dict | None]:
            return [seen and self.script(seen) for seen in observations]

    expert = Expert()
    report = dp.evaluate(expert, lambda: expert.env, episodes=3, batch_size=1)
    assert report.success == [1, 1, 1]


class Relay(ParallelEnv):
    """The first agent leaves after one step without success; the second succeeds one step later."""

    metadata = {"name": "relay"}
    possible_agents = ["first", "second"]

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        self.agents = list(self.possible_agents)
        return {name: np.zeros(1) for name in self.agents}, {}

    def step(self, actions: dict) -> tuple[dict, ...]:
        acting, self.agents = self.agents, ["second"] if len(self.agents) == 2 else []
        infos = {name: {"success": name == "second"} for name in acting}
        return {name: np.zeros(1) for name in acting}, dict.fromkeys(acting, 1.0), {}, {}, infos


def test_a_team_succeeds_only_if_those_who_left_early_did() -> None:
    assert dp.evaluate(Still(), Relay(), episodes=2).success == [0, 0]


class Proud(Relay):
    """Tells of success, which comes after even seeds, but never of failure."""

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        self.won = seed is not None and seed % 2 == 0
        return super().reset(seed, options)

    def step(self, actions: dict) -> tuple[dict, ...]:
        *rest, infos = super().step(actions)
        return (*rest, {name: {"success": True} if self.won else {} for name in infos})


def test_an_episode_of_which_nothing_is_told_is_no_success_where_others_are_told_of() -> None:
    report = dp.evaluate(Still(), Proud(), episodes=20)
    assert report.success == [float(episode_seed(0, index) % 2 == 0) for index in range(20)]
    assert report.summary()["success"].value == np.mean(report.success)


def test_success_of_none_is_not_told() -> None:
    class Silent(Relay):
        def step(self, actions: dict) -> tuple[dict, ...]:
            *rest, infos = super().step(actions)
            return (*rest, {name: {"success": None} for name in infos})

    assert np.isnan(dp.evaluate(Still(), Silent(), episodes=2).success).all()


def test_an_environment_that_counts_no_contacts_has_no_contact_rate() -> None:
    assert set(dp.evaluate(Still(), Relay(), episodes=2).summary()) == {"success", "return"}


def test_an_episode_of_which_no_contacts_are_told_had_none_where_others_had() -> None:
    class Bumped(Proud):
        def step(self, actions: dict) -> tuple[dict, ...]:
            *rest, infos = super().step(actions)
            return (*rest, {name: {"contacts": 2} if self.won else {} for name in infos})

    report = dp.evaluate(Still(), Bumped(), episodes=20)
    assert report.contacts == [2.0 * (episode_seed(0, index) % 2 == 0) for index in range(20)]
    assert 0 < report.summary()["contacts"].value < 1


def test_contacts_that_are_told_before_an_episodes_last_step_are_counted() -> None:
    class Touching(Relay):
        def step(self, actions: dict) -> tuple[dict, ...]:
            *rest, infos = super().step(actions)
            return (*rest, {"second": {"contacts": 2}} if self.agents else infos)

    assert dp.evaluate(Still(), Touching(), episodes=2).contacts == [2, 2]


def test_nothing_to_evaluate_is_refused() -> None:
    with pytest.raises(ValueError, match="episodes=0"):
        dp.evaluate(Still(), "crossing-v0", episodes=0)


class Endless(Relay):
    """Nobody ever leaves."""

    def step(self, actions: dict) -> tuple[dict, ...]:
        return (
            {name: np.zeros(1) for name in actions},
            dict.fromkeys(actions, 1.0),
            {},
            {},
            {name: {} for name in actions},
        )


def test_a_step_limit_ends_episodes_that_the_environment_does_not() -> None:
    report = dp.evaluate(Still(), Endless(), episodes=2, max_steps=3)
    assert report.steps == [3, 3] and report.returns == [3, 3]
    with pytest.raises(ValueError, match="max_steps=0"):
        dp.evaluate(Still(), Endless(), max_steps=0)
