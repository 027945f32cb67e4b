"""The network as samplers see it: (sample, level) -> clean estimate, the rest of the question being settled."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffplan.models.denoiser import JointDenoiser, Settled


def make_estimator(
    denoiser: JointDenoiser,
    known: Bool[Tensor, "_ N W D"],
    exists: Bool[Tensor, "_ N W D"],
    roles: Int[Tensor, "N"],
    half: bool,
    target_return: float | None = None,
    guidance_scale: float = 1.0,
    ceiling: Float[Tensor, "_ N W"] | None = None,
    latents: Float[Tensor, "_ N Z"] | None = None,
) -> Callable[[Tensor, float], Tensor]:
    """Settles everything but the sample and its noise level.

    Args:
        denoiser: the network.
        known: entries that are given; a first axis of length 1 holds for the whole batch.
        exists: entries that exist, likewise.
        roles: each agent's role.
        half: compute in bfloat16.
        target_return: see ``DiffusionPlanner.__call__``.
        guidance_scale: goes from the unconditional estimate (0) to the one for ``target_return`` (1) and beyond
            (classifier-free guidance, arXiv 2207.12598, eq. 6).
        ceiling: noise levels that cells do not exceed, below 1 where they are given with one; None: 1.
        latents: what is known of each agent, see ``JointDenoiser.forward``.

    Raises:
        ValueError: a return is asked for of a network that was not trained to take one, or the default dtype is not
            float32.
    """
    check_default_dtype()
    if target_return is not None and not denoiser.config.return_conditioning:
        raise ValueError(
            "target_return needs a planner that was trained for it: "
            "DiffusionPlanner.for_dataset(dataset, return_conditioning=True), or train --return-conditioning."
        )
    mask = None if exists.any(-1).all() else exists.any(-1)
    given = known & exists
    highest = (~known & exists).any(-1).to(torch.float32)
    if ceiling is not None:
        highest = highest * ceiling

    settled: Settled | None = None

    def network(sample: Tensor, level: float, told: Tensor | None = None) -> Tensor:
        nonlocal settled
        with torch.autocast(sample.device.type, torch.bfloat16, enabled=half):
            if settled is None:
                shown = sample.detach()
                alike = len(shown) > len(given) == 1 and bool(((shown == shown[:1]) | ~given).all())
                settled = denoiser.settle(shown[:1] if alike else shown, given, roles, mask, latents)
            clean = denoiser(sample, highest.clamp(max=level), given, roles, mask, told, latents, settled)
        return torch.as_tensor(clean.to(sample.dtype) * exists)

    def guided(sample: Tensor, level: float) -> Tensor:
        told = sample.new_full((len(sample),), target_return or 0.0)
        free, conditional = (network(sample, level, one) for one in (torch.full_like(told, torch.nan), told))
        return torch.lerp(free, conditional, guidance_scale)

    return network if target_return is None else guided


def check_default_dtype() -> None:
    """Raises ``ValueError`` where tensors that nobody says more of are not float32, as all of a planner's are."""
    if (dtype := torch.get_default_dtype()) != torch.float32:
        raise ValueError(f"torch's default dtype is {dtype}; planners need torch.set_default_dtype(torch.float32).")


def uses_bfloat16(precision: str, on_cuda: bool) -> bool:
    """Whether to compute in bfloat16: as told, or for ``"auto"`` where the device can (4 times as fast as float32)."""
    if precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"precision={precision!r}; choose 'auto', 'float32' or 'bfloat16'.")
    if precision != "auto":
        return precision == "bfloat16"
    if on_cuda:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported())
