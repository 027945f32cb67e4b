"""The partner encoder: what an agent is like, inferred from what was seen of it, as a latent and in words.

    posterior of a latent z of agent n = N(mean, std^2) of everybody's known past cells
    information limit:  KL(posterior || N(0, 1))    (variational information bottleneck, arXiv 1612.00410, eq. 17)

The denoiser is told z and must foresee the agent's next cells with it, so z comes to hold what the past says about the
future (as in LILI, arXiv 2011.06619, section 4). A head on the same features says in the words of the data's labels
which family of styles the agent belongs to, for people to read. One token per agent, attention over the agents: whether
somebody yields is seen only together with whom it yields to.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from diffusers.configuration_utils import register_to_config
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diffplan.models.saved import SavedNetwork, check_heads
from diffplan.models.team import MemberLinear, TeamBlock, attention_bias, normed, seen_entries

if TYPE_CHECKING:
    from diffplan.datasets.windows import TrajectoryDataset


@dataclass(frozen=True)
class PartnerCode:
    """What the encoder makes of every agent's past."""

    mean: Float[Tensor, "B N Z"]
    log_std: Float[Tensor, "B N Z"]
    logits: Float[Tensor, "B N F"]

    @property
    def divergence(self) -> Float[Tensor, "B N"]:
        """KL(N(mean, std^2) || N(0, 1)) in nats, summed over the latent."""
        variance = (2 * self.log_std).exp()
        return 0.5 * (variance + self.mean.square() - 1 - 2 * self.log_std).sum(-1)


class PartnerEncoder(SavedNetwork):
    """Infers a latent and a family of styles for every agent from the known cells up to the present.

    Args:
        size: D, the width of one cell.
        history: cells before the present.
        families: names of the styles that its head tells apart; may be empty.
        latent_size: Z.
        num_roles: how many kinds of agents there are.
        width: channels of a token.
        depth: number of blocks.
        num_heads: attention heads; a divisor of ``width``.

    Raises:
        ValueError: sizes that are not positive or do not divide each other.
    """

    @register_to_config
    def __init__(
        self,
        size: int,
        history: int,
        families: Sequence[str] = (),
        latent_size: int = 8,
        num_roles: int = 1,
        width: int = 64,
        depth: int = 2,
        num_heads: int = 4,
    ):
        super().__init__()
        sizes = {"size": size, "history": history, "latent_size": latent_size, "num_roles": num_roles}
        sizes |= {"width": width, "depth": depth, "num_heads": num_heads}
        if min(sizes.values()) < 1:
            raise ValueError(f"{sizes}: every one must be at least 1; a past to read needs history=8 or more.")
        check_heads(width, num_heads)
        self.embed = MemberLinear(2 * (history + 1) * size, width, 1)
        self.embed_role = nn.Parameter(torch.randn(num_roles, width) * 0.02)
        self.blocks = nn.ModuleList(TeamBlock(width, num_heads, 1) for _ in range(depth))
        self.latent_head = nn.Linear(width, 2 * latent_size)
        self.family_head = MemberLinear(width, len(families), 1)  # may have none

    @classmethod
    def for_dataset(
        cls, dataset: "TrajectoryDataset", families: Sequence[str] = (), *, latent_size: int = 8, seed: int = 0
    ) -> Self:
        """An untrained encoder of the right sizes for a dataset, which needs a history. Raises as the class."""
        spec = dataset.spec
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(spec.size, dataset.history, list(families), latent_size, len(spec.roles)).eval()

    def forward(
        self,
        cells: Float[Tensor, "B N P D"],
        known: Bool[Tensor, "B N P D"],
        roles: Int[Tensor, "N"],
        mask: Bool[Tensor, "B N"],
    ) -> PartnerCode:
        """Reads P = history + 1 normalised cells, the present last.

        Args:
            cells: whatever stands in entries that are not known is not read.
            known: which entries were seen.
            roles: each agent's role.
            mask: who is present.
        """
        B, N = mask.shape
        inputs = seen_entries(cells, known).reshape(1, B * N, -1)
        tokens = self.embed(inputs).reshape(1, B, N, -1) + self.embed_role[roles]
        itself = torch.eye(N, dtype=torch.bool, device=mask.device)
        bias, tokens = attention_bias(mask[:, :, None] | itself), tokens.flatten(1, 2)
        for block in self.blocks:
            tokens = block(tokens, bias)
        features = normed(tokens)
        mean, log_std = self.latent_head(features).reshape(B, N, -1).chunk(2, dim=-1)
        return PartnerCode(mean, log_std.clamp(-5, 2), self.family_head(features).reshape(B, N, -1))
