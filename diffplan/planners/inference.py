"""What a planner makes of questions before it samples: what agents are like, and what sampling begins with."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffplan.planners.grid import Grid, warm_grid
from diffplan.planners.question import Question
from diffplan.trajectory import Belief

if TYPE_CHECKING:
    from diffplan.planners.planner import DiffusionPlanner


def infer(
    planner: "DiffusionPlanner",
    questions: Sequence[Question],
    values: Float[Tensor, "B N W D"],
    known: Bool[Tensor, "B N W D"],
    present: Bool[Tensor, "B N"],
) -> tuple[Float[Tensor, "B N Z"] | None, list[Belief | None]]:
    """The latents that the denoiser is told, and the same as beliefs; None where it takes none, or none are known.

    The encoder attends to whoever is present, seen or not, as in training.

    Raises:
        ValueError: told latents that the denoiser does not take, or of another shape.
    """
    size, encoder = planner.denoiser.config.latent_size, planner.partner_encoder
    shape = (planner.spec.num_agents, size)
    for question in questions:
        if question.latents is not None and question.latents.shape != shape:
            raise ValueError(f"latents have shape {question.latents.shape}, expected (agents, latent_size) = {shape}.")
    told = [np.full(shape, np.nan, np.float32) if q.latents is None else q.latents for q in questions]
    if not size:
        return None, [None] * len(questions)
    latents = torch.from_numpy(np.stack(told)).to(values)
    if encoder is None:
        return latents, [Belief(one, (), np.zeros((len(one), 0), np.float32)) for one in told]
    past = slice(planner.history + 1)
    roles = torch.from_numpy(planner.spec.role_index).to(values.device)
    code = encoder(values[:, :, past], known[:, :, past], roles, present)
    unasked = torch.tensor([question.latents is None for question in questions], device=values.device)
    latents = torch.where(unasked[:, None, None], code.mean, latents)
    families, chances = tuple(encoder.config.families), code.logits.softmax(-1).cpu().numpy()
    return latents, [Belief(one, families, row) for one, row in zip(latents.cpu().numpy(), chances, strict=True)]


def first_sample(
    planner: "DiffusionPlanner",
    questions: Sequence[Question],
    grid: Grid,
    noise: Float[Tensor, "B S N W D"],
    level: float,
) -> Float[Tensor, "BS N W D"]:
    """What sampling begins with: noise at its first level, over the warm starts where there are some.

    The noise is that of the planner's noise policy, where it has one, also under warm starts: the noise and a plan are
    the two ends of a path, and a warm start enters it in between. With the noise that a plan came of, it goes on where
    that plan's own sampling was.
    """
    if planner.noise_policy is not None:
        roles = torch.from_numpy(planner.spec.role_index).to(noise.device)
        noise = planner.noise_policy.steer(noise, grid.values, grid.given, roles, grid.present)
    noisy = level * noise
    if plans := [question.warm_start for question in questions if question.warm_start is not None]:
        earlier = np.stack([warm_grid(planner, plan, noise.shape[1]) for plan in plans])
        noisy = noisy + (1 - level) * torch.from_numpy(earlier).to(noise.device)
    return grid.impose(grid.hint(noisy, level))
