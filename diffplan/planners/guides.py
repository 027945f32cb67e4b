"""Guides: what makes one joint plan better than another, as log-weights on denoised plans in physical units.

A guide turns the prior p(plan) that the network learned into p(plan) exp(log_weight(plan)); several guides add. It
only says how good a plan is. Gradients, noise levels and units are the planner's business (``guidance.py``).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffplan.datasets.normalizer import Normalizer
from diffplan.models.value import ValueFunction
from diffplan.planners.components import check_value
from diffplan.spec import JointSpec

ALWAYS = (0.0, 1.0)
FARTHEST = 6.0  # normalised units from the data's centre within which a goal makes sense


@dataclass(frozen=True)
class Estimate:
    """What guides see: the plans of B questions, S candidates each, as the planner estimates them at this moment.

    Args:
        spec: the agents.
        observations: planned observations, physical units; step 0 is the present.
        actions: planned actions, physical units.
        normalized: the same cells in the network's units, for guides that are networks.
        agent_mask: who is present; cells of absent agents hold 0 and should not count.
    """

    spec: JointSpec
    observations: Float[Tensor, "B S N H O"]
    actions: Float[Tensor, "B S N H A"]
    normalized: Float[Tensor, "B S N H D"]
    agent_mask: Bool[Tensor, "B N"]

    @cached_property
    def positions(self) -> Float[Tensor, "B S N H P"]:
        """Where the agents are planned to be (m). Raises ``ValueError`` when they have no positions of one width."""
        index = _position_index(self.spec).to(self.observations.device)
        return self.observations.take_along_dim(index[None, None, :, None], dim=-1)

    def among(self, agents: Sequence[str]) -> "Estimate":
        """The same plans of some of the agents alone."""
        spec, index = self.spec.among(agents), [self.spec.names.index(name) for name in agents]
        observations, actions = self.observations[:, :, index], self.actions[:, :, index]
        return Estimate(spec, observations, actions, self.normalized[:, :, index], self.agent_mask[:, index])

    def per_agent(self, values: Float[Tensor, "B S N"]) -> Float[Tensor, "B S"]:
        """Sums one number an agent over the agents that are present."""
        return (values * self.agent_mask[:, None]).sum(-1)


class Guide(ABC):
    """A log-weight on plans. Subclass it, or give ``ConstraintGuide`` a function.

    Attributes that a subclass may set:
        name: of its term in ``Plan.terms``.
        weight: how strongly it counts.
        levels: (lowest, highest) noise level at which it moves the plan; ``None``: it only ranks the candidates.
        steady: whether its curvature, once measured, counts for a plan's other noise levels, too. Measuring takes a
            gradient: false where that is cheap, or where the curvature comes and goes, as that of a violation does.
        learned: whether it knows only what the data show: where these leave actions little open (a planner's
            ``action_spread``), it moves plans, and draws particles (``resample``), with less than its weight.
    """

    name: str = "guide"
    weight: float = 1.0
    levels: tuple[float, float] | None = ALWAYS
    steady: bool = False
    learned: bool = False

    @abstractmethod
    def log_weight(self, estimate: Estimate) -> Float[Tensor, "B S"]:
        """How good every candidate is, differentiable in the estimate, before ``weight``."""

    def check(self, spec: JointSpec, normalizer: Normalizer, horizon: int) -> None:
        """Raises ``ValueError`` when the guide makes no sense for these agents; called before anything is sampled."""
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"guide {self.name!r} has weight={self.weight}; give a finite number, 0 or more.")
        if self.levels is not None and not 0 <= self.levels[0] <= self.levels[1] <= 1:
            raise ValueError(
                f"guide {self.name!r} has levels={self.levels}; give (lowest, highest) within (0, 1), or None to rank."
            )


def _anything(spec: JointSpec) -> None:
    """What a constraint asks of the agents that it is for, if nothing is said."""


@dataclass
class ConstraintGuide(Guide):
    """Keeps plans where a violation is 0: log-weight = - violation(estimate).

    Args:
        violation: how much every candidate breaks the rule, 0 where it does not; any differentiable function.
        weight: nats a unit of violation.
        levels: noise levels at which it moves the plan; ``None``: it only ranks.
        name: of its term in ``Plan.terms``.
        requirement: raises ``ValueError`` for agents of which the violation makes no sense.

    Example:
        ``ConstraintGuide(lambda plan: plan.actions.square().sum((2, 3, 4)), weight=0.1, name="effort")``
    """

    violation: Callable[[Estimate], Tensor]
    weight: float = 1.0
    levels: tuple[float, float] | None = ALWAYS
    name: str = "constraint"
    requirement: Callable[[JointSpec], object] = field(default=_anything, repr=False, compare=False)

    def among(self, agents: Sequence[str]) -> "ConstraintGuide":
        """The same rule for some of the agents alone, e.g. ``ConstraintGuide.separation(0.3).among(["left", "right"])``
        in a team in which others' positions have more entries, or fewer.

        Raises ``ValueError`` for no list of names; once it is used, for agents that the plan lacks.
        """
        if isinstance(agents, str) or not (agents := [*dict.fromkeys(agents)]):
            raise ValueError(f"among={agents!r}; give a list of the names of those who shall obey.")
        return replace(
            self,
            violation=lambda estimate: self.violation(estimate.among(agents)),
            requirement=lambda spec: self.requirement(spec.among(agents)),
        )

    def log_weight(self, estimate: Estimate) -> Tensor:
        return -self.violation(estimate)

    def check(self, spec: JointSpec, normalizer: Normalizer, horizon: int) -> None:
        super().check(spec, normalizer, horizon)
        self.requirement(spec)

    @classmethod
    def separation(
        cls,
        distance: float,
        weight: float = 1.0,
        levels: tuple[float, float] | None = ALWAYS,
        between_steps: bool = False,
    ) -> "ConstraintGuide":
        """Keeps every two agents ``distance`` (m) apart: squared shortfalls in units of ``distance``, over all steps.

        With ``between_steps`` also on the straight way from each step to the next: for agents that move farther than
        ``distance`` in a step, who pass through each other unnoticed otherwise.

        Raises ``ValueError`` for a distance that is not positive.
        """
        _positive(distance=distance)

        def violation(estimate: Estimate) -> Tensor:
            gaps, there = _gaps(estimate, distance, between_steps)
            return ((1 - gaps / distance).relu().square() * there[:, None, :, None]).sum((2, 3))

        return cls(violation, weight, levels, "separation", _position_index)

    @classmethod
    def clearance(
        cls, margin: float, weight: float = 1.0, levels: tuple[float, float] | None = ALWAYS
    ) -> "ConstraintGuide":
        """Keeps every agent's body ``margin`` (m) from the round obstacles that it sees: squared shortfalls in units of
        ``margin``, over all obstacles and steps. Roles must say where obstacles are observed (``Role.obstacles``).

        Raises ``ValueError`` for a margin that is not positive.
        """
        _positive(margin=margin)

        def violation(estimate: Estimate) -> Tensor:
            totals = []
            for index, name in enumerate(estimate.spec.names):
                role, seen = estimate.spec.role_of(name), estimate.observations[:, :, index]
                discs = seen[..., list(role.obstacles)].reshape(*seen.shape[:-1], -1, 3)  # x, y, radius
                discs = discs.detach()  # agents make way, not what is foreseen of obstacles
                gaps = _length(seen[..., None, list(role.position)] - discs[..., :2]) - discs[..., 2] - role.radius
                totals.append((1 - gaps / margin).relu().square().sum((2, 3)))
            return estimate.per_agent(torch.stack(totals, dim=-1))

        return cls(violation, weight, levels, "clearance", _check_obstacles)

    @classmethod
    def workspace(
        cls,
        low: Sequence[float],
        high: Sequence[float],
        weight: float = 1.0,
        levels: tuple[float, float] | None = ALWAYS,
    ) -> "ConstraintGuide":
        """Keeps every agent's position inside a box (m): squared distances to it, over all steps.

        Weights of 100 to 1,000 suit boxes of a metre; far more of it tears plans.

        Raises ``ValueError`` when ``low`` is not below ``high``.
        """
        if len(low) != len(high) or any(not a < b for a, b in zip(low, high, strict=True)):
            raise ValueError(f"low={tuple(low)} must lie below high={tuple(high)} in every entry; swap or widen them.")

        def violation(estimate: Estimate) -> Tensor:
            least, most = (estimate.positions.new_tensor(side) for side in (low, high))
            outside = (least - estimate.positions).relu() + (estimate.positions - most).relu()
            return estimate.per_agent(outside.square().sum((3, 4)))

        return cls(violation, weight, levels, "workspace", lambda spec: _check_width(spec, len(low)))

    @classmethod
    def speed(cls, limit: float, weight: float = 1.0, levels: tuple[float, float] | None = ALWAYS) -> "ConstraintGuide":
        """Speed (m/s) between planned steps: squared excess in units of ``limit``.

        It ranks candidates, and ``projected`` moves plans until they keep it. Guiding slows plans down little, for what
        changes one step's speed changes its neighbours' (in ``transport-v0`` not at all, at weights of 1 to 100).

        Raises ``ValueError`` for a limit that is not positive.
        """
        _positive(limit=limit)

        def violation(estimate: Estimate) -> Tensor:
            speeds = _length(estimate.positions.diff(dim=3)) / estimate.spec.dt
            return estimate.per_agent((speeds / limit - 1).relu().square().sum(3))

        return cls(violation, weight, levels, "speed", _position_index)


@dataclass
class GoalGuide(Guide):
    """Draws agents to positions: log-weight = - sum |position - goal|^2 / (2 tolerance^2).

    Args:
        goals: {agent: position (m)}.
        step: planned step at which they should be there; -1 is the last one.
        tolerance: standard deviation around the goal (m).
        weight: as in ``Guide``.
        levels: as in ``Guide``.
        name: of its term in ``Plan.terms``.
    """

    goals: Mapping[str, Sequence[float]]
    step: int = -1
    tolerance: float = 0.1
    weight: float = 1.0
    levels: tuple[float, float] | None = ALWAYS
    name: str = "goal"

    def log_weight(self, estimate: Estimate) -> Float[Tensor, "B S"]:
        errors = []
        for name, goal in self.goals.items():
            agent, entries = estimate.spec.names.index(name), list(estimate.spec.role_of(name).position)
            place = estimate.observations[:, :, agent, self.step][..., entries]
            error = (place - place.new_tensor(np.array(goal))).square().sum(2)
            errors.append(error * estimate.agent_mask[:, None, agent])
        return -torch.stack(errors).sum(0) / (2 * self.tolerance**2)

    def check(self, spec: JointSpec, normalizer: Normalizer, horizon: int) -> None:
        super().check(spec, normalizer, horizon)
        _positive(tolerance=self.tolerance)
        unknown = [name for name in self.goals if name not in spec.agents]
        if unknown or not self.goals:
            raise ValueError(f"goals are for agents {list(self.goals)}; the plan has {list(spec.agents)}.")
        widths = {name: len(spec.role_of(name).position) for name in self.goals}
        if lost := [name for name, width in widths.items() if not width]:
            raise ValueError(f"agents {lost} have no position to go by; set Role.position, or leave their goals out.")
        wrong = {name: goal for name, goal in self.goals.items() if np.shape(goal) != (widths[name],)}
        if wrong:
            raise ValueError(f"goals {wrong} are not positions (m), which have so many numbers: {widths}.")
        if not -horizon <= self.step < horizon:
            raise ValueError(f"step={self.step} is outside the plan of {horizon} steps.")
        if normalizer.config.kind == "motion":
            return  # its scale is not the size of what the data cover, and agents in their own frames may be anywhere
        for name, goal in self.goals.items():
            role, entries = list(spec.roles).index(spec.agents[name]), list(spec.role_of(name).position)
            center, scale = (np.array(normalizer.config[key])[role, entries] for key in ("center", "scale"))
            if (np.abs(goal - center) > FARTHEST * scale).any():
                low, high = (center - FARTHEST * scale).round(2), (center + FARTHEST * scale).round(2)
                raise ValueError(
                    f"the goal {tuple(goal)} of {name!r} lies outside of what the data cover, {low.tolist()} to "
                    f"{high.tolist()}; choose a goal inside, or train on data that go there."
                )


@dataclass
class ValueGuide(Guide):
    """Prefers plans of high value: log-weight = the planned return by a value function, in units of its returns.

    Args:
        value_function: trained by ``train_value`` for the planner's agents and normaliser.
        agent: count only this agent's own return; the team's (the sum) if None.
        weight: as in ``Guide``: 1 makes one unit of the value function's scaled return worth one nat.
        levels: as in ``Guide``; at higher ones the estimate says little about where the plan will go, and values cost.
        looks: from how many of its steps a plan is looked at, see ``ValueFunction.plan_values``; None: from 8 by a
            guide that only ranks, from 4 by one that moves plans, which looks at them at every step of denoising.
        name: of its term in ``Plan.terms``.
    """

    steady = learned = True

    value_function: ValueFunction
    agent: str | None = None
    weight: float = 1.0
    levels: tuple[float, float] | None = (0.0, 0.75)
    looks: int | None = None
    name: str = "value"

    def __post_init__(self) -> None:
        if self.value_function is None:
            raise ValueError("a ValueGuide needs a value function; train one with train_value (--value-steps).")

    def log_weight(self, estimate: Estimate) -> Float[Tensor, "B S"]:
        B, S = estimate.normalized.shape[:2]
        O = estimate.spec.observation_size
        cells = estimate.normalized.flatten(0, 1).to(self.value_function.device)
        roles = torch.from_numpy(estimate.spec.role_index).to(cells.device)
        mask = estimate.agent_mask.repeat_interleave(S, 0).to(cells.device)
        looks = self.looks or (8 if self.levels is None else 4)
        values = self.value_function.plan_values(cells[..., :O], cells[..., O:], roles, mask, looks)
        values = values.reshape(B, S, -1).to(estimate.normalized.device) / self.value_function.config.reward_scale
        if self.agent is not None:
            return values[..., estimate.spec.names.index(self.agent)]
        return estimate.per_agent(values)

    def check(self, spec: JointSpec, normalizer: Normalizer, horizon: int) -> None:
        super().check(spec, normalizer, horizon)
        if self.looks is not None and self.looks < 1:
            raise ValueError(f"looks={self.looks}; look from at least one step.")
        check_value(self.value_function, spec)
        if self.agent is not None and self.agent not in spec.agents:
            raise ValueError(f"agent={self.agent!r} is not in the plan; it has {list(spec.agents)}.")


def _positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not 0 < number < float("inf"):
            raise ValueError(f"{name}={number}; it must be a positive number.")


def _position_index(spec: JointSpec) -> Int[Tensor, "N P"]:
    """Which observation entries are each agent's position."""
    rows = [spec.role_of(name).position for name in spec.names]
    if not rows[0] or len({len(row) for row in rows}) > 1:
        widths = {name: len(row) for name, row in zip(spec.names, rows, strict=True)}
        raise ValueError(
            f"positions have {widths} entries; this guide needs as many of all agents: set Role.position, or choose "
            "some by guide.among([names])."
        )
    return torch.tensor(rows)


