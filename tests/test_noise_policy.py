"""A noise policy says which noise a sampler begins with, for any team, and is saved with its planner."""

from pathlib import Path

import numpy as np
import pytest
import torch

import diffplan as dp
from diffplan.models.noise import NoisePolicy

ROLES, EVERYBODY = torch.zeros(3, dtype=torch.long), torch.ones(1, 3, dtype=torch.bool)


def steering(policy: NoisePolicy) -> NoisePolicy:
    """The policy with a head as after training."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        torch.nn.init.normal_(policy.team.head.weight, std=0.3)
    return policy.eval()


@pytest.fixture
def policy() -> NoisePolicy:
    torch.manual_seed(0)
    return steering(NoisePolicy(size=5, window=6, history=2, width=16, depth=1))


@pytest.fixture
def cells() -> torch.Tensor:
    return torch.randn(1, 3, 6, 5, generator=torch.Generator().manual_seed(0))


def test_untrained_it_leaves_noise_as_it_is(cells: torch.Tensor) -> None:
    noise = torch.randn(1, 4, 3, 6, 5)
    policy = NoisePolicy(size=5, window=6, history=2, width=16, depth=1)
    assert torch.equal(policy.steer(noise, cells, cells > 0, ROLES, EVERYBODY), noise)


def test_relabelling_agents_relabels_the_noise(policy: NoisePolicy, cells: torch.Tensor) -> None:
    order, known = torch.tensor([2, 0, 1]), cells > 0
    for part, relabelled in zip(
        policy(cells, known, ROLES, EVERYBODY), policy(cells[:, order], known[:, order], ROLES, EVERYBODY), strict=True
    ):
        torch.testing.assert_close(part[:, order], relabelled)
        assert part.std() > 0.1


def test_absent_agents_count_as_if_they_were_not_in_the_team(policy: NoisePolicy, cells: torch.Tensor) -> None:
    known, two = cells > 0, torch.tensor([[True, True, False]])
    mean, log_std = policy(cells, known, ROLES, two)
    alone = policy(cells[:, :2], known[:, :2], ROLES[:2], two[:, :2])
    torch.testing.assert_close((mean[:, :2], log_std[:, :2]), alone)
    assert (mean[:, :2] - policy(cells, known, ROLES, EVERYBODY)[0][:, :2]).abs().max() > 0.01


def test_only_what_is_known_up_to_the_present_is_read(policy: NoisePolicy, cells: torch.Tensor) -> None:
    known, other = cells > 0, torch.full_like(cells, torch.nan)
    other[:, :, :3] = torch.where(known, cells, torch.nan)[:, :, :3]
    assert torch.equal(policy(cells, known, ROLES, EVERYBODY)[0], policy(other, known, ROLES, EVERYBODY)[0])


def test_no_mean_is_farther_than_the_reach(policy: NoisePolicy, cells: torch.Tensor) -> None:
    torch.nn.init.normal_(policy.team.head.weight, std=100.0)
    assert policy(cells, cells > 0, ROLES, EVERYBODY)[0].abs().max() <= policy.config.reach


@pytest.fixture(scope="module")
def dataset(crossing_store: Path) -> dp.TrajectoryDataset:
    return dp.load_dataset(crossing_store, horizon=8)


@pytest.fixture
def planner(dataset: dp.TrajectoryDataset) -> dp.DiffusionPlanner:
    planner = dp.DiffusionPlanner.for_dataset(dataset, width=16, depth=1)
    torch.nn.init.normal_(planner.denoiser.project.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    planner.noise_policy = steering(dp.NoisePolicy.for_dataset(dataset, width=16, depth=1))
    return planner


def seen(dataset: dp.TrajectoryDataset) -> dict[str, np.ndarray]:
    return dict(zip(dataset.spec.names, dataset.store[0].observations[0], strict=True))


def test_a_planner_is_saved_with_its_noise_policy(
    planner: dp.DiffusionPlanner, dataset: dp.TrajectoryDataset, tmp_path: Path
) -> None:
    plan = planner(seen(dataset), num_samples=3)
    planner.save_pretrained(tmp_path)
    loaded = dp.DiffusionPlanner.from_pretrained(tmp_path)
    again = loaded(seen(dataset), num_samples=3)
    for other in (again, loaded.for_agents(loaded.spec)(seen(dataset), num_samples=3)):
        assert np.array_equal(plan.actions, other.actions)
        assert np.array_equal(plan.observations, other.observations)
    planner.noise_policy = None
    assert np.abs(plan.actions - planner(seen(dataset), num_samples=3).actions).max() > 0.01


def test_more_robots_than_in_training_are_steered_too(
    planner: dp.DiffusionPlanner, dataset: dp.TrajectoryDataset
) -> None:
    env = dp.make("crossing-v0", num_robots=4)
    other = planner.for_agents(env.joint_spec)
    plan = other(env.reset(seed=0)[0])
    other.noise_policy = None
    assert np.abs(plan.actions - other(env.reset(seed=0)[0]).actions).max() > 0.01


def test_a_noise_policy_of_another_planner_is_refused(dataset: dp.TrajectoryDataset) -> None:
    planner = dp.DiffusionPlanner.for_dataset(dataset, width=16, depth=1)
    other = dp.NoisePolicy(dataset.spec.size, 4)
    with pytest.raises(
        ValueError, match="the noise policy was made for .*'window': 4.*, the planner has .*'window': 8"
    ):
        dp.DiffusionPlanner(**planner.components | {"noise_policy": other}, spec=dataset.spec, horizon=8)
    with pytest.raises(ValueError, match="width=10 is not a multiple of num_heads=4; use 8"):
        dp.NoisePolicy(5, 6, width=10)
    with pytest.raises(ValueError, match="history=6; choose 0 or more and less than window=6"):
        dp.NoisePolicy(5, 6, history=6)
