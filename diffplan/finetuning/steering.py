"""Steering a frozen sampler by its noise (DSRL, arXiv 2506.15799): plans get better, the denoiser stays as it is."""

from dataclasses import replace

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler
from jaxtyping import Bool, Float
from torch import Tensor, nn

from diffplan.exercises import Exercise, Exercises
from diffplan.finetuning.methods import CriticMethod, Learning
from diffplan.finetuning.replay import Replay
from diffplan.models.noise import NoisePolicy
from diffplan.models.team import TeamNetwork
from diffplan.models.value import lower_twin
from diffplan.partner_training import LatentSource
from diffplan.planners.planner import DiffusionPlanner
from diffplan.planners.question import Sampling
from diffplan.planners.refinement import normalized_bounds
from diffplan.planners.sampling import denoise_grid, noise_levels
from diffplan.questions import QuestionMix

NOTHING_ELSE_KNOWN = QuestionMix(
    plan=1, announced=0, prefix=0, goal=0, forecast=0, inverse=0, partial=0, nothing=0, unknown_latents=0
)


class NoiseSteering(CriticMethod):
    """A policy over the sampler's first noise learns which noise leads to plans that the critics value.

    The sampler is deterministic, so noise w decides the first action a(s, w), and many w the same: what the critics
    know of actions is distilled into one of noise (the paper's noise aliasing, DSRL-NA), which the policy climbs
    without a gradient through the denoiser. Both losses are off-policy, in the presents s of offline and online
    windows; half of the w are the policy's, half standard noise:

        critic   (G(s, w) - (min Q(s, a(s, w)) - V(s)))^2,    G the team's gain, one number an agent
        policy   temperature KL(policy(. | s) || N(0, 1)) - G(s, w),    w of the policy

    The divergence takes the place of the paper's entropy and bound: of all policies the best is
    N(w; 0, 1) exp(G / temperature), so that plans follow prior x weight, as guided ones do.
    """

    def __init__(
        self,
        planner: DiffusionPlanner,
        replay: Replay,
        learning: Learning,
        watched: Bool[np.ndarray, "N"] | None = None,
    ):
        super().__init__(planner, replay, learning, watched)
        offline, spec, encoder = replay.offline, replay.offline.spec, planner.partner_encoder
        self.policy = planner.noise_policy or NoisePolicy.for_dataset(offline).to(planner.device)
        planner.register_modules(noise_policy=self.policy)
        read = 2 * (planner.history + 1) * spec.size + (planner.history + planner.horizon) * spec.size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.critic = TeamNetwork(read, len(spec.roles), width=64, depth=2, num_heads=4).to(planner.device)
        self.networks = nn.ModuleDict({"policy": self.policy, "critic": self.critic})
        self.optimizer = torch.optim.AdamW(self.networks.parameters(), weight_decay=0.0, fused=True)
        self.own["noise"] = self.networks, self.optimizer
        self.exercises = Exercises(
            spec,
            planner.history,
            planner.denoiser.config.patch_size,
            NOTHING_ELSE_KNOWN if self.watched is None else replace(NOTHING_ELSE_KNOWN, plan=0, partners=1),
            latents=None if encoder is None else LatentSource(encoder, None, NOTHING_ELSE_KNOWN),
            watched=self.watched,
            device=planner.device,
        )
        self.bounds = torch.from_numpy(normalized_bounds(spec, planner.normalizer)).to(planner.device)

    def parts(self) -> dict[str, nn.Module]:
        return super().parts() | {"noise": self.policy}

    def improve(self, update: int, rng: np.random.Generator) -> dict[str, float]:
        """One step of the critic of noise and of the policy over noise."""
        how = self.learning
        windows = self.replay.windows(self.replay.draw(how.batch_size, rng, how.start_share))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        with torch.no_grad():
            asked = self.exercises(windows, generator)
        mask = torch.from_numpy(windows.agent_mask).to(self.planner.device)
        plain, fresh = torch.randn(2, *asked.clean.shape, generator=generator).to(asked.clean)
        mean, log_std = self.policy(asked.clean, asked.known, asked.roles, mask)
        steered = torch.arange(len(mask), device=mask.device) % 2 == 0
        tried = torch.where(steered[:, None, None, None], mean + log_std.exp() * plain, plain).detach()
        found = self.gain(asked, tried, mask)
        distilling = ((self.expected(asked, tried, mask) - found).square() * mask).sum() / mask.sum().clamp(min=1)
        free = asked.shown[..., None] & ~asked.known
        nats = ((((2 * log_std).exp() + mean.square() - 1) / 2 - log_std) * free).sum((1, 2, 3)).mean()
        hoped = self.expected(asked, mean + log_std.exp() * fresh, mask).sum(-1).mean()
        self._step(update, distilling, how.noise_temperature * nats - hoped)
        gains = found.sum(-1)
        gained = gains[steered].mean() - gains[~steered].mean()
        return {"distilling": float(distilling.detach()), "nats": float(nats.detach()), "steered": float(gained)}

    def _step(self, update: int, distilling: Tensor, steering: Tensor) -> None:
        """Moves both networks, each down the gradient of its own loss only."""
        if not torch.isfinite(distilling + steering):
            raise FloatingPointError(
                f"fine-tuning update {update}: the losses of the noise policy ({float(steering.detach()):g}) and its "
                f"critic ({float(distilling.detach()):g}) are not finite; lower critic_learning_rate."
            )
        self.optimizer.param_groups[0]["lr"] = self.pace * self.learning.critic_learning_rate
        mine = list(self.policy.parameters())
        gradients = torch.autograd.grad(steering, mine, retain_graph=True)
        self.optimizer.zero_grad()
        torch.autograd.backward(distilling)
        for parameter, gradient in zip(mine, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()

    def expected(
        self, asked: Exercise, noise: Float[Tensor, "B N W D"], mask: Bool[Tensor, "B N"]
    ) -> Float[Tensor, "B N"]:
        """G: what beginning with this noise is thought to gain over what the state is worth, of every agent."""
        known = self.policy.features(asked.clean, asked.known)
        drawn = noise.where(asked.shown[..., None] & ~asked.known, 0).flatten(2)
        return torch.as_tensor(self.critic(torch.cat((known, drawn), dim=-1), asked.roles, mask)[0].squeeze(-1))

    @torch.no_grad()
    def gain(self, asked: Exercise, noise: Float[Tensor, "B N W D"], mask: Bool[Tensor, "B N"]) -> Float[Tensor, "B N"]:
        """min Q(s, a(s, w)) - V(s) of every agent, a within its bounds; partners do as they did in the data."""
        planner, value = self.planner, self.critics.value
        exists = asked.shown[..., None] & self.exercises.features.to(mask.device)[:, None]
        estimate = planner.estimator(asked.known, exists, len(noise), latents=asked.latents)
        sample = torch.where(asked.known, asked.clean, noise) * exists
        levels = noise_levels(planner.scheduler, Sampling().num_inference_steps)
        second_order = isinstance(planner.scheduler, DPMSolverMultistepScheduler)
        now = denoise_grid(estimate, sample, asked.known, levels, second_order)[-1][:, :, planner.history]
        O = planner.spec.observation_size
        done, actions = asked.clean[:, :, planner.history], now[..., O:].clamp(*self.bounds)
        if self.watched is not None:
            actions = torch.where(self.watched[:, None].to(mask.device), done[..., O:], actions)
        observations = done[..., :O]
        gained = lower_twin(value.action_values(observations, actions, asked.roles, mask))
        return (gained - value.state_values(observations, asked.roles, mask)) * mask