def _check_width(spec: JointSpec, width: int) -> None:
    got = _position_index(spec).shape[1]
    if got != width:
        raise ValueError(f"low and high have {width} entries, positions {got}; give as many.")


def _check_obstacles(spec: JointSpec) -> None:
    roles = {name: spec.roles[name] for name in spec.agents.values()}
    if blind := [name for name, role in roles.items() if not role.obstacles or len(role.position) != 2]:
        raise ValueError(
            f"roles {blind} do not say where a planar position and round obstacles are observed, so there is nothing "
            "to keep clear of; set Role.position and Role.obstacles."
        )


def _gaps(
    estimate: Estimate, within: float, between_steps: bool
) -> tuple[Float[Tensor, "B S pairs T"], Bool[Tensor, "B pairs"]]:
    """Distances between two agents (m), at each step or on the way to the next, and whether both are present.

    Of pairs that come closer than ``within`` in any plan (or are not finite): in a crowd few do, and gradients of all
    would cost most.
    """
    pairs = torch.triu_indices(estimate.spec.num_agents, estimate.spec.num_agents, 1, device=estimate.positions.device)
    with torch.no_grad():
        far = _apart(estimate.positions, pairs, between_steps) >= within
        pairs = pairs[:, ~far.all(3).all(1).all(0)]
    return _apart(estimate.positions, pairs, between_steps), estimate.agent_mask[:, pairs].all(1)


def _apart(
    positions: Float[Tensor, "B S N H P"], pairs: Int[Tensor, "two pairs"], between_steps: bool
) -> Float[Tensor, "B S pairs T"]:
    apart = positions.index_select(2, pairs[0]) - positions.index_select(2, pairs[1])
    if between_steps:
        start, move = apart[..., :-1, :], apart.diff(dim=-2)
        nearest = -(start * move).sum(-1) / move.square().sum(-1).clamp(min=1e-9)
        apart = start + nearest.clamp(0, 1)[..., None] * move
    return _length(apart)


def _length(vectors: Tensor) -> Tensor:
    """Euclidean length over the last axis, with a finite gradient at 0."""
    return (vectors.square().sum(-1) + 1e-12).sqrt()
