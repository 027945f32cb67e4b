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
        level: their noise level, 0 elsewhere.
    """

    origin: Float[Tensor, "B N 2"]
    velocity: Float[Tensor, "B N 2"]
    seen: Bool[Tensor, "_ N"]
    elapsed: Float[Tensor, "_ N W"]
    pace: Float[Tensor, "B N"]
    unknown: Bool[Tensor, "_ N W"]
    level: Float[Tensor, "_ N W"]

    @classmethod
    def of(
        cls,
        positions: Float[Tensor, "B N W 2"],
        noise_level: Float[Tensor, "_ N W"],
        known: Bool[Tensor, "_ N W"],
        history: int,
    ) -> Self:
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
        return cls(torch.where(seen, at(last), 0), velocity, seen[..., 0], elapsed, pace, ~known, noise_level * ~known)

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

    def enter(self, positions: Float[Tensor, "B N W 2"]) -> Float[Tensor, "B N W 2"]:
        """Noisy positions on the map, in the agents' frames."""
        return self.turn(positions - (1 - self.level[..., None]) * self._reference)

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


def _turned(vectors: Float[Tensor, "B N *rest 2"], heading: Complex[Tensor, "B N"]) -> Float[Tensor, "B N *rest 2"]:
    there = torch.view_as_complex(vectors.contiguous())
    return torch.view_as_real(there * heading.reshape(*heading.shape, *(1,) * (there.dim() - 2)))


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
        others: Int[Tensor, "B N M"],
        seen: Bool[Tensor, "B N M"],
    ) -> tuple[Float[Tensor, "B N M T K"], Float[Tensor, "B N T C"]]:
        """K biases of how a token of each agent attends to M others, and what each token hears of them.

        Args:
            frames: of the agents.
            positions: noisy, on the map.
            others: whom each agent looks at (``Frames.nearest``).
            seen: whether they are there.
        """
        (B, N, M), T, p = others.shape, positions.shape[2] // self.patch_size, self.patch_size
        noisy = positions + frames.level[..., None] * frames.straight  # as if noise were added to going straight on
        points = torch.cat((torch.stack((frames.origin, frames.velocity), 2), noisy), 2)
        looked_at = (torch.arange(B, device=others.device)[:, None, None], others)
        theirs = points[looked_at]
        relative = _turned(theirs - points[:, :, None], frames.heading.conj())
        distance = torch.view_as_complex(relative).abs()
        near = 1 / (1 + distance / FAR)  # keeps what is far away within bounds
        relative, distance = relative * near[..., None], distance * near
        level = frames.level.expand(B, -1, -1)[looked_at]
        features = torch.cat(
            (
                relative[..., :2, :].reshape(B, N, M, 1, 4).expand(-1, -1, -1, T, -1),
                relative[..., 2:, :].reshape(B, N, M, T, 2 * p),
                distance[..., 2:].reshape(B, N, M, T, p),
                level.reshape(B, N, M, T, p).amax(-1, keepdim=True),
            ),
            -1,
        )
        hidden = F.silu(self.mix(F.silu(self.enter(features))))
        share = self.score(hidden).masked_fill(~seen[..., None, None], -torch.inf).softmax(2).nan_to_num(0.0)
        heads = share.shape[-1]
        heard = (share[..., None] * hidden.reshape(B, N, M, T, heads, hidden.shape[-1] // heads)).sum(2)
        return self.bias(hidden), self.summarize(heard.flatten(3))
