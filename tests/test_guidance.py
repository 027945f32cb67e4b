"""Guided sampling against closed forms, and what guides promise. The prior is exact: its denoiser is a formula."""

import dataclasses
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import diffplan as dp
from diffplan.models.denoiser import JointDenoiser
from diffplan.planners import ConstraintGuide, Estimate, GoalGuide, Guide, Question, make_scheduler
from diffplan.planners.action_spread import OPEN, action_spread
from diffplan.planners.finishing import finished
from diffplan.planners.grid import Grid
from diffplan.planners.question import Sampling
from diffplan.planners.ranking import rank, realism

S = 4_000


class GaussianPrior(JointDenoiser):
    """The exact denoiser of agents whose positions are jointly Gaussian, mean 0, with the covariance given."""

    covariance: Tensor | None = None  # the unit matrix

    def forward(self, sample: Tensor, noise_level: Tensor, *_: object) -> Tensor:
        level = float(noise_level.max())
        unit = torch.eye(sample.shape[1])
        covariance = unit if self.covariance is None else self.covariance
        gain = (1 - level) * covariance @ torch.linalg.inv((1 - level) ** 2 * covariance + level**2 * unit)
        return torch.einsum("mn,bnwd->bmwd", gain, sample)


class TwoModes(JointDenoiser):
    """The exact denoiser of an even mixture of Gaussians at -1.5 and 1.5 with std 0.3."""

    def forward(self, sample: Tensor, noise_level: Tensor, *_: object) -> Tensor:
        level = float(noise_level.max())
        means, variance = torch.tensor([-1.5, 1.5]), (1 - level) ** 2 * 0.3**2 + level**2
        error = sample[..., None] - (1 - level) * means
        share = (-error.square() / (2 * variance)).softmax(-1)
        return (share * (means + (1 - level) * 0.3**2 / variance * error)).sum(-1)


def exact_planner(
    denoiser: type[JointDenoiser], agents: int = 1, horizon: int = 1, center: float = 0.0
) -> dp.DiffusionPlanner:
    """A planner for points on a line: one number an agent and step, of which nothing is known."""
    spec = dp.JointSpec({f"point_{i}": "point" for i in range(agents)}, {"point": dp.Role(1, (), (), position=(0,))})
    normalizer = dp.Normalizer("gaussian", [[center]], [[1.0]])
    planner = dp.DiffusionPlanner(denoiser(1, horizon, patch_size=1), make_scheduler("flow"), normalizer, spec, horizon)
    planner.scheduler.set_shift(1.0)
    planner.precision = "float32"
    return planner


def unknown(planner: dp.DiffusionPlanner) -> dict[str, np.ndarray]:
    return {name: np.array([np.nan]) for name in planner.spec.names}


def near_two(agent: int = 0) -> ConstraintGuide:
    return ConstraintGuide(lambda plan: (plan.positions[:, :, agent] - 2).square().sum((2, 3)) / 2)


def sampled(planner: dp.DiffusionPlanner, guide: Guide, steps: int, resample: bool, number: int = S) -> np.ndarray:
    """[S, N] positions of guided plans."""
    plan = planner(
        unknown(planner), guides=[guide], num_samples=number, num_inference_steps=steps, resample=resample, seed=1
    )
    return plan.observations[:, :, 0, 0]


@pytest.mark.parametrize(("steps", "resample"), [(200, False), (20, True)])
def test_guided_samples_match_the_exact_gaussian_posterior(steps: int, resample: bool) -> None:
    """Prior N(0, 1) times exp(-(x - 2)^2 / 2) is N(1, 1/2)."""
    x = sampled(exact_planner(GaussianPrior), near_two(), steps, resample)
    assert x.mean() == pytest.approx(1.0, abs=0.04)
    assert x.std() == pytest.approx(math.sqrt(0.5), rel=0.04)


@pytest.mark.parametrize(("highest", "spared"), [(0.75, 29), (1.0, 37)])
def test_curvature_that_is_measured_once_serves_lower_noise_levels(highest: float, spared: int) -> None:
    calls: list[bool] = []

    def pull(plan: Estimate) -> Tensor:
        calls.append(torch.is_grad_enabled())
        return (plan.positions - 2).square().sum((2, 3, 4))

    found, counts = [], []
    for steady in (False, True):
        guide, calls[:] = ConstraintGuide(pull, levels=(0.0, highest)), []
        guide.steady = steady
        found.append(sampled(exact_planner(GaussianPrior), guide, 40, resample=False, number=200))
        counts.append(sum(calls))
    np.testing.assert_allclose(*found, atol=0.01)
    assert counts[0] - counts[1] == spared  # of 30 levels, or 39, all but the first, and those above 0.95


