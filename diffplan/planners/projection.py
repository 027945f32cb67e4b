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

    Walks down the violation f by conjugate gradients (Polak and Ribiere, 1969), x <- x - (g.d / d.Hd) d with d the
    direction, g the gradient of f and H its curvature: that undoes a squared shortfall in one step and needs no step
    size. Only what the rule reads is moved: one on positions leaves actions as they are. What is observed now stays,
    and so may what it violates; where constraints contradict each other, or 50 steps do not suffice, the last point is
    taken. ``values`` and ``terms`` stay what they were.

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
    width = plan.spec.observation_size
    cells = torch.from_numpy(plan.grid)[None]
    mask = torch.from_numpy(plan.agent_mask)[None]
    unreadable = torch.full_like(cells, torch.nan)
    movable = mask[0, :, None, None].repeat(1, *cells.shape[-2:])
    movable[:, 0, :width] = False  # is observed now; the first action is still to come

    def uphill(value: Tensor) -> Float[Tensor, "1 S N H D"]:
        (gradient,) = torch.autograd.grad(
            value.sum(), cells, create_graph=True, allow_unused=True, materialize_grads=True
        )
        return gradient.nan_to_num() * movable

    direction = before = torch.zeros_like(cells)
    for _ in range(STEPS):
        cells.requires_grad_()
        with torch.enable_grad():
            violation = constraint.violation(
                Estimate(plan.spec, cells[..., :width], cells[..., width:], unreadable, mask)
            )[0]
            if not (violation.requires_grad and torch.isfinite(violation).all()):
                raise ValueError(
                    f"constraint {constraint.name!r} has violation {float(violation.detach().max()):g} of this plan; "
                    "give one that is finite and a differentiable function of positions, observations or actions."
                )
            slope = uphill(violation)
            here = slope.detach()
            kept = (_product(here, here - before) / _product(before, before).clamp(min=1e-12)).clamp(min=0)
            direction = here + kept[:, None, None, None] * direction
            direction = torch.where((_product(here, direction) > 0)[:, None, None, None], direction, here)
            bend = uphill(_product(slope, direction))  # H d
        steepness, curvature = _product(here, direction), _product(direction, bend)
        straight = violation / steepness.clamp(min=1e-12)  # where there is no curvature: to where a line reaches 0
        curved = curvature > 1e-9 * _product(direction, direction)
        size = torch.where(curved, steepness / curvature.clamp(min=1e-12), straight).detach()
        size = torch.where(size * steepness > NEGLIGIBLE, size, 0.0)
        if not size.any():
            break
        cells, before = (cells - size[:, None, None, None] * direction).detach(), here
    moved = np.asarray(cells.detach()[0])
    return dataclasses.replace(plan, observations=moved[..., :width], actions=moved[..., width:], chain=None)


def _product(some: Float[Tensor, "1 S N H D"], others: Float[Tensor, "1 S N H D"]) -> Float[Tensor, "S"]:
    """Scalar products, candidate by candidate."""
    return (some * others)[0].flatten(1).sum(1)
