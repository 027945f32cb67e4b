"""Plans for a return that is asked for, plans in time, and first actions that a critic has refined.

The world: points on a line drift right or left, half of the episodes each; a step is paid for by where it goes.
"""

import time
from pathlib import Path

import numpy as np
import pytest
import torch

import diffplan as dp
from diffplan.models.value import lower_twin
from diffplan.planners import ConstraintGuide
from diffplan.planners.action_spread import OPEN
from diffplan.planners.deadline import Deadline, Pace
from diffplan.planners.guides import Estimate
from diffplan.planners.refinement import refine_first_actions
from diffplan.questions import draw_returns

LENGTH, HORIZON = 8, 4
LINE = dp.JointSpec({"a": "point", "b": "point"}, {"point": dp.Role(1, (-1.0,), (1.0,), position=(0,))})
NOW = {"a": np.zeros(1), "b": np.zeros(1)}


def episode(rng: np.random.Generator, direction: float) -> dp.Trajectory:
    actions = np.clip(direction * 0.5 + rng.normal(0, 0.1, (LENGTH, 2, 1)), -1, 1).astype(np.float32)
    there = np.concatenate([np.zeros((1, 2, 1), np.float32), actions.cumsum(0)])
    flags = np.zeros((LENGTH, 2), bool)
    ends = flags.copy()
    ends[-1] = True
    return dp.Trajectory(LINE, there, actions, actions[..., 0], flags, ends, np.ones((LENGTH + 1, 2), bool))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> dp.TrajectoryDataset:
    folder, rng = tmp_path_factory.mktemp("stores") / "line", np.random.default_rng(0)
    dp.TrajectoryStore.create(folder, LINE).append([episode(rng, direction) for direction in (1.0, -1.0) * 50])
    return dp.load_dataset(folder, horizon=HORIZON)


@pytest.fixture(scope="module")
def planner(dataset: dp.TrajectoryDataset) -> dp.DiffusionPlanner:
    planner = dp.DiffusionPlanner.for_dataset(dataset, width=32, depth=1, return_conditioning=True)
    dp.train(planner, dataset, steps=300, batch_size=32, progress=False)
    return planner


def heading(plan: dp.Plan) -> float:
    return float(plan.actions.mean())


def test_ranks_order_the_episodes_by_their_return(dataset: dp.TrajectoryDataset) -> None:
    ranks, returns = dataset.return_ranks, dataset.store.returns.sum(1)
    assert ranks[returns.argmax()] == pytest.approx(0.995) and ranks[returns.argmin()] == pytest.approx(0.005)
    assert ranks.mean() == pytest.approx(0.5)