@pytest.mark.parametrize("weight", [1.0, 30.0, 1e3])
def test_no_guide_moves_a_plan_to_where_it_likes_it_less(weight: float) -> None:
    """The network's slopes say what belongs together; a trained one errs, this one in every second step."""

    class Misled(JointDenoiser):
        def forward(self, sample: Tensor, *_: object) -> Tensor:
            return sample * torch.tensor([0.5, -0.5] * 4)[:, None]

    planner = exact_planner(Misled, horizon=8)
    rough = ConstraintGuide(lambda plan: plan.positions.diff(dim=3).square().sum((2, 3, 4)), weight)
    plans = (planner(unknown(planner), guides=guides, num_samples=200) for guides in ((), (rough,)))
    free, guided = (np.square(np.diff(plan.observations, axis=2)).sum((1, 2, 3)) for plan in plans)
    assert guided.mean() <= free.mean() and (guided <= 1.01 * free).mean() > 0.9


@pytest.mark.parametrize(("spread", "share"), [(None, 1.0), (1e200, 1.0), (OPEN / 2, 0.25), (0.0, 0.0)])
def test_a_learned_guide_counts_as_far_as_the_data_leave_actions_open(spread: float | None, share: float) -> None:
    """Prior N(0, 1) times exp(-share (x - 2)^2 / 2) is N(2 share / (1 + share), 1 / (1 + share))."""
    planner, guide = exact_planner(GaussianPrior), near_two()
    planner.register_to_config(action_spread=spread)
    guide.learned = True
    x = sampled(planner, guide, 100, resample=False)
    assert x.mean() == pytest.approx(2 * share / (1 + share), abs=0.05)
    assert x.std() == pytest.approx(1 / math.sqrt(1 + share), rel=0.05)
    guide.learned = False
    assert sampled(planner, guide, 100, resample=False).mean() == pytest.approx(1.0, abs=0.05)


def test_the_spread_of_actions_is_that_of_the_prior(crossing_store: Path) -> None:
    dataset = dp.load_dataset(crossing_store, horizon=1)
    found = []
    for deviation in (1.0, 0.1):
        denoiser = GaussianPrior(dataset.spec.size, 1, patch_size=1)
        denoiser.covariance = deviation**2 * torch.eye(dataset.spec.num_agents)
        planner = dp.DiffusionPlanner(denoiser, make_scheduler("flow"), dataset.normalizer, dataset.spec, 1)
        planner.precision = "float32"
        found.append(action_spread(planner, dataset))
    assert 0.5 < found[0] < 0.9  # of 8 candidates 0.9 is right; few denoising steps make plans narrower
    assert 0.005 < found[1] < 0.09


def test_the_spread_of_actions_is_measured_on_the_datas_team(crossing_store: Path) -> None:
    dataset = dp.load_dataset(crossing_store, horizon=4)
    planner = dp.DiffusionPlanner.for_dataset(dataset, width=16, depth=1)
    three = dp.JointSpec(dict.fromkeys("abc", *set(planner.spec.agents.values())), planner.spec.roles, planner.spec.dt)
    assert action_spread(planner.for_agents(three), dataset) == action_spread(planner, dataset)


def test_the_spread_of_actions_is_in_standard_deviations_whatever_the_normalizer(crossing_store: Path) -> None:
    found = []
    for kind in ("gaussian", "limits"):
        dataset = dp.load_dataset(crossing_store, horizon=1, normalizer=kind)
        windows, O = dataset.batch(np.arange(len(dataset))), dataset.spec.observation_size
        denoiser = GaussianPrior(dataset.spec.size, 1, patch_size=1)
        denoiser.covariance = windows.cells[..., O:].var() * torch.eye(2)
        planner = dp.DiffusionPlanner(denoiser, make_scheduler("flow"), dataset.normalizer, dataset.spec, 1)
        planner.precision = "float32"
        found.append(action_spread(planner, dataset))
    assert found[0] == pytest.approx(found[1], rel=0.5)  # few denoising steps narrow them differently; 0.2 otherwise


