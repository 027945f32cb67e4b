"""Samplers: from noise to a clean grid, with what is known held fixed.

All samplers walk in the coordinates of the flow path, ``sample = (1 - level) * clean + level * noise`` (flow matching,
arXiv 2210.02747), in which the deterministic DDIM step (arXiv 2010.02502, eq. 12) and the Euler step of the flow are
one formula. A variance-preserving scheduler (``alpha``, ``sigma``) is the same walk with ``level = sigma / (alpha +
sigma)``; so any of them can be chosen at plan time for one trained network. The loop uses own arithmetic because a
diffusers step costs more than the network's call on small plans; tests hold it against the diffusers schedulers.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from jaxtyping import Bool, Float, Int
from torch import Tensor

Scheduler: TypeAlias = FlowMatchEulerDiscreteScheduler | DDIMScheduler | DPMSolverMultistepScheduler
SCHEDULERS = ("flow", "ddim", "dpm")
_SETTLED: dict[type, dict[str, Any]] = {
    FlowMatchEulerDiscreteScheduler: {
        "use_dynamic_shifting": False,
        "invert_sigmas": False,
        "stochastic_sampling": False,
    },
    DDIMScheduler: {"prediction_type": "sample", "clip_sample": False, "thresholding": False},
    DPMSolverMultistepScheduler: {
        "prediction_type": "sample",
        "algorithm_type": "dpmsolver++",
        "solver_order": 2,
        "thresholding": False,
        "use_flow_sigmas": False,
        "final_sigmas_type": "zero",
    },
}
"""The classes whose noise levels plans can walk down, and the settings that they must have for it: other values would
change nothing here, or make plans wrong."""


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


def check_scheduler(scheduler: Any) -> None:
    """Raises ``ValueError`` unless plans are sampled as this scheduler says: one of three classes, of some settings.

    Which noise levels it visits is free; the steps between them are this module's, whatever its ``step`` does.
    """
    settled = _SETTLED.get(type(scheduler))
    if settled is None:
        known = [kind.__name__ for kind in _SETTLED]
        raise ValueError(
            f"the scheduler is a {type(scheduler).__name__}, plans are sampled by {known}; make one with "
            f"make_scheduler, by one of {SCHEDULERS}."
        )
    if wrong := {name: scheduler.config[name] for name, one in settled.items() if scheduler.config[name] != one}:
        raise ValueError(
            f"a {type(scheduler).__name__} with {wrong}, by which plans are not sampled; give "
            f"{ {name: settled[name] for name in wrong} }, as make_scheduler does."
        )


def noise_levels(scheduler: Scheduler, num_inference_steps: int, first: float = 1.0) -> list[float]:
    """The noise levels that a scheduler visits, K + 1 numbers from the noisiest down to 0, times ``first``.

    Raises ``ValueError`` as ``check_scheduler``, and for no step, or more than it has.
    """
    check_scheduler(scheduler)
    levels = [first * level for level in _levels(scheduler, num_inference_steps)]
    if not all(lower < level for level, lower in pairwise(levels)):  # not: nan, too
        told = f"the scheduler's noise levels do not fall: {levels}"
        raise ValueError(f"{told}; give other settings, or make one with make_scheduler.")
    return levels


def _levels(scheduler: Scheduler, num_inference_steps: int) -> list[float]:
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps={num_inference_steps}; sampling needs at least one step.")
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / num_inference_steps, num_inference_steps).tolist())
        return scheduler.sigmas.tolist()
    if num_inference_steps > (most := scheduler.config.num_train_timesteps):
        raise ValueError(f"num_inference_steps={num_inference_steps}; this scheduler has {most} noise levels.")
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
    second_order: bool,
    stop: Callable[[], bool] = lambda: False,
    ceiling: Float[Tensor, "_ N W"] | None = None,
) -> list[Tensor]:
    """Walks the noise levels down to a clean sample.

    Args:
        denoise: (sample, level) -> estimate of the clean sample; guides act in here.
        sample: noise at ``levels[0]`` where unknown, the known values elsewhere.
        known: entries that keep their value.
        levels: descending noise levels, the last one 0.
        second_order: the multistep correction of DPM-Solver++ 2M (arXiv 2211.01095, algorithm 2) instead of Euler /
            DDIM.
        stop: asked after every estimate; where it says True, that estimate is the plan.
        ceiling: the noise level at which each cell starts; it waits until the walk comes down to there. None: 1.

    Returns:
        The chain of samples: the noise, then the sample after every step, the last one clean.
    """
    chain, before = [sample], sample
    for index, (level, lower) in enumerate(pairwise(levels)):
        clean = torch.where(known, sample, denoise(sample, level))
        if stop():
            return [*chain, clean]
        target = clean
        if second_order and index and lower > 0:
            ratio = _half_step_ratio(levels[index - 1], level, lower)
            target = (1 + ratio) * clean - ratio * before
            if ceiling is not None:  # a cell that waited has no step before
                target = torch.where(ceiling[..., None] < levels[index - 1], clean, target)
        share: float | Tensor = lower / level
        if ceiling is not None:
            share = (ceiling.clamp(max=lower) / ceiling.clamp(max=level))[..., None]
        sample = torch.where(known, sample, torch.lerp(target, sample, share))
        chain.append(sample)
        before = clean
    return chain


def _half_step_ratio(before: float, level: float, lower: float) -> float:
    """1 / (2 r) of DPM-Solver++ 2M with r = h_last / h and h the step in log signal-to-noise ratio."""

    def log_snr(value: float) -> float:
        return math.log((1 - value) / value) if value < 1 else -math.inf

    last, step = log_snr(level) - log_snr(before), log_snr(lower) - log_snr(level)
    return 0.0 if math.isinf(step) or math.isinf(last) else step / (2 * last)


def steer_particles(
    denoise: Callable[[Tensor, float], tuple[Tensor, Tensor]],
    weigh: Callable[[Tensor, float], Float[Tensor, "B S"]],
    sample: Float[Tensor, "BS N W D"],
    known: Bool[Tensor, "_ N W D"],
    levels: list[float],
    generators: Sequence[torch.Generator],
    stop: Callable[[], bool],
) -> list[Tensor]:
    """Samples prior x weight by sequential Monte Carlo (the twisted diffusion sampler, arXiv 2306.17775, algorithm 1).

    The S candidates of a question are particles. Each step draws from the ancestral kernel with its larger variance
    (arXiv 2006.11239, section 3.2), shifted by the guides; importance weights make up for the shift and for what the
    weight of the new estimate says that the old one did not; particles are resampled when fewer than half count. So
    guided samples follow prior x weight as S and the number of steps grow, however coarse the guides' gradient. The
    other arguments and the result are as of ``denoise_grid``; steps are of first order.

    Args:
        denoise: (sample, level) -> estimate of the clean sample, and the guided one.
        weigh: (clean estimate, level) -> log-weight of every particle.
        generators: of the noise and of resampling, one a question.
    """
    chain, proposal = [sample], torch.zeros(1)
    before: Tensor | float = 0.0
    for level, lower in pairwise(levels):
        clean, guided = denoise(sample, level)
        lower = 0.0 if stop() else lower
        value = weigh(clean, level)
        weight = proposal.to(value.device) + value - before
        pick, weight = _resampled(weight, generators, always=lower == 0)
        clean, guided, sample = clean[pick], guided[pick], sample[pick]
        before = value.flatten()[pick].reshape(value.shape)
        if lower == 0:
            return [*chain, clean]
        share, std = _ancestral(level, lower)
        shift = (1 - lower - share * (1 - level)) * (guided - clean) * ~known
        shape = (len(sample) // len(generators), *sample.shape[1:])
        drawn = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
        noise = drawn.to(sample) * ~known * std
        mean = (1 - lower) * clean + share * (sample - (1 - level) * clean)
        sample = torch.where(known, sample, mean + shift + noise)
        ratio = -(shift * (shift + 2 * noise)).flatten(1).sum(1) / (2 * std**2)
        proposal = weight + ratio.reshape(value.shape)
        chain.append(sample)
    raise AssertionError("the last level is 0")


def _ancestral(level: float, lower: float) -> tuple[float, float]:
    """Share of the noise that stays and std of the noise that is added, going from ``level`` down to ``lower``."""
    alpha, next_alpha = 1 - level, 1 - lower
    share = alpha * lower**2 / (next_alpha * level**2)  # of (sample - alpha clean), the present noise
    total, next_total = alpha**2 + level**2, next_alpha**2 + lower**2
    return share, math.sqrt(next_total - (alpha / next_alpha * next_total) ** 2 / total)


def _resampled(
    weight: Float[Tensor, "B S"], generators: Sequence[torch.Generator], always: bool
) -> tuple[Int[Tensor, "BS"], Float[Tensor, "B S"]]:
    """Which particles go on (systematic resampling where fewer than half of a question's count), and their weights."""
    B, S = weight.shape
    shares = weight.softmax(1)
    starts = torch.stack([torch.rand(1, generator=generator) for generator in generators]).to(weight)
    places = (starts + torch.arange(S, device=weight.device)) / S
    drawn = torch.searchsorted(shares.cumsum(1).contiguous(), places.contiguous()).clamp(max=S - 1)
    due = (1 / shares.square().sum(1, keepdim=True) < S / 2) | always
    stay = torch.arange(S, device=weight.device).expand(B, S)
    pick = torch.where(due, drawn, stay) + S * torch.arange(B, device=weight.device)[:, None]
    return pick.flatten(), torch.where(due, 0.0, weight)
