"""Particles: joint plans as hypotheses of what will happen, weighed by how well they foresaw what partners then did.

    log weight += - |predicted position - seen position|^2 / (2 std^2)        at every step, of every partner

When fewer than half of them count (effective sample size 1 / sum of squared weights), they are resampled and
rejuvenated: noised to a level and denoised from the present on, so that they spread again around what proved right
(a particle filter, Gordon et al. 1993, with the diffusion model as its proposal).
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import softmax
from torch import Tensor

from diffplan.datasets.normalizer import Normalizer
from diffplan.planners.guides import ALWAYS, Estimate, Guide
from diffplan.planners.planner import DiffusionPlanner
from diffplan.planners.policy import covers, shifted
from diffplan.planners.question import Sampling
from diffplan.spec import Actions, JointSpec, Observations
from diffplan.trajectory import Plan


class PartnerParticles:
    """A belief over what partners will do next, kept as weighed joint plans. Needs no training beyond the planner's.

    Args:
        planner: proposes the plans.
        partners: whose moves are watched; their roles must have positions.
        num_particles: S.
        std: how far from its prediction a partner is allowed to be a step (m).
        level: noise level from which resampled particles are denoised again.
        num_inference_steps: denoising steps, at the start and of a rejuvenation.

    Raises:
        ValueError: a partner that the planner does not know, or numbers that are not positive.
    """

    def __init__(
        self,
        planner: DiffusionPlanner,
        partners: Sequence[str],
        num_particles: int = 32,
        std: float = 0.05,
        level: float = 0.7,
        num_inference_steps: int = 3,
    ):
        unknown = [name for name in partners if name not in planner.spec.agents]
        if unknown or not partners:
            raise ValueError(f"partners={list(partners)}; name some of {list(planner.spec.names)}.")
        if num_particles < 2 or not 0 < std < float("inf"):
            raise ValueError(f"num_particles={num_particles}, std={std}; give 2 or more, and a positive distance (m).")
        Sampling(num_particles, num_inference_steps, level)  # raises where these are none
        self.planner, self.partners, self.num_particles, self.std = planner, tuple(partners), num_particles, std
        self.level, self.num_inference_steps = level, num_inference_steps
        self._plan: Plan | None = None
        self._age = 0  # steps since it was made
        self._log_weights = np.zeros(num_particles)

    def reset(self) -> None:
        """Forgets everything: an episode starts."""
        self._plan = None

    @property
    def effective_sample_size(self) -> float:
        """How many particles count, 1 to S."""
        return float(1 / np.square(softmax(self._log_weights)).sum())

    def observe(
        self, observations: Observations, past: Sequence[tuple[Observations, Actions]] = (), seed: int = 0
    ) -> Plan:
        """Takes in one more step and returns the particles from now on; ``values`` are their log-weights.

        When an agent joins, they are proposed anew.

        Args:
            observations: the present, as for the planner.
            past: earlier steps, as for the planner.
            seed: of the noise and of resampling, another one every step.
        """
        if self._plan is None or not covers(self._plan, observations):
            self._plan = self._propose(observations, past, seed, None)
        else:
            self._plan, self._age = shifted(self._plan, 1), self._age + 1
            self._log_weights = self._log_weights - self._surprise(self._plan, observations)
            worn = 2 * self._age >= self._plan.horizon  # half of what it foresaw is past
            if worn or self.effective_sample_size < self.num_particles / 2:
                self._plan = self._propose(observations, past, seed, self._resampled(self._plan, seed))
        return dataclasses.replace(self._plan, values=np.log(softmax(self._log_weights) + 1e-30).astype(np.float32))

    def _propose(
        self,
        observations: Observations,
        past: Sequence[tuple[Observations, Actions]],
        seed: int,
        start: Plan | None,
    ) -> Plan:
        self._log_weights, self._age = np.zeros(self.num_particles), 0
        return self.planner(
            observations,
            past=past,
            warm_start=start,
            warm_start_level=self.level,
            num_samples=self.num_particles,
            num_inference_steps=self.num_inference_steps,
            seed=seed,
        )

    def _surprise(self, plan: Plan, observations: Observations) -> Float[np.ndarray, "S"]:
        """Minus the log-likelihood of what the partners that are seen did, but for a constant."""
        total = np.zeros(self.num_particles)
        for name in self.partners:
            if name in observations:
                seen = np.asarray(observations[name])[list(plan.spec.role_of(name).position)]
                if np.isfinite(seen).all():
                    total += np.nan_to_num(np.square(plan.positions(name)[:, 0] - seen).sum(1)) / (2 * self.std**2)
        return total

    def _resampled(self, plan: Plan, seed: int) -> Plan:
        """Particles drawn by weight (systematic resampling), all of equal weight."""
        place = (np.random.default_rng([seed, 1]).random() + np.arange(self.num_particles)) / self.num_particles
        pick = np.searchsorted(np.cumsum(softmax(self._log_weights)), place).clip(max=self.num_particles - 1)
        return dataclasses.replace(plan, observations=plan.observations[pick], actions=plan.actions[pick], values=None)


@dataclass
class PartnerGuide(Guide):
    """Keeps plans to what a belief says that partners will do: log-weight = log of the mixture over its particles,

        log sum_k w_k exp(- mean over steps of |partner - partner in particle k|^2 / (2 std^2)),

    of the partners that are both in the plan and in the belief.

    Args:
        forecast: the belief: joint plans with log-weights as ``values`` (of ``PartnerParticles``, or of any planner).
        partners: who is foreseen.
        std: standard deviation of a particle's positions (m).
        weight: as in ``Guide``.
        levels: as in ``Guide``.
        name: of its term in ``Plan.terms``.
    """

    forecast: Plan
    partners: Sequence[str]
    std: float = 0.1
    weight: float = 1.0
    levels: tuple[float, float] | None = ALWAYS
    name: str = "partners"

    def log_weight(self, estimate: Estimate) -> Float[Tensor, "B S"]:
        agents = [estimate.spec.names.index(name) for name in self.partners]
        foreseen = np.stack([self.forecast.positions(name) for name in self.partners], axis=1)
        particles = estimate.positions.new_tensor(foreseen)  # [K, partners, H, P]
        values = self.forecast.values
        shares = particles.new_zeros(len(particles)) if values is None else particles.new_tensor(values)
        gaps = (estimate.positions[:, :, None, agents] - particles).square().sum(-1).mean(-1)
        there = estimate.agent_mask[:, agents] & torch.from_numpy(self.forecast.agent_mask[agents]).to(gaps.device)
        gaps = (gaps * there[:, None, None]).sum(-1)
        return (shares.log_softmax(0) - gaps / (2 * self.std**2)).logsumexp(-1)

    def check(self, spec: JointSpec, normalizer: Normalizer, horizon: int) -> None:
        super().check(spec, normalizer, horizon)
        unknown = [name for name in self.partners if name not in spec.agents]
        if unknown or not self.partners or not self.std > 0:
            raise ValueError(
                f"partners={list(self.partners)}, std={self.std}; name some of {list(spec.names)}, std > 0."
            )
        if self.forecast.horizon != horizon or self.forecast.spec.names != spec.names:
            raise ValueError(f"forecast is {self.forecast}, but plans are of {list(spec.names)}, H={horizon}.")