def test_plans_that_are_not_finite_tell_no_spread_of_actions(crossing_store: Path) -> None:
    dataset = dp.load_dataset(crossing_store, horizon=1)
    denoiser = GaussianPrior(dataset.spec.size, 1, patch_size=1)
    denoiser.covariance = torch.full((2, 2), torch.nan)
    planner = dp.DiffusionPlanner(denoiser, make_scheduler("flow"), dataset.normalizer, dataset.spec, 1)
    assert action_spread(planner, dataset) is None


def test_a_correlated_partner_follows_as_the_prior_says() -> None:
    """Robot 0 is drawn to 2; robot 1, correlated by 0.8, comes along to 0.8 and keeps the variance of the posterior."""
    planner = exact_planner(GaussianPrior, agents=2)
    planner.denoiser.covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
    x = sampled(planner, near_two(), 100, resample=True)
    covariance = np.linalg.inv(np.linalg.inv(planner.denoiser.covariance.numpy()) + np.diag([1.0, 0.0]))
    np.testing.assert_allclose(x.mean(0), [1.0, 0.8], atol=0.06)
    np.testing.assert_allclose(np.cov(x.T), covariance, atol=0.06)


def test_particles_fill_two_modes_as_prior_times_weight_does() -> None:
    """The weight exp(0.4 x) makes the right mode e^1.2 times as likely as the left one."""
    guide = ConstraintGuide(lambda plan: -0.4 * plan.positions.sum((2, 3, 4)))
    x = sampled(exact_planner(TwoModes), guide, 20, resample=True)
    assert (x > 0).mean() == pytest.approx(1 / (1 + math.exp(-1.2)), abs=0.05)


@pytest.mark.parametrize("weight", [1.0, 1e3, 1e6])
def test_no_weight_makes_a_plan_that_is_not_finite_or_far_out(weight: float) -> None:
    guides = (
        ConstraintGuide(lambda plan: -plan.positions.sum((2, 3, 4)), weight),
        ConstraintGuide(lambda plan: (plan.positions - 2).pow(4).sum((2, 3, 4)), weight),
    )
    for guide in guides:
        x = sampled(exact_planner(GaussianPrior), guide, 10, resample=False, number=50)
        assert np.isfinite(x).all() and np.abs(x).max() < 10


def test_separation_keeps_two_robots_apart_that_would_meet() -> None:
    planner = exact_planner(GaussianPrior, agents=2)
    guide = ConstraintGuide.separation(1.0, weight=200.0)
    free, apart = (np.abs(np.diff(sampled(planner, one, 50, False))) for one in (ConstraintGuide(no_violation), guide))
    assert (free < 1.0).mean() > 0.4
    assert (apart < 0.9).mean() < 0.02


def no_violation(plan: Estimate) -> Tensor:
    return 0 * plan.positions.sum((2, 3, 4))


def test_pulling_at_one_agent_moves_those_that_belong_together() -> None:
    """Without resampling: robot 1 follows robot 0 by their correlation, though only robot 0 is pulled."""
    planner = exact_planner(GaussianPrior, agents=2)
    planner.denoiser.covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
    free, pulled = (sampled(planner, guide, 60, False, 200) for guide in (ConstraintGuide(no_violation), near_two()))
    shift = pulled.mean(0) - free.mean(0)
    assert shift[0] == pytest.approx(1.0, abs=0.15)
    assert shift[1] == pytest.approx(0.8 * shift[0], abs=0.1)


def test_a_stiff_pull_does_not_mute_a_soft_one_in_the_same_cell() -> None:
    """Weights exp(-(100 (x - 1)^2 + (y - 1)^2) / 2) on N(0, I): means 100/101 and 1/2, stds 0.1 and 0.71."""
    spec = dp.JointSpec({"point": "point"}, {"point": dp.Role(2, (), (), position=(0, 1))})
    normalizer = dp.Normalizer("gaussian", [[0.0, 0.0]], [[1.0, 1.0]])
    planner = dp.DiffusionPlanner(
        GaussianPrior(2, 1, patch_size=1), make_scheduler("flow"), normalizer, spec, horizon=1
    )
    guides = [
        ConstraintGuide(lambda plan, entry=entry: (plan.positions[..., entry] - 1).square().sum((2, 3)) / 2, weight)
        for entry, weight in enumerate((100.0, 1.0))
    ]
    nowhere = {"point": np.full(2, np.nan)}
    plan = planner(nowhere, guides=guides, num_samples=S, num_inference_steps=200, seed=0)
    x, y = plan.observations[:, 0, 0].T
    assert (x.mean(), y.mean()) == pytest.approx((0.99, 0.5), abs=0.05)
    assert (x.std(), y.std()) == pytest.approx((0.1, 0.71), abs=0.05)


