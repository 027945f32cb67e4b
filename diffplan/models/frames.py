"""Agents' own frames: what a network sees of positions, whatever the map's origin and direction.

Each agent's frame lies where it was last seen, its x axis along its last move; what is unknown of its future is told
as the deviation from going straight on. Since ``sample = (1 - level) * clean + level * noise`` and the noise has no
preferred direction, moving a noisy sample into a frame is exact: subtract (1 - level) times what is known, then rotate.
Likewise a frame may measure in its agent's own pace: a noisy sample in other units is one of another noise level.
How agents stand to each other is told by ``PairFeatures`` (relative poses, as in arXiv 2207.05844, section 3.2).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

FAR = 4.0  # distances are told in steps that grow beyond this one (units of the network)
SLOWEST = 0.3  # an agent's pace is at least that (units of the network, a step)


@dataclass(frozen=True)
class Frames:
    """The frame of every agent, in the network's units.

    Args:
        origin: where it was last seen.
        velocity: its last move, a step; 0 where it was seen once.
        seen: whether it was seen at all; a frame that is not lies at the map's.
        elapsed: steps of the window since then.
        pace: how far it went a step lately.
        unknown: cells whose position is to be estimated.
    """

    origin: Float[Tensor, "B N 2"]
    velocity: Float[Tensor, "B N 2"]
    seen: Bool[Tensor, "_ N"]
    elapsed: Float[Tensor, "_ N W"]
    pace: Float[Tensor, "B N"]
    unknown: Bool[Tensor, "_ N W"]

    @classmethod
    def of(cls, positions: Float[Tensor, "B N W 2"], known: Bool[Tensor, "_ N W"], history: int) -> Self:
        """Frames at the last position known up to the present, which is step ``history`` of the window."""
        step = torch.arange(known.shape[-1], device=known.device)
        past = known & (step <= history)
        last = torch.where(past, step, -1).amax(-1, keepdim=True)
        before = torch.where(past & (step < last), step, -1).amax(-1, keepdim=True)

        def at(index: Tensor) -> Tensor:
            return positions.take_along_dim(index.clamp(min=0)[..., None], dim=2)[:, :, 0]

        seen, moved = last >= 0, before >= 0
        velocity = torch.where(moved, (at(last) - at(before)) / (last - before).clamp(min=1), 0)
        elapsed = (step - last.where(seen, history)).to(positions.dtype)
        both = past[..., 1:] & past[..., :-1]
        moves = (positions.diff(dim=2).square().sum(-1) * both).sum(-1) / both.sum(-1).clamp(min=1)
        pace = (moves + SLOWEST**2).sqrt()
        return cls(torch.where(seen, at(last), 0), velocity, seen[..., 0], elapsed, pace, ~known)

    @cached_property
    def heading(self) -> Complex[Tensor, "B N"]:
        """Where the frame's x axis points, as a complex number of length 1; along the map's where an agent stands.

        Turning is a product with it: unlike one of matrices, autocast does not round it, and it takes a 30th the time.
        """
        speed = self.velocity.norm(dim=-1, keepdim=True)
        ahead = self.velocity.new_tensor([1.0, 0.0])
        return torch.view_as_complex(torch.where(speed > 1e-6, self.velocity / speed.clamp(min=1e-6), ahead))

    @cached_property
    def straight(self) -> Float[Tensor, "B N W 2"]:
        """Where the agents would be, going straight on."""
        return self.origin[:, :, None] + self.velocity[:, :, None] * self.elapsed[..., None]

    @cached_property
    def _reference(self) -> Float[Tensor, "B N W 2"]:
        return torch.where(self.unknown[..., None], self.straight, self.origin[:, :, None])

    def enter(
        self, positions: Float[Tensor, "B N W 2"], noise_level: Float[Tensor, "_ N W"]
    ) -> Float[Tensor, "B N W 2"]:
        """Noisy positions on the map, in the agents' frames."""
        return self.turn(positions - (1 - noise_level * self.unknown)[..., None] * self._reference)

    def leave(self, positions: Float[Tensor, "B N W 2"]) -> Float[Tensor, "B N W 2"]:
        """Clean positions in the agents' frames, on the map."""
        return self.turn_back(positions) + self._reference

    def turn(self, vectors: Float[Tensor, "B N W 2"]) -> Float[Tensor, "B N W 2"]:
        """Directions on the map, in the agents' frames."""
        return _turned(vectors, self.heading.conj())

    def turn_back(self, vectors: Float[Tensor, "B N W 2"]) -> Float[Tensor, "B N W 2"]:
        """Directions in the agents' frames, on the map."""
        return _turned(vectors, self.heading)

    def at_own_pace(
        self, sample: Float[Tensor, "B N W D"], noise_level: Float[Tensor, "_ N W"]
    ) -> tuple[Float[Tensor, "B N W D"], Float[Tensor, "B N W"]]:
        """A sample in frames in units of each agent's pace, and the noise levels that it has there.

        Divided by p, ``(1 - level) * clean + level * noise`` is a multiple of ``(1 - l) * clean / p + l * noise`` with
        ``l = level / p / (1 - level + level / p)``.
        """
        unit = 1 / self.pace[..., None]
        share = 1 / (1 - noise_level + noise_level * unit)
        return sample * (unit * share)[..., None], noise_level * unit * share

    def nearest(self, count: int, present: Bool[Tensor, "_ N"]) -> tuple[Int[Tensor, "B N M"], Bool[Tensor, "B N M"]]:
        """The M nearest others of each agent (at most ``count``), and whether they are there: present and seen."""
        there = present & self.seen
        distance = torch.cdist(self.origin, self.origin).masked_fill(~there[:, None], torch.inf)
        distance.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
        nearest = distance.topk(min(count, distance.shape[-1] - 1), dim=-1, largest=False)
        return nearest.indices, nearest.values < torch.inf


