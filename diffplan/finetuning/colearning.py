"""Every robot its own learner: each has a planner and critics of its own, and learns while the others do."""

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from diffplan.datasets.windows import TrajectoryDataset
from diffplan.finetuning.acting import Acting, Exploration, Team
from diffplan.finetuning.method import Method, below
from diffplan.finetuning.methods import CriticMethod
from diffplan.partners import TeamOfPolicies
from diffplan.planners.planner import DiffusionPlanner


class CoLearners(Method):
    """Several learners as one method: what one of them meets was done by all, each by its own planner.

    Every one plans for the whole team, and executes its own part of that; a safety filter changes what all decided.
    Nothing but episodes is shared, and the seed of the round, by which plans of like planners agree; each draws its own
    batches.

    Args:
        planner: of the first one; the others have copies of it.
        names: of those who learn; they name folders, too.
        begin: makes the learner of a planner.
    """

    def __init__(
        self, planner: DiffusionPlanner, names: Sequence[str], begin: Callable[[DiffusionPlanner], CriticMethod]
    ):
        self.learners = {name: begin(_copy(planner) if place else planner) for place, name in enumerate(names)}
        for name, one in self.learners.items():
            one.commanded = torch.from_numpy(np.isin(planner.spec.names, [name]))
        self.planner, self.on_policy = planner, self.learners[names[0]].on_policy

    @property
    def pace(self) -> float:
        """The same of all learners."""
        return next(iter(self.learners.values())).pace

    @pace.setter
    def pace(self, value: float) -> None:
        for one in self.learners.values():
            one.pace = value

    def team(self, acting: Acting, exploration: Exploration | None = None) -> Team:
        """Everyone by the plan that it makes itself."""
        alone, spec, safety = replace(acting, partners=None, safety=None), self.planner.spec, acting.safety
        filtered = None if safety is None else functools.partial(safety.filter_actions, spec, partners=acting.watched)
        team = TeamOfPolicies({name: one.team(alone, exploration) for name, one in self.learners.items()}, filtered)
        return acting.beside_partners(team, spec)

    def members(self) -> list[CriticMethod]:
        return list(self.learners.values())

    def refining(self, reach: float, price: float) -> None:
        for one in self.learners.values():
            one.refining(reach, price)

    def met(self, episodes: TrajectoryDataset, seeds: Sequence[int]) -> None:
        for one in self.learners.values():
            one.met(episodes, seeds)

    def learn(self, update: int, rng: np.random.Generator) -> dict[str, float]:
        """A step of each; their mean losses."""
        streams = rng.spawn(len(self.learners))
        parts = [one.learn(update, stream) for one, stream in zip(self.learners.values(), streams, strict=True)]
        return {name: float(np.mean([part[name] for part in parts])) for name in parts[0]}

    def settle(self) -> None:
        for one in self.learners.values():
            one.settle()

    def tensors(self) -> dict[str, Tensor]:
        return {f"{name}.{key}": tensor for name, one in self.learners.items() for key, tensor in one.tensors().items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        for name, one in self.learners.items():
            one.load(below(f"{name}.", tensors))

    def parts(self) -> dict[str, nn.Module]:
        return {f"{name}.{part}": net for name, one in self.learners.items() for part, net in one.parts().items()}

    def planners(self) -> dict[str, DiffusionPlanner]:
        return {f"planners/{name}": one.planner for name, one in self.learners.items()}

    def go_back(self, acting: dict[str, Tensor]) -> None:
        for name, one in self.learners.items():
            one.go_back(below(f"{name}.", acting))


def _copy(planner: DiffusionPlanner) -> DiffusionPlanner:
    other = planner.for_agents(planner.spec)
    other.register_modules(**{name: copy.deepcopy(part) for name, part in planner.components.items()})
    return other
