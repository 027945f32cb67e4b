"""Judging plans that are there: what guides say of them, and how likely they look to the unguided network."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float

from diffplan.planners.grid import Grid, warm_grid
from diffplan.planners.guidance import Guidance
from diffplan.planners.guides import Guide
from diffplan.planners.question import Question
from diffplan.trajectory import Plan

if TYPE_CHECKING:
    from diffplan.planners.planner import DiffusionPlanner

LEVEL, DRAWS = 0.5, 4


@torch.no_grad()
def realism(planner: "DiffusionPlanner", plan: Plan) -> Float[np.ndarray, "S"]:
    """Minus the mean squared error with which the network restores a plan that was noised, per candidate.

    Unknown cells are noised to ``LEVEL``, ``DRAWS`` times. Errors are in units of the normaliser: 0 is best; with
    a Gaussian one, -1 is as wrong as a guess from the data's mean.
    """
    question = Question(plan.spec.unstack_observations(plan.observations[0, :, 0], plan.agent_mask))
    grid = Grid.of(planner, [question])
    clean = torch.from_numpy(warm_grid(planner, plan, plan.num_samples)).to(planner.device) * grid.exists
    latents = None if plan.belief is None else torch.from_numpy(plan.belief.latents)[None].to(clean)
    estimate = planner.estimator(grid.known, grid.exists, plan.num_samples, latents=latents)
    free = ~grid.known & grid.exists
    generator = torch.Generator().manual_seed(0)
    error = torch.zeros(len(clean), device=clean.device)
    for _ in range(DRAWS):
        noise = torch.randn(clean.shape[1:], generator=generator).to(clean)
        noisy = torch.where(free, torch.lerp(clean, noise, LEVEL), clean)
        error += ((estimate(noisy, LEVEL) - clean).square() * free).flatten(1).sum(1)
    return -(error / DRAWS / free.sum().clamp(min=1)).cpu().numpy()


@torch.no_grad()
def rank(planner: "DiffusionPlanner", plan: Plan, guides: Sequence[Guide]) -> dict[str, Float[np.ndarray, "S"]]:
    """What guides say of a plan: every one's weighted log-weight, per candidate. Raises as ``Guidance.check``."""
    agent_mask = torch.from_numpy(plan.agent_mask)[None].to(planner.device)
    guidance = Guidance(guides, planner.spec, planner.normalizer, agent_mask, planner.history)
    guidance.check(planner.horizon)
    cells = warm_grid(planner, plan, plan.num_samples)
    terms = guidance.terms(torch.from_numpy(cells).to(planner.device))
    return {name: term[0].cpu().numpy() for name, term in terms.items()}


def check_ranked(guides: Sequence[Guide], num_samples: int, realism: float = 0.0) -> None:
    """Raises ``ValueError`` where guides or ``realism`` would only rank candidates, and there is a single one."""
    idle = [guide.name for guide in guides if guide.levels is None] + ["realism"] * bool(realism)
    if num_samples == 1 and idle:
        raise ValueError(f"{', '.join(idle)} only rank candidates, and there is one; give num_samples, or none.")
