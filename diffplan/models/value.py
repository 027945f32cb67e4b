"""The value function: what a team may expect, as one number per agent; the team's value is their sum.

Critics see all agents at once: one token per agent, attention over the agents, weights shared by all, so relabelling
agents relabels values, and any number of agents works. As in implicit Q-learning (arXiv 2110.06169) there are twin
``Q(o, a)`` and a ``V(o)``; a small third network regresses the reward of a step, so that a plan can be looked at from
several of its steps:

    value of a plan, seen from step n = sum_{t < n} discount^t reward(o_t, a_t) + discount^n min Q(o_n, a_n)

The plan's value is the soft minimum of what a few steps see, evenly spread from the first to the last. (Seen from
the last one alone, plans go straight through a collision: it is rare among rewards, and an imagined team goes on behind
it. Ranking plans from medium data like that took success in crossing from 0.97 to 0.84, and so to 1.)
"""

import math
from typing import TYPE_CHECKING, Self

import torch
from diffusers.configuration_utils import register_to_config
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from diffplan.datasets.transitions import reward_statistics
from diffplan.models.saved import SavedNetwork, check_heads
from diffplan.models.team import TeamNetwork

if TYPE_CHECKING:
    from diffplan.datasets.windows import TrajectoryDataset


class ValueFunction(SavedNetwork):
    """Twin action values, a state value and a reward, for every agent of a team.

    Observations and actions are normalised (by the planner's normaliser) and padded. What the networks return is in
    units of ``reward_scale``, so that returns spread by about 1; multiply by it for physical rewards, which
    ``plan_values`` returns. Absent agents have the value 0, whatever stands in their rows, and influence nobody.

    Args:
        observation_size: O, the width of a padded observation.
        action_size: A, the width of a padded action.
        num_roles: how many kinds of agents there are.
        width: channels of a token of the critics.
        depth: blocks of the critics.
        num_heads: attention heads of the critics; a divisor of ``width``.
        reward_width: channels of the reward network: one block, one head.
        discount: of rewards, a step.
        reward_scale: what the spread of returns is in physical units.
        reward_mean: mean reward of an agent and step, in physical units: where the reward network starts.
        reward_std: its spread.

    Raises:
        ValueError: sizes that are not positive or do not divide each other, a discount outside 0 .. 1, a scale that
            is not positive.
    """

    @register_to_config
    def __init__(
        self,
        observation_size: int,
        action_size: int,
        num_roles: int = 1,
        width: int = 64,
        depth: int = 2,
        num_heads: int = 4,
        reward_width: int = 32,
        discount: float = 0.99,
        reward_scale: float = 1.0,
        reward_mean: float = 0.0,
        reward_std: float = 1.0,
    ):
        super().__init__()
        sizes = {"observation_size": observation_size, "action_size": action_size, "num_roles": num_roles}
        sizes |= {"width": width, "depth": depth, "num_heads": num_heads, "reward_width": reward_width}
        if min(sizes.values()) < 1:
            raise ValueError(f"{sizes}: every one must be at least 1.")
        check_heads(width, num_heads)
        if not 0 <= discount < 1:
            raise ValueError(f"discount={discount}; choose 0 or more and less than 1.")
        if not (0 < reward_scale < math.inf and 0 < reward_std < math.inf and math.isfinite(reward_mean)):
            told = f"reward_scale={reward_scale}, reward_std={reward_std}, reward_mean={reward_mean}"
            raise ValueError(f"{told}; the first two must be positive, all finite.")
        both = observation_size + action_size
        self.critics = TeamNetwork(both, num_roles, width, depth, num_heads, members=2)
        self.states = TeamNetwork(observation_size, num_roles, width, depth, num_heads)
        self.steps = TeamNetwork(both, num_roles, reward_width, depth=1, num_heads=1)

    @classmethod
    def for_dataset(
        cls,
        dataset: "TrajectoryDataset",
        *,
        width: int = 64,
        depth: int = 2,
        discount: float = 0.99,
        seed: int = 0,
    ) -> Self:
        """An untrained value function of the right sizes and units for a dataset; it starts at the mean return.

        Raises:
            ValueError: as the class, or the dataset's returns are all the same.
        """
        if not 0 <= discount < 1:
            raise ValueError(f"discount={discount}; choose 0 or more and less than 1.")
        facts, spec = reward_statistics(dataset, discount), dataset.spec
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            value = cls(
                observation_size=spec.observation_size,
                action_size=spec.action_size,
                num_roles=len(spec.roles),
                width=width,
                depth=depth,
                discount=discount,
                reward_scale=facts.return_std,
                reward_mean=facts.reward_mean,
                reward_std=facts.reward_std,
            )
        for network in (value.critics, value.states):
            nn.init.constant_(network.head.bias, facts.return_mean / facts.return_std)
        return value.eval()

    def action_values(
        self,
        observations: Float[Tensor, "B N O"],
        actions: Float[Tensor, "B N A"],
        roles: Int[Tensor, "N"],
        mask: Bool[Tensor, "B N"],
    ) -> Float[Tensor, "2 B N"]:
        """Each agent's discounted return from here on after these actions, by either critic (in ``reward_scale``)."""
        return self.critics(torch.cat((observations, actions), dim=-1), roles, mask).squeeze(-1)

    def state_values(
        self, observations: Float[Tensor, "B N O"], roles: Int[Tensor, "N"], mask: Bool[Tensor, "B N"]
    ) -> Float[Tensor, "B N"]:
        """Each agent's discounted return from here on (in ``reward_scale``)."""
        return self.states(observations, roles, mask)[0].squeeze(-1)

    def rewards(
        self,
        observations: Float[Tensor, "B N O"],
        actions: Float[Tensor, "B N A"],
        roles: Int[Tensor, "N"],
        mask: Bool[Tensor, "B N"],
    ) -> Float[Tensor, "B N"]:
        """Each agent's mean reward of one step (in ``reward_scale``)."""
        standard = self.steps(torch.cat((observations, actions), dim=-1), roles, mask)[0].squeeze(-1)
        rewards = self.config.reward_mean + self.config.reward_std * standard
        return rewards / self.config.reward_scale * mask

    def plan_values(
        self,
        observations: Float[Tensor, "B N H O"],
        actions: Float[Tensor, "B N H A"],
        roles: Int[Tensor, "N"],
        mask: Bool[Tensor, "B N"],
        looks: int = 4,
    ) -> Float[Tensor, "B N"]:
        """Each agent's discounted return of a planned future, in physical rewards; sum over N for the team's.

        Differentiable in observations and actions. The agents of ``mask`` are taken to be there at every step. The plan
        is looked at from so many of its steps, which weigh the more the less the team may expect there, by e for every
        unit of ``reward_scale``; between two looks the reward of the first stands for all. One look is at the first
        step alone. Gradients are a soft minimum's: -logsumexp(-returns).
        """
        B, N, H, _ = observations.shape
        at = torch.linspace(0, H - 1, min(looks, H), device=observations.device).round().long()
        seen, done = (x[:, :, at].transpose(1, 2) for x in (observations, actions))
        there = mask.repeat_interleave(len(at), dim=0)
        follows = lower_twin(self.action_values(seen.flatten(0, 1), done.flatten(0, 1), roles, there))
        discounts = self.config.discount ** torch.arange(H, device=follows.device, dtype=follows.dtype)
        returns = discounts[at, None] * follows.reshape(B, len(at), N)
        if len(at) > 1:
            there = mask.repeat_interleave(len(at) - 1, dim=0)
            steps = self.rewards(seen[:, :-1].flatten(0, 1), done[:, :-1].flatten(0, 1), roles, there)
            since = torch.cat((discounts.new_zeros(1), discounts.cumsum(0)))[at].diff()
            returns = returns + F.pad((steps.reshape(B, -1, N) * since[:, None]).cumsum(1), (0, 0, 1, 0))
        worse = (-returns.detach().sum(-1)).softmax(1)  # as a soft minimum's gradient weighs them
        return self.config.reward_scale * torch.einsum("bln,bl->bn", returns, worse)


