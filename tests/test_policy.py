import dataclasses
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import diffplan as dp
from diffplan.models import JointDenoiser
from diffplan.planners.policy import shifted
from diffplan.planners.safety import SafetyFilter
from diffplan.planners.sampling import make_scheduler


@pytest.fixture(scope="module")
def planner(crossing_store: Path, randomized) -> dp.DiffusionPlanner:
    return randomized(dp.DiffusionPlanner.for_dataset(dp.load_dataset(crossing_store, horizon=8), width=16, depth=1))


def start(seeds: tuple[int, ...]) -> tuple[list, list[dict[str, np.ndarray]]]:
    envs = [dp.make("crossing-v0", num_robots=2) for _ in seeds]
    return envs, [env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)]


def test_a_policy_plans_anew_after_the_steps_it_executes(planner) -> None:
    policy = dp.RecedingHorizonPolicy(planner, execute_steps=3)
    (env,), observations = start((0,))
    policy.reset([0])
    for _ in range(7):
        (actions,) = policy(observations)
        observations = [env.step(actions)[0]]
    assert policy.stats.plans == [1, 1, 1]
    assert policy.stats.fallbacks == 0
    assert re.fullmatch(
        r"PlanningStats\(3 plans in 3 calls, [0-9.e+]+ ms a plan, late=0, not_finite=0\)", repr(policy.stats)
    )


def test_later_actions_are_those_of_the_plan_that_is_followed(planner) -> None:
    policy = dp.RecedingHorizonPolicy(planner, execute_steps=2)
    _, observations = start((0,))
    policy.reset([0])
    (actions,) = policy(observations)
    (now_one_step_later,) = policy.plans
    (again,) = policy(observations)
    for name, action in again.items():
        np.testing.assert_array_equal(action, now_one_step_later.actions_at(0)[name])
    assert any((again[name] != actions[name]).any() for name in actions)


def test_a_batch_of_environments_acts_as_each_would_alone(planner) -> None:
    together, alone = dp.RecedingHorizonPolicy(planner), dp.RecedingHorizonPolicy(planner)
    _, observations = start((0, 1))
    together.reset([5, 6])
    alone.reset([6])
    both, (one,) = together(observations), alone(observations[1:])
    for name, action in one.items():
        np.testing.assert_allclose(both[1][name], action, atol=1e-4)


def test_environments_that_ended_get_no_actions(planner) -> None:
    policy = dp.RecedingHorizonPolicy(planner)
    _, observations = start((0, 1))
    policy.reset([0, 1])
    assert policy([None, observations[1]])[0] is None