def test_a_plan_does_not_depend_on_what_else_is_asked_for_in_the_batch() -> None:
    """Also where other cells are known, and particles are resampled."""
    planner = exact_planner(GaussianPrior, agents=2)
    guide = near_two()
    sampling = Sampling(num_samples=8, guides=(guide,), resample=True)
    mine, other = Question(unknown(planner), seed=1), Question({"point_0": [np.nan], "point_1": [0.5]}, seed=2)
    (alone,), (together, _) = planner.answer([mine], sampling), planner.answer([mine, other], sampling)
    np.testing.assert_allclose(alone.observations, together.observations, atol=1e-5)
    np.testing.assert_allclose(alone.values, together.values, atol=1e-4)


def test_a_guide_acts_only_at_its_noise_levels() -> None:
    planner = exact_planner(GaussianPrior)
    means = {
        levels: sampled(planner, ConstraintGuide(near_two().violation, 1.0, levels), 50, False, 500).mean()
        for levels in ((0.0, 1.0), (0.5, 1.0), (0.9, 1.0))
    }
    assert means[0.0, 1.0] > means[0.5, 1.0] > means[0.9, 1.0]
    with pytest.raises(ValueError, match=r"at noise levels \(0.0, 0.1\); \[0.8, 0.6, 0.4, 0.2\] are visited, beside"):
        sampled(planner, ConstraintGuide(near_two().violation, 1.0, (0.0, 0.1)), 5, False, 2)
    with pytest.raises(ValueError, match=r"moves plans at noise levels \(1.0, 1.0\)"):  # pure noise tells nothing
        sampled(planner, ConstraintGuide(near_two().violation, 1.0, (1.0, 1.0)), 5, False, 2)
    with pytest.raises(ValueError, match=r"\[\] are visited, beside pure noise, .* take more denoising steps"):
        sampled(planner, near_two(), 1, False, 2)


def test_a_value_that_is_no_number_is_never_the_best() -> None:
    planner = exact_planner(GaussianPrior)
    guide = ConstraintGuide(lambda plan: -(plan.positions.sum((2, 3, 4)) + 1.7).log(), levels=None)
    plan = planner(unknown(planner), guides=[guide], num_samples=64, seed=1)
    assert (plan.observations < -1.7).any() and np.isfinite(plan.values).all()
    assert plan.best().observations.item() == plan.observations.max()


def test_a_hard_constraint_that_ranks_may_be_infinite() -> None:
    planner = exact_planner(GaussianPrior)
    positive = ConstraintGuide(lambda plan: torch.where(plan.positions.sum((2, 3, 4)) > 0, 0, torch.inf), levels=None)
    plan = planner(unknown(planner), guides=[positive, near_two()], num_samples=64, seed=1)
    assert np.isfinite(plan.values).all() and plan.best().observations.item() > 0
    idle = planner(unknown(planner), guides=[dataclasses.replace(positive, weight=0.0)], num_samples=64, seed=1)
    assert not idle.values.any()
    with pytest.raises(ValueError, match="numbers that are not finite for an ordinary plan"):
        planner(unknown(planner), guides=[dataclasses.replace(positive, levels=(0.0, 1.0))])


def test_a_planner_goes_to_other_processes_whatever_guided_it() -> None:
    planner = exact_planner(GaussianPrior)
    plan = planner(unknown(planner), guides=[near_two()], seed=1)
    again = pickle.loads(pickle.dumps(planner))  # as multiprocessing does
    assert np.array_equal(again(unknown(planner), guides=[near_two()], seed=1).observations, plan.observations)


def test_where_all_candidates_break_a_hard_constraint_the_others_rank() -> None:
    planner = exact_planner(GaussianPrior)
    soft = dataclasses.replace(near_two(), levels=None)
    hard = ConstraintGuide(lambda plan: plan.positions.sum((2, 3, 4)) * 0 + 1, 1e9, None, "hard")
    asked = {"num_samples": 64, "seed": 1}
    alone, both = (planner(unknown(planner), guides=guides, **asked) for guides in ([soft], [soft, hard]))
    assert (both.terms["hard"] == -1e9).all()
    assert both.best().observations.item() == alone.best().observations.item()


