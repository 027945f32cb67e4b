"""What becomes of plans when the walk down the noise levels is over."""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from diffplan.planners.grid import Grid
from diffplan.planners.question import Sampling

TORN = 0.72  # noise level above which guides tear plans apart, should these end there
HOLDS = 0.45  # level from which the network puts such plans together again
HOLDING = 0.3  # what that takes, as a share of a guided call of the network


def finished(
    plans: Float[Tensor, "BS N W D"],
    ended: float,
    noise: Float[Tensor, "B S N W D"],
    grid: Grid,
    observation_size: int,
    sampling: Sampling,
    walk: Callable[[Tensor, Grid, list[float]], Tensor],
) -> Float[Tensor, "BS N W D"]:
    """Plans that hold together, their actions read off their observations where that is asked for.

    Where guides move plans at a high noise level, much is open, and what they make of a cell need not fit the next one.
    Lower down the network mends that; for plans that end higher up, for want of steps or time, it is asked once more.

    Args:
        plans: as sampled.
        ended: the noise level of the last estimate.
        noise: to noise them with again.
        grid: the questions.
        observation_size: entries of a cell that are an observation's.
        sampling: how the plans were sampled.
        walk: goes from noisy plans down noise levels, unguided.
    """
    if sampling.moves and ended > TORN:
        level = grid.ceiling.clamp(max=HOLDS)[:, None, :, :, None]
        plans = walk(grid.impose(torch.lerp(plans.reshape(noise.shape), noise, level)), grid, [HOLDS, 0.0])
    if sampling.decode_actions:
        observed = torch.arange(noise.shape[-1], device=noise.device) < observation_size
        decoded = replace(grid, known=grid.known | observed, ceiling=torch.ones_like(grid.ceiling))
        noisy = torch.where(decoded.known[:, None], plans.reshape(noise.shape), noise) * grid.exists[:, None]
        plans = walk(noisy.flatten(0, 1), decoded, [1.0, 0.0])
    return plans
