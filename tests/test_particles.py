import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import diffplan as dp
from diffplan.planners.guides import Estimate
from diffplan.planners.ranking import rank


@pytest.fixture(scope="module")
def planner(crossing_store: Path, randomized) -> dp.DiffusionPlanner:
    return randomized(dp.DiffusionPlanner.for_dataset(dp.load_dataset(crossing_store, horizon=8), width=16, depth=1))


@pytest.fixture
def observations() -> dict[str, np.ndarray]:
    return dp.make("crossing-v0", num_robots=2).reset(seed=5)[0]


def with_particles_at(planner, observations, offsets: np.ndarray, std: float) -> dp.PartnerParticles:
    """Particles that predicted robot_1 this far (m) to the right of where it will be seen next."""
    particles = dp.PartnerParticles(planner, ["robot_1"], len(offsets), std=std)
    plan = particles.observe(observations)
    moved = plan.observations.copy()
    moved[:, 1, 1, :2] = observations["robot_1"][:2]
    moved[:, 1, 1, 0] += offsets
    particles._plan = dataclasses.replace(plan, observations=moved)
    return particles


def test_particles_are_weighed_by_how_well_they_foresaw_the_partner(planner, observations) -> None:
    offsets = np.array([0.0, 0.05, 0.05, 0.1], np.float32)
    particles = with_particles_at(planner, observations, offsets, std=0.2)
    plan = particles.observe(observations, seed=1)
    expected = np.exp(-(offsets**2) / (2 * 0.2**2))
    np.testing.assert_allclose(np.exp(plan.values), expected / expected.sum(), rtol=1e-4)
    assert particles.effective_sample_size == pytest.approx(expected.sum() ** 2 / np.square(expected).sum(), rel=1e-4)


def test_when_few_particles_count_they_are_drawn_anew_around_what_proved_right(planner, observations) -> None:
    offsets = np.array([0.0, 1.0, 1.0, 1.0], np.float32)
    particles = with_particles_at(planner, observations, offsets, std=0.05)
    drawn: list[dp.Plan] = []
    resampled = particles._resampled
    particles._resampled = lambda plan, seed: (drawn.append(resampled(plan, seed)), drawn[-1])[1]
    plan = particles.observe(observations, seed=1)
    assert len(drawn) == 1
    np.testing.assert_array_equal(drawn[0].observations, np.repeat(drawn[0].observations[:1], 4, axis=0))
    assert particles.effective_sample_size == pytest.approx(4)
    assert np.ptp(plan.actions, axis=0).max() > 0


@pytest.mark.parametrize("unknown", [np.nan, np.inf])
def test_a_partner_out_of_sight_tells_nothing(planner, observations, unknown: float) -> None:
    particles = with_particles_at(planner, observations, np.array([0.0, 1.0], np.float32), std=0.05)
    particles.observe({**observations, "robot_1": np.full(6, unknown, np.float32)}, seed=1)
    assert particles.effective_sample_size == pytest.approx(2)


def test_a_partner_that_joins_is_foreseen_from_then_on(planner, observations) -> None:
    particles = dp.PartnerParticles(planner, ["robot_1"], 4)
    particles.observe({"robot_0": observations["robot_0"]})
    plan = particles.observe(observations, seed=1)
    np.testing.assert_allclose(
        plan.positions("robot_1")[:, 0], np.repeat([observations["robot_1"][:2]], 4, 0), atol=1e-5
    )


def test_particles_of_unknown_partners_are_refused(planner) -> None:
    with pytest.raises(ValueError, match="robot_7.*robot_0"):
        dp.PartnerParticles(planner, ["robot_7"])


def test_a_partner_guide_is_the_log_of_a_mixture_over_the_belief(planner, observations) -> None:
    belief = planner(observations, num_samples=3, seed=0)
    belief = dataclasses.replace(belief, values=np.log(np.array([0.2, 0.3, 0.5], np.float32)))
    plan = planner(observations, num_samples=2, seed=1)
    guide = dp.PartnerGuide(belief, ["robot_1"], std=0.3)
    parts = (torch.from_numpy(part)[None] for part in (plan.observations, plan.actions))
    seen, done = parts
    estimate = Estimate(plan.spec, seen, done, torch.cat((seen, done), -1), torch.ones(1, 2, dtype=torch.bool))
    gaps = plan.positions("robot_1")[:, None] - belief.positions("robot_1")
    squares = np.square(gaps).sum(-1).mean(-1)
    expected = np.log((np.exp(belief.values) * np.exp(-squares / (2 * 0.3**2))).sum(-1))
    np.testing.assert_allclose(guide.log_weight(estimate)[0], expected, rtol=1e-4)


def test_a_partner_guide_says_nothing_of_who_is_not_there(planner, observations) -> None:
    both, one = observations, {"robot_0": observations["robot_0"]}
    for seen, foreseen in ((both, one), (one, both)):
        plan, belief = planner(seen, num_samples=2, seed=1), planner(foreseen, num_samples=3, seed=0)
        said, expected = (
            rank(planner, plan, [dp.PartnerGuide(belief, names)])["partners"]
            for names in (["robot_0", "robot_1"], ["robot_0"])
        )
        np.testing.assert_allclose(said, expected, rtol=1e-5)


def test_a_partner_guide_draws_plans_to_the_belief(crossing_store, observations) -> None:
    dataset = dp.load_dataset(crossing_store, horizon=8)
    planner = dp.DiffusionPlanner.for_dataset(dataset, width=16, depth=1)
    dp.train(planner, dataset, steps=100, batch_size=32, progress=False)  # what belongs together has to be learned
    belief = planner(observations, seed=7)
    elsewhere = belief.observations + np.linspace(0, 0.5, belief.horizon, dtype=np.float32)[:, None]
    belief = dataclasses.replace(belief, observations=elsewhere)
    guide = dp.PartnerGuide(belief, ["robot_1"], std=0.02)
    free = planner(observations, num_samples=8, seed=1)
    guided = planner(observations, num_samples=8, seed=1, guides=[guide])
    target = belief.positions("robot_1")

    def error(plan: dp.Plan) -> float:
        return float(np.linalg.norm(plan.positions("robot_1") - target, axis=-1).mean())

    assert error(guided) < 0.8 * error(free)


def test_a_partner_guide_of_another_horizon_is_refused_before_sampling(planner, observations) -> None:
    belief = planner(observations, seed=0)
    short = dataclasses.replace(belief, observations=belief.observations[:, :, :4], actions=belief.actions[:, :, :4])
    with pytest.raises(ValueError, match="H=8"):
        planner(observations, guides=[dp.PartnerGuide(short, ["robot_1"])])
