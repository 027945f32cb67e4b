"""The noise policy: which noise a frozen sampler shall begin with, so that better plans come of it (DSRL).

A deterministic sampler makes one plan of one noise. A policy over that noise chooses among all plans that the planner
can make, and leaves its weights alone (arXiv 2506.15799):

    noise w = mean(s) + std(s) * e,   e ~ N(0, 1),   s what is known up to the present

One token an agent, attention over the agents, weights shared by all, so relabelling agents relabels their noise, and
any number of agents works.
"""

from typing import TYPE_CHECKING, Self

import torch
from diffusers.configuration_utils import register_to_config
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffplan.models.saved import SavedNetwork, check_heads
from diffplan.models.team import TeamNetwork, seen_entries

if TYPE_CHECKING:
    from diffplan.datasets.windows import TrajectoryDataset

LOG_STDS = (-3.0, 0.5)


class NoisePolicy(SavedNetwork):
    """A Gaussian over the first noise of every cell; until it is trained, the standard one.

    Args:
        size: D, the width of one cell.
        window: W, the number of cells of one agent (history and horizon).
        history: cells before the present.
        num_roles: how many kinds of agents there are.
        width: channels of a token.
        depth: number of blocks.
        num_heads: attention heads; a divisor of ``width``.
        reach: farthest mean, in standard deviations of the noise that the denoiser was trained with.

    Raises:
        ValueError: sizes that are not positive or do not fit each other.
    """

    @register_to_config
    def __init__(
        self,
        size: int,
        window: int,
        history: int = 0,
        num_roles: int = 1,
        width: int = 64,
        depth: int = 2,
        num_heads: int = 4,
        reach: float = 2.0,
    ):
        super().__init__()
        sizes = {"size": size, "num_roles": num_roles, "width": width, "depth": depth, "num_heads": num_heads}
        if min(sizes.values()) < 1 or not reach > 0:
            raise ValueError(f"{sizes}, reach={reach}: every one must be positive.")
        if not 0 <= history < window:
            raise ValueError(f"history={history}; choose 0 or more and less than window={window}.")
        check_heads(width, num_heads)
        read, drawn = 2 * (history + 1) * size, 2 * window * size
        self.team = TeamNetwork(read, num_roles, width, depth, num_heads, outputs=drawn)

    @classmethod
    def for_dataset(cls, dataset: "TrajectoryDataset", *, width: int = 64, depth: int = 2, seed: int = 0) -> Self:
        """An untrained policy of the right sizes for a dataset, which steers nothing yet. Raises as the class."""
        spec, window = dataset.spec, dataset.history + dataset.horizon
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(spec.size, window, dataset.history, len(spec.roles), width, depth).eval()

    def features(
        self, cells: Float[Tensor, "B N W D"], known: Bool[Tensor, "B N W D"]
    ) -> Float[Tensor, "B N features"]:
        """What is read of each agent: its known cells up to the present, and which entries these are."""
        past = slice(self.config.history + 1)
        return seen_entries(cells[:, :, past], known[:, :, past])

    def forward(
        self,
        cells: Float[Tensor, "B N W D"],
        known: Bool[Tensor, "B N W D"],
        roles: Int[Tensor, "N"],
        mask: Bool[Tensor, "B N"],
    ) -> tuple[Float[Tensor, "B N W D"], Float[Tensor, "B N W D"]]:
        """Mean and log std of every cell's noise.

        Args:
            cells: normalised; whatever stands in entries that are not known, or later than now, is not read.
            known: which entries were seen.
            roles: each agent's role.
            mask: who is present; absent agents influence nobody.
        """
        mean, log_std = self.team(self.features(cells, known), roles, mask)[0].chunk(2, dim=-1)
        reach = self.config.reach
        return (reach * (mean / reach).tanh()).reshape(cells.shape), log_std.clamp(*LOG_STDS).reshape(cells.shape)

    def steer(
        self,
        noise: Float[Tensor, "B S N W D"],
        cells: Float[Tensor, "B N W D"],
        known: Bool[Tensor, "B N W D"],
        roles: Int[Tensor, "N"],
        mask: Bool[Tensor, "B N"],
    ) -> Float[Tensor, "B S N W D"]:
        """Standard noise of S candidates made noise of this policy; the rest as ``forward``."""
        mean, log_std = self(cells, known, roles, mask)
        return mean[:, None] + log_std.exp()[:, None] * noise
