"""Behaviour cloning on the same data, the baseline that every table shows: one observation in, one action out."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float
from rich.progress import track
from torch import Tensor, nn

from diffplan.datasets.normalizer import Normalizer
from diffplan.datasets.windows import TrajectoryDataset
from diffplan.spec import Actions, JointSpec, Observations


class BehaviorCloning(nn.Module):
    """Regresses normalised actions from normalised present observations with a multi-layer perceptron.

    Args:
        spec: the agents.
        joint: True: all observations in, all actions out; False: every agent from its own observation alone, shared
            weights with the role as an input.
        width: hidden units of each of the ``depth`` layers.
    """

    def __init__(self, spec: JointSpec, joint: bool, width: int = 512, depth: int = 3):
        super().__init__()
        self.joint, self.num_agents = joint, spec.num_agents
        self.roles: Tensor
        roles = nn.functional.one_hot(torch.from_numpy(spec.role_index), len(spec.roles)).float()
        self.register_buffer("roles", roles, persistent=False)
        agents = spec.num_agents if joint else 1
        sizes = [agents * (spec.observation_size + len(spec.roles) + 1), *[width] * depth]
        layers = [layer for i, o in pairwise(sizes) for layer in (nn.Linear(i, o), nn.SiLU())]
        self.network = nn.Sequential(*layers, nn.Linear(width, agents * spec.action_size))

    def forward(self, observations: Float[Tensor, "B N O"], agent_mask: Bool[Tensor, "B N"]) -> Float[Tensor, "B N A"]:
        present = agent_mask[..., None].float()
        inputs = torch.cat((observations * present, self.roles.expand(len(observations), -1, -1), present), dim=-1)
        if self.joint:
            inputs = inputs.flatten(1)
        return self.network(inputs).reshape(len(observations), self.num_agents, -1)


class BehaviorCloningPolicy:
    """Acts with a trained ``BehaviorCloning`` network; a ``Policy`` for ``evaluate``."""

    def __init__(self, network: BehaviorCloning, spec: JointSpec, normalizer: Normalizer):
        self.network, self.spec, self.normalizer = network.eval(), spec, normalizer

    def reset(self, seeds: Sequence[int]) -> None:
        """Remembers nothing between episodes."""

    @torch.inference_mode()
    def __call__(self, observations: Sequence[Observations | None]) -> list[Actions | None]:
        live = [self.spec.stack_observations(seen) for seen in observations if seen]
        if not live:
            return [None] * len(observations)
        cells = np.zeros((len(live), self.spec.num_agents, 1, self.spec.size), np.float32)
        agent_mask = np.stack([mask for _, mask in live])
        O = self.spec.observation_size
        cells[:, :, 0, :O] = np.stack([values for values, _ in live])
        normalized = self.normalizer.normalize(cells, self.spec.role_index)[:, :, 0, :O]
        seen, there = (torch.from_numpy(array).to(self.network.roles.device) for array in (normalized, agent_mask))
        actions = self.network(seen, there).cpu().numpy()
        cells[:, :, 0, O:] = actions
        physical = self.normalizer.unnormalize(cells, self.spec.role_index)[:, :, 0, O:]
        grids = zip(physical, agent_mask, (values for values, _ in live), strict=True)
        answers = iter([self.spec.unstack_actions(*grid) for grid in grids])
        return [next(answers) if seen else None for seen in observations]


def train_behavior_cloning(
    dataset: TrajectoryDataset,
    *,
    joint: bool = True,
    steps: int = 5_000,
    batch_size: int = 512,
    learning_rate: float = 1e-3,
    seed: int = 0,
    progress: bool = False,
) -> BehaviorCloningPolicy:
    """Trains behaviour cloning on a dataset's steps and returns its policy; ``progress`` shows a bar."""
    if dataset.normalizer is None:
        raise ValueError("the dataset has no normalizer; load it with normalizer='gaussian'.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = BehaviorCloning(dataset.spec, joint)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    present_cells = dataset.like(horizon=1, history=0, stride=1, inside=False, crowd=None)
    O = dataset.spec.observation_size
    rng = np.random.default_rng(seed)
    for _ in track(range(steps), "behaviour cloning", disable=not progress):
        windows = present_cells.sample(batch_size, rng)
        cells, mask = torch.from_numpy(windows.cells[:, :, 0]), torch.from_numpy(windows.mask[:, :, 0])
        error = network(cells[..., :O], torch.from_numpy(windows.agent_mask)) - cells[..., O:]
        loss = (error.square() * mask[..., O:]).sum() / mask[..., O:].sum().clamp(min=1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return BehaviorCloningPolicy(network, dataset.spec, dataset.normalizer)
