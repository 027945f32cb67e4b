"""Robots that plan each for itself: what they know, what they tell, and what becomes of what they hear."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

import diffplan as dp
from diffplan.envs.crossing_partners import ScriptedPartners
from diffplan.models.denoiser import JointDenoiser
from diffplan.planners import make_scheduler
from diffplan.planners.channel import Link
from diffplan.planners.manners import Manners
from diffplan.planners.member import SUPPOSITIONS, TeamMember, answers
from diffplan.planners.messages import Message
from diffplan.planners.question import Sampling
from diffplan.planners.team import DecentralizedTeam, consistency
from diffplan.spec import JointSpec
from diffplan.trajectory import Cells, Plan

HORIZON = 8


class StandardNormal(JointDenoiser):
    """The exact denoiser of independent cells with mean 0 and std 1, each at its own noise level."""

    def forward(self, sample: Tensor, noise_level: Tensor, *_: object) -> Tensor:
        signal = 1 - noise_level[..., None]
        return sample * signal / (signal**2 + noise_level[..., None] ** 2)


@pytest.fixture(scope="module")
def gaussian() -> dp.DiffusionPlanner:
    spec = dp.JointSpec({"a": "point", "b": "point"}, {"point": dp.Role(1, (-9.0,), (9.0,), position=(0,))})
    normalizer = dp.Normalizer("gaussian", [[0.0, 0.0]], [[1.0, 1.0]])
    return dp.DiffusionPlanner(StandardNormal(2, HORIZON), make_scheduler("flow"), normalizer, spec, HORIZON)


def heard(gaussian: dp.DiffusionPlanner, level: float) -> Cells:
    cells = Cells.unknown(gaussian.spec, HORIZON)
    cells.observations[1, 2:], cells.actions[1, 2:] = 1.5, 0.5
    return Cells(cells.observations, cells.actions, np.full((2, HORIZON), level, np.float32))


NOTHING = {"a": np.array([np.nan]), "b": np.array([np.nan])}


@pytest.mark.parametrize("std", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("scheduler", ["flow", "ddim", "dpm"])
def test_a_cell_heard_with_noise_counts_as_a_measurement_of_that_std(gaussian, std: float, scheduler: str) -> None:
    gaussian.scheduler = make_scheduler(scheduler)
    plan = gaussian(NOTHING, given=heard(gaussian, std / (1 + std)), num_inference_steps=1, seed=3)
    np.testing.assert_allclose(plan.observations[0, 1, 2:], 1.5 / (1 + std**2), atol=1e-5)
    np.testing.assert_allclose(plan.actions[0, 1, 2:], 0.5 / (1 + std**2), atol=1e-5)


def test_a_heard_cell_waits_for_its_level_while_the_others_are_denoised(gaussian) -> None:
    gaussian.scheduler = make_scheduler("flow")
    plan = gaussian(NOTHING, given=heard(gaussian, 0.4), num_inference_steps=6, return_chain=True)
    free, told = plan.chain[:, 0, 0, 2:, 0], plan.chain[:, 0, 1, 2:, 0]
    levels = gaussian.scheduler.sigmas.tolist()[1:]
    for before, after, level in zip(told[:-1], told[1:], levels, strict=True):
        assert np.array_equal(before, after) == (level >= 0.4)
    assert (np.abs(np.diff(free, axis=0)) > 0).all()


def test_a_warm_start_stays_the_nearer_to_the_last_plan_the_lower_its_level(gaussian) -> None:
    last = gaussian(NOTHING, num_samples=50, seed=1)
    plans = [
        gaussian(NOTHING, warm_start=last, warm_start_level=level, num_samples=50, num_inference_steps=8, seed=2)
        for level in (0.05, 0.3, 0.7, 1.0)
    ]
    off = [float(np.abs(plan.actions - last.actions).mean()) for plan in plans]
    assert off == sorted(off) and off[0] < 0.1 * off[-1]


def test_a_cell_heard_less_well_than_a_warm_start_knows_it_says_nothing(gaussian) -> None:
    warm = gaussian(NOTHING, seed=1)
    free, told, better = (
        gaussian(NOTHING, given=given, warm_start=warm, num_inference_steps=1, seed=2).observations
        for given in (None, heard(gaussian, 0.8), heard(gaussian, 0.4))
    )
    assert np.array_equal(free, told) and not np.array_equal(free, better)


def test_a_heard_cell_gives_way_to_what_is_seen(gaussian) -> None:
    given = heard(gaussian, 0.3)
    given.observations[1, 0], given.actions[1, 0] = 1.5, 0.5
    seen = {**NOTHING, "b": np.array([-1.0])}
    plan = gaussian(seen, given=given, num_inference_steps=1)
    assert plan.observations[0, 1, 0, 0] == pytest.approx(-1)
    assert plan.actions[0, 1, 0, 0] == pytest.approx(0.5 * 0.7**2 / (0.7**2 + 0.3**2), abs=1e-5)


def test_noise_levels_that_make_no_sense_are_refused(gaussian) -> None:
    with pytest.raises(ValueError, match="from 0 \\(exact\\) to below 1"):
        gaussian(NOTHING, given=heard(gaussian, 1.0))
    given = heard(gaussian, 0.2)
    given.actions[1, 5] = np.nan
    with pytest.raises(ValueError, match="given cell of 'b' at step 5 has noise level 0.2 but NaN entries"):
        gaussian(NOTHING, given=given)
    weigh = dp.ConstraintGuide(lambda plan: plan.actions.sum((2, 3, 4)))
    with pytest.raises(ValueError, match="resample=True takes no given cells with a noise level"):
        gaussian(NOTHING, given=heard(gaussian, 0.2), guides=[weigh], resample=True, num_samples=4)


def test_merged_cells_keep_the_noise_level_of_the_side_that_knows(gaussian) -> None:
    exact = Cells.unknown(gaussian.spec, HORIZON)
    exact.observations[0, 3] = 1.0
    merged = exact.merge(heard(gaussian, 0.2))
    assert merged.noise_level[0].max() == 0 and (merged.noise_level[1, 2:] == np.float32(0.2)).all()
    assert merged.observations[0, 3, 0] == 1 and merged.observations[1, 3, 0] == 1.5


@pytest.fixture(scope="module")
def planner(crossing_store: Path, randomized) -> dp.DiffusionPlanner:
    return randomized(
        dp.DiffusionPlanner.for_dataset(dp.load_dataset(crossing_store, horizon=HORIZON), width=16, depth=1)
    )


NEAR = {
    "robot_0": np.array([-0.3, 0, 0, 0, 0.9, 0], np.float32),
    "robot_1": np.array([0.3, 0, 0, 0, -0.9, 0], np.float32),
}


def hidden(name: str) -> np.ndarray:
    """What others sense of a robot: not its goal."""
    return np.where(np.arange(6) < 4, NEAR[name], np.nan)


def test_a_member_knows_itself_what_it_senses_and_what_it_was_told(planner) -> None:
    teller, member = TeamMember(planner, "robot_0"), TeamMember(planner, "robot_1", seed=1)
    question = member.ask(NEAR["robot_1"], {}, 0)
    assert np.isnan(question.observations["robot_0"]).all()
    assert np.array_equal(question.observations["robot_1"], NEAR["robot_1"])
    _, data = teller.act(NEAR["robot_0"], {}, 0)
    member.receive(data)
    question = member.ask(NEAR["robot_1"], {"robot_0": hidden("robot_0")}, 1)
    np.testing.assert_allclose(question.observations["robot_0"], NEAR["robot_0"], atol=1e-3)  # its goal was told
    told = Message.from_bytes(data, planner.spec, planner.normalizer).path(1)
    np.testing.assert_array_equal(question.given.observations[0], told[:, :6])
    assert (np.isnan(told).any(1) == [False] * 7 + [True]).all()
    later = Message.from_bytes(data, planner.spec, planner.normalizer).path(2)
    question = member.ask(NEAR["robot_1"], {}, 2)  # out of sight it is where it said that it would be by now
    np.testing.assert_array_equal(question.observations["robot_0"], later[0, :6])
    for age, known in ((2, True), (3, False)):  # longer silence than a lost word explains: it may be dead
        member = TeamMember(planner, "robot_1", Manners(repeat_every=1))
        member.receive(data)
        seen = member.ask(NEAR["robot_1"], {"robot_0": np.full(6, np.nan)}, age).observations["robot_0"]
        assert np.isfinite(seen[:4]).all() == known


def test_what_all_know_is_asked_first_and_is_the_same_for_all_to_the_bit(planner) -> None:
    def first_plan(mine: str, other: str) -> tuple[TeamMember, dp.Question, dp.Plan]:
        member = TeamMember(planner, mine, Manners(speak=False), seed=3)
        own = member.ask(NEAR[mine], {other: hidden(other)}, 0)
        common = member.common(own)
        (drawn,) = planner.answer([common], dataclasses.replace(member.sampling(common), num_samples=SUPPOSITIONS))
        common = member.suppose(common, drawn)
        for index, name in enumerate(NEAR):  # goals are those of one candidate, the one in the middle
            goals = drawn.observations[:, index, 0, 4:]
            apart = np.linalg.norm((goals[:, None] - goals) / goals.std(0), axis=-1).sum(1)
            np.testing.assert_array_equal(common.observations[name][4:], goals[apart.argmin()])
        return member, own, planner.answer([common], member.sampling(common))[0]

    (member, own, plan), (_, _, other) = first_plan("robot_0", "robot_1"), first_plan("robot_1", "robot_0")
    assert np.array_equal(plan.observations, other.observations)
    question = dataclasses.replace(member.suppose(own, plan), warm_start=plan)
    assert np.array_equal(question.observations["robot_0"], own.observations["robot_0"])  # its own goal it knows
    (expected,) = planner.answer([question], Sampling(num_inference_steps=1))
    member = TeamMember(planner, "robot_0", Manners(speak=False), seed=3)
    (plan,) = answers([(member, member.ask(NEAR["robot_0"], {"robot_1": hidden("robot_1")}, 0))])
    assert np.array_equal(plan.actions, expected.actions)
    private = TeamMember(planner, "robot_0", Manners(speak=False, shared_seed=False))
    assert private.common(private.ask(NEAR["robot_0"], {"robot_1": hidden("robot_1")}, 0)) is None


def test_what_all_know_is_asked_once_for_all(planner, monkeypatch) -> None:
    asked, answer = [], type(planner).answer

    def counted(self, questions, sampling=None):
        asked.append((len(questions), sampling.num_samples))
        return answer(self, questions, sampling)

    monkeypatch.setattr(type(planner), "answer", counted)
    team = DecentralizedTeam(planner, Manners(speak=False))
    team.reset([0, 1])
    team([NEAR, NEAR])
    assert asked == [(2, SUPPOSITIONS), (2, 1), (4, 1)]


def test_what_was_once_taken_for_anothers_goal_stays_until_it_is_told(planner) -> None:
    member = TeamMember(planner, "robot_1", Manners(speak=False))
    member.act(NEAR["robot_1"], {"robot_0": np.full(6, np.nan, np.float32)}, 0)  # it does not see it
    assert not member.supposed
    member.act(NEAR["robot_1"], {"robot_0": hidden("robot_0")}, 1)
    supposed = member.plan.observations[0, 0, 0, 4:]
    question = member.ask(NEAR["robot_1"], {"robot_0": hidden("robot_0")}, 2)
    np.testing.assert_array_equal(question.observations["robot_0"][4:], supposed)
    assert np.abs(supposed - NEAR["robot_0"][4:]).max() > 0.01
    member.receive(TeamMember(planner, "robot_0").act(NEAR["robot_0"], {}, 2)[1])
    question = member.ask(NEAR["robot_1"], {"robot_0": hidden("robot_0")}, 3)
    np.testing.assert_allclose(question.observations["robot_0"][4:], NEAR["robot_0"][4:], atol=1e-3)


def test_what_was_told_is_known_the_less_well_the_longer_ago_that_was(planner) -> None:
    teller, member = TeamMember(planner, "robot_0"), TeamMember(planner, "robot_1")
    member.receive(teller.act(NEAR["robot_0"], {}, 0)[1])
    levels = [float(member.ask(NEAR["robot_1"], {}, step).given.noise_level[0, 0]) for step in (0, 1, 5)]
    stds = [level / (1 - level) for level in levels]
    assert stds == pytest.approx([1.0, 1.1, 1.5], abs=1e-5)


def test_old_doubled_foreign_and_malformed_messages_are_dropped_and_counted(planner) -> None:
    teller, member = TeamMember(planner, "robot_0"), TeamMember(planner, "robot_1")
    plan = planner(NEAR)

    def message(step: int, sender: str = "robot_0") -> bytes:
        return Message.from_plan(plan, sender, step).to_bytes(planner.spec, planner.normalizer)

    member.ask(NEAR["robot_1"], {}, 0)
    for data in (message(3), message(3), message(2), b"nonsense", message(3, "robot_1"), message(4_000_000_000)):
        member.receive(data)
    assert (member.stats.duplicates, member.stats.stale, member.stats.refused) == (1, 1, 3)
    assert member.heard["robot_0"].step == 3
    teller.ask(NEAR["robot_0"], {}, 20)
    teller.receive(message(21 - HORIZON, "robot_1"))  # its last cell was of step 20
    teller.receive(message(22 - HORIZON, "robot_1"))
    assert (teller.stats.stale, teller.heard["robot_1"].step) == (1, 14)


def test_what_was_heard_before_the_first_step_from_later_is_of_another_episode(planner) -> None:
    member, plan = TeamMember(planner, "robot_1"), planner(NEAR)
    for step in (57, 0):
        member.receive(Message.from_plan(plan, "robot_0", step).to_bytes(planner.spec, planner.normalizer))
    assert member.heard["robot_0"].step == 57
    member.ask(NEAR["robot_1"], {}, 0)
    assert not member.heard
    member.receive(Message.from_plan(plan, "robot_0", 1).to_bytes(planner.spec, planner.normalizer))
    assert member.heard["robot_0"].step == 1


def test_who_senses_all_plans_for_nobody_else_and_who_does_not_for_all(planner) -> None:
    robots = JointSpec({f"robot_{i}": "robot" for i in range(3)}, planner.spec.roles, planner.spec.dt)
    three, sensed = planner.for_agents(robots), {"robot_1": hidden("robot_1")}
    _, told = TeamMember(three, "robot_2").act(NEAR["robot_0"], {}, 0)
    for senses_all in (True, False):
        member = TeamMember(three, "robot_0", Manners(senses_all=senses_all))
        member.receive(told)
        for step in range(2):
            member.act(NEAR["robot_0"], sensed, step)
            assert member.plan.agent_mask.tolist() == [True, True, not senses_all]
        member.act(NEAR["robot_0"], {**sensed, "robot_2": hidden("robot_1")}, 2)  # arrives
        assert member.plan.agent_mask.all()


def test_who_is_seen_elsewhere_than_it_told_or_has_told_nothing_for_long_is_not_believed(planner) -> None:
    member = TeamMember(planner, "robot_1")
    member.receive(TeamMember(planner, "robot_0").act(NEAR["robot_0"], {}, 0)[1])
    elsewhere = hidden("robot_0") + np.array([1, 0, 0, 0, 0, 0])
    for sensed, step, believed in (
        ({"robot_0": hidden("robot_0")}, 0, True),
        ({}, 1, True),
        ({"robot_0": elsewhere}, 0, False),
        ({}, HORIZON, False),
    ):
        question = member.ask(NEAR["robot_1"], sensed, step)
        assert np.isfinite(question.given.observations[0]).any() == believed
        np.testing.assert_allclose(question.observations["robot_0"][4:], NEAR["robot_0"][4:], atol=1e-3)


def test_steps_that_a_slow_robot_missed_are_unknown_in_its_past(gaussian) -> None:
    parts = (make_scheduler("flow"), gaussian.normalizer, gaussian.spec, HORIZON, 4)
    member = TeamMember(dp.DiffusionPlanner(StandardNormal(2, HORIZON + 4), *parts), "a")
    for step in (0, 1):
        member.act(np.array([0.5 * step]), {"b": np.array([0.5])}, step)
    past = member.ask(np.array([0.3]), {"b": np.array([0.5])}, 3).past
    assert [seen["a"].tolist() for seen, _ in past[:2]] == [[0.0], [0.5]]
    assert all(np.isnan(row).all() for part in past[2] for row in part.values()) and len(past) == 3


def test_a_later_robot_gives_way_and_an_earlier_one_does_not(planner) -> None:
    manners = Manners(surprise=0.0)
    questions = []
    for mine, other in (("robot_0", "robot_1"), ("robot_1", "robot_0")):
        member, teller = TeamMember(planner, mine, manners), TeamMember(planner, other, manners, seed=7)
        member.act(NEAR[mine], {}, 0)
        member.receive(teller.act(NEAR[other], {}, 0)[1])
        questions.append(member.ask(NEAR[mine], {}, 1))
        assert member.stats.gave_way == (mine == "robot_1")
    first, second = questions
    assert first.warm_start is not None and np.isnan(first.given.observations).all()
    assert np.isfinite(first.observations["robot_1"][4:]).all()  # its goal is heard
    assert second.warm_start is None and np.isfinite(second.given.observations[0, 0]).all()


def test_a_robot_speaks_when_its_intention_changes_or_its_last_word_is_old(planner) -> None:
    for manners, spoken in (
        (Manners(tolerance=1e6, repeat_every=4), [0, 4]),
        (Manners(tolerance=0), [0, 1, 2, 3, 4, 5]),
    ):
        member = TeamMember(planner, "robot_0", manners)
        said = [member.act(NEAR["robot_0"], {}, step)[1] for step in range(6)]
        assert [step for step, data in enumerate(said) if data] == spoken
        assert (member.stats.sent, member.stats.bytes_sent) == (len(spoken), sum(len(data) for data in said if data))


def test_a_robot_never_sends_more_than_its_budget(planner) -> None:
    member = TeamMember(planner, "robot_0", Manners(tolerance=0, bytes_per_second=200))
    spent = np.cumsum([len(member.act(NEAR["robot_0"], {}, step)[1] or b"") for step in range(40)])
    assert (spent <= 200 + 20 * np.arange(1, 41)).all()
    assert spent[-1] > 700 and member.stats.unaffordable > 0
    poor = TeamMember(planner, "robot_0", Manners(tolerance=0, bytes_per_second=50))
    said = [poor.act(NEAR["robot_0"], {}, step)[1] for step in range(60)]
    assert 2 <= sum(data is not None for data in said) <= 5  # less than a message a second, and yet some
    silent = TeamMember(planner, "robot_0", Manners(speak=False))
    assert [silent.act(NEAR["robot_0"], {}, step)[1] for step in range(3)] == [None] * 3


def test_a_robot_that_misses_steps_saves_up_its_budget_all_the_same(planner) -> None:
    member = TeamMember(planner, "robot_0", Manners(tolerance=0, bytes_per_second=200))
    said = [member.act(NEAR["robot_0"], {}, step)[1] for step in range(0, 100, 10)]  # once a second
    assert all(said) and member.stats.unaffordable == 0


def test_with_a_shared_seed_and_the_same_knowledge_all_plan_the_same(planner) -> None:
    def plans(shared: bool) -> list[Plan]:
        manners = Manners(speak=False, shared_seed=shared)
        members = [TeamMember(planner, name, manners, seed=4) for name in NEAR]
        return [planner.answer([member.ask(NEAR[member.name], NEAR, 0)])[0] for member in members]

    same, apart = plans(True), plans(False)
    assert np.array_equal(same[0].actions, same[1].actions)
    assert not np.array_equal(apart[0].actions, apart[1].actions)
    assert consistency(dict(zip(NEAR, same, strict=True))) == 0 < consistency(dict(zip(NEAR, apart, strict=True)))


class Blind(dp.DiffusionPlanner):
    """Plans for everybody to drive straight at its goal, whoever is in the way; who has none stands."""

    def answer(self, questions, sampling=None) -> list[Plan]:
        plans = []
        for question in questions:
            seen, mask = self.spec.stack_observations(question.observations)
            way = np.nan_to_num(seen[:, 4:6] - seen[:, :2])
            action = way / np.maximum(0.4, np.linalg.norm(way, axis=1, keepdims=True))
            cells = [np.repeat(np.nan_to_num(one)[None, :, None], self.horizon, 2) for one in (seen, action)]
            plans.append(Plan(self.spec, *(one.astype(np.float32) for one in cells), mask))
        return plans


@pytest.mark.parametrize(("radius", "speak"), [(None, False), (0.8, True)])
def test_a_team_that_filters_keeps_apart_where_its_plans_do_not(planner, radius: float | None, speak: bool) -> None:
    env = dp.make("crossing-v0", num_robots=4, sensing_radius=radius)
    parts = (planner.denoiser, planner.scheduler, planner.normalizer)
    blind, safety = Blind(*parts, env.joint_spec, HORIZON), dp.SafetyFilter(**env.robot_limits)
    manners = Manners(speak=speak, shared_seed=False)
    free, kept = (dp.evaluate(DecentralizedTeam(blind, manners, safety=one), env, episodes=1) for one in (None, safety))
    assert free.contacts[0] > 0 and kept.contacts[0] == 0 and kept.success[0]
    assert safety.stats.changed > 0 and safety.stats.robots == safety.stats.calls  # each its own action


def test_a_robot_that_it_does_not_sense_is_where_it_told(planner) -> None:
    safety = dp.SafetyFilter(**dp.make("crossing-v0", num_robots=2).robot_limits)
    close = NEAR["robot_0"] + np.float32([0.42, 0, 0, 0, 0, 0])  # 0.18 m away
    data = TeamMember(planner, "robot_0").act(close, {}, 0)[1]
    changed = []
    for heard in (False, True):
        member = TeamMember(planner, "robot_1", safety=safety)
        if heard:
            member.receive(data)
        member.ask(NEAR["robot_1"], {}, 0)
        plan = planner(NEAR)
        plan.actions[:, 1] = (-0.7, 0.0)
        changed.append(member.follow(plan)[0][0] > -0.7)
    assert changed == [False, True]


def test_a_member_plans_by_its_guides(gaussian) -> None:
    gaussian.scheduler = make_scheduler("flow")
    near_two = dp.ConstraintGuide(lambda plan: (plan.observations - 2).square().sum((2, 3, 4)) / 2)
    members = [TeamMember(gaussian, "a", Manners(speak=False), guides=guides) for guides in ((), (near_two,))]
    for member in members:
        member.act(np.array([np.nan], np.float32), {}, 0)
    free, guided = (member.plan.observations.mean() for member in members)
    assert abs(free) < 0.7 and guided == pytest.approx(free / 2**0.5 + 1, abs=0.3)  # N(0, 1) and N(1, 1/2)


def test_consistency_is_the_mean_distance_between_what_is_foreseen_and_what_is_intended(planner) -> None:
    plan = planner(NEAR)
    moved = Plan(plan.spec, plan.observations + np.float32(0.3), plan.actions, plan.agent_mask)
    assert consistency({"robot_0": plan, "robot_1": moved}) == pytest.approx(0.3 * 2**0.5, abs=1e-5)
    assert np.isnan(consistency({"robot_0": plan, "robot_1": None}))


def test_a_plan_that_is_not_finite_is_not_followed(planner) -> None:
    member = TeamMember(planner, "robot_0")
    member.ask(NEAR["robot_0"], {}, 0)
    plan = planner(NEAR)
    action, _ = member.follow(Plan(plan.spec, plan.observations, plan.actions * np.nan, plan.agent_mask))
    assert (action == 0).all() and member.stats.not_finite == 1


def test_without_a_finite_plan_a_robot_does_what_it_can_and_may() -> None:
    chooser = dp.Role(3, (0.0,) * 3, (1.0,) * 3, discrete=True, legal=(0, 1, 2))
    spec = dp.JointSpec({"a": "mill", "b": "chooser"}, {"mill": dp.Role(1, (0.5,), (1.0,)), "chooser": chooser})
    normalizer = dp.Normalizer("gaussian", [[0.0] * spec.size] * 2, [[1.0] * spec.size] * 2)
    parts = (StandardNormal(spec.size, HORIZON, 2), make_scheduler("flow"), normalizer, spec, HORIZON)
    seen = {"a": np.zeros(1, np.float32), "b": np.array([0, 0, 1], np.float32)}
    for name, expected in (("a", [0.5]), ("b", [0, 0, 1])):
        member = TeamMember(dp.DiffusionPlanner(*parts), name)
        member.ask(seen[name], {}, 0)
        plan = member.planner(seen)
        action, _ = member.follow(dataclasses.replace(plan, actions=plan.actions * np.nan))
        assert action.tolist() == expected


def test_a_team_acts_in_every_environment_and_counts_what_it_says(planner) -> None:
    team = DecentralizedTeam(planner, link=Link(loss=0.5, delay=2, duplicates=0.5))
    report = dp.evaluate(team, lambda: dp.make("crossing-v0", num_robots=2), episodes=3, max_steps=5)
    stats = team.stats
    assert stats.lost == pytest.approx(stats.sent / 2, abs=2 * stats.sent**0.5)
    assert max(report.steps) <= 5 and stats.sent >= 6 and stats.bytes_sent <= 200 * stats.sent
    assert len(stats.consistency) == sum(report.steps) and stats.refused == 0
    assert report.plan_ms > 0 and all(plan is not None for plan in team.plans)


def test_a_batched_team_acts_as_each_member_would_alone(planner) -> None:
    team = DecentralizedTeam(planner, Manners(speak=False))
    team.reset([5])
    (actions,) = team([NEAR])
    for name in NEAR:
        other = next(one for one in NEAR if one != name)
        alone, _ = TeamMember(planner, name, Manners(speak=False), seed=5).act(NEAR[name], {other: hidden(other)}, 0)
        np.testing.assert_allclose(actions[name], alone, atol=1e-4)


class Listening:
    """Records what it is told, and stands still."""

    def __init__(self) -> None:
        self.told: list[Sequence] = []

    def reset(self, seeds: Sequence[int]) -> None: ...

    def sense(self, infos: Sequence) -> None:
        self.told.append(list(infos))

    def __call__(self, observations: Sequence[dict | None]) -> list[dict | None]:
        return [seen and {name: np.zeros(2, np.float32) for name in seen} for seen in observations]


def test_a_robot_that_somebody_else_drives_neither_acts_nor_speaks_in_a_team(planner) -> None:
    env, team = dp.make("crossing-v0", num_robots=2), DecentralizedTeam(planner, partners=("robot_1",))
    partners = ScriptedPartners(("robot_1",), ("late",), env.joint_spec.dt)
    together = dp.WithPartners(team, partners, ("robot_1",), env.joint_spec)
    together.reset([0])
    observations, _ = env.reset(seed=0)
    for _ in range(3):
        (actions,) = together([observations])
        observations = env.step(actions)[0]
    members = team._episodes[0].members
    assert not members["robot_0"].heard and members["robot_1"].told is None
    assert members["robot_0"].told is not None and team.stats.plans == [1, 1, 1]
    with pytest.raises(ValueError, match=r"speaks for \['robot_1'\], too.*partners=\['robot_1'\]"):
        dp.WithPartners(DecentralizedTeam(planner), partners, ("robot_1",), env.joint_spec)
    with pytest.raises(ValueError, match=r"partners=\['robot_9'\] are not in the team"):
        DecentralizedTeam(planner, partners=("robot_9",))


def test_a_robot_of_a_team_acts_also_where_a_sensor_failed(planner) -> None:
    team = DecentralizedTeam(planner)
    team.reset([0])
    blind = NEAR["robot_1"].copy()
    blind[2] = np.nan
    (actions,) = team([{**NEAR, "robot_1": blind}])
    assert all(np.isfinite(actions[name]).all() for name in NEAR)


def test_who_has_no_actions_is_planned_for_and_does_not_speak() -> None:
    walker = dp.Role(1, (), (), position=(0,))
    spec = dp.JointSpec({"a": "point", "b": "walker"}, {"point": dp.Role(1, (-9.0,), (9.0,)), "walker": walker})
    normalizer = dp.Normalizer("gaussian", [[0.0, 0.0]] * 2, [[1.0, 1.0]] * 2)
    network = StandardNormal(2, HORIZON, num_roles=2)
    team = DecentralizedTeam(dp.DiffusionPlanner(network, make_scheduler("flow"), normalizer, spec, HORIZON))
    team.reset([0])
    for _ in range(2):
        (actions,) = team([{"a": np.zeros(1), "b": np.ones(1)}])
    members = team._episodes[0].members
    assert list(actions) == ["a"] and not members["a"].heard and members["b"].told is None
    assert members["a"].plan.agent_mask.all()


def test_a_policy_that_senses_is_told_the_infos_that_belong_to_its_observations() -> None:
    policy = Listening()
    dp.evaluate(policy, lambda: dp.make("crossing-v0", num_robots=6, sensing_radius=0.5), episodes=2, max_steps=3)
    assert len(policy.told) == 3
    for infos in policy.told:
        assert [set(info["robot_0"]["sensed"]) for info in infos] == [set(), set()]


def test_members_that_sense_nobody_ask_about_partners_of_whom_nothing_is_known(planner) -> None:
    six = planner.for_agents(dp.make("crossing-v0", num_robots=6).joint_spec)
    env = dp.make("crossing-v0", num_robots=6, sensing_radius=0.3)
    team = DecentralizedTeam(six, Manners(speak=False))
    observations, infos = env.reset(seed=0)
    team.reset([0])
    team.sense([infos])
    team([observations])
    seen = team._episodes[0].members["robot_2"]._seen
    assert [name for name, row in seen.items() if np.isfinite(row).any()] == ["robot_2"]


def test_settings_and_names_that_make_no_sense_are_refused(planner) -> None:
    with pytest.raises(ValueError, match="no robot 'robot_7' in the team"):
        TeamMember(planner, "robot_7")
    with pytest.raises(ValueError, match="told_std=-1"):
        Manners(told_std=-1)
    with pytest.raises(ValueError, match="repeat_every=0"):
        Manners(repeat_every=0)
    with pytest.raises(ValueError, match="2 observations for 0 episodes"):
        DecentralizedTeam(planner)([None, None])


@pytest.mark.parametrize(
    "wrong",
    [{"bits": 7}, {"stride": 0}, {"stride": 256}, {"warm_start_level": 3.0}, {"num_inference_steps": 0}],
    ids=str,
)
def test_manners_that_cannot_be_followed_are_refused(wrong: dict[str, float]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        Manners(**wrong)
