"""Whether the world has changed: episodes that the pretrained planner foresees worse than those it knows.

What it is asked: how the partners go on, given all that the others do; without partners, how everybody's observations
go on under all actions. Both leave out what the team itself decides, but not where that leads: states that no data show
are foreseen worse. So without partners the team's own first episodes are what is normal, not the data, and a change
that is found where the team has learned to go elsewhere may be its own.
"""

import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffplan.datasets.windows import TrajectoryDataset, WindowBatch
from diffplan.planners.estimator import make_estimator
from diffplan.planners.inference import infer
from diffplan.planners.planner import DiffusionPlanner
from diffplan.planners.question import Question
from diffplan.questions import held_beyond_the_end

ALLOWANCE, LIMIT = 0.5, 10.0  # in standard deviations: what counts as no change, and the sum that proves one
REFERENCE = 128  # episodes say what is normal; fewer would be wrong about it by as much as the allowance
WINDOWS = 8  # an episode, on average


@dataclass
class Drift:
    """Page's cumulative sum (Biometrika 41, 1954): proves a lasting change of a mean, however small the batches.

    sum <- max(0, sum + z - allowance), z an episode's log error in standard deviations from the reference's mean;
    a change is found where the sum exceeds the limit, and began where it last was 0. Of errors that stay normal one in
    140,000 is taken for a change (Siegmund, Sequential Analysis, 1985); with a reference of 128 of them, in 8 of 60
    simulated runs of 5,000.

    A first reference may be of data that the network was trained on, which it foresees a little better than anything
    else; so the first ``REFERENCE`` episodes take its place, if no change is found before. After a change the
    ``REFERENCE`` episodes that follow are the new normal.

    Args:
        reference: log errors of episodes as they should be; none while they are gathered.
        fresh: those of the first episodes, or of the first after a change.
        total: the sum.
        began: the first episode of those that the sum is of.
        found: the episodes at which changes began.
    """

    reference: list[float]
    fresh: list[float] = field(default_factory=list)
    total: float = 0.0
    began: int = 0
    found: list[int] = field(default_factory=list)

    def meet(self, first: int, errors: Float[np.ndarray, "E"]) -> dict[str, Any]:
        """Takes in the log errors of the episodes from ``first`` on (NaN: unknown); returns a row's metrics.

        These are ``surprise``, the mean z (None where there is no reference), ``drift``, the sum, and ``drifted``, the
        episode at which a change began that was found now (None: none was).
        """
        changes, surprises = len(self.found), []
        for episode, error in enumerate(map(float, errors), start=first):
            if np.isnan(error):
                continue
            if self.reference:
                z = (error - float(np.mean(self.reference))) / max(float(np.std(self.reference)), 1e-6)
                surprises.append(z)
                self.total = max(0.0, self.total + z - ALLOWANCE)
            if self.total > LIMIT:
                self.found.append(self.began)
                self.reference, self.fresh, self.total = [], [], 0.0
            elif len(self.fresh) < REFERENCE:
                self.fresh.append(error)
                if len(self.fresh) == REFERENCE:
                    self.reference, self.total = list(self.fresh), 0.0
            if not self.total:
                self.began = episode + 1
        now = self.found[changes:]
        surprise = float(np.mean(surprises)) if surprises else None
        return {"surprise": surprise, "drift": self.total, "drifted": now[-1] if now else None}


class Foresight:
    """What the planner, as it is now, expects of episodes.

    Args:
        planner: its denoiser is copied, and stays as it is.
        watched: who is a partner.
    """

    def __init__(self, planner: DiffusionPlanner, watched: Bool[np.ndarray, "N"]):
        self.planner, self.denoiser, self.spec = planner, copy.deepcopy(planner.denoiser), planner.spec
        self.partner = torch.from_numpy(watched)[:, None, None]
        self.static, self.features = map(torch.from_numpy, (self.spec.static_mask, self.spec.feature_mask))

    def reference(self, offline: TrajectoryDataset, rng: np.random.Generator) -> Drift:
        """Begins to watch; where there are partners, up to ``REFERENCE`` episodes of the data are what is normal."""
        if not self.partner.any():
            return Drift([])
        number = min(REFERENCE, len(offline.episodes))
        chosen = rng.choice(offline.episodes, number, replace=False)
        errors = self.log_errors(offline.like(episodes=chosen, inside=False, crowd=None), rng)
        return Drift(errors[~np.isnan(errors)].tolist())

    def log_errors(self, episodes: TrajectoryDataset, rng: np.random.Generator) -> Float[np.ndarray, "E"]:
        """Of every episode the log mean squared error over some windows, normalised; NaN where nothing is asked."""
        places = {int(episode): place for place, episode in enumerate(episodes.episodes)}
        totals = np.zeros((2, len(places)))
        for indices in np.array_split(episodes.draw(WINDOWS * len(places), rng), -(-len(places) // 32)):
            windows = episodes.batch(indices)
            at = np.array([places[int(one)] for one in windows.episode])
            for total, column in zip(totals, self._errors(windows, rng), strict=True):
                np.add.at(total, at, column)
        asked = totals[1] > 0
        return np.where(asked, np.log(totals[0] / np.where(asked, totals[1], 1) + 1e-9), np.nan)

    @torch.no_grad()
    def _errors(self, windows: WindowBatch, rng: np.random.Generator) -> Float[np.ndarray, "2 B"]:
        """Of every window the sum of squared errors, and of how many entries."""
        history, observed = self.planner.history, torch.arange(self.spec.size) < self.spec.observation_size
        exists, device = torch.from_numpy(windows.mask), self.planner.device
        cells, shown = held_beyond_the_end(
            torch.from_numpy(windows.cells), exists, self.features, history, self.spec.observation_size
        )
        step = torch.arange(cells.shape[2])[:, None]
        past, static = (step < history) | ((step == history) & observed), self.static[:, None]
        if self.partner.any():
            known = torch.where(self.partner, past & observed & ~static, True)
        else:
            known = past | static | ~observed
        asked = ~known & exists & observed & ~static & (step > history)
        noise = torch.from_numpy(rng.standard_normal(cells.shape, np.float32))
        parts = (cells, known & shown, shown, torch.where(known, cells, noise) * shown)
        cells, known, shown, sample = (part.to(device) for part in parts)
        present = shown[:, :, history].any(-1)
        latents = infer(self.planner, [Question({})] * len(cells), cells, known, present)[0]
        roles = torch.from_numpy(self.spec.role_index).to(device)
        expected: Tensor = make_estimator(self.denoiser, known, shown, roles, False, latents=latents)(sample, 1.0)
        error = (expected - cells).square() * asked.to(device)
        return torch.stack((error.flatten(1).sum(1).cpu(), asked.flatten(1).sum(1))).numpy().astype(np.float64)
