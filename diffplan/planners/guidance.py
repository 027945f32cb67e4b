"""Guidance: moves the denoised estimate towards what guides prefer, as far as the noise level leaves open.

At noise level s (``sample = (1 - s) clean + s noise``) the clean cells are open by about

    variance(s) = s^2 / ((1 - s)^2 + s^2),

exact for cells of unit variance, which normalised data have. The guided estimate is the mean of the Gaussian of that
variance around the network's estimate, times the weight exp(g) (a proximal step, as DiffPIR takes on images: arXiv
2305.08995, eq. 12; the usual ``variance * gradient`` of arXiv 2105.05233 overshoots where the weight is curved). With
the curvature h of g along its gradient, measured by one more gradient a little further on, that is

    clean + variance / (1 + variance h) gradient g,

cell by cell, and never further than a few standard deviations. Exact for the product of two Gaussians.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffplan.datasets.normalizer import Normalizer
from diffplan.planners.guides import Estimate, Guide
from diffplan.spec import JointSpec

TRUST = 2.0  # standard deviations that one level may move a cell's entries, on average
PROBE = 0.1  # of a standard deviation: where the curvature is measured


class Guidance:
    """The sum of guides, as a function of a batch of normalised grids.

    Args:
        guides: what to add up.
        spec: the agents.
        normalizer: from the grids' units to physical ones.
        agent_mask: who is present, for each of B questions.
        history: cells before the present, which guides do not see.
        num_samples: S, candidates a question.
    """

    def __init__(
        self,
        guides: Sequence[Guide],
        spec: JointSpec,
        normalizer: Normalizer,
        agent_mask: Bool[Tensor, "B N"],
        history: int,
        num_samples: int,
    ):
        self.guides, self.spec, self.normalizer = guides, spec, normalizer
        self.agent_mask, self.history, self.num_samples = agent_mask, history, num_samples

    def check(self, horizon: int) -> None:
        """Tries every guide on two made-up plans. Raises ``ValueError`` for what cannot guide."""
        trial = Guidance(self.guides, self.spec, self.normalizer, self.agent_mask[:1], 0, 2)
        cells = torch.linspace(-1, 1, self.spec.size, device=self.agent_mask.device)
        for guide in self.guides:
            guide.check(self.spec, self.normalizer, horizon)
            with torch.enable_grad():
                plans = cells.repeat(2, self.spec.num_agents, horizon, 1).requires_grad_()
                values = guide.log_weight(trial._estimate(plans, 0))
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            if got != (1, 2):
                raise ValueError(f"guide {guide.name!r} returns {got}, expected a tensor [B, S] = (1, 2).")
            if not torch.isfinite(values).all():
                raise ValueError(f"guide {guide.name!r} returns numbers that are not finite for an ordinary plan.")
            if guide.levels is not None and not values.requires_grad:
                raise ValueError(
                    f"guide {guide.name!r} has no gradient; compute it from the estimate's tensors, or set levels=None."
                )

    def terms(self, clean: Float[Tensor, "BS N W D"]) -> dict[str, Float[Tensor, "B S"]]:
        """Every guide's weighted log-weight of every candidate; guides of one name add."""
        found: dict[str, Tensor] = {}
        estimate = self._estimate(clean, self.history)
        for guide in self.guides:
            value = (guide.weight * guide.log_weight(estimate)).detach()
            found[guide.name] = found[guide.name] + value if guide.name in found else value
        return found

    def log_weight(self, clean: Float[Tensor, "BS N W D"], level: float) -> Float[Tensor, "B S"]:
        """The sum of the guides that move plans at this noise level."""
        estimate = self._estimate(clean, self.history)
        moving = [guide for guide in self.guides if _moves(guide, level)]
        total = clean.new_zeros(len(self.agent_mask), self.num_samples)
        return total + sum(guide.weight * guide.log_weight(estimate) for guide in moving)

    def nudge(
        self, clean: Float[Tensor, "BS N W D"], level: float, free: Bool[Tensor, "_ N W D"]
    ) -> Float[Tensor, "BS N W D"]:
        """The guided estimate: see the module's equation. Only ``free`` entries move."""
        if not any(_moves(guide, level) for guide in self.guides):
            return clean
        variance = level**2 / ((1 - level) ** 2 + level**2)
        gradient = self._gradient(clean, level) * free
        slope = gradient.square().sum(-1, keepdim=True).sqrt()
        direction = gradient / slope.clamp(min=1e-12)
        probe = torch.minimum(variance * slope, torch.full_like(slope, PROBE * variance**0.5))
        further = self._gradient(clean + probe * direction, level) * free
        bend = (slope - (further * direction).sum(-1, keepdim=True)) / probe.clamp(min=1e-12)
        step = variance * slope / (1 + variance * bend.clamp(min=0))
        limit = TRUST * (variance * free.sum(-1, keepdim=True)).sqrt()
        return clean + torch.minimum(step, limit).nan_to_num() * direction.nan_to_num()

    def _gradient(self, clean: Float[Tensor, "BS N W D"], level: float) -> Float[Tensor, "BS N W D"]:
        with torch.enable_grad():
            variable = clean.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(self.log_weight(variable, level).sum(), variable)
        return gradient.nan_to_num()

    def _estimate(self, clean: Float[Tensor, "BS N W D"], history: int) -> Estimate:
        future = clean[:, :, history:]
        shape, O = (len(self.agent_mask), self.num_samples, *future.shape[1:]), self.spec.observation_size
        physical = self.normalizer.unnormalize(future, self.spec.role_index).reshape(shape)
        return Estimate(self.spec, physical[..., :O], physical[..., O:], future.reshape(shape), self.agent_mask)


def _moves(guide: Guide, level: float) -> bool:
    return guide.levels is not None and guide.weight > 0 and guide.levels[0] <= level <= guide.levels[1]
