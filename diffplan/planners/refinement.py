"""First-action refinement: a critic moves what is executed next uphill, within reach of what the plan proposed.

Planners imitate; where the dynamics are fast (locomotion) a value-trained step beats them. As in diffusion Q-learning
(arXiv 2208.06193) the critic has the last word on the action, here by gradient ascent at plan time, in a trust region:
as wide as the plan's candidates differ, for what nobody did in the data critics cannot judge.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from diffplan.datasets.normalizer import Normalizer
from diffplan.models.value import ValueFunction, uphill
from diffplan.planners.action_spread import first_action_spread
from diffplan.spec import JointSpec
from diffplan.trajectory import Plan

STEPS = 5
PRICE = 0.1
"""What moving an agent's action by a length of one must gain, as a share of the returns' spread; in the network's
units, so one standard deviation of one entry. It decides who starts to move, and takes back most of what overshoots.

Where no action matters, critics still lean somewhere, and a team that follows them leaves the data step by step. Those
of medium data lean by 0.43 in simple_spread (the twins' directions have a cosine of 0.93) and by 0.035 in crossing
(0.19), where a reach of 1 without a price took success from 0.97 to 0, and with it to 1.
"""

CANDIDATES = 8
"""Of a plan whose first actions are refined, unless told otherwise; actions move as far as these differ."""

WHOLE_REACH = 0.5
"""Standard deviation of an action among the candidates, in the data's, from which on all of the reach is open to it.
Below, the reach shrinks with the variance, to nothing where all candidates do the same.

Critics of an expert's data know no failure. Without this, refined actions took crossing's success from 0.99 to 0.09,
transport's from 0.88 to 0, and simple_spread by four points; with it to 0.89, 0.69 and by two. There candidates differ
by 0.04, 0.07 and 0.22; on medium data of simple_spread by 0.46, where refined actions win as much with it as without.
"""

AGREEMENT = 0.8
"""Cosine of the twin critics' gradients below which an agent's action stays: where all data do the same, critics cannot
know what other actions would be worth, and each makes up its own mind.

In simple_spread the cosine is 0.87 on data of all skills, 0.43 on the expert's. There refinement took 78 points to 62,
and takes them to 76; from medium, mixed and random data it wins as much as without (90, 60, 70 points before, 91, 58,
69 after).
"""


def refine_first_actions(
    plans: Sequence[Plan],
    value_function: ValueFunction,
    normalizer: Normalizer,
    radius: float,
    price: float,
    partners: Sequence[str] = (),
) -> list[Plan]:
    """Plans (all of the same agents) whose best candidate's first joint action has a higher value.

    Ascends min Q(o_0, a_0), the team's, within the actions' bounds; no agent's action moves farther than ``radius``, in
    the normaliser's units, standard deviations of the data's actions for a Gaussian one (root mean square over its
    entries), less where the candidates differ little (see ``WHOLE_REACH``; of a plan with one candidate nothing moves),
    nor where a unit gains less than ``price`` of the returns' spread (see ``PRICE``), nor where the twin critics
    disagree (see ``AGREEMENT``). ``partners`` do as they are foreseen.
    """
    spec, O = plans[0].spec, plans[0].spec.observation_size
    cells = np.concatenate([plan.best().grid[:, :, :1] for plan in plans])  # [B, N, 1, D]
    spreads = np.stack([first_action_spread(plan, normalizer) for plan in plans])
    limits = radius * np.minimum(1, (spreads / WHOLE_REACH) ** 2) * spec.feature_mask[:, O:]
    limits[:, np.isin(spec.names, partners)] = 0
    normalized = normalizer.normalize(cells, spec.role_index)[:, :, 0]
    observations, actions, mask, roles, reach, bounds = (
        torch.from_numpy(array).to(value_function.device)
        for array in (
            normalized[..., :O],
            normalized[..., O:],
            np.stack([plan.agent_mask for plan in plans]),
            spec.role_index,
            limits,
            normalized_bounds(spec, normalizer),
        )
    )
    question = observations, actions, roles, mask
    better = uphill(value_function.critics, *question, reach, bounds, STEPS, price, AGREEMENT)
    cells[:, :, 0] = torch.cat((observations, better), dim=-1).cpu().numpy()
    refined = normalizer.unnormalize(cells, spec.role_index)[:, :, 0, O:]
    return [with_first_actions(plan, first) for plan, first in zip(plans, refined, strict=True)]


def check_candidates(num_samples: int, refine: float | None) -> None:
    """Raises ``ValueError`` where first actions shall be refined of plans whose candidates cannot differ."""
    if refine and num_samples == 1:
        raise ValueError(
            f"refine={refine} moves actions as far as candidates differ, and num_samples=1 leaves one; ask for "
            f"{CANDIDATES}, say."
        )


def normalized_bounds(spec: JointSpec, normalizer: Normalizer) -> Float[np.ndarray, "2 N A"]:
    """The least and the largest action of every agent, in the network's units."""
    O = spec.observation_size
    bounds = np.concatenate((np.zeros((2, spec.num_agents, O), np.float32), spec.action_bounds), axis=-1)
    return normalizer.normalize(bounds[:, :, None], spec.role_index)[:, :, 0, O:]


def with_first_actions(plan: Plan, first: Float[np.ndarray, "N A"]) -> Plan:
    """The plan with other first actions in its best candidate."""
    actions = plan.actions.copy()
    actions[plan.best_index, :, 0] = first * plan.agent_mask[:, None]
    return dataclasses.replace(plan, actions=actions)
