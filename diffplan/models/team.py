"""Networks over a team: one token an agent, attention over the agents, weights shared by all.

So relabelling agents relabels what comes out, and any number of agents works. Critics, the noise policy and the partner
encoder are made of these parts.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

ROWS = 16  # agents that one call of attention takes best
FAR_OUT = 1e15  # inputs that would overflow within: their team's outputs are no numbers, and nobody else's


class TeamNetwork(nn.Module):
    """Numbers for every agent of a team from all agents' inputs: a small set transformer (arXiv 1810.00825)
    whose outputs are 0 until it is trained.

    Args:
        size: F, the width of an agent's input.
        num_roles: how many kinds of agents there are.
        width: channels of a token.
        depth: blocks of attention over agents and feed-forward.
        num_heads: attention heads.
        members: networks of their own weights, computed together.
        outputs: numbers an agent.
    """

    def __init__(
        self, size: int, num_roles: int, width: int, depth: int, num_heads: int, members: int = 1, outputs: int = 1
    ):
        super().__init__()
        self.embed = MemberLinear(size, width, members)
        self.embed_role = nn.Parameter(torch.randn(members, num_roles, width) * 0.02)
        self.blocks = nn.ModuleList(TeamBlock(width, num_heads, members) for _ in range(depth))
        self.head = MemberLinear(width, outputs, members)
        nn.init.zeros_(self.head.weight)

    def forward(
        self, inputs: Float[Tensor, "B N F"], roles: Int[Tensor, "N"], mask: Bool[Tensor, "B N"]
    ) -> Float[Tensor, "members B N outputs"]:
        (B, N), members = mask.shape, len(self.embed_role)
        together = max(1, ROWS // N)  # teams that share a call of attention, in which each sees its own
        missing = -B % together
        inputs, mask = F.pad(inputs, (0, 0, 0, 0, 0, missing)), F.pad(mask, (0, 0, 0, missing))
        sound = ((inputs.detach().abs() < FAR_OUT).all(-1) | ~mask).all(1, keepdim=True)  # not: nan, too
        inputs = inputs.where((mask & sound)[..., None], 0).reshape(1, len(mask) * N, -1).expand(members, -1, -1)
        tokens = self.embed(inputs).reshape(members, len(mask), N, -1) + self.embed_role[:, None, roles]
        team = torch.arange(together * N, device=mask.device) // N
        itself = torch.eye(together * N, dtype=torch.bool, device=mask.device)
        seen = (team == team[:, None]) & mask.reshape(-1, together * N, 1) | itself
        bias, tokens = attention_bias(seen).repeat(members, 1, 1, 1), tokens.flatten(1, 2)
        for block in self.blocks:
            tokens = block(tokens, bias)
        outputs = self.head(normed(tokens)).reshape(members, len(mask), N, -1)
        return outputs.where(sound[..., None], torch.nan).where(mask[..., None], 0)[:, :B]


def attention_bias(seen: Bool[Tensor, "calls keys queries"]) -> Float[Tensor, "calls 1 keys queries"]:
    """What attention's scores get added: 0 where a query sees a key, -inf elsewhere; every query must see one."""
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, -torch.inf)[:, None]


class TeamBlock(nn.Module):
    """Attention over the agents of a team, then a feed-forward layer, both behind a layer norm and added."""

    def __init__(self, width: int, num_heads: int, members: int):
        super().__init__()
        self.num_heads = num_heads
        self.query_key_value = MemberLinear(width, 3 * width, members)
        self.mix = MemberLinear(width, width, members)
        self.expand = MemberLinear(width, 2 * width, members)
        self.contract = MemberLinear(2 * width, width, members)

    def forward(
        self, tokens: Float[Tensor, "members M C"], bias: Float[Tensor, "calls 1 keys queries"]
    ) -> Float[Tensor, "members M C"]:
        joined = self.query_key_value(normed(tokens))
        query, key, value = joined.reshape(len(bias), bias.shape[-1], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        scores = key @ (query * query.shape[-1] ** -0.5).mT + bias  # as in a denoiser's block
        mixed = scores.softmax(dim=-2).mT @ value
        tokens = tokens + self.mix(mixed.transpose(1, 2).reshape(tokens.shape))
        hidden = self.expand(normed(tokens))
        return tokens + self.contract(hidden * F.relu(hidden))  # squares, with a cheaper gradient than a power's


class MemberLinear(nn.Module):
    """A linear layer for each member of an ensemble, as one batched product."""

    def __init__(self, size_in: int, size_out: int, members: int):
        super().__init__()
        reach = size_in**-0.5
        self.weight = nn.Parameter(torch.empty(members, size_in, size_out).uniform_(-reach, reach))
        self.bias = nn.Parameter(torch.zeros(members, 1, size_out))

    def forward(self, inputs: Float[Tensor, "members M in"]) -> Float[Tensor, "members M out"]:
        return torch.baddbmm(self.bias, inputs, self.weight)


def seen_entries(cells: Float[Tensor, "B N P D"], known: Bool[Tensor, "B N P D"]) -> Float[Tensor, "B N inputs"]:
    """What is read of each agent: the known entries of its cells, 0 elsewhere, and which these are."""
    return torch.cat((cells.where(known, 0), known.to(cells.dtype)), dim=-1).flatten(2)


def normed(tokens: Tensor) -> Tensor:
    """Layer norm; the linear layer behind it scales and shifts."""
    return F.layer_norm(tokens, tokens.shape[-1:])