def lower_twin(action_values: Float[Tensor, "2 B N"]) -> Float[Tensor, "B N"]:
    """The values of the critic that expects less of the team: of one critic, so that they add up to its team value."""
    second = action_values[1].sum(-1) < action_values[0].sum(-1)
    return torch.where(second[:, None], action_values[1], action_values[0])


def uphill(
    critics: TeamNetwork,
    observations: Float[Tensor, "B N O"],
    actions: Float[Tensor, "B N A"],
    roles: Int[Tensor, "N"],
    mask: Bool[Tensor, "B N"],
    limits: Float[Tensor, "*_ N A"],
    bounds: Float[Tensor, "2 N A"],
    steps: int,
    price: float = 0.0,
    agreement: float = -1.0,
) -> Float[Tensor, "B N A"]:
    """Joint actions that twin critics value higher, uphill from these: ascent of the lower twin's team value, less a
    ``price`` for every unit that an agent's action moves.

    Steps have a set length and get smaller, so that one beyond the top is mostly taken back; close to the top they end
    up to half the last one beside it. No agent's action moves farther than the length of its row of ``limits``, nor
    beyond ``bounds``. Of that length its entry of the largest limit may take all, others a share in proportion to
    theirs. What has the limit 0 stays as it is, and so does an agent for whom nothing is worth a move, or of whom the
    twins want different things: whose gradients have a cosine below ``agreement``.
    """
    low, high = bounds
    start = actions.clamp(low, high)
    reach, moved = limits.norm(dim=-1, keepdim=True), torch.zeros_like(actions)
    most = reach * limits / limits.amax(dim=-1, keepdim=True).clamp(min=1e-9)  # of an entry
    for step in range(steps):
        with torch.enable_grad():
            variable = (start + moved).clamp(low, high).requires_grad_()
            twins = critics(torch.cat((observations, variable), dim=-1), roles, mask).squeeze(-1)
            (gradient,) = torch.autograd.grad(lower_twin(twins).sum(), variable, retain_graph=agreement > -1)
            if agreement > -1:  # the twins' sum is the lower one and the other
                (both,) = torch.autograd.grad(twins.sum(), variable)
                alike = F.cosine_similarity(gradient, both - gradient, dim=-1) >= agreement
                gradient = gradient * alike[..., None]
        gradient = gradient.nan_to_num().masked_fill(limits == 0, 0)
        open_to = gradient.masked_fill(_outwards(gradient, variable, bounds), 0)
        gain = gradient - price * _direction(torch.where(moved.any(-1, keepdim=True), moved, open_to))
        gain = gain.masked_fill(_outwards(gain, variable, bounds), 0)
        worth = moved.any(-1, keepdim=True) | (open_to.norm(dim=-1, keepdim=True) > price)
        size = 4 * reach / steps * (1 - (step + 0.5) / steps)
        moved = variable.detach() + worth * size * _direction(gain) - start
        moved = moved * (reach / moved.norm(dim=-1, keepdim=True).clamp(min=1e-9)).clamp(max=1)
        moved = moved.clamp(-most, most)
    return torch.where(limits > 0, (start + moved).clamp(low, high), actions)


def _outwards(moves: Tensor, actions: Tensor, bounds: Float[Tensor, "2 N A"]) -> Tensor:
    """Which entries of a move lead from a bound to beyond it."""
    return ((actions <= bounds[0]) & (moves < 0)) | ((actions >= bounds[1]) & (moves > 0))


def _direction(vectors: Float[Tensor, "B N A"]) -> Float[Tensor, "B N A"]:
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-9)
