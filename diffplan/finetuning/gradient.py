"""Policy gradient through the last denoising step (DPPO, arXiv 2409.00588): first actions get better by trial."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffplan.datasets.transitions import discounted_sums, take_transitions
from diffplan.datasets.windows import TrajectoryDataset
from diffplan.finetuning.methods import CriticMethod, Learning, advantages
from diffplan.finetuning.replay import Replay
from diffplan.models.denoiser import JointDenoiser
from diffplan.planners.planner import DiffusionPlanner
from diffplan.planners.policy import RecedingHorizonPolicy
from diffplan.planners.question import Question, Sampling
from diffplan.planners.refinement import normalized_bounds, with_first_actions
from diffplan.planners.safety import SafetyFilter
from diffplan.trajectory import Plan

if TYPE_CHECKING:
    from diffplan.finetuning.acting import Acting, Exploration, Team


MOST_LOG_RATIO = 10.0  # keeps what has become e^10 times as likely finite


@dataclass(frozen=True)
class Trials:
    """B first actions that were tried, and what the network was asked in the denoising steps that they came of.

    Args:
        asked: the network's arguments, by name, those that differ from one question to the next.
        actions: what was tried, in the network's units.
        shocks: how far from the planned actions that was, in spreads.
        moments: in which episode, by its seed, and at which step.
    """

    asked: dict[str, Tensor]
    actions: Float[Tensor, "B N A"]
    shocks: Float[Tensor, "B N A"]
    moments: list[tuple[int, int]]

    @classmethod
    def joined(cls, parts: Sequence["Trials"]) -> "Trials":
        """All of them, one after the other."""
        asked = {name: torch.cat([part.asked[name] for part in parts]) for name in parts[0].asked}
        actions, shocks = (torch.cat([getattr(part, name) for part in parts]) for name in ("actions", "shocks"))
        return cls(asked, actions, shocks, [moment for part in parts for moment in part.moments])


class TryingPolicy(RecedingHorizonPolicy):
    """Executes actions near the planned ones, ``planned + spread * shock``, shock ~ N(0, 1), and remembers them.

    Args:
        planner: plans, one sample each.
        spread: in the normaliser's units, standard deviations of the data's actions for a Gaussian one.
        safety: see ``RecedingHorizonPolicy``; likewise ``partners``.
    """

    def __init__(
        self, planner: DiffusionPlanner, spread: float, safety: SafetyFilter | None = None, partners: Sequence[str] = ()
    ):
        super().__init__(planner, safety=safety, partners=partners)
        self.spread, self.trials = spread, list[Trials]()
        self._bounds = normalized_bounds(planner.spec, planner.normalizer)
        self._features = planner.spec.feature_mask[:, planner.spec.observation_size :]

    def make_plans(
        self, questions: Sequence[Question], sampling: Sampling, moments: Sequence[tuple[int, int]]
    ) -> list[Plan]:
        """Plans whose first actions are tried ones."""
        calls: list[tuple[Tensor, ...]] = []
        precision, self.planner.precision = self.planner.precision, "float32"  # as in learning: ratios begin at 1
        hook = self.planner.denoiser.register_forward_pre_hook(lambda network, arguments: calls.append(arguments))
        try:
            plans = super().make_plans(questions, sampling, moments)
        finally:
            self.planner.precision = precision
            hook.remove()
        spec, normalizer, O = self.planner.spec, self.planner.normalizer, self.planner.spec.observation_size
        cells = np.concatenate([plan.grid[:, :, :1] for plan in plans])
        first = normalizer.normalize(cells, spec.role_index)
        draws = [np.random.default_rng([question.seed, 5]) for question in questions]
        shocks = np.stack([draw.standard_normal(self._features.shape, np.float32) for draw in draws]) * self._features
        tried = first[:, :, 0, O:] + self.spread * shocks
        first[:, :, 0, O:] = tried.clip(*self._bounds)
        actions = normalizer.unnormalize(first, spec.role_index)[:, :, 0, O:]
        self.trials.append(Trials(_asked(calls[-1]), torch.from_numpy(tried), torch.from_numpy(shocks), list(moments)))
        return [with_first_actions(plan, one) for plan, one in zip(plans, actions, strict=True)]


class PolicyGradient(CriticMethod):
    """The last denoising step is a Gaussian policy of the first joint action; what went better becomes more likely.

    A plan is the end of a chain of denoising steps, of which DPPO fine-tunes the last few; a replan has one, from the
    plan before (``RecedingHorizonPolicy.warm_start_steps``). Its mean is the network's estimate, its spread is set, and
    every round's trials are learned from in the same round, each a few times (PPO, arXiv 1707.06347, eq. 7):

        ratio_i = pi_i(action_i) / pi_i when it was tried,      of every agent i
        loss    = - mean_i min(ratio_i A, clip(ratio_i, 1 - clip, 1 + clip) A) + trust * |estimate - the pretrained|^2

    with the team's advantage A = sum_l (discount * trace)^l (reward + discount V(next) - V) (generalised advantage
    estimation, arXiv 1506.02438, eq. 16), 0 and 1 in mean and deviation over the round. It needs many rounds of many
    episodes; the second term keeps the rest of a plan what it was.
    """

    on_policy = True

    def __init__(
        self,
        planner: DiffusionPlanner,
        replay: Replay,
        learning: Learning,
        watched: Bool[np.ndarray, "N"] | None = None,
    ):
        super().__init__(planner, replay, learning, watched)
        self.prior = copy.deepcopy(planner.denoiser).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(planner.denoiser.parameters(), weight_decay=0.0, fused=True)
        self.own["denoiser"] = planner.denoiser, self.optimizer
        self.roles = torch.from_numpy(planner.spec.role_index).to(planner.device)
        features = torch.from_numpy(planner.spec.feature_mask).to(planner.device)
        self.features, self.actions = features, features[:, planner.spec.observation_size :]
        self.explorer: TryingPolicy | None = None
        self.trials: Trials | None = None

    def team(self, acting: "Acting", exploration: "Exploration | None" = None) -> "Team":
        """Acts by its first sample, as it learns; exploring, it tries actions."""
        if exploration is None:
            return acting.plain(self.planner)
        self.explorer = TryingPolicy(self.planner, self.learning.spread, acting.safety, acting.watched)
        return acting.beside_partners(self.explorer, self.planner.spec)

    def refining(self, reach: float, price: float) -> None:
        """Nothing is refined: V is of what is done, on which advantages rest."""
        if self.learning.expectile is None:
            self.critics.expectile = 0.5

    def met(self, episodes: TrajectoryDataset, seeds: Sequence[int]) -> None:
        """Finds out how much better than expected each trial of these episodes went."""
        if self.explorer is None:
            raise RuntimeError("no trials: team(acting, exploration) makes who acts.")
        trials, how, device = Trials.joined(self.explorer.trials), self.learning, self.planner.device
        value = self.critics.value
        steps = episodes.like(horizon=1, history=0, stride=1)
        batch = take_transitions(steps, np.arange(len(steps)), value.config.discount)
        surprises = advantages(value, batch, episodes.spec).cpu().numpy().astype(np.float64)
        gains = decayed_sums(surprises, batch.episode, value.config.discount * how.trace)
        gains = (gains - gains.mean()) / max(float(gains.std()), 1e-6)
        seed_of = dict(zip(episodes.episodes.tolist(), seeds, strict=True))
        rows = {
            (seed_of[int(e)], int(t)): row for row, (e, t) in enumerate(zip(batch.episode, batch.step, strict=True))
        }
        places = [rows[moment] for moment in trials.moments]
        self.trials, self.explorer = trials, None
        self.gains = torch.from_numpy(gains[places].astype(np.float32)).to(device)
        self.acted = torch.from_numpy(batch.mask[places]).to(device) & self.commanded.to(device)

    def improve(self, update: int, rng: np.random.Generator) -> dict[str, float]:
        """One step up the clipped ratio times the advantage."""
        if self.trials is None:
            raise RuntimeError("nothing was tried in this round; met(episodes, seeds) says what was.")
        how, O, now = self.learning, self.planner.spec.observation_size, self.planner.history
        picked = torch.from_numpy(rng.integers(len(self.trials.actions), size=how.batch_size))
        asked = {name: part[picked] for name, part in self.trials.asked.items()}
        estimate = self.planner.denoiser(roles=self.roles, **asked)
        with torch.no_grad():
            pretrained = self.prior(roles=self.roles, **asked)
        tried, before = (part[picked].to(estimate) for part in (self.trials.actions, self.trials.shocks))
        after = (tried - estimate[:, :, now, O:]) / how.spread * self.actions
        ratio = ((before.square() - after.square()).sum(-1) / 2).clamp(max=MOST_LOG_RATIO).exp()
        gain, acted = self.gains[picked][:, None], self.acted[picked]
        bounded = ratio.clamp(1 - how.clip, 1 + how.clip)
        climbed = (torch.minimum(ratio * gain, bounded * gain) * acted).sum() / acted.sum().clamp(min=1)
        free = asked["mask"][..., None] & ~asked["known"] & self.features[:, None]
        distance = ((estimate - pretrained).square() * free).sum() / free.sum().clamp(min=1)
        loss = how.trust * distance - climbed
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"fine-tuning update {update}: the loss of the policy gradient is not finite (advantage "
                f"{float(climbed.detach()):g}, distance {float(distance.detach()):g}); lower policy_learning_rate."
            )
        self.optimizer.param_groups[0]["lr"] = self.pace * how.policy_learning_rate
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        clipped = ((ratio != bounded) * acted).sum() / acted.sum().clamp(min=1)
        return {"distance": float(distance.detach()) ** 0.5, "clipped": float(clipped)}


def decayed_sums(values: Float[np.ndarray, "K"], episode: Int[np.ndarray, "K"], decay: float) -> Float[np.ndarray, "K"]:
    """At every step, decay^l times the value l steps later, summed to the end of the episode."""
    ends = np.flatnonzero(np.diff(episode)) + 1
    return np.concatenate([discounted_sums(one[None, :, None], decay)[0, :, 0] for one in np.split(values, ends)])


def _asked(arguments: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """The denoiser's arguments by name, those that may differ within a batch, each as long as the batch."""
    asked = signature(JointDenoiser.forward).bind(None, *arguments).arguments
    sample, mask = asked["sample"], asked.get("mask")
    parts = {name: asked.get(name) for name in ("sample", "noise_level", "known", "latents")}
    parts["mask"] = sample.new_ones(sample.shape[:3], dtype=torch.bool) if mask is None else mask
    return {name: part.expand(len(sample), *part.shape[1:]) for name, part in parts.items() if part is not None}
