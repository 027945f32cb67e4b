"""How a planner gets better from what it met: each method is a few lines over critics that are always refreshed.

They act alike (but for ``gradient.py``): candidates are ranked by the value function, and the first actions of the best
one are refined by the critics. What they differ in is what becomes of the prior that the candidates come from.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from diffplan.datasets.transitions import TransitionBatch
from diffplan.datasets.windows import TrajectoryDataset
from diffplan.exercises import Exercises
from diffplan.finetuning.method import Method, below
from diffplan.finetuning.replay import Replay
from diffplan.models.value import ValueFunction
from diffplan.optimizers import load_optimizer_tensors, optimizer_tensors
from diffplan.partner_training import LatentSource
from diffplan.planners.estimator import uses_bfloat16
from diffplan.planners.planner import DiffusionPlanner
from diffplan.questions import QuestionMix
from diffplan.spec import JointSpec
from diffplan.training import diagnosis
from diffplan.training_loop import DenoiserRun
from diffplan.value_training import ValueLearner, default_expectile

if TYPE_CHECKING:
    from diffplan.finetuning.acting import Acting, Exploration, Team


@dataclass(frozen=True)
class Learning:
    """How large the steps of learning are, for all methods.

    Args:
        critic_batch_size: transitions a step.
        critic_learning_rate: of AdamW, constant; also of the noise policy and its critic.
        expectile: see ``train_value``, whose ``reach`` is half of what acting refines; None as there, but 0.5 under
            ``"gradient"``, whose advantages need the value of what is done.
        target_rate: see ``train_value``; likewise ``return_steps``.
        batch_size: windows a step of the denoiser or the noise policy.
        learning_rate: of the denoiser, see ``train``; constant, after a warm-up over the first updates.
        ema_decay: of the denoiser's averaged weights, which act.
        start_share: share of the windows that begin where an episode does.
        best: the denoiser learns from this share of the offline episodes, by return, and from online ones as good.
        noise_temperature: how much better plans are more likely: by exp(advantage / temperature), the advantage in
            spreads of a return.
        trust: weight of the squared distance to the pretrained prior's estimates, beside the squared error.
        policy_learning_rate: of the denoiser under ``"gradient"``, AdamW's, constant.
        spread: of the actions that are tried then, in the normaliser's units.
        clip: how far the chance of an action may move in one round, see ``PolicyGradient``; there is ``trace``, too.
    """

    critic_batch_size: int = 256
    critic_learning_rate: float = 3e-4
    expectile: float | None = None
    target_rate: float = 0.005
    return_steps: int = 3
    batch_size: int = 128
    learning_rate: float = 2e-3
    ema_decay: float = 0.998
    start_share: float = 0.25
    best: float = 0.5
    noise_temperature: float = 0.1
    trust: float = 0.1
    policy_learning_rate: float = 3e-4
    spread: float = 0.2
    clip: float = 0.2
    trace: float = 0.95

    def __post_init__(self) -> None:
        for name in ("critic_batch_size", "return_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; it must be at least 1.")
        positive = ("critic_learning_rate", "learning_rate", "policy_learning_rate", "noise_temperature")
        for name in (*positive, "target_rate", "spread", "clip"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)}; it must be a positive number.")
        if self.expectile is not None and not 0 < self.expectile < 1:
            raise ValueError(f"expectile={self.expectile}; choose more than 0 and less than 1, e.g. 0.7.")
        if not 0 < self.best <= 1:
            raise ValueError(f"best={self.best}; it is a share of the episodes, more than 0 and at most 1.")
        if self.target_rate > 1:
            raise ValueError(f"target_rate={self.target_rate}; choose at most 1, e.g. 0.005.")
        if not 0 <= self.trace <= 1:
            raise ValueError(f"trace={self.trace}; choose 0 to 1, e.g. 0.95.")
        if not (0 <= self.start_share <= 1 and 0 <= self.ema_decay < 1):
            told = f"start_share={self.start_share}, ema_decay={self.ema_decay}"
            raise ValueError(f"{told}; give 0 to 1, and 0 to below 1.")
        if not 0 <= self.trust < float("inf"):
            raise ValueError(f"trust={self.trust}; give 0 (no trust region) or more.")


class CriticMethod(Method):
    """What all methods share, and the method ``"critic"``: critics learn, choose among plans and refine first actions.

    The denoiser stays as it is.

    Critics learn from mixed data as in implicit Q-learning (arXiv 2110.06169), but that V is of actions moved uphill as
    the team's are, where it refines them; a diffusion model's samples ranked by its critic (IDQL, arXiv
    2304.10573, section 3.2); first actions moved uphill in a trust region (diffusion Q-learning, arXiv 2208.06193).

    Other methods also change the denoiser or its noise: they override ``improve``, and whatever else their own networks
    need (``parts`` names those that act; ``tensors``, ``load``, ``settle`` and ``go_back`` are to know of all, but for
    those in ``own``: by name, a network and its optimiser).

    Args:
        planner: acts; it has a value function. What was learned comes into it by ``settle``.
        replay: what to learn from.
        learning: how.
        watched: who is a partner: not commanded, and never known whole.

    The attribute ``commanded`` says whose actions the planner decides: all but partners'.
    """

    def __init__(
        self,
        planner: DiffusionPlanner,
        replay: Replay,
        learning: Learning,
        watched: Bool[np.ndarray, "N"] | None = None,
    ):
        value = planner.value_function
        if value is None:
            raise ValueError("the planner has no value function; train one with train_value.")
        self.planner, self.replay, self.learning, self.pace = planner, replay, learning, 1.0
        self._value = value
        self.own: dict[str, tuple[nn.Module, torch.optim.Optimizer]] = {}
        self.watched = None if watched is None or not watched.any() else torch.from_numpy(watched)
        self.commanded = (
            torch.ones(planner.spec.num_agents, dtype=torch.bool) if watched is None else ~torch.from_numpy(watched)
        )
        self.critics = ValueLearner(
            copy.deepcopy(value),
            replay.offline,
            learning.critic_learning_rate,
            default_expectile(0.0) if learning.expectile is None else learning.expectile,
            learning.target_rate,
            partners=watched,
        )

    def team(self, acting: "Acting", exploration: "Exploration | None" = None) -> "Team":
        return acting.policy(self.planner, exploration)

    def refining(self, reach: float, price: float) -> None:
        self.critics.reach, self.critics.price = reach / 2, price
        if self.learning.expectile is None:
            self.critics.expectile = default_expectile(reach)

    def met(self, episodes: TrajectoryDataset, seeds: Sequence[int]) -> None:
        """Hears of a round's episodes and their seeds, before it learns."""

    def learn(self, update: int, rng: np.random.Generator) -> dict[str, float]:
        value, how = self.critics.value, self.learning
        batch = self.replay.transitions(how.critic_batch_size, rng, value.config.discount, how.return_steps)
        self.critics.optimizer.param_groups[0]["lr"] = self.pace * how.critic_learning_rate
        value.train()
        parts = {name: float(loss.detach()) for name, loss in self.critics.update(batch, update).items()}
        value.eval()
        return parts | self.improve(update, rng)

    def improve(self, update: int, rng: np.random.Generator) -> dict[str, float]:
        """The method's own part of a step, beside the critics': none."""
        return {}

    def settle(self) -> None:
        """Lets the planner act by what was learned: by slow averages, which a constant learning rate does not shake."""
        self._value.load_state_dict(self.critics.follower.state_dict())

    def tensors(self) -> dict[str, Tensor]:
        found = {f"critics.{name}": tensor for name, tensor in self.critics.tensors().items()}
        for own, (network, optimizer) in self.own.items():
            held = network.state_dict() | optimizer_tensors([optimizer], dict(network.named_parameters()))
            found |= {f"{own}.{name}": tensor for name, tensor in held.items()}
        return found

    def load(self, tensors: dict[str, Tensor]) -> None:
        self.critics.load(below("critics.", tensors))
        self.settle()
        for own, (network, optimizer) in self.own.items():
            mine = below(f"{own}.", tensors)
            network.load_state_dict({name: mine[name] for name in network.state_dict()})
            load_optimizer_tensors([optimizer], dict(network.named_parameters()), mine)

    def parts(self) -> dict[str, nn.Module]:
        return {"denoiser": self.planner.denoiser, "value": self._value}

    def members(self) -> list["CriticMethod"]:
        return [self]

    def planners(self) -> dict[str, DiffusionPlanner]:
        return {"planner": self.planner}

    def go_back(self, acting: dict[str, Tensor]) -> None:
        self.act_by(acting)
        for network in (self.critics.value, self.critics.follower):
            network.load_state_dict(self._value.state_dict())
        for optimizer in (self.critics.optimizer, *(optimizer for _, optimizer in self.own.values())):
            optimizer.state.clear()
        self.pace /= 2