def test_a_later_plan_is_one_denoising_step_from_the_last_one(planner, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, forward = [], planner.denoiser.forward
    monkeypatch.setattr(
        planner.denoiser,
        "forward",
        lambda sample, levels, *rest: (calls.append(float(levels.max())), forward(sample, levels, *rest))[1],
    )
    policy = dp.RecedingHorizonPolicy(planner, num_inference_steps=4, warm_start_level=0.6)
    _, observations = start((0,))
    policy.reset([0])
    policy(observations)
    assert np.allclose(calls, [1, 0.9, 0.75, 0.5])
    calls.clear()
    policy(observations)
    assert np.allclose(calls, [0.6])


@pytest.mark.parametrize("deadline_ms", [None, 1e-6])
def test_an_agent_that_joins_between_two_plans_acts_at_once(planner, deadline_ms: float | None) -> None:
    policy = dp.RecedingHorizonPolicy(planner, execute_steps=4)
    _, (observations,) = start((0,))
    policy.reset([0])
    (alone,) = policy([{"robot_0": observations["robot_0"]}])
    policy.deadline_ms = deadline_ms
    (both,) = policy([observations])
    assert (list(alone), list(both)) == (["robot_0"], ["robot_0", "robot_1"])
    assert policy.stats.plans == [1, 1]
    assert (both["robot_1"] == 0).all() == (deadline_ms is not None)


def test_an_agent_that_left_gets_no_actions(planner) -> None:
    policy = dp.RecedingHorizonPolicy(planner, execute_steps=4)
    _, (observations,) = start((0,))
    policy.reset([0])
    policy([observations])
    (actions,) = policy([{"robot_1": observations["robot_1"]}])
    assert list(actions) == ["robot_1"]
    assert policy.stats.plans == [1]


def test_a_late_plan_never_reaches_the_robots_and_is_counted(planner) -> None:
    policy = dp.RecedingHorizonPolicy(planner, deadline_ms=1e-6)
    _, observations = start((0,))
    policy.reset([0])
    (actions,) = policy(observations)
    assert policy.stats.late == 1
    assert all((action == 0).all() for action in actions.values())


@pytest.mark.parametrize("late", [False, True])
def test_a_first_plan_that_ran_out_of_time_is_made_anew_once(planner, monkeypatch, late: bool) -> None:
    """Later plans would keep the joint way that it had half chosen; always anew would never follow a plan."""
    warm = []

    def answer(questions: list, sampling: Any) -> list[dp.Plan]:
        warm.append(questions[0].warm_start is not None)
        plan = dp.DiffusionPlanner.answer(planner, questions)[0]
        return [dataclasses.replace(plan, num_inference_steps=1)]

    monkeypatch.setattr(planner, "answer", answer)
    _, observations = start((0,))
    policy = dp.RecedingHorizonPolicy(planner, deadline_ms=60_000)
    policy.reset([0])
    policy(observations)
    policy.deadline_ms = 1e-6 if late else 60_000  # of plans that nobody follows, too
    for _ in range(3):
        policy(observations)
    assert warm == [False, False, True, True]
    assert policy.stats.late == 3 * late


def test_what_is_planned_anew_and_what_is_planned_on_share_one_deadline(planner, monkeypatch) -> None:
    left = []

    def answer(questions: list, sampling: Any) -> list[dp.Plan]:
        left.append(sampling.deadline_ms)
        time.sleep(0.03)
        return [dp.DiffusionPlanner.answer(planner, [one])[0] for one in questions]

    policy = dp.RecedingHorizonPolicy(planner, deadline_ms=60_000)
    _, (both,) = start((0,))
    policy.reset([0, 1])
    policy([{"robot_0": both["robot_0"]}, both])
    monkeypatch.setattr(planner, "answer", answer)
    policy([both, both])  # one joins in the first
    assert left[0] > 59_900 and left[1] <= left[0] - 30
    policy.deadline_ms = 55
    policy([{"robot_0": both["robot_0"]}, both])
    late = policy.stats.late
    policy._episodes[0].plan = None
    policy([both, both])
    assert policy.stats.late > late  # each took less


def test_a_goal_that_was_known_stays_known(planner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless nothing is seen of its agent any more; a new episode knows nothing of it."""
    asked, answer = [], planner.answer
    monkeypatch.setattr(
        planner, "answer", lambda questions, *how: (asked.extend(questions), answer(questions, *how))[1]
    )
    _, (whole,) = start((0,))
    static = list(planner.spec.roles["robot"].static)
    without = {name: np.array(seen) for name, seen in whole.items()}
    for seen in without.values():
        seen[static] = np.nan
    without["robot_1"][:] = np.nan
    policy = dp.RecedingHorizonPolicy(planner)
    policy.reset([0])
    policy([whole])
    policy([without])
    policy.reset([0])
    policy([without])
    np.testing.assert_allclose(asked[1].observations["robot_0"], whole["robot_0"])
    assert np.isnan(asked[1].observations["robot_1"]).all()
    assert np.isnan(asked[2].observations["robot_0"][static]).all()
    assert np.isnan(without["robot_0"][static]).all()  # what was given stays as it is


def test_what_others_did_as_told_is_remembered_beside_what_one_did_otherwise(crossing_store: Path) -> None:
    dataset = dp.load_dataset(crossing_store, horizon=4, history=4)
    policy = dp.RecedingHorizonPolicy(dp.DiffusionPlanner.for_dataset(dataset, width=8, depth=1))
    _, observations = start((0,))
    policy.reset([0])
    (told,) = policy(observations)
    policy.took([{"robot_0": np.zeros(2)}])
    ((_, done),) = policy._episodes[0].past
    assert done["robot_0"].tolist() == [0, 0]
    np.testing.assert_array_equal(done["robot_1"], told["robot_1"])


def test_guides_that_move_no_plan_are_refused_at_once(planner) -> None:
    early = dp.ConstraintGuide.separation(0.2, levels=(0.0, 0.5))
    dp.RecedingHorizonPolicy(planner, guides=[early], warm_start_level=0.5)
    for options in ({"warm_start_level": 0.8}, {"warm_start_level": None, "num_inference_steps": 1}):
        with pytest.raises(ValueError, match="guide 'separation' moves plans at noise levels"):
            dp.RecedingHorizonPolicy(planner, guides=[early], **options)


def test_a_plan_that_is_not_finite_never_reaches_the_robots(planner) -> None:
    policy = dp.RecedingHorizonPolicy(planner)
    weight = planner.denoiser.project.bias
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(float("nan"))
    _, observations = start((0,))
    policy.reset([0])
    (actions,) = policy(observations)
    with torch.no_grad():
        weight.copy_(kept)
    assert policy.stats.not_finite == 1
    assert all(np.isfinite(action).all() for action in actions.values())


def test_a_safety_filter_changes_what_is_executed_and_what_is_remembered(planner) -> None:
    (env,), (observations,) = start((0,))
    sides = zip(env.agents, (-0.09, 0.09), strict=True)
    near = {name: np.array([x, 0, -8 * x, 0, -x, 0], np.float32) for name, x in sides}  # and heading for each other
    safety = SafetyFilter(radius=0.08, max_speed=1.0, max_acceleration=5.0, time_constant=0.05, dt=0.1)
    fast = planner.for_agents(env.joint_spec)
    for seen in (observations, near):
        bare, kept = dp.RecedingHorizonPolicy(fast), dp.RecedingHorizonPolicy(fast, safety=safety)
        bare.reset([0])
        kept.reset([0])
        (asked,), (executed,) = bare([seen]), kept([seen])
        again = dataclasses.replace(safety).filter_actions(env.joint_spec, seen, asked)
        for name, action in executed.items():
            np.testing.assert_array_equal(action, again[name])
            np.testing.assert_array_equal(action, kept._episodes[0].past[-1][1][name])
    assert safety.stats.calls == 2
    assert safety.stats.changed + safety.stats.limited > 0


def test_what_was_seen_is_remembered_where_the_environment_uses_its_arrays_again(crossing_store: Path) -> None:
    dataset = dp.load_dataset(crossing_store, horizon=6, history=2)
    policy = dp.RecedingHorizonPolicy(dp.DiffusionPlanner.for_dataset(dataset, width=16, depth=1))
    _, (seen,) = start((0,))
    policy.reset([0])
    (actions,) = policy([seen])
    before = {name: array.copy() for name, array in seen.items()}
    done = {name: array.copy() for name, array in actions.items()}
    for array in (*seen.values(), *actions.values()):
        array += 1
    (past,) = policy._episodes[0].past
    assert all(np.array_equal(past[0][name], before[name]) for name in before)
    assert all(np.array_equal(past[1][name], done[name]) for name in before)


def test_a_shifted_plan_begins_later_and_holds_its_end(planner) -> None:
    _, (observations,) = start((0,))
    plan = planner(observations, num_samples=2).with_term("mine", np.array([1.0, 2.0]))
    later = shifted(plan, 3)
    assert np.array_equal(later.values, later.terms["mine"])
    assert np.array_equal(later.actions[:, :, :5], plan.actions[:, :, 3:])
    assert np.array_equal(later.actions[:, :, -1], plan.actions[:, :, -1])


def test_choices_that_make_no_sense_are_refused(planner) -> None:
    with pytest.raises(ValueError, match="warm_start_level=0"):
        dp.RecedingHorizonPolicy(planner, warm_start_level=0)
    with pytest.raises(ValueError, match="execute_steps=9; the planner plans 8 steps"):
        dp.RecedingHorizonPolicy(planner, execute_steps=9)


def test_what_only_ranks_is_refused_where_there_is_one_candidate(planner) -> None:
    ranks = dp.ConstraintGuide.speed(1.0, levels=None)
    with pytest.raises(ValueError, match="speed only rank candidates, and there is one"):
        dp.RecedingHorizonPolicy(planner, guides=[ranks])
    with pytest.raises(ValueError, match="realism only rank candidates"):
        dp.RecedingHorizonPolicy(planner, realism=1.0)
    with pytest.raises(ValueError, match="speed only rank candidates"):
        dp.TeamMember(planner, "robot_0", guides=[ranks])


def test_later_plans_of_one_step_are_guided_without_resampling(planner, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = dp.RecedingHorizonPolicy(planner, guides=[dp.ConstraintGuide.speed(0.1)], num_samples=4, resample=True)
    _, observations = start((0,))
    told, answer = [], planner.answer
    monkeypatch.setattr(planner, "answer", lambda q, sampling: told.append(sampling.resample) or answer(q, sampling))
    policy.reset([0])
    for _ in range(2):
        policy(observations)
    assert told == [True, False]


def test_parts_that_do_not_fit_are_refused_when_the_planner_is_made(planner) -> None:
    parts = planner.components | {"spec": planner.spec, "horizon": planner.horizon}
    with pytest.raises(ValueError, match=r"the normalizer has \[roles, entries\] \(1, 3\), the spec \(1, \d+\)"):
        dp.DiffusionPlanner(**parts | {"normalizer": dp.Normalizer("gaussian", [[0.0] * 3], [[1.0] * 3])})
    foreign = dp.ValueFunction(4, 2)
    with pytest.raises(ValueError, match="the value function was made for .*'observation_size': 4"):
        dp.DiffusionPlanner(**parts | {"value_function": foreign})
    other = dp.DiffusionPlanner(**parts)
    other.value_function = foreign
    with pytest.raises(ValueError, match="the value function was made for"):
        dp.RecedingHorizonPolicy(other, refine=1.0)


def test_an_action_that_was_planned_to_be_legal_and_is_not_is_not_done() -> None:
    role = dp.Role(2, (0.0, 0.0), (1.0, 1.0), discrete=True, legal=(0, 1))
    spec = dp.JointSpec({"a": "chooser"}, {"chooser": role}, dt=1.0)
    normalizer = dp.Normalizer("gaussian", [[0.0] * 4], [[1.0] * 4])
    planner = dp.DiffusionPlanner(JointDenoiser(4, 4), make_scheduler("flow"), normalizer, spec, 4)
    policy = dp.RecedingHorizonPolicy(planner, execute_steps=4)
    policy.reset([0])
    policy([{"a": np.array([1.0, 1.0])}])
    wishes = np.tile(np.array([0.0, 1.0], np.float32), (1, 1, 4, 1))
    policy._episodes[0].plan = dp.Plan(spec, np.ones((1, 1, 4, 2), np.float32), wishes, np.array([True]))
    (free,), (bound,) = policy([{"a": np.array([1.0, 1.0])}]), policy([{"a": np.array([1.0, 0.0])}])
    assert free["a"].argmax() == 1 and bound["a"].argmax() == 0


@pytest.mark.parametrize(
    ("options", "named"),
    [({"warm_start_steps": 0}, "warm_start_steps=0"), ({"memory": -1}, "memory=-1"), ({"partners": ("x",)}, "'x'")],
)
def test_options_that_cannot_be_followed_are_refused_at_once(planner, options: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        dp.RecedingHorizonPolicy(planner, **options)