def test_clearance_counts_how_far_a_body_is_inside_the_margin_of_an_obstacle() -> None:
    """A disc of radius 0.5 at (1, 0); robots of radius 0.1 whose surfaces are 0.2, 0.1 and 0 m from it; margin 0.2."""
    role = dp.Role(5, (), (), (0, 1), static=(2, 3, 4), obstacles=(2, 3, 4), radius=0.1)
    spec = dp.JointSpec({"robot": "robot"}, {"robot": role})
    seen = torch.tensor([[0.2, 0, 1, 0, 0.5], [0.3, 0, 1, 0, 0.5], [0.4, 0, 1, 0, 0.5]])[None, :, None, None]
    plans = Estimate(spec, seen, torch.zeros(1, 3, 1, 1, 0), seen, torch.ones(1, 1, dtype=torch.bool))
    torch.testing.assert_close(ConstraintGuide.clearance(0.2).log_weight(plans), -torch.tensor([[0.0, 0.25, 1.0]]))


def test_agents_make_way_for_obstacles_not_these_for_them() -> None:
    role = dp.Role(5, (), (), (0, 1), obstacles=(2, 3, 4), radius=0.1)  # obstacles that move
    spec = dp.JointSpec({"robot": "robot"}, {"robot": role})
    seen = torch.tensor([0.3, 0, 1, 0, 0.5])[None, None, None, None].requires_grad_()
    plans = Estimate(spec, seen, torch.zeros(1, 1, 1, 1, 0), seen, torch.ones(1, 1, dtype=torch.bool))
    (pull,) = torch.autograd.grad(ConstraintGuide.clearance(0.2).log_weight(plans).sum(), seen)
    assert pull.flatten()[0] < 0 and not pull.flatten()[2:].any()


@pytest.mark.parametrize(("ended", "asked"), [(0.7, []), (0.8, [[0.45, 0.0]])])
def test_guided_plans_that_end_at_a_high_noise_level_are_estimated_once_more(ended: float, asked: list) -> None:
    """From half the noise on, in which known entries and less well known cells keep what is known of them."""
    plans, noise, values = torch.full((2, 1, 3, 2), 5.0), torch.ones(1, 2, 1, 3, 2), torch.full((1, 1, 3, 2), 9.0)
    known, exists, ceiling = (
        torch.zeros(1, 1, 3, 2, dtype=torch.bool),
        torch.ones(1, 1, 3, 2, dtype=torch.bool),
        torch.ones(1, 1, 3),
    )
    known[:, :, 0], ceiling[:, :, 2] = True, 0.1
    seen, down = [], []

    def estimate(noisy: torch.Tensor, _: object, levels: list[float]) -> torch.Tensor:
        seen.append(noisy)
        down.append(levels)
        return torch.zeros_like(noisy)

    for guides in ([], [dataclasses.replace(near_two(), levels=None)], [near_two()]):
        sampling = Sampling(num_samples=2, guides=guides)
        found = finished(plans, ended, noise, Grid(values, known, exists, ceiling, 0), 2, sampling, estimate)
    assert down == asked
    assert torch.equal(found, plans if not asked else torch.zeros_like(plans))
    for noisy in seen:
        torch.testing.assert_close(noisy[0, 0, :, 0], torch.tensor([9.0, 0.55 * 5 + 0.45, 0.9 * 5 + 0.1]))


def test_a_goal_draws_the_named_agent_only() -> None:
    planner = exact_planner(GaussianPrior, agents=2)
    x = sampled(planner, GoalGuide({"point_1": [1.5]}, tolerance=0.05), 50, False)
    np.testing.assert_allclose(x.mean(0), [0.0, 1.5], atol=0.06)