class WeightedDenoising(CriticMethod):
    """The denoiser goes on learning, from episodes that went better than others, not too far from its prior.

    Windows count or do not, as in critic-regularised regression with binary weights (arXiv 2006.15134), but by whole
    episodes: those whose return is as good as that of the ``best`` share of the offline ones.

        loss = sum_w 1[return of w's episode >= bar] error(estimate, window_w)
               + trust * error(estimate, the pretrained estimate)

    The second term is the divergence between both denoising steps' Gaussians (DPOK, arXiv 2305.16381, eq. 6).
    """

    def __init__(
        self,
        planner: DiffusionPlanner,
        replay: Replay,
        learning: Learning,
        watched: Bool[np.ndarray, "N"] | None = None,
    ):
        super().__init__(planner, replay, learning, watched)
        self.prior = copy.deepcopy(planner.denoiser).requires_grad_(False)
        encoder = planner.partner_encoder and copy.deepcopy(planner.partner_encoder).requires_grad_(False)
        half = uses_bfloat16("auto", planner.device.type == "cuda")
        learner = copy.deepcopy(planner.denoiser).train()
        self.run = DenoiserRun(learner, learning.learning_rate, learning.ema_decay, half)
        self.exercises = Exercises(
            replay.offline.spec,
            planner.history,
            planner.denoiser.config.patch_size,
            QuestionMix() if self.watched is None else QuestionMix(plan=0.0, partners=0.5),
            latents=None if encoder is None else LatentSource(encoder, None, QuestionMix()),
            watched=self.watched,
            device=planner.device,
            position=planner.denoiser.config.position,
        )

    def improve(self, update: int, rng: np.random.Generator) -> dict[str, float]:
        """One step of the denoiser."""
        how = self.learning
        windows = self.replay.windows(self.replay.draw(how.batch_size, rng, how.start_share, how.best))
        if self.planner.denoiser.config.return_conditioning:
            self.exercises.return_ranks = torch.from_numpy(self.replay.return_ranks)
        exercise = self.exercises(windows, torch.Generator().manual_seed(int(rng.integers(2**62))))
        with self.run.autocast():
            estimate = exercise.estimate(self.run.networks)
            with torch.no_grad():
                pretrained = exercise.estimate(self.prior)
        loss, distance = exercise.error(estimate, exercise.clean), exercise.error(estimate, pretrained)
        if not torch.isfinite(loss):
            raise FloatingPointError(diagnosis(f"fine-tuning update {update}", windows, estimate))
        warm_up = min(1.0, (update + 1) / 50)
        self.run.update(loss + how.trust * distance, self.pace * warm_up * how.learning_rate, update)
        return {"denoising": float(loss.detach()), "distance": float(distance.detach()) ** 0.5}

    def settle(self) -> None:
        super().settle()
        self.planner.denoiser.load_state_dict(self.run.ema)

    def tensors(self) -> dict[str, Tensor]:
        return super().tensors() | {f"denoiser.{name}": tensor for name, tensor in self.run.tensors().items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        self.run.load(below("denoiser.", tensors))
        super().load(tensors)

    def go_back(self, acting: dict[str, Tensor]) -> None:
        super().go_back(acting)
        weights = self.planner.denoiser.state_dict()
        self.run.networks.load_state_dict(weights)
        self.run.ema = {name: tensor.clone() for name, tensor in weights.items()}
        for optimizer in self.run.optimizers:
            optimizer.state.clear()


@torch.no_grad()
def advantages(value: ValueFunction, batch: TransitionBatch, spec: JointSpec) -> Float[Tensor, "B"]:
    """What each transition brought beyond the value function's expectation, of the team that acted."""
    arrays = (batch.observations, batch.mask, batch.returns, batch.next_observations, batch.next_mask, batch.discounts)
    now, mask, returns, then, next_mask, discounts = (torch.from_numpy(array).to(value.device) for array in arrays)
    roles = torch.from_numpy(spec.role_index).to(value.device)
    ahead = discounts[:, None] * value.state_values(then, roles, next_mask)
    return ((returns / value.config.reward_scale + ahead - value.state_values(now, roles, mask)) * mask).sum(-1)