def test_a_small_team_that_does_as_well_has_the_same_rank(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    worse, both, better = (episode(rng, direction) for direction in (0.2, 0.5, 0.8))
    both.rewards[:, 1] = both.rewards[:, 0]
    fields = ("observations", "actions", "rewards", "terminations", "truncations", "agent_mask")
    alone = dp.Trajectory(LINE, *(getattr(both, name).copy() for name in fields))
    for name in fields:
        getattr(alone, name)[:, 1] = 0
    store = dp.TrajectoryStore.create(tmp_path, LINE)
    store.append([worse, both])
    np.testing.assert_allclose(store.mean_returns, store.returns.mean(1))
    store.append([alone, better])
    assert store.mean_returns[1] == pytest.approx(store.mean_returns[2])
    assert dp.load_dataset(tmp_path, horizon=HORIZON).return_ranks.tolist() == [0.125, 0.5, 0.5, 0.875]


def test_the_return_that_is_asked_for_settles_what_is_planned(planner: dp.DiffusionPlanner) -> None:
    good, poor = (heading(planner(NOW, target_return=rank, num_samples=32)) for rank in (0.9, 0.1))
    assert good > 0.35 and poor < -0.35
    assert abs(heading(planner(NOW, num_samples=128))) < 0.3


def test_guidance_scale_goes_from_unconditional_to_conditional_and_beyond(planner: dp.DiffusionPlanner) -> None:
    def plan(scale: float) -> np.ndarray:
        return planner(NOW, target_return=0.9, guidance_scale=scale, num_inference_steps=1).actions

    free, told = planner(NOW, num_inference_steps=1).actions, plan(1.0)
    np.testing.assert_allclose(plan(0.0), free, atol=1e-5)
    np.testing.assert_allclose(plan(1.5), free + 1.5 * (told - free), atol=1e-4)
    with pytest.raises(ValueError, match="guidance_scale=nan; give a finite number"):
        plan(float("nan"))


def test_a_share_of_the_windows_tells_no_return() -> None:
    told = draw_returns(dp.QuestionMix(conditional=0.8), torch.full((10_000,), 0.3), torch.Generator().manual_seed(0))
    assert told.isnan().float().mean() == pytest.approx(0.2, abs=0.02)
    assert (told[~told.isnan()] == torch.tensor(0.3)).all()


def test_a_planner_without_returns_refuses_one(dataset: dp.TrajectoryDataset) -> None:
    plain = dp.DiffusionPlanner.for_dataset(dataset, width=16, depth=1)
    with pytest.raises(ValueError, match="target_return needs a planner that was trained for it"):
        plain(NOW, target_return=0.5)
    with pytest.raises(ValueError, match="target_return=7; give a rank among the data"):
        plain(NOW, target_return=7)


def test_a_short_deadline_leaves_fewer_candidates_and_steps_and_a_long_one_all(planner: dp.DiffusionPlanner) -> None:
    full = planner(NOW, num_samples=8, num_inference_steps=4, deadline_ms=60_000)
    assert (full.num_samples, full.num_inference_steps) == (8, 4)
    short = planner(NOW, num_samples=8, num_inference_steps=4, deadline_ms=1e-3)
    assert (short.num_samples, short.num_inference_steps) == (1, 1)
    assert np.isfinite(short.actions).all()
    guide = ConstraintGuide(lambda plan: plan.actions.sum((2, 3, 4)))
    steered = planner(NOW, num_samples=8, deadline_ms=1e-3, resample=True, guides=[guide])
    assert steered.num_inference_steps == 1
    for deadline in (0, float("inf")):
        with pytest.raises(ValueError, match=f"deadline_ms={deadline}; give a positive number"):
            planner(NOW, deadline_ms=deadline)


def test_candidates_are_cut_to_what_time_allows() -> None:
    assert Deadline(1_000.0).affordable(64, calls=5) == 64
    assert 15 <= Deadline(1_000.0, known=Pace((0.01,))).affordable(64, calls=5) <= 18
    assert Deadline(1_000.0, known=Pace((10.0,))).affordable(64, calls=5) == 1
    assert 7 <= Deadline(1_000.0, known=Pace((0.01,), after=0.05)).affordable(64, calls=5) <= 9
    later = Deadline(1_000, calls_after=4, known=Pace((0.001,)))  # these, too, are of all questions
    assert later.affordable(64, calls=5, questions=10) <= 10
    assert Deadline(None, known=Pace((10.0,))).affordable(64, calls=5) == 64


def test_the_next_plan_counts_on_what_its_calls_took_the_last_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guides begin late in a plan: its last call is the dearest, and the one that a plan of one step consists of."""
    times = iter([0.0, 0.0, 1.0, 2.0, 6.0, 6.0])  # made, started, three calls, done
    with monkeypatch.context() as patch:
        patch.setattr(time, "perf_counter", lambda: next(times))
        deadline = Deadline(None)
        deadline.start()
        assert not any(deadline.over(2) for _ in range(3))
        pace = deadline.pace(2)
    assert pace == Pace((0.5, 0.5, 2.0), 0.0)
    assert [pace.of(calls) for calls in (1, 2, 3, 4)] == [2.0, 2.5, 3.0, 5.0]


def test_a_deadline_leaves_time_for_guides_that_rank(planner: dp.DiffusionPlanner) -> None:
    def slow(plan: Estimate) -> torch.Tensor:
        time.sleep(0.001 * plan.observations.shape[1])  # a millisecond a candidate
        return plan.observations.square().sum((2, 3, 4))

    ranking = dp.ConstraintGuide(slow, levels=None)
    planner(NOW, num_samples=200, guides=[ranking])  # what ranking takes is not known before
    assert planner(NOW, num_samples=200, guides=[ranking], deadline_ms=100).num_samples <= 90


def test_refined_first_actions_are_worth_more_and_stay_within_reach(dataset, planner) -> None:
    value = dp.ValueFunction.for_dataset(dataset, width=16, depth=1)
    dp.train_value(value, dataset, steps=60, batch_size=64, learning_rate=3e-3, progress=False)
    plan, other = planner(NOW, seed=1, num_samples=8), planner(NOW, seed=2, num_samples=8)
    refined = refine_first_actions([plan, other], value, planner.normalizer, 0.5, price=0)

    def worth(plan: dp.Plan) -> float:
        cells = np.concatenate((plan.observations[:1, :, :1], plan.actions[:1, :, :1]), -1)
        cells = torch.from_numpy(planner.normalizer.normalize(cells, LINE.role_index)[:, :, 0])
        roles, mask = torch.from_numpy(LINE.role_index), torch.ones(1, 2, dtype=torch.bool)
        return lower_twin(value.action_values(cells[..., :1], cells[..., 1:], roles, mask)).sum().item()

    alone = refine_first_actions([plan], value, planner.normalizer, 0.5, partners=["b"], price=0)[0]
    assert np.array_equal(alone.actions[:, 1], plan.actions[:, 1]) and worth(plan) < worth(alone) < worth(refined[0])
    dear = refine_first_actions([plan], value, planner.normalizer, 0.5, price=10)[0]
    assert np.array_equal(dear.actions, plan.actions)
    scale = planner.normalizer.config.scale[0][1]
    for before, after in zip((plan, other), refined, strict=True):
        assert worth(after) > worth(before)
        assert np.array_equal(before.actions[:, :, 1:], after.actions[:, :, 1:])
        assert (after.actions[0, :, 0] > before.actions[0, :, 0]).all()  # it pays to go right
        assert np.array_equal(before.actions[1:], after.actions[1:])
        assert np.abs(after.actions[:, :, 0] - before.actions[:, :, 0]).max() <= 0.5 * scale * 1.001


def test_first_actions_move_as_far_as_candidates_differ(dataset, planner) -> None:
    value = dp.ValueFunction.for_dataset(dataset, width=16, depth=1)
    dp.train_value(value, dataset, steps=60, batch_size=64, learning_rate=3e-3, progress=False)
    scale = planner.normalizer.config.scale[0][1]

    def moved(spread: float) -> np.ndarray:
        plan = planner(NOW, num_samples=2)
        plan.actions[:, :, 0] = np.array([1, -1]).reshape(2, 1, 1) * spread * scale
        after = refine_first_actions([plan], value, planner.normalizer, 0.3, price=0)[0]
        return np.abs(after.actions - plan.actions)[0, :, 0] / scale

    np.testing.assert_allclose(moved(0.0), 0, atol=1e-6)
    np.testing.assert_allclose(moved(0.25), 0.3 * 0.25, rtol=1e-3)
    np.testing.assert_allclose(moved(0.5), 0.3, rtol=1e-3)


def test_a_policy_refines_only_as_far_as_the_data_leave_actions_open(dataset, planner) -> None:
    value = dp.ValueFunction.for_dataset(dataset, width=16, depth=1)
    dp.train_value(value, dataset, steps=60, batch_size=64, learning_rate=3e-3, progress=False)
    valued = planner.for_agents(LINE)
    valued.register_modules(value_function=value)

    def first(spread: float | None, refine: float) -> np.ndarray:
        valued.register_to_config(action_spread=spread)
        policy = dp.RecedingHorizonPolicy(valued, num_samples=8, refine=np.float64(refine), refine_price=0)
        policy.reset([0])
        actions = policy([NOW])[0]
        return np.concatenate([actions[name] for name in NOW])

    planned, refined = first(None, 0), first(None, 0.5)
    assert np.abs(refined - planned).max() > 1e-3
    assert np.array_equal(first(OPEN / 2, 2.0), refined)  # a quarter of the reach
    np.testing.assert_allclose(first(0.0, 0.5), planned, atol=1e-6)


def test_a_policy_that_refines_needs_a_value_function_and_saves_it(dataset, planner, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a planner with a value function"):
        dp.RecedingHorizonPolicy(planner, refine=0.5)
    with pytest.raises(ValueError, match="moves actions as far as candidates differ, and num_samples=1 leaves one"):
        valued = planner.for_agents(LINE)
        valued.register_modules(value_function=dp.ValueFunction.for_dataset(dataset, width=16, depth=1))
        dp.RecedingHorizonPolicy(valued, num_samples=1, refine=0.5)
    with pytest.raises(ValueError, match="refine_price=-1; give a share"):
        dp.RecedingHorizonPolicy(planner, refine_price=-1)
    value = dp.ValueFunction.for_dataset(dataset, width=16, depth=1)
    planner.register_modules(value_function=value)
    planner.save_pretrained(tmp_path / "planner")
    reloaded = dp.DiffusionPlanner.from_pretrained(tmp_path)
    plans = []
    for one in (planner, reloaded):
        policy = dp.RecedingHorizonPolicy(one, refine=0.5)
        policy.reset([0])
        plans.append(policy([NOW])[0])
    assert all(np.array_equal(plans[0][name], plans[1][name]) for name in NOW)