def test_a_guide_that_only_ranks_leaves_the_candidates_and_orders_them() -> None:
    planner = exact_planner(GaussianPrior)
    guides = [ConstraintGuide(near_two().violation, 2.0, None, "near"), ConstraintGuide(no_violation, name="nothing")]
    plan = planner(unknown(planner), guides=guides, num_samples=16, seed=3)
    plain = planner(unknown(planner), num_samples=16, seed=3)
    assert np.array_equal(plan.observations, plain.observations) and plain.values is None
    assert list(plan.terms) == ["near", "nothing"]
    np.testing.assert_allclose(plan.values, plan.terms["near"] + plan.terms["nothing"])
    np.testing.assert_allclose(plan.terms["near"], -((plan.observations[:, 0, 0, 0] - 2) ** 2), rtol=1e-5)
    assert plan.best().observations.item() == plan.observations[np.argmax(plan.values)].item()


def test_a_likely_plan_is_more_realistic_than_an_unlikely_one() -> None:
    planner = exact_planner(GaussianPrior, horizon=2)
    plan = planner({"point_0": np.zeros(1)}, num_samples=3, realism=2.0)
    observations = np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 5.0]], np.float32)[:, None, :, None]
    likely = dataclasses.replace(plan, observations=observations)
    scores = realism(planner, likely)
    assert scores[0] > scores[1] > scores[2]
    np.testing.assert_allclose(plan.terms["realism"], 2 * realism(planner, plan), rtol=1e-4)
    np.testing.assert_allclose(rank(planner, likely, [near_two()])["constraint"], [-4.0, -2.5, -6.5], rtol=1e-5)


def test_an_absent_agent_does_not_count(tmp_path) -> None:
    planner = exact_planner(GaussianPrior, agents=2, center=5.0)
    alone = {"point_0": np.array([0.3])}
    effort = ConstraintGuide(lambda plan: plan.observations.square().sum((2, 3, 4)))
    plan = planner(alone, guides=[ConstraintGuide.separation(5.0), GoalGuide({"point_1": [4.0]}), effort])
    assert plan.terms["separation"] == 0 and plan.terms["goal"] == 0
    assert plan.terms["constraint"] == pytest.approx(-0.09, abs=1e-5)
    plan.save(tmp_path / "plan.safetensors")
    reloaded = dp.Plan.load(tmp_path / "plan.safetensors")
    assert reloaded.terms.keys() == plan.terms.keys() and reloaded.num_inference_steps == plan.num_inference_steps == 5


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (ConstraintGuide(lambda plan: plan.positions.sum()), r"returns \(\), expected a tensor \[B, S\] = \(1, 2\)"),
        (ConstraintGuide(lambda plan: plan.positions.sum((2, 3, 4)) * math.nan), "not finite for an ordinary plan"),
        (ConstraintGuide(lambda plan: torch.zeros(plan.positions.shape[:2])), "has no gradient.*or set levels=None"),
        (ConstraintGuide(no_violation, weight=-1.0), "weight=-1.0; give a finite number, 0 or more"),
        (ConstraintGuide(no_violation, levels=(0.8, 0.2)), r"give \(lowest, highest\) within"),
        (GoalGuide({"other": [0.0]}), "goals are for agents"),
        (GoalGuide({"point_0": [0.0, 1.0]}), r"not positions \(m\), which have so many numbers: {'point_0': 1}"),
        (GoalGuide({"point_0": 0.0}), r"goals {'point_0': 0.0} are not positions"),
        (GoalGuide({"point_0": [0.0]}, step=1), "step=1 is outside the plan of 1 steps"),
        (GoalGuide({"point_0": [50.0]}), "point_0.*lies outside of what the data cover"),
    ],
)
def test_a_guide_that_cannot_guide_is_refused_before_sampling(guide: Guide, message: str) -> None:
    planner = exact_planner(GaussianPrior)
    planner.denoiser.forward = pytest.fail  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=message):
        planner(unknown(planner), guides=[guide])


def test_a_guide_that_was_changed_between_plans_is_checked_again() -> None:
    planner, goal = exact_planner(GaussianPrior), GoalGuide({"point_0": [0.0]})
    planner(unknown(planner), guides=[goal])
    goal.goals = {"point_0": [50.0]}
    with pytest.raises(ValueError, match="lies outside of what the data cover"):
        planner(unknown(planner), guides=[goal])


def test_contradictory_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="distance=-1; it must be a positive number"):
        ConstraintGuide.separation(-1)
    with pytest.raises(ValueError, match="must lie below high"):
        ConstraintGuide.workspace([1.0], [0.0])
    planner = exact_planner(GaussianPrior)
    with pytest.raises(ValueError, match="resample=True needs guides"):
        planner(unknown(planner), resample=True)
