"""Samplers: from noise to a clean grid, with what is known held fixed.

All samplers walk in the coordinates of the flow path, ``sample = (1 - level) * clean + level * noise`` (flow matching,
arXiv 2210.02747), in which the deterministic DDIM step (arXiv 2010.02502, eq. 12) and the Euler step of the flow are
one formula. A variance-preserving scheduler (``alpha``, ``sigma``) is the same walk with ``level = sigma / (alpha +
sigma)``; so any of them can be chosen at plan time for one trained network. The loop uses own arithmetic because a
diffusers step costs more than the network's call on small plans; tests hold it against the diffusers schedulers.
"""

import math
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import TypeAlias

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from jaxtyping import Bool, Float
from torch import Tensor

Scheduler: TypeAlias = FlowMatchEulerDiscreteScheduler | DDIMScheduler | DPMSolverMultistepScheduler
SCHEDULERS = ("flow", "ddim", "dpm")


def make_scheduler(name: str) -> Scheduler:
    """A diffusers scheduler set up for plans: ``"flow"`` (Euler), ``"ddim"`` or ``"dpm"`` (DPM-Solver++ 2M)."""
    if name == "flow":
        return FlowMatchEulerDiscreteScheduler(shift=3.0)
    if name == "ddim":
        return DDIMScheduler(
            beta_schedule="squaredcos_cap_v2", prediction_type="sample", clip_sample=False, timestep_spacing="trailing"
        )
    if name == "dpm":
        return DPMSolverMultistepScheduler(
            beta_schedule="squaredcos_cap_v2", prediction_type="sample", timestep_spacing="trailing"
        )
    raise ValueError(f"scheduler={name!r}; choose one of {SCHEDULERS}.")


def noise_levels(scheduler: Scheduler, num_inference_steps: int) -> list[float]:
    """The noise levels that a scheduler visits, K + 1 numbers from the noisiest down to 0."""
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps={num_inference_steps}; sampling needs at least one step.")
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / num_inference_steps, num_inference_steps).tolist())
        return scheduler.sigmas.tolist()
    with warnings.catch_warnings():  # diffusers 0.42 hands tensors to numpy in a way that numpy 2 deprecates
        warnings.simplefilter("ignore", DeprecationWarning)
        scheduler.set_timesteps(num_inference_steps)
    if isinstance(scheduler, DPMSolverMultistepScheduler):
        return [sigma / (1 + sigma) for sigma in scheduler.sigmas.tolist()]
    alphas = scheduler.alphas_cumprod[scheduler.timesteps.cpu()].sqrt()
    sigmas = (1 - alphas**2).sqrt()
    return [*(sigmas / (alphas + sigmas)).tolist(), 0.0]


def denoise_grid(
    denoise: Callable[[Tensor, float], Tensor],
    sample: Float[Tensor, "B N W D"],
    known: Bool[Tensor, "_ N W D"],
    levels: list[float],
    second_order: bool = False,
) -> list[Tensor]:
    """Walks the noise levels down to a clean sample.

    Args:
        denoise: (sample, level) -> estimate of the clean sample; guides act in here.
        sample: noise at ``levels[0]`` where unknown, the known values elsewhere.
        known: entries that keep their value.
        levels: descending noise levels, the last one 0.
        second_order: the multistep correction of DPM-Solver++ 2M (arXiv 2211.01095, algorithm 2) instead of Euler /
            DDIM.

    Returns:
        The chain of samples: the noise, then the sample after every step, the last one clean.
    """
    chain, before = [sample], sample
    for index, (level, lower) in enumerate(pairwise(levels)):
        clean = torch.where(known, sample, denoise(sample, level))
        target = clean
        if second_order and index and lower > 0:
            ratio = _half_step_ratio(levels[index - 1], level, lower)
            target = (1 + ratio) * clean - ratio * before
        sample = torch.where(known, sample, torch.lerp(target, sample, lower / level))
        chain.append(sample)
        before = clean
    return chain


def _half_step_ratio(before: float, level: float, lower: float) -> float:
    """1 / (2 r) of DPM-Solver++ 2M with r = h_last / h and h the step in log signal-to-noise ratio."""

    def log_snr(value: float) -> float:
        return math.log((1 - value) / value) if value < 1 else -math.inf

    last, step = log_snr(level) - log_snr(before), log_snr(lower) - log_snr(level)
    return 0.0 if math.isinf(step) or math.isinf(last) else step / (2 * last)
