import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from diffplan.planners.sampling import SCHEDULERS, denoise_grid, make_scheduler, noise_levels

MEAN, STD = 0.5, 0.8


def exact_denoiser(sample: torch.Tensor, level: float) -> torch.Tensor:
    """The mean of clean given noisy when clean is Gaussian: nothing about it is learned."""
    signal, variance = (1 - level) * STD**2, (1 - level) ** 2 * STD**2 + level**2
    return MEAN + signal / variance * (sample - (1 - level) * MEAN)


def nothing_known(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.bool)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_samples_follow_the_distribution_whose_denoiser_is_exact(name: str) -> None:
    levels = noise_levels(make_scheduler(name), 50)
    shape = (1, 1, 20_000, 1)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    *_, sample = denoise_grid(exact_denoiser, levels[0] * noise, nothing_known(shape), levels, name == "dpm")
    assert sample.mean() == pytest.approx(MEAN, abs=0.03)
    assert sample.std() == pytest.approx(STD, rel=0.04)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_walk_is_the_one_of_the_diffusers_scheduler(name: str) -> None:
    scheduler, steps = make_scheduler(name), 8  # divides 1,000: diffusers' DDIM rounds its stride otherwise
    levels = noise_levels(scheduler, steps)
    shape = (1, 2, 4, 3)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    theirs = noise if name == "flow" else noise * levels[0] * scale(scheduler, 0)
    *_, ours = denoise_grid(exact_denoiser, theirs / scale(scheduler, 0), nothing_known(shape), levels, name == "dpm")
    for index, timestep in enumerate(scheduler.timesteps):
        flow = theirs / scale(scheduler, index)
        clean = exact_denoiser(flow, levels[index])
        output = (flow - clean) / levels[index] if name == "flow" else clean
        theirs = scheduler.step(output, timestep, theirs).prev_sample
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def scale(scheduler: object, index: int) -> float:
    """alpha + sigma of a variance-preserving scheduler at a step: its coordinates over those of the flow path."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return 1.0
    if isinstance(scheduler, DPMSolverMultistepScheduler):
        ratio = float(scheduler.sigmas[index])
        return (1 + ratio) / (1 + ratio**2) ** 0.5
    assert isinstance(scheduler, DDIMScheduler)
    alpha = float(scheduler.alphas_cumprod[scheduler.timesteps[index]]) ** 0.5
    return alpha + (1 - alpha**2) ** 0.5


@pytest.mark.parametrize("name", SCHEDULERS)
def test_known_cells_keep_their_values_to_the_bit(name: str) -> None:
    shape = (2, 2, 4, 3)
    sample = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 3.0
    known = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.5
    levels = noise_levels(make_scheduler(name), 5)
    chain = denoise_grid(exact_denoiser, sample, known, levels, name == "dpm")
    assert len(chain) == 6
    assert torch.equal(chain[0], sample)
    assert torch.equal(chain[-1][known], sample[known])
    assert not torch.equal(chain[-1][~known], sample[~known])


@pytest.mark.parametrize("name", SCHEDULERS)
def test_levels_fall_from_noise_to_nothing(name: str) -> None:
    levels = noise_levels(make_scheduler(name), 5)
    assert len(levels) == 6
    assert levels[0] > 0.9
    assert levels[-1] == 0
    assert levels == sorted(levels, reverse=True)


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        (DDPMScheduler(), "is a DDPMScheduler, plans are sampled by"),
        (type("Mine", (FlowMatchEulerDiscreteScheduler,), {})(), "is a Mine, plans are sampled by"),
        (DDIMScheduler(), r"DDIMScheduler with {'prediction_type': 'epsilon', 'clip_sample': True}, by which"),
        (DPMSolverMultistepScheduler(prediction_type="sample", solver_order=3), "with {'solver_order': 3}, by which"),
        (None, "is a NoneType"),
        (FlowMatchEulerDiscreteScheduler(shift_terminal=0.1), "noise levels do not fall"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered in divide")  # by diffusers
def test_schedulers_that_would_not_be_followed_are_refused(scheduler: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        noise_levels(scheduler, 1)


def test_bad_choices_are_refused() -> None:
    with pytest.raises(ValueError, match="choose one of"):
        make_scheduler("euler")
    with pytest.raises(ValueError, match="at least one step"):
        noise_levels(make_scheduler("flow"), 0)
    for name in ("ddim", "dpm"):
        with pytest.raises(ValueError, match="num_inference_steps=1001; this scheduler has 1000 noise levels"):
            noise_levels(make_scheduler(name), 1001)
