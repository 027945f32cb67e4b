"""Plans moved to where a constraint holds, after sampling: for futures such as means of clusters."""

import dataclasses

import numpy as np
import torch

from diffplan.planners.guides import ConstraintGuide, Estimate
from diffplan.trajectory import Plan

STEPS = 50
NEGLIGIBLE = 1e-6  # of a violation


def projected(plan: Plan, constraint: ConstraintGuide) -> Plan:
    """The plan with every candidate moved, no farther than it takes, until it no longer violates a constraint.

    Walks down the violation by Polyak's step for a quadratic of least value 0, x <- x - 2 f(x) grad f / |grad f|^2,
    which undoes a single violation in one step and needs no step size. What is now stays. Where constraints contradict
    each other, the last point is taken: nothing promises that it holds.

    Args:
        plan: of any agents.
        constraint: with a violation of what is planned, in physical units.

    Raises:
        ValueError: the violation is not finite or not differentiable (it may not read ``normalized``), or makes no
            sense for these agents.
    """
    constraint.requirement(plan.spec)
    parts = [torch.from_numpy(part)[None].clone() for part in (plan.observations, plan.actions)]
    mask = torch.from_numpy(plan.agent_mask)[None]
    unreadable = torch.full((1, *plan.observations.shape[:3], plan.spec.size), torch.nan)
    later = (torch.arange(plan.horizon) > 0)[:, None] & mask[0, :, None, None]
    for _ in range(STEPS):
        with torch.enable_grad():
            variables = [part.requires_grad_() for part in parts]
            violation = constraint.violation(Estimate(plan.spec, variables[0], variables[1], unreadable, mask))[0]
            if not (violation.requires_grad and torch.isfinite(violation).all()):
                raise ValueError(
                    f"constraint {constraint.name!r} has violation {float(violation.detach().max()):g} of this plan; "
                    "give one that is finite and a differentiable function of positions, observations or actions."
                )
            gradients = torch.autograd.grad(violation.sum(), variables, allow_unused=True, materialize_grads=True)
        slopes = [gradient.nan_to_num() * later for gradient in gradients]
        steep = sum((slope.square().flatten(2).sum(2)[0] for slope in slopes), torch.zeros_like(violation))
        size = torch.where(violation > NEGLIGIBLE, 2 * violation / steep.clamp(min=1e-12), 0.0).detach()
        if not size.any():
            break
        parts = [(part - size[:, None, None, None] * slope).detach() for part, slope in zip(parts, slopes, strict=True)]
    observations, actions = (np.asarray(part.detach()[0]) for part in parts)
    return dataclasses.replace(plan, observations=observations, actions=actions)