def _turned(vectors: Float[Tensor, "B N *rest 2"], heading: Complex[Tensor, "_ N"]) -> Float[Tensor, "B N *rest 2"]:
    there = torch.view_as_complex(vectors.contiguous())
    return torch.view_as_real(there * heading.reshape(*heading.shape, *(1,) * (there.dim() - 2)))


def _of_others(values: Float[Tensor, "b N *rest"], others: Int[Tensor, "_ N M"]) -> Float[Tensor, "B N M *rest"]:
    """What ``values`` say of whom each agent looks at."""
    if len(others) == 1:
        return values.index_select(1, others.flatten()).reshape(len(values), *others.shape[1:], *values.shape[2:])
    return values.expand(len(others), *values.shape[1:])[
        torch.arange(len(others), device=others.device)[:, None, None], others
    ]


def _relative(
    points: Float[Tensor, "B N P 2"], frames: Frames, others: Int[Tensor, "_ N M"]
) -> tuple[Float[Tensor, "B N M P 2"], Float[Tensor, "B N M P"]]:
    """Others' points as seen from each agent's frame, and their distances; what is far away is kept within bounds."""
    relative = _turned(_of_others(points, others) - points[:, :, None], frames.heading.conj())
    distance = (relative[..., 0].square() + relative[..., 1].square() + 1e-12).sqrt()  # a third of abs()'s time
    near = 1 / (1 + distance / FAR)
    return relative * near[..., None], distance * near


class PairFeatures(nn.Module):
    """How each agent sees each other one, patch by patch: attention biases, and a summary of all it sees.

    Args:
        patch_size: p, cells of a token.
        width: channels of a token.
        num_biases: how many biases a pair of agents has in each patch.
        hidden: channels of a pair; ``heads`` of them are summed up with weights of their own.
    """

    def __init__(self, patch_size: int, width: int, num_biases: int, hidden: int = 32, heads: int = 4):
        super().__init__()
        self.patch_size = patch_size
        self.enter = nn.Linear(4 + 3 * patch_size + 1, hidden)
        self.mix = nn.Linear(hidden, hidden)
        self.bias = nn.Linear(hidden, num_biases)
        self.score = nn.Linear(hidden, heads)
        self.summarize = nn.Linear(hidden, width, bias=False)
        nn.init.zeros_(self.bias.weight)
        nn.init.zeros_(self.bias.bias)
        nn.init.zeros_(self.summarize.weight)

    def forward(
        self,
        frames: Frames,
        positions: Float[Tensor, "B N W 2"],
        noise_level: Float[Tensor, "_ N W"],
        others: Int[Tensor, "_ N M"],
        seen: Bool[Tensor, "_ N M"],
    ) -> tuple[Float[Tensor, "B N M T K"], Float[Tensor, "B N T C"]]:
        """K biases of how a token of each agent attends to M others, and what each token hears of them.

        Args:
            frames: of the agents.
            positions: noisy, on the map.
            noise_level: of every cell.
            others: whom each agent looks at (``Frames.nearest``).
            seen: whether they are there.
        """
        (_, N, M), B, T, p = others.shape, len(positions), positions.shape[2] // self.patch_size, self.patch_size
        level = noise_level * frames.unknown
        noisy = positions + level[..., None] * frames.straight  # as if noise were added to going straight on
        poses, _ = _relative(torch.stack((frames.origin, frames.velocity), 2), frames, others)
        paths, distance = _relative(noisy, frames, others)
        level = _of_others(level.reshape(-1, N, T, p).amax(-1, keepdim=True), others)
        features = torch.cat(
            (
                poses.flatten(3)[:, :, :, None].expand(B, -1, -1, T, -1),
                paths.reshape(B, N, M, T, 2 * p),
                distance.reshape(B, N, M, T, p),
                level.expand(B, -1, -1, -1, -1),
            ),
            -1,
        )
        hidden = F.silu(self.mix(F.silu(self.enter(features))))
        share = self.score(hidden).masked_fill(~seen[..., None, None], -torch.inf).softmax(2).nan_to_num(0.0)
        heads = share.shape[-1]
        heard = (share[..., None] * hidden.reshape(B, N, M, T, heads, hidden.shape[-1] // heads)).sum(2)
        return self.bias(hidden), self.summarize(heard.flatten(3))
