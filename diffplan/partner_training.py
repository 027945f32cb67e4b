"""Where training takes from what the denoiser is told of each agent: the partner encoder, trained along, or labels."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from diffplan.datasets.styles import NO_PARTNER, StyleTable
from diffplan.datasets.windows import WindowBatch
from diffplan.planners.planner import DiffusionPlanner
from diffplan.questions import QuestionMix

DIVERGENCE_WEIGHT = 1e-4
"""Of a nat that the latents say, in units of the denoiser's loss."""
FAMILY_WEIGHT = 0.02
"""Of a nat of surprise at the labelled family."""


def takes_latents(planner: DiffusionPlanner, styles: StyleTable | None) -> bool:
    """Whether the denoiser is told latents. Raises ``ValueError`` where nobody could tell it, or styles tell nobody."""
    size = planner.denoiser.config.latent_size
    if not size and styles is not None:
        raise ValueError(
            "styles= is for planners that take latents, and this one takes none: make it with "
            "for_dataset(dataset, partner_encoder=...) or latent_size=..., or leave the styles out."
        )
    if size and planner.partner_encoder is None and (styles is None or styles.vectors.shape[-1] != size):
        got = None if styles is None else styles.vectors.shape[-1]
        raise ValueError(
            f"the denoiser takes latents of {size} numbers, styles have {got}; pass styles= that have them."
        )
    if size and planner.partner_encoder is not None and styles is not None:
        known = tuple(planner.partner_encoder.config.families)
        if known and known != styles.families:
            raise ValueError(f"the partner encoder knows {known}, styles {styles.families}; use the same.")
    return bool(size)


@dataclass(frozen=True)
class LatentSource:
    """Draws the latents of a batch.

    Args:
        encoder: infers them; None: they are the numbers of the labelled styles.
        styles: labels, for the encoder's words or for telling.
        mix: how often a latent stays untold.
    """

    encoder: nn.Module | None
    styles: StyleTable | None
    mix: QuestionMix

    def partners(self, windows: WindowBatch) -> Bool[Tensor, "B N"] | None:
        """Who is a partner, where labels say so."""
        if self.styles is None:
            return None
        return torch.from_numpy(self.styles.at(windows.episode, windows.step)[0] != NO_PARTNER)

    def __call__(
        self,
        cells: Float[Tensor, "B N P D"],
        known: Bool[Tensor, "B N P D"],
        roles: Int[Tensor, "N"],
        windows: WindowBatch,
        generator: torch.Generator,
    ) -> tuple[Float[Tensor, "B N Z"], Tensor]:
        """Latents, NaN where untold, and what the encoder's own losses add.

        Args:
            cells: normalised, up to the present.
            known: which of them the question knows.
            roles: each agent's role.
            windows: where they are from.
            generator: of the latents' noise and of what stays untold.
        """
        B, N = known.shape[:2]
        silent = (torch.rand(B, N, 1, generator=generator) < self.mix.unknown_latents).to(cells.device)
        family, vectors = (
            (torch.from_numpy(one).to(cells.device) for one in self.styles.at(windows.episode, windows.step))
            if self.styles is not None
            else (torch.full((B, N), NO_PARTNER, device=cells.device), cells.new_zeros(B, N, 0))
        )
        if self.encoder is None:
            return vectors.masked_fill(silent, torch.nan), cells.new_zeros(())
        mask = torch.from_numpy(windows.agent_mask).to(cells.device)
        code = self.encoder(cells, known, roles, mask)
        noise = torch.randn(code.mean.shape, generator=generator).to(cells.device)
        latents = code.mean + code.log_std.exp() * noise
        loss = DIVERGENCE_WEIGHT * code.divergence[mask].sum() / mask.sum().clamp(min=1)
        loss = loss + 0 * code.logits.sum()  # DDP: every weight takes part
        if code.logits.shape[-1] and (family != NO_PARTNER).any():
            named = family != NO_PARTNER
            loss = loss + FAMILY_WEIGHT * F.cross_entropy(code.logits[named].float(), family[named])
        return latents.masked_fill(silent, torch.nan), loss
