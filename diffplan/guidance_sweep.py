"""What guidance costs and gains: its strength against realism, what the guides ask for, success and contacts."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from pettingzoo import ParallelEnv

from diffplan.checks import check_counts
from diffplan.evaluation import Interval, episode_seed, evaluate, mean_interval, opened
from diffplan.planners import DiffusionPlanner, Guide, RecedingHorizonPolicy
from diffplan.planners.ranking import check_ranked, rank, realism


@dataclass(frozen=True)
class GuidancePoint:
    """What one strength does; means with 95 % intervals.

    Args:
        weight: of the guides.
        figures: ``realism`` of first plans (``ranking.realism``), ``guides``: the sum of their log-weights
            at weight 1, and what ``EvaluationReport.summary`` says of the episodes (success, contacts, return, ...).
    """

    weight: float
    figures: dict[str, Interval]


def sweep_guidance(
    planner: DiffusionPlanner,
    env: str | ParallelEnv | Callable[[], ParallelEnv],
    guides: Callable[[float], Sequence[Guide]],
    weights: Sequence[float],
    *,
    num_samples: int = 1,
    episodes: int = 100,
    seed: int = 0,
) -> list[GuidancePoint]:
    """Plans and acts under guides of several weights, from the same starts.

    Args:
        planner: for the environment's agents.
        env: as in ``evaluate``.
        guides: weight -> guides.
        weights: strengths to try; 0 shows the unguided planner.
        num_samples: candidates a plan; the best by the guides is looked at and executed.
        episodes: how many, for each weight; as many first plans are looked at.
        seed: of starts and noise.

    Raises:
        ValueError: as ``DiffusionPlanner.__call__`` and ``evaluate``; one candidate and guides that only rank.
    """
    check_counts(seed, episodes=episodes)
    asked, tried = guides(1.0), {weight: guides(weight) for weight in weights}
    for guide in itertools.chain(*tried.values()):
        guide.check(planner.spec, planner.normalizer, planner.horizon)
    check_ranked(asked, num_samples)
    with opened(env, 1) as (first,):
        starts = [first.reset(seed=episode_seed(seed, index))[0] for index in range(episodes)]
    points = []
    for weight, chosen in tried.items():
        plans = [planner(one, guides=chosen, num_samples=num_samples, seed=i).best() for i, one in enumerate(starts)]
        figures = {
            "realism": mean_interval([[float(realism(planner, plan)[0]) for plan in plans]]),
            "guides": mean_interval([[float(np.sum(list(rank(planner, plan, asked).values()))) for plan in plans]]),
        }
        policy = RecedingHorizonPolicy(planner, num_samples=num_samples, guides=chosen)
        points.append(GuidancePoint(weight, figures | evaluate(policy, env, episodes=episodes, seed=seed).summary()))
    return points
