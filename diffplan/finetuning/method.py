"""What learns in a run of fine-tuning, as the run sees it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from diffplan.datasets.windows import TrajectoryDataset
from diffplan.planners.planner import DiffusionPlanner

if TYPE_CHECKING:
    from diffplan.finetuning.acting import Acting, Exploration, Team
    from diffplan.finetuning.methods import CriticMethod


class Method(ABC):
    """One learner, or several at once.

    Attributes:
        planner: acts (where there are several, it is the first one's). What was learned comes into it by ``settle``.
        pace: scales the learning rates; a roll-back halves it.
        on_policy: a round that was killed is acted again, to the same end.
    """

    planner: DiffusionPlanner
    pace: float
    on_policy: bool = False

    @abstractmethod
    def members(self) -> "list[CriticMethod]":
        """Who learns."""

    @abstractmethod
    def team(self, acting: "Acting", exploration: "Exploration | None" = None) -> "Team":
        """Who acts, also with ``exploration``."""

    @abstractmethod
    def refining(self, reach: float, price: float) -> None:
        """From now on first actions are refined so far, at this price; values are to be of a team that does so."""

    @abstractmethod
    def met(self, episodes: TrajectoryDataset, seeds: Sequence[int]) -> None:
        """Hears of a round's episodes and their seeds, before it learns."""

    @abstractmethod
    def learn(self, update: int, rng: np.random.Generator) -> dict[str, float]:
        """Takes one step, a function of nothing but ``rng`` and what ``tensors`` gives; returns its losses."""

    @abstractmethod
    def settle(self) -> None:
        """Lets the planner act by what was learned."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name."""

    @abstractmethod
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Takes on what ``tensors`` gave."""

    @abstractmethod
    def parts(self) -> dict[str, nn.Module]:
        """The networks that the planner acts by and that may change."""

    @abstractmethod
    def planners(self) -> dict[str, DiffusionPlanner]:
        """What a run leaves, by the folder in which it is saved."""

    @abstractmethod
    def go_back(self, acting: dict[str, Tensor]) -> None:
        """Starts again from weights that ``acting`` gave: optimisers forget, steps are half as large."""

    def acting(self) -> dict[str, Tensor]:
        """The weights that the planner acts by: what is kept of the best round."""
        return {
            f"{part}.{name}": t.clone() for part, net in self.parts().items() for name, t in net.state_dict().items()
        }

    def act_by(self, acting: dict[str, Tensor]) -> None:
        """Gives the planner weights that ``acting`` gave."""
        for part, network in self.parts().items():
            network.load_state_dict(below(f"{part}.", acting))


def below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
