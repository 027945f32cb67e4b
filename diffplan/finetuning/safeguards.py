"""What keeps fine-tuning from making a planner worse: the best round is kept, a bad one undone, early signs told."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from diffplan.datasets.windows import TrajectoryDataset
from diffplan.evaluation import Interval
from diffplan.models.value import ValueFunction
from diffplan.planners.planner import DiffusionPlanner
from diffplan.planners.question import Question, Sampling
from diffplan.spec import Observations
from diffplan.value_calibration import calibration

LIMITS = {"overestimation": 1.0, "diversity": 0.2, "distance": 1.0}
"""What is a sign of collapse: values this much too high, in spreads of a return; plans this much less diverse than the
pretrained ones; estimates this far from them, in standard deviations of the data."""


class Watch:
    """Keeps the weights of the best evaluated round.

    Args:
        floor: the score below which fine-tuning goes back to the best round; a round is below it when its whole
            interval is.
    """

    def __init__(self, floor: float = -np.inf):
        self.floor, self.best, self.rollbacks = floor, Interval(-np.inf, -np.inf, -np.inf), 0
        self.weights: dict[str, Tensor] = {}

    def judge(self, score: Interval, weights: dict[str, Tensor]) -> bool:
        """Keeps the weights if none scored higher; returns whether to go back to the ones that are kept."""
        if score.value > self.best.value:
            self.best, self.weights = score, weights
            return False
        below = score.high < self.floor
        self.rollbacks += below
        return below


def diversity(planner: DiffusionPlanner, starts: Sequence[Observations], num_samples: int = 8) -> float:
    """How much the planner's candidates differ: mean standard deviation over them, in units of the normaliser."""
    questions = [Question(one, seed=index) for index, one in enumerate(starts)]
    plans = planner.answer(questions, Sampling(num_samples=num_samples))
    cells = np.stack([plan.grid for plan in plans])
    return float(planner.normalizer.normalize(cells, planner.spec.role_index).std(1).mean())


def overestimation(value: ValueFunction, met: TrajectoryDataset, seed: int) -> float:
    """How much more the value function expects from new episodes' starts than they brought, in spreads of a return."""
    found = calibration(value, met, samples=128, start_share=1.0, seed=seed)
    return found.bias / (value.config.reward_scale * met.spec.num_agents)


def signs(row: dict[str, Any]) -> list[str]:
    """Which early signs of collapse a row of metrics shows."""
    high = [name for name in ("overestimation", "distance") if row.get(name, 0.0) > LIMITS[name]]
    return high + (["diversity"] if row["diversity"] < LIMITS["diversity"] else [])
