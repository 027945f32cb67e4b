"""Plans moved to where a constraint holds, after sampling: for futures such as means of clusters."""

import dataclasses

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffplan.planners.guides import ConstraintGuide, Estimate
from diffplan.trajectory import Plan

STEPS = 50
NEGLIGIBLE = 1e-7  # of a violation: what a step gains less than


def projected(plan: Plan, constraint: ConstraintGuide) -> Plan:
    """The plan with every candidate moved, no farther than it takes, until it no longer violates a constraint.

    Walks down the violation f by Cauchy's steps, x <- x - (g.g / g.Hg) g with g its gradient and H its curvature, which
    undo a squared shortfall in one step and need no step size. What is observed now stays, and so may what it violates;
    where constraints contradict each other, the last point is taken. ``values`` and ``terms`` stay what they were.

    Args:
        plan: of any agents.
        constraint: with a violation of what is planned, in physical units; twice differentiable, as squares are.

    Raises:
        TypeError: ``constraint`` is none.
        ValueError: the violation is not finite or not differentiable (it may not read ``normalized``), or makes no
            sense for these agents.
    """
    if not isinstance(constraint, ConstraintGuide):
        raise TypeError(f"constraint={constraint!r}; give a ConstraintGuide, e.g. ConstraintGuide.separation(0.3).")
    constraint.requirement(plan.spec)
    parts = [torch.from_numpy(part)[None].clone() for part in (plan.observations, plan.actions)]
    mask = torch.from_numpy(plan.agent_mask)[None]
    unreadable = torch.full((1, *plan.observations.shape[:3], plan.spec.size), torch.nan)
    later = (torch.arange(plan.horizon) > 0)[:, None] & mask[0, :, None, None]
    open_cells = (later, mask[0, :, None, None])  # of observations and of actions: the first action is still to come
    for _ in range(STEPS):
        observations, actions = (part.requires_grad_() for part in parts)
        with torch.enable_grad():
            violation = constraint.violation(Estimate(plan.spec, observations, actions, unreadable, mask))[0]
            if not (violation.requires_grad and torch.isfinite(violation).all()):
                raise ValueError(
                    f"constraint {constraint.name!r} has violation {float(violation.detach().max()):g} of this plan; "
                    "give one that is finite and a differentiable function of positions, observations or actions."
                )
            slopes = [
                slope * free
                for slope, free in zip(_gradients(violation, [observations, actions]), open_cells, strict=True)
            ]
            steepness = _products(slopes, slopes)
            bends = _gradients(steepness / 2, [observations, actions])  # H g
        bends = [bend * free for bend, free in zip(bends, open_cells, strict=True)]
        curvature = _products([slope.detach() for slope in slopes], bends)
        straight = violation / steepness.clamp(min=1e-12)  # where there is no curvature: to where a line reaches 0
        size = torch.where(curvature > 1e-9 * steepness, steepness / curvature.clamp(min=1e-12), straight).detach()
        size = torch.where(size * steepness > NEGLIGIBLE, size, 0.0)
        if not size.any():
            break
        parts = [(part - size[:, None, None, None] * slope).detach() for part, slope in zip(parts, slopes, strict=True)]
    moved = [np.asarray(part.detach()[0]) for part in parts]
    return dataclasses.replace(plan, observations=moved[0], actions=moved[1], chain=None)


def _gradients(value: Float[Tensor, "S"], variables: list[Tensor]) -> list[Float[Tensor, "1 S N H _"]]:
    found = torch.autograd.grad(value.sum(), variables, create_graph=True, allow_unused=True, materialize_grads=True)
    return [gradient.nan_to_num() for gradient in found]


def _products(some: list[Tensor], others: list[Tensor]) -> Float[Tensor, "S"]:
    """Scalar products, candidate by candidate."""
    return torch.stack([(a * b)[0].flatten(1).sum(1) for a, b in zip(some, others, strict=True)]).sum(0)
