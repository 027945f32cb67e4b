"""How far the data leave actions open, as a planner learned it: critics cannot judge what nobody did.

Critics of an expert's data know no failure, and lean somewhere all the same. So what they ask for counts in proportion
to the variance of what the prior itself would do next: fully from a standard deviation of ``OPEN`` on, and not at all
where the prior always does the same.
"""

import math
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from diffplan.datasets.normalizer import Normalizer
from diffplan.planners.question import Question, Sampling
from diffplan.trajectory import Plan

if TYPE_CHECKING:
    from diffplan.datasets.windows import TrajectoryDataset
    from diffplan.planners.planner import DiffusionPlanner

OPEN = 0.25
"""Spread of next actions, see ``action_spread``, from which on learned guides move plans with their whole weight.

It is 0.04 to 0.16 where experts were recorded, where mediocre ones were 0.07 (crossing), 0.26 (transport) and 0.63
(simple_spread). Without this, value guides took 22 of transport's 91 points from experts' plans.
"""

PRESENTS, CANDIDATES = 64, 8
TOGETHER = 8  # presents that are asked for at once: large crowds need memory


def openness(spread: float | None) -> float:
    """How much of its weight a learned guide has, 0 to 1; all of it where nobody knows the spread."""
    return 1.0 if spread is None else min(1.0, spread / OPEN) ** 2


def checked_spread(spread: float | None) -> float | None:
    """The same, as a float. Raises ``ValueError`` for what no spread can be."""
    if spread is not None and not 0 <= spread < float("inf"):
        raise ValueError(f"action_spread={spread}; give a number of standard deviations, 0 or more, or None.")
    return None if spread is None else float(spread)


def first_action_spread(plan: Plan, normalizer: Normalizer) -> Float[np.ndarray, "N A"]:
    """Standard deviation of every entry of the next actions among a plan's candidates, in the data's."""
    spec = plan.spec
    cells = normalizer.normalize(plan.grid[:, :, :1], spec.role_index)
    return np.asarray(cells[:, :, 0, spec.observation_size :].std(0))


def action_spread(planner: "DiffusionPlanner", dataset: "TrajectoryDataset", seed: int = 0) -> float | None:
    """How much the next actions of a planner's candidates differ, on average over presents of a dataset.

    In standard deviations of the data's actions; None for agents that do not act, and for plans that are not finite.
    """
    planner = planner.for_agents(dataset.spec)  # of the same roles, perhaps more of them, in another order
    spec, O = planner.spec, dataset.spec.observation_size
    windows = dataset.batch(dataset.draw(PRESENTS, np.random.default_rng(seed)))
    inhabited = windows.agent_mask.any(1)
    cells = planner.normalizer.unnormalize(windows.cells[inhabited], spec.role_index)
    there = np.asarray(windows.mask[inhabited].any(-1))
    acting = windows.mask[inhabited, :, dataset.history, O:]
    if not acting.any():
        return None
    questions: list[Question] = []
    for grid, mask in zip(cells, there, strict=True):
        seen = [spec.unstack_observations(grid[:, t, :O], mask[:, t]) for t in range(dataset.history + 1)]
        done = [spec.unstack_actions(grid[:, t, O:], mask[:, t]) for t in range(dataset.history)]
        questions.append(Question(seen[-1], list(zip(seen, done, strict=False)), seed=len(questions)))
    batches = (questions[first : first + TOGETHER] for first in range(0, len(questions), TOGETHER))
    plans = [plan for batch in batches for plan in planner.answer(batch, Sampling(CANDIDATES))]
    normalizer = planner.normalizer
    if normalizer.config.kind not in ("gaussian", "motion"):  # the others' units are no standard deviations
        normalizer = Normalizer.fit(dataset.store, "gaussian", dataset.episodes)
    spreads = np.stack([first_action_spread(plan, normalizer) for plan in plans])
    spread = float(spreads[acting].mean())
    return spread if math.isfinite(spread) else None
