"""Windows as exercises for the denoiser: what it is shown, what it shall estimate, and how far off it is.

Of each window a question is drawn (which cells are known); every other cell is noised to a level of its own,
``sample = (1 - level) * clean + level * noise``, and the clean cells are to be estimated (flow matching with a
clean-sample prediction, arXiv 2210.02747 and 2206.00364). Changes from step to step count as well (the velocity loss
of arXiv 2209.14916, eq. 5): a plan must go on from where the agents are, centimetre by centimetre.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffplan.augmentation import Augmentation
from diffplan.datasets.windows import WindowBatch
from diffplan.partner_training import LatentSource
from diffplan.questions import QuestionMix, draw_forgotten, draw_known, draw_levels, draw_returns, held_beyond_the_end
from diffplan.spec import JointSpec

LEAST_LEVEL = 0.05  # errors are weighted by 1 / level, but no more than at this one
LEAST_CHANGE = 0.03  # an entry's changes are measured by their root mean square in the batch, but by no less
CHANGE_WEIGHT = 0.05


@dataclass(frozen=True)
class Exercise:
    """A batch of questions with their answers, in the network's units.

    Args:
        clean: the windows.
        sample: the windows, noised where not known.
        levels: noise level of every cell.
        known: entries that are given.
        shown: cells that the network sees.
        learned: entries to estimate: those that are neither known nor beyond an episode's end.
        roles: each agent's role.
        told: ranks of returns, NaN where not told; None where the network takes none.
        latents: what is known of each agent, NaN where nothing is; None where the network takes none.
        extra: what the partner encoder's own losses add.
        change_weight: what errors of changes from step to step count beside errors of the entries themselves.
        importance: what an error of each entry counts.
    """

    clean: Float[Tensor, "B N W D"]
    sample: Float[Tensor, "B N W D"]
    levels: Float[Tensor, "B N W"]
    known: Bool[Tensor, "B N W D"]
    shown: Bool[Tensor, "B N W"]
    learned: Bool[Tensor, "B N W D"]
    roles: Int[Tensor, "N"]
    told: Float[Tensor, "B"] | None
    latents: Float[Tensor, "B N Z"] | None
    extra: Float[Tensor, ""]
    change_weight: float
    importance: Float[Tensor, "D"]

    def estimate(self, model: Callable[..., Tensor]) -> Float[Tensor, "B N W D"]:
        """What a network makes of the questions."""
        estimate = model(self.sample, self.levels, self.known, self.roles, self.shown, self.told, self.latents)
        return torch.as_tensor(estimate.float())

    def error(
        self,
        estimate: Float[Tensor, "B N W D"],
        target: Float[Tensor, "B N W D"],
    ) -> Float[Tensor, ""]:
        """Mean squared error over the entries to estimate, and of their changes.

        Entries are weighted by 1 / level and by their importance.

        Changes are from the step before, the present's known entries among them, in units of their entry's root mean
        square in the batch; a cell that is not shown counts as one of zeros without an error.
        """
        weight = self.learned * self.importance / self.levels.clamp(min=LEAST_LEVEL)[..., None]
        wrong = (estimate - target) * self.learned
        error = _mean(wrong.square(), weight)
        if self.change_weight:
            weight = weight[:, :, 1:]
            usual = _mean(self.clean.diff(dim=2).square(), weight, (0, 1, 2)).clamp(min=LEAST_CHANGE**2)
            error = error + self.change_weight * _mean(wrong.diff(dim=2).square() / usual, weight)
        return error


def _mean(values: Tensor, weight: Tensor, dim: tuple[int, ...] | None = None) -> Tensor:
    return (weight * values).sum(dim) / weight.sum(dim).clamp(min=1e-6)


class Exercises:
    """Makes exercises of windows.

    Args:
        spec: the agents.
        history: steps before the present in a window.
        patch_size: cells of a token of the network, which share a noise level.
        mix: how often each question is asked.
        return_ranks: where each episode's return stands among the data's, if the network takes returns.
        latents: where the network's latents come from, if it takes any.
        augmentation: how windows are changed first, if at all.
        device: where to.
        watched: who is a partner in every window; None: the latents' labels say so, or chance.
        change_weight: of the exercises.
        action_weight: what an error of an action's entry counts, those of observations counting 1.
        position: of a network that sees agents in their own frames, the two entries of their position. Nothing is
            learned of agents of whose position it knows nothing: without a frame they are off by the map's width.
    """

    def __init__(
        self,
        spec: JointSpec,
        history: int,
        patch_size: int,
        mix: QuestionMix,
        return_ranks: Float[Tensor, "E"] | None = None,
        latents: LatentSource | None = None,
        augmentation: Augmentation | None = None,
        device: torch.device | str = "cpu",
        watched: Bool[Tensor, "N"] | None = None,
        change_weight: float = CHANGE_WEIGHT,
        action_weight: float = 1.0,
        position: Sequence[int] = (),
    ):
        self.spec, self.history, self.patch_size, self.mix = spec, history, patch_size, mix
        self.return_ranks, self.latents, self.device = return_ranks, latents, device
        self.augmentation, self.watched, self.change_weight = augmentation, watched, change_weight
        self.static, self.features = map(torch.from_numpy, (spec.static_mask, spec.feature_mask))
        self.roles = torch.from_numpy(spec.role_index).to(device)
        self.importance = torch.ones(spec.size, device=device)
        self.importance[spec.observation_size :] = action_weight
        self.position = list(position)

    def __call__(self, windows: WindowBatch, generator: torch.Generator) -> Exercise:
        exists, size = torch.from_numpy(windows.mask), self.spec.observation_size
        cells, N = torch.from_numpy(windows.cells), windows.cells.shape[1]  # a crowd's windows may show fewer agents
        if self.augmentation is not None:
            cells = self.augmentation(cells, self.spec, self.history, generator) * exists
        static, features, roles = self.static[:N], self.features[:N], self.roles[:N]
        clean, shown = held_beyond_the_end(cells, exists, features, self.history, size)
        partners = None if self.latents is None else self.latents.partners(windows)
        if self.watched is not None:
            partners = self.watched.expand(len(exists), -1)
        known = draw_known(self.mix, shown, static, self.history, size, generator, partners)
        past, seen = clean[:, :, : self.history + 1], known[:, :, : self.history + 1]
        forgotten = draw_forgotten(self.mix, len(known), self.history, known.shape[2], generator)
        clean, shown, known = clean.masked_fill(forgotten, 0), shown & ~forgotten, known & ~forgotten
        unknown = shown & ~known
        framed = known[:, :, : self.history + 1, self.position].all(-1).any(-1)  # all agents, where there are no frames
        levels = draw_levels(self.mix, unknown.any(-1), self.patch_size, generator)
        noise = torch.randn(clean.shape, generator=generator)
        sample = torch.where(unknown, torch.lerp(clean, noise, levels[..., None]), clean)
        told, latents, extra = None, None, torch.zeros((), device=self.device)
        if self.return_ranks is not None:
            told = draw_returns(self.mix, self.return_ranks[windows.episode], generator).to(self.device)
        if self.latents is not None:
            latents, extra = self.latents(past.to(self.device), seen.to(self.device), roles, windows, generator)
        return Exercise(
            clean=clean.to(self.device),
            sample=sample.to(self.device),
            levels=levels.to(self.device),
            known=known.to(self.device),
            shown=shown.any(-1).to(self.device),
            learned=(unknown & exists & framed[..., None, None]).to(self.device),
            roles=roles,
            told=told,
            latents=latents,
            extra=extra,
            change_weight=self.change_weight,
            importance=self.importance,
        )
